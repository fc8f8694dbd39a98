"""What handles manifests as a whole holds a window of them, however many entries they have."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.described import write_manifest
from mirrorkeep.delta.stream import patch_from
from mirrorkeep.store.intake import count_entries
from mirrorkeep.sync.index import build_index
from mirrorkeep.sync.manifest_delta import write_manifest_delta
from mirrorkeep.sync.session import PackedFile

FEW, MANY = 5_000, 20_000
TOLERANCE_BYTES = 1 << 20
"""The entries that make the difference are 4.5 MB long."""

Work = Callable[[Path], object]


def close_whole(folder: Path) -> None:
    for _ in PackedFile(str(folder / "new")):
        pass


def close_with_difference(folder: Path) -> None:
    """Nothing is equal: the delta is as long as the manifest."""
    write_manifest_delta(str(folder / "old"), str(folder / "new"), str(folder / "delta"))


class Hashing:
    """Where the result of a delta goes."""

    def __init__(self) -> None:
        self.hasher = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self.hasher.update(data)


def take_in_difference(folder: Path) -> str:
    made = Hashing()
    with (folder / "old").open("rb") as base, (folder / "delta").open("rb") as stream:
        patch_from(iter(lambda: stream.read(1 << 16), b""), base.fileno(), made)
    return made.hasher.hexdigest()


def check(folder: Path) -> None:
    assert count_entries(str(folder / "new"))[0] in (FEW, MANY)


def index(folder: Path) -> None:
    build_index(str(folder / "new"), str(folder / "index"), "digest")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for entries in (FEW, MANY):
        folder = tmp_path_factory.mktemp("manifests")
        write_manifest(folder / "old", entries)
        write_manifest(folder / "new", entries, size_bytes=54321)
        close_with_difference(folder)
        assert (folder / "delta").stat().st_size > (folder / "new").stat().st_size * 9 // 10
        made.append(folder)
    return made


@pytest.mark.parametrize("work", [close_whole, close_with_difference, take_in_difference, check, index])
def test_memory_does_not_follow_the_entries(folders: list[Path], work: Work) -> None:
    few, many = (peak(work, folder) for folder in folders)
    assert many < few + TOLERANCE_BYTES


def test_a_difference_gives_the_new_manifest(folders: list[Path]) -> None:
    for folder in folders:
        assert take_in_difference(folder) == hashlib.sha256((folder / "new").read_bytes()).hexdigest()


def peak(work: Work, folder: Path) -> int:
    """Return the most bytes that the interpreter held during ``work``."""
    work(folder)  # what is loaded once does not count
    tracemalloc.start()
    try:
        work(folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
