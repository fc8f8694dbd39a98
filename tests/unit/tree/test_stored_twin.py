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
        taken_ns = subvolume.made_ns(str(mount / "snapshot"))
        self.dated = StoredTree(
            str(mount / "snapshot"), twin=self.tip, taken_ns=taken_ns + stored_twin.SLACK_NS
        )
        self.taken = 0
        for name in ("untouched", "same"):
            self._count(monkeypatch, name, getattr(stored_twin.TwinReader, name))

    def _count(self, monkeypatch: pytest.MonkeyPatch, name: str, real: Callable[..., object]) -> None:
        def counted(*arguments: object) -> object:
            found = real(*arguments)
            self.taken += found is not None
            return found

        monkeypatch.setattr(stored_twin.TwinReader, name, counted)

    def contents(self, *, dated: bool = False) -> list[object]:
        self.taken = 0
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


def test_an_untouched_file_is_not_looked_at_in_the_snapshot(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_twin.TwinReader, "same", lambda *_: pytest.fail("it was looked at"))
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert pair.taken == len(PATHS)


def test_a_folder_that_took_the_place_of_another_is_not_its_twin(pair: Pair) -> None:
    pair.tip.apply([directory(b"e"), *(put(b"e" + path[1:], b"other") for path in PATHS)])
    late = subvolume.made_ns(str(pair.root.parent / "snapshot")) + 3600 * 10**9
    os.rename(pair.root / "d", pair.root / "x")
    os.rename(pair.root / "e", pair.root / "d")
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert pair.taken == 0
    pair.dated.close()
    pair.dated = StoredTree(str(pair.root.parent / "snapshot"), twin=pair.tip, taken_ns=late)
    assert pair.contents(dated=True) == [b"other"] * len(
        PATHS
    )  # what a clock set back would do: see the client


def test_what_was_written_around_the_snapshot_is_looked_at(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_ns = subvolume.made_ns(str(pair.root.parent / "snapshot"))
    pair.dated.close()
    pair.dated = StoredTree(str(pair.root.parent / "snapshot"), twin=pair.tip, taken_ns=taken_ns)
    looked: list[bytes] = []
    real = stored_twin.TwinReader.same

    def seen(reader: stored_twin.TwinReader, parent: bytes, name: bytes, wanted: os.stat_result) -> object:
        looked.append(name)
        return real(reader, parent, name, wanted)

    monkeypatch.setattr(stored_twin.TwinReader, "same", seen)
    assert pair.contents(dated=True) == [b"old " + path for path in PATHS]
    assert len(looked) == len(PATHS)
