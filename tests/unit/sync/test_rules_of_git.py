"""What rules leave out is what git leaves out."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorkeep.errors import BadUsage
from mirrorkeep.sync.rules import make_rules
from mirrorkeep.tree.walk import Siblings, walk

FILES = (
    *("a/x.iso", "a/y.txt", "a/b/x.iso", "a/b/y.txt", "a/b/c/z", "b/a/y.txt", "b/x", "c/[x]", "c/a-b"),
    *("c/]", "f", "x", "1", "7up", "_", "foobar", "foox/y/bar", "foo/bar", "ab/cd/ef/gh", "top.txt"),
    *("#hash", "!bang", "blank ", "two  ", "in side", "tab\t", "back\\slash", "star*", "what?", "Upper"),
    *("é.txt", "a.b.c", "-", "^"),
)
RULES = (
    *("a/**\n!a/y.txt", "*\n!*/\n!*.txt", "a/**/", "[[:alpha:]]", "a/*\n!a/b", "a/\n!a/y.txt", "a\n!a/b/"),
    *("/a", "/a/", "/x", "a/b", "a/b/", "**/y.txt", "**/b/", "b/**/y.txt", "a/**/y.txt", "a/**/*", "**"),
    *("/**", "/*\n!/a", "/*\n!/a/\n/a/*\n!/a/b", "*/x", "*/*/x.iso", "/", "//", "a//", "//a", "/**/"),
    *("**/", "***/x", "x/", "y.txt/", "*.txt\n!top.txt", "!x\nx", "x\n!x\nx", "x\n!x"),
    *("*\n!a\n!a/b\n!a/b/y.txt", r"\!bang", r"\#hash", "#hash", "!bang", "blank ", r"blank\ ", "blank"),
    *(r"two\ \ ", r"two \ ", "two ", " ", "in side", "tab\t", "tab", r"back\\slash", r"star\*", "star*"),
    *(r"what\?", "what?", r"\x", r"a\/b", r"**\/x", "[a-z]", "[!a]", "[^a]", "[[:digit:]]", "[[:digit:]]*"),
    *("[[:upper:]]*", "[![:alnum:]]*", "[a-fx]", "[z-a]", "c/[[]x[]]", r"c/\[x\]", "c/[]]", "c/a[+--]b"),
    *("c/a[a-]b", "c/a[]-]b", "[]-]", r"[\^]", "[^]-]", "[[:x]", "[[:space:]]*", "*[[:punct:]]*", "a?b"),
    *("?", "??????", "é.txt", "?.txt", "??.txt", "[!x].txt", "a[/]b", "foo**/bar", "f?o**/bar", "foo**bar"),
    *("**bar", "foo*/bar", "foo/**bar", "a**/y.txt", "*a/b", "ab/**/gh", "x\r\n1", "*.*.*", "*b*"),
    *("**/**/x", "a/**/**/z", "/**/x", "foo**", "UPPER", "!*", "*\n!/**/y.txt", "a/*/c"),
)


@pytest.mark.engine("git")
@pytest.mark.parametrize("rules", RULES)
def test_rules_leave_out_what_git_leaves_out(git_tree: Path, rules: str) -> None:
    assert kept(git_tree, rules) == kept_by_git(git_tree, rules)


_pieces = st.sampled_from(
    [
        "a",
        "b",
        "x",
        "y.txt",
        "*",
        "**",
        "?",
        "/",
        "/",
        "!",
        "[a-c]",
        "[!a]",
        "[[:alpha:]]",
        "\\a",
        " ",
        ".",
        "f",
    ]
)
_lines = st.tuples(
    st.sampled_from(["", "", "!", "/"]), st.lists(_pieces, min_size=1, max_size=6).map("".join)
)


@pytest.mark.engine("git")
@settings(max_examples=60)
@given(st.lists(_lines.map("".join), min_size=1, max_size=5).map("\n".join))
def test_any_rules_leave_out_what_git_leaves_out(git_tree: Path, rules: str) -> None:
    try:
        ours = kept(git_tree, rules)
    except BadUsage:  # what never matches anything is refused here, and passed over by git
        return
    assert ours == kept_by_git(git_tree, rules)


@pytest.mark.parametrize("pattern", ["!", "[a", "[[:alfa:]]", "x\\", "[a\\", "[!"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(BadUsage):
        make_rules([pattern], [], caches=False)


@pytest.fixture(scope="module")
def git_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("git") / "tree"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    subprocess.run(["git", "init", "-q", f"--separate-git-dir={root.parent / 'git'}", root], check=True)
    return root


def kept_by_git(root: Path, rules: str) -> set[bytes]:
    given = root.parent / "rules"
    given.write_bytes(rules.encode() + b"\n")
    listed = subprocess.run(
        ["git", "-c", "core.ignoreCase=false", "ls-files", "-z", "-o", f"--exclude-from={given}"],
        cwd=root,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
        check=True,
        capture_output=True,
    )
    return set(listed.stdout.split(b"\0")) - {b""}


def kept(root: Path, rules: str) -> set[bytes]:
    given = root.parent / "rules"
    given.write_bytes(rules.encode() + b"\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep = make_rules([], [str(given)], caches=False)
        return set(
            _files(siblings for siblings in walk(str(root), keep=keep) if isinstance(siblings, Siblings))
        )


def _files(found: Iterable[Siblings]) -> Iterable[bytes]:
    for siblings in found:
        for name in siblings.names:
            path = siblings.parent + b"/" + name if siblings.parent else name
            if path != b".git":
                yield path
