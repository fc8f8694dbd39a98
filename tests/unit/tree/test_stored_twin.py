"""A snapshot's content is read from the tree it was taken of where that still has it, and only there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.store.drivers import subvolume
from mirrorkeep.tree import stored_read
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import MTIME_NS, directory, put

pytestmark = [pytest.mark.btrfs, pytest.mark.root]
PATHS = [b"d/kept", b"d/edited", b"d/replaced", b"d/gone", b"d/swapped"]


class Pair:
    """A tip and a snapshot of it; ``taken`` counts the files that were read in the tip."""

    def __init__(self, mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        subvolume.create(str(mount / "tip"))
        self.root = mount / "tip"
        self.tip = StoredTree(self.root)
        self.tip.apply([directory(b"d"), *(put(path, b"old " + path) for path in PATHS)])
        os.sync()  # so that the clock has moved on and what follows has times of its own
        subvolume.snapshot(str(self.root), str(mount / "snapshot"))
        self.snapshot = StoredTree(mount / "snapshot", twin=self.tip)
        self.taken = 0
        real = stored_read._open_twin

        def counted(*arguments: object) -> int:
            fd = real(*arguments)  # type: ignore[arg-type]
            self.taken += fd >= 0
            return fd

        monkeypatch.setattr(stored_read, "_open_twin", counted)

    def contents(self) -> list[object]:
        self.taken = 0
        return list(self.snapshot.contents(PATHS))


@pytest.fixture
def pair(btrfs_mount: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(btrfs_mount, monkeypatch)
    yield made
    made.snapshot.close()
    made.tip.close()


def test_what_did_not_change_is_read_in_the_tip(pair: Pair) -> None:
    assert pair.contents() == [b"old " + path for path in PATHS]
    assert pair.taken == len(PATHS)


def test_what_changed_since_is_read_in_the_snapshot(pair: Pair) -> None:
    d = pair.root / "d"
    with open(d / "edited", "r+b") as stream:  # as damage does: in place, the times put back
        stream.write(b"bad")
    os.utime(d / "edited", ns=(MTIME_NS, MTIME_NS))
    pair.tip.apply([put(b"d/replaced", b"new d/replaced")])
    os.unlink(d / "gone")
    os.unlink(d / "swapped")
    os.symlink(d / "kept", d / "swapped")
    assert pair.contents() == [b"old " + path for path in PATHS]
    assert pair.taken == 1


def test_a_tip_that_lost_the_folder_is_passed_by(pair: Pair) -> None:
    os.rename(pair.root / "d", pair.root / "elsewhere")
    assert pair.contents() == [b"old " + path for path in PATHS]
    assert pair.taken == 0
