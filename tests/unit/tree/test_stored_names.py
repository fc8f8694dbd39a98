"""Naming what a directory holds: true names, lost ones, and directories of any size at bounded cost."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree import stored_names
from mirrorkeep.tree.layout import stored_name
from mirrorkeep.tree.sidecar import encode_record_sidecar
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import directory, file_line, put

RESERVED = b".mirrorkeep"
LONG = b"x" * 300


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(str(root)) as opened:
        yield opened


def names(tree: StoredTree, path: bytes) -> list[tuple[bytes, bool]]:
    with tree.placement.directories() as directories:
        return list(stored_names.list_names(tree.placement, directories, path))


def test_names_come_as_they_are_outside(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"d/" + name, b"x") for name in (RESERVED + b"/deep", LONG, b"a", b"a!", b".mir")])
    tree.apply([directory(b"d/" + RESERVED), put(b"d/.mirrorkeep.manifest", b"of a source")])
    assert names(tree, b"d") == [
        (b".mir", False),
        (RESERVED, True),
        (b".mirrorkeep.manifest", False),
        (b"a", False),
        (b"a!", False),
        (LONG, False),
    ]
    paths = [entry.path for entry in tree.walk()]
    assert paths == sorted(paths, key=order_key)
    assert b"d/.mirrorkeep/deep" in paths
    assert sorted(os.listdir(root / "d"))[0] == ".mir"
    assert all(name.startswith(".mirrorkeep~") for name in os.listdir(root / "d") if len(name) > 11)


def test_a_sidecar_that_names_something_else_names_nothing(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"d/" + RESERVED, b"x")])
    native = os.fsdecode(stored_name(RESERVED))
    for claim in (b"d/other", b"d/.mirrorkeep.manifest", b"d/.."):
        sidecar = encode_record_sidecar(1, format_record(claim, {keys.TYPE: keys.FILE}))
        (root / "d/.mirrorkeep" / native).write_bytes(sidecar)
        assert names(tree, b"d") == []
        assert [entry.path for entry in tree.walk()] == [b"d", b""]
    (root / "d/.mirrorkeep" / native).write_bytes(b"damaged")
    assert names(tree, b"d") == []


def test_the_folder_that_a_file_system_has_in_its_root_is_no_entry_unless_it_was_stored(
    tree: StoredTree, root: Path
) -> None:
    tree.apply([put(b"d/lost+found/file", b"x"), put(b"e", b"x")])
    (root / "lost+found").mkdir()
    assert names(tree, b"") == [(b"d", True), (b"e", False)]
    assert names(tree, b"d") == [(b"lost+found", True)]
    (root / "lost+found").rmdir()
    (root / "lost+found").write_bytes(b"no folder")
    assert (b"lost+found", False) in names(tree, b"")
    (root / "lost+found").unlink()
    tree.apply([put(b"lost+found/of the source", b"x")])
    assert (b"lost+found", True) in names(tree, b"")
    assert b"lost+found/of the source" in [entry.path for entry in tree.walk()]


class Counted:
    """Counts the calls to the operating system that a walk makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        for name in ("open", "stat", "scandir", "listdir"):
            monkeypatch.setattr(os, name, self._counting(name, getattr(os, name)))

    def _counting(self, name: str, call: Any) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return call(*args, **options)

        return counting


@pytest.mark.parametrize("in_memory", [1_000_000, 64])
def test_a_walk_costs_the_same_for_each_entry_however_many_there_are(
    root: Path, tree: StoredTree, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(stored_names, "MAX_NAMES_IN_MEMORY", in_memory)
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    counts: list[int] = []
    for number in (100, 400):
        top = b"huge%d" % number
        tree.apply([put(b"%s/%d" % (top, one), b"x") for one in range(number // 2)])
        tree.apply([put(b"%s/%d/below" % (top, one), b"x") for one in range(number // 2, number)])
        with monkeypatch.context() as patches:
            counted = Counted(patches)
            paths = [entry.path for entry in tree.walk(top)]
        assert len(set(paths)) == len(paths) == number + number // 2 + 1
        assert paths == sorted(paths, key=order_key)
        assert counted.calls["stat"] <= len(paths) + 10
        counts.append(sum(counted.calls.values()) - counted.calls["stat"])
    assert counts[1] <= 4 * counts[0] + 50  # sorting on disk opens some files of its own
    assert not [name for name in os.listdir(root) if name.startswith("mirrorkeep-names-")]


def test_a_walk_that_is_given_up_leaves_nothing(
    tmp_path: Path, tree: StoredTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_names, "MAX_NAMES_IN_MEMORY", 8)
    spilled = tmp_path / "spilled"
    spilled.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spilled))
    tree.apply([put(b"%d" % one, b"x") for one in range(50)])
    walk = tree.walk()
    assert next(walk).path == b"0"
    assert len(os.listdir(spilled)) == 1
    del walk
    assert os.listdir(spilled) == []


def test_a_lost_name_is_a_finding_all_the_same(tree: StoredTree, root: Path) -> None:
    line = file_line(RESERVED, b"x")
    tree.apply([put(RESERVED, b"x")])
    os.unlink(root / ".mirrorkeep" / os.fsdecode(stored_name(RESERVED)))
    assert names(tree, b"") == []
    assert [finding.kind for finding in tree.check(RESERVED, line, content=True)] != []
