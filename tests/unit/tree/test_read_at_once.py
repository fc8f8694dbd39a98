"""Contents in memory are read at once; from the first on that is not, the disk is told what comes next."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.tree import stored_contents
from mirrorkeep.tree.protocol import Failure
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import put

NAMES = [b"f%02d" % number for number in range(40)]
CONTENTS = [b"" if number % 7 == 3 else b"content " * number + b"." for number in range(40)]


class Watch:
    """Counts what the disk was told of; of the files with content, all from ``cold_from`` on are cold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told = 0
        self.cold_from: int | None = None
        self._asked = 0
        self._read = os.preadv
        monkeypatch.setattr(os, "preadv", self._preadv)
        monkeypatch.setattr(os, "posix_fadvise", self._advise)

    def _preadv(self, fd: int, room: Sequence[Any], offset: int, flags: int = 0) -> int:
        self._asked += 1
        if self.cold_from is not None and self._asked > self.cold_from:
            raise BlockingIOError
        return self._read(fd, room, offset, 0)

    def _advise(self, *_: int) -> None:
        self.told += 1


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[StoredTree]:
    with StoredTree(str(tmp_path)) as made:
        assert made.apply([put(name, data) for name, data in zip(NAMES, CONTENTS, strict=True)]) == []
        yield made


def test_what_lies_in_memory_is_not_asked_of_the_disk(
    tree: StoredTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    assert list(tree.contents(NAMES)) == CONTENTS
    assert watch.told == 0


@pytest.mark.parametrize("cold_from", [0, 1, 5])
def test_from_the_first_that_does_not_the_disk_is_told_of_all(
    tree: StoredTree, monkeypatch: pytest.MonkeyPatch, cold_from: int
) -> None:
    watch = Watch(monkeypatch)
    watch.cold_from = cold_from
    assert list(tree.contents(NAMES)) == CONTENTS
    filled = [number for number, data in enumerate(CONTENTS) if data]
    assert watch.told == len(NAMES) - filled[cold_from]


def test_a_file_that_is_half_in_memory_is_whole(tree: StoredTree, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, room, offset, flags: read(fd, [room[0][: len(room[0]) // 2]], offset)
    )
    assert list(tree.contents(NAMES)) == CONTENTS


def test_where_the_kernel_cannot_say_all_is_as_before(
    tree: StoredTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_contents, "_NOWAIT", 0)
    watch = Watch(monkeypatch)
    assert list(tree.contents(NAMES)) == CONTENTS
    assert watch.told == len(NAMES)


def test_what_is_missing_between_has_its_failure_in_its_place(tree: StoredTree, tmp_path: Path) -> None:
    os.unlink(os.path.join(os.fsencode(tmp_path), NAMES[2]))
    found = list(tree.contents(NAMES[:5]))
    assert isinstance(found[2], Failure) and found[2].index == 2
    assert [one for one in found if not isinstance(one, Failure)] == [*CONTENTS[:2], *CONTENTS[3:5]]


def test_no_descriptor_stays_open(tree: StoredTree) -> None:
    list(tree.contents(NAMES))
    gc.collect()  # what other tests dropped is not counted
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        list(tree.contents(NAMES))
        reading = tree.contents(NAMES)
        next(iter(reading))
        del reading
    assert len(os.listdir("/proc/self/fd")) == before
