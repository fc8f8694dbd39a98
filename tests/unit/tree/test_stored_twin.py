"""A snapshot's content is read from the tree it was taken of where that still has it, and only there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorkeep.store.drivers import subvolume
from mirrorkeep.tree import stored_twin
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import MTIME_NS, directory, put

pytestmark = [pytest.mark.btrfs, pytest.mark.root]
PATHS = [b"d/kept", b"d/edited", b"d/replaced", b"d/gone", b"d/swapped"]


class Pair:
    """A tip and a snapshot of it; ``taken`` counts the files that were read in the tip."""

    def __init__(self, mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        subvolume.create(str(mount / "tip"))
        self.root = mount / "tip"
        self.tip = StoredTree(str(self.root))
        self.tip.apply([directory(b"d"), *(put(path, b"old " + path) for path in PATHS)])
        time.sleep(0.05)  # so that the clock has moved on and what follows has times of its own
        subvolume.snapshot(str(self.root), str(mount / "snapshot"))
        self.snapshot = StoredTree(str(mount / "snapshot"), twin=self.tip)
        self.dated = StoredTree(str(mount / "snapshot"), twin=self.tip, taken_ns=self._taken_ns)
        self.date(stored_twin.SLACK_NS)
        self.taken = 0
        self.looked: list[object] = []
        for name in ("untouched", "same"):
            self._count(monkeypatch, name, getattr(stored_twin.TwinReader, name))

    def date(self, later_ns: int) -> None:
        """Have the snapshot taken so much later than it was."""
        self._later_ns = later_ns

    def _taken_ns(self) -> int:
        return subvolume.made_ns(str(self.root.parent / "snapshot")) + self._later_ns

    def _count(self, monkeypatch: pytest.MonkeyPatch, name: str, real: Callable[..., object]) -> None:
        def counted(*arguments: object) -> object:
            found = real(*arguments)
            self.taken += found is not None
            if name == "same":
                self.looked.append(arguments[2])
            return found

        monkeypatch.setattr(stored_twin.TwinReader, name, counted)

    def contents(self, *, dated: bool = False) -> list[object]:
        self.taken, self.looked = 0, []
        return list((self.dated if dated else self.snapshot).contents(PATHS))


@pytest.fixture
def pair(btrfs_mount: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(btrfs_mount, monkeypatch)
    yield made
    made.snapshot.close()
    made.dated.close()
    made.tip.close()


@pytest.mark.parametrize("dated", [False, True])
def test_what_did_not_change_is_read_in_the_tip(pair: Pair, dated: bool) -> None:
    assert pair.contents(dated=dated) == [b"old " + path for path in PATHS]
    assert pair.taken == len(PATHS)


@pytest.mark.parametrize("dated", [False, True])
def test_what_changed_since_is_read_in_the_snapshot(pair: Pair, dated: bool) -> None:
    d = pair.root / "d"
    with open(d / "edited", "r+b") as stream:  # as damage does: in place, the times put back
        stream.write(b"bad")
    os.utime(d / "edited", ns=(MTIME_NS, MTIME_NS))
    pair.tip.apply([put(b"d/replaced", b"new d/replaced")])
    os.unlink(d / "gone")
    os.unlink(d / "swapped")
    os.symlink(d / "kept", d / "swapped")
    assert pair.contents(dated=dated) == [b"old " + path for path in PATHS]
    assert pair.taken == 1


@pytest.mark.parametrize("dated", [False, True])
def test_a_tip_that_lost_the_folder_is_passed_by(pair: Pair, dated: bool) -> None:
    os.rename(pair.root / "d", pair.root / "elsewhere")
    assert pair.contents(dated=dated) == [b"old " + path for path in PATHS]
    assert pair.taken == 0


def test_an_untouched_file_is_not_looked_at_in_the_snapshot(pair: Pair) -> None:
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert (pair.taken, pair.looked) == (len(PATHS), [])


def test_a_folder_that_took_the_place_of_another_is_not_its_twin(pair: Pair) -> None:
    pair.tip.apply([directory(b"e"), *(put(b"e" + path[1:], b"other") for path in PATHS)])
    pair.date(3600 * 10**9)
    os.rename(pair.root / "d", pair.root / "x")
    os.rename(pair.root / "e", pair.root / "d")
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert pair.taken == 0


def test_a_folder_in_which_something_else_changed_is_still_the_same(pair: Pair) -> None:
    pair.tip.apply([put(b"d/new", b"new"), put(b"other", b"new")])
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert pair.looked == []


def test_a_clock_that_was_set_back_can_show_what_is_new(pair: Pair) -> None:
    """The client notices by the digest, and asks for the file in the snapshot."""
    pair.date(3600 * 10**9)
    pair.tip.apply([put(PATHS[0], b"new")])
    assert pair.contents(dated=True) == [b"new", *(b"old " + path for path in PATHS[1:])]
    assert pair.snapshot.read_range(PATHS[0], 0, 100) == b"old " + PATHS[0]


def test_what_was_written_around_the_snapshot_is_looked_at(pair: Pair) -> None:
    pair.date(0)
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert len(pair.looked) == len(PATHS)
