"""Any tree onto any other, by the one engine: the target becomes the source, cut off or not.

The target is a local copy, which takes exactly the calls that a store takes, so that hundreds of examples
cost seconds; ``tests/system/test_loop.py`` does the same against a store that serves.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorkeep.sync.dispatch import MAX_BUNDLE_ENTRIES
from tests.property.sync.loop import Cut, CutAfter, Loop
from tests.property.sync.trees import Tree, changes, rights
from tests.property.sync.trees import changes_without_hidden as plain_changes

ALL = 1000
SHARES = st.integers(0, ALL)
"""Where a run is cut off: so many of a thousand of all its orders."""
numbers = itertools.count()
QUICK = settings(
    max_examples=int(os.environ.get("MIRRORKEEP_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def fresh(tmp_path: Path) -> Path:
    folder = tmp_path / str(next(numbers))
    folder.mkdir()
    return folder


@QUICK
@given(before=changes, after=changes, threads=st.sampled_from((1, 2, 7)))
def test_the_copy_becomes_the_source(
    tmp_path: Path,
    before: list,
    after: list,
    threads: int,  # type: ignore[type-arg]
) -> None:
    loop = Loop(fresh(tmp_path))
    loop.options = replace(loop.options, threads=threads)
    tree = Tree(loop.source)
    tree.change(before)
    assert loop.sync().status == "complete"
    loop.check()
    loop.check_copy()
    tree.change(after)
    assert loop.sync().status == "complete"
    loop.check()
    loop.check_copy()
    loop.check_unchanged()


def orders_of_a_whole_run(folder: Path, before: list, entries: int) -> int:  # type: ignore[type-arg]
    """Return how many orders a run is that copies the tree and is not cut off."""
    loop = Loop(folder)
    Tree(loop.source).change(before)
    with CutAfter(None, entries) as counted:
        assert loop.sync().status == "complete"
    return counted.handed_out


@QUICK
@given(
    before=plain_changes,
    after=plain_changes,
    cut=SHARES,
    again=SHARES,
    eager=st.booleans(),
    entries=st.sampled_from((1, MAX_BUNDLE_ENTRIES)),
)
def test_a_run_that_is_cut_off_anywhere_is_made_good_by_the_next(
    tmp_path: Path,
    before: list,
    after: list,
    cut: int,
    again: int,
    eager: bool,
    entries: int,  # type: ignore[type-arg]
) -> None:
    whole = orders_of_a_whole_run(fresh(tmp_path), before, entries)
    loop = Loop(fresh(tmp_path))
    tree = Tree(loop.source)
    tree.change(before)
    options = replace(loop.options, commit_interval_s=0.0 if eager else 20.0)
    for share in (cut, again):
        with suppress(Cut), CutAfter(whole * share // ALL, entries):
            loop.sync(options)
        tree.change(after)
    assert loop.sync(options).status == "complete"
    loop.check()
    loop.check_copy()
    loop.check_unchanged()


@QUICK
@given(before=rights, between=rights, after=rights)
def test_names_and_rights_of_the_copy_are_those_of_the_source(
    tmp_path: Path,
    before: list,
    between: list,
    after: list,  # type: ignore[type-arg]
) -> None:
    loop = Loop(fresh(tmp_path))
    tree = Tree(loop.source)
    tree.change([("write", b"a", 100, 0), ("same", b"a", b"b"), ("folder", b"c")])
    for changes_made in (before, between, after):
        tree.change(changes_made)
        assert loop.sync().status == "complete"
        loop.check_copy()
    loop.check()
