"""Files that are read next are brought into memory, where that pays and nowhere else."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.prefetch import Prefetch
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredTree

NAMES = [b"folder/file%d" % number for number in range(40)]
CONTENT = b"a few words " * 500


class Disk:
    """Says how much a test pretends to have read from a disk."""

    sectors = 0

    def __call__(self) -> int:
        return self.sectors


@pytest.fixture
def root() -> Iterator[Path]:
    """A stored tree on a disk, which the folder for temporary files may not be."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield make_tree(Path(folder) / "tree")


def make_tree(place: Path) -> Path:
    place.mkdir()
    with StoredTree(str(place)) as tree:
        digest = hashlib.sha256(CONTENT).hexdigest().encode()
        line = {keys.TYPE: keys.FILE, keys.SIZE: b"%d" % len(CONTENT), keys.HASH: digest}
        assert tree.apply([Frame(Op.PUT, format_record(name, line), CONTENT) for name in NAMES]) == []
    return place


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def prefetch(root: Path, disk: Disk) -> Iterator[Prefetch]:
    with StoredTree(str(root), read_only=True) as tree:
        yield Prefetch(tree.placement, disk)


def in_memory(file: Path) -> bool:
    fd = os.open(file, os.O_RDONLY)
    try:
        return os.preadv(fd, [bytearray(len(CONTENT))], 0, os.RWF_NOWAIT) == len(CONTENT)
    except BlockingIOError:
        return False
    except OSError:  # a file system in memory alone
        return True
    finally:
        os.close(fd)


def forget(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_nothing_is_done_while_everything_is_in_memory(prefetch: Prefetch, disk: Disk) -> None:
    for _ in range(3):
        assert not prefetch.expect(NAMES)
        disk.sectors += len(NAMES) // 2


def test_what_comes_next_is_brought_in_where_reading_waits_for_the_disk(
    prefetch: Prefetch, disk: Disk, root: Path
) -> None:
    files = [root / os.fsdecode(name) for name in NAMES]
    for file in files:
        forget(file)
    if any(in_memory(file) for file in files):
        pytest.skip("this file system keeps what it is told to forget")
    assert not prefetch.expect(NAMES[:8])
    disk.sectors += 8 * 24
    assert prefetch.expect(NAMES)
    deadline = time.monotonic() + 30
    while not all(in_memory(file) for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not prefetch.expect(NAMES), "the last ones were in memory"


def test_what_is_gone_or_no_file_is_passed_over(prefetch: Prefetch, disk: Disk, root: Path) -> None:
    (root / "folder" / "file3").unlink()
    os.mkfifo(root / "folder" / "fifo")
    (root / "folder" / "link").symlink_to("/etc/passwd")
    prefetch.expect(NAMES)
    disk.sectors += 10_000
    forget(root / "folder" / "file39")
    assert prefetch.expect([b"folder/fifo", b"folder/link", b"nowhere/at/all", b"../outside", *NAMES])
    deadline = time.monotonic() + 30
    while not in_memory(root / "folder" / "file39"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
