"""A disk that remembers: writes and flushes of a file below a loop device, and what a power cut would leave.

Answers for: a file ``disk`` in a FUSE mount (``python -m rig.blocklog FOLDER MOUNT`` serves it), whose writes
and flushes are logged in order with offset and data before they are answered; building, for any instant of
that log, the image that a power cut would have left: everything up to the last flush, and any choice of the
pages written since, for a disk may write its cache in any order.

While ``FOLDER/broken`` exists, every write fails with EIO.

Not here: what lies on the disk.  The server of the mount ends when it is unmounted.  Root only.

A crash leaves the mount and a process without work; unmounting ends both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
_HEAD = struct.Struct(">BQI")
_WRITE, _FLUSH = 1, 2


# --- the log --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One write at ``offset`` of the disk, or a flush (no data); ``end`` is where it ends in the log."""

    is_flush: bool
    offset: int
    data_at: int
    data_bytes: int
    end: int


def read_log(path: Path) -> Iterator[Event]:
    """Yield the events of a log, oldest first, without their data."""
    position = 0
    with path.open("rb") as stream:
        while len(head := stream.read(_HEAD.size)) == _HEAD.size:
            kind, offset, data_bytes = _HEAD.unpack(head)
            data_at = position + _HEAD.size
            position = data_at + data_bytes
            yield Event(kind == _FLUSH, offset, data_at, data_bytes, position)
            stream.seek(position)


class Replay:
    """Images of one log, for instants that only go forward."""

    def __init__(self, log: Path, image: Path) -> None:
        """``image`` is what the disk held when the log began; it is changed as the replay goes on."""
        self.events = list(read_log(log))
        self._log = log
        self._image = image
        self._done = 0

    def cut(self, after: int, target: Path, rng: random.Random) -> int:
        """Write to ``target`` what a power cut after that many events may leave; returns the pages lost."""
        events = self.events[:after]
        flushed = max((index for index, event in enumerate(events) if event.is_flush), default=-1) + 1
        with self._log.open("rb") as log, self._image.open("r+b") as image:
            for event in events[self._done : flushed]:
                if not event.is_flush:
                    log.seek(event.data_at)
                    image.seek(event.offset)
                    image.write(log.read(event.data_bytes))
        self._done = max(self._done, flushed)
        subprocess.run(["cp", "--sparse=always", str(self._image), str(target)], check=True)
        lost = 0
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        with self._log.open("rb") as log, target.open("r+b") as image:
            for event in events[self._done :]:
                for start in range(0, event.data_bytes, PAGE_BYTES):
                    if rng.random() < share:
                        lost += 1
                        continue
                    log.seek(event.data_at + start)
                    image.seek(event.offset + start)
                    image.write(log.read(min(PAGE_BYTES, event.data_bytes - start)))
        return lost


# --- the mount ------------------------------------------------------------------------------------


def mount(folder: Path, point: Path) -> None:
    """Serve ``folder/disk`` (which has to be there) at ``point/disk``, logging to ``folder/log``."""
    point.mkdir(exist_ok=True)
    with (folder / "fuse.log").open("ab") as said:
        subprocess.Popen(
            [sys.executable, "-m", "rig.blocklog", str(folder), str(point)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    deadline = time.monotonic() + 10
    while not os.path.ismount(point):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no mount at {point}: {(folder / 'fuse.log').read_text()}")
        time.sleep(0.02)


def serve(folder: Path, point: Path) -> None:
    """Serve the mount in the foreground until it is unmounted."""
    import mfusepy

    disk = os.open(folder / "disk", os.O_RDWR)
    broken = folder / "broken"
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    class Disk(mfusepy.Operations):  # type: ignore[misc]  # the library is untyped
        """One file; the log is written before an answer leaves."""

        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path != "/disk":
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": os.fstat(disk).st_size}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", "disk"]

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(disk, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            if broken.exists():
                raise mfusepy.FuseOSError(errno.EIO)
            os.write(log, _HEAD.pack(_WRITE, offset, len(data)) + data)
            return os.pwrite(disk, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            os.write(log, _HEAD.pack(_FLUSH, 0, 0))
            return 0

    with contextlib.suppress(RuntimeError):
        mfusepy.FUSE(Disk(), str(point), foreground=True, nothreads=True, direct_io=True, fsname="blocklog")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
