"""Contents of small files of a stored tree, many at a time: the hot path of every restore.

What lies in memory is read at once, what does not is asked of the disk before it is needed, and a snapshot's
files are read in the tip where that has the same (``stored_twin``).

Not here: records (``stored_read``), one file for WebDAV clients (``stored_plain``).  Nothing here writes.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from mirrorkeep.errors import MirrorkeepError, NotFound, TooLarge
from mirrorkeep.tree.layout import Directories, split_path, storage_error
from mirrorkeep.tree.placement import READ_FILE, Placement
from mirrorkeep.tree.protocol import Failure
from mirrorkeep.tree.stored_twin import Twin, TwinReader
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

READ_AHEAD: Final = 16
"""Files of one bundle that are open at once."""
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)


def read_contents(
    placement: Placement, paths: Sequence[bytes], twin: Twin | None = None
) -> Iterator[bytes | Failure]:
    """Yield the content of each file; see ``protocol.Master.contents``.

    What lies in memory is read at once.  From the first file on that does not, the disk is told of the next
    ``READ_AHEAD`` files while one is read: a snapshot that nobody looked at yet is in no cache, and small
    files one by one leave a disk idle.  A file that ``twin`` still has is read there, where what a run has
    written is in memory.  Whoever reads compares with a digest, so that this is never trusted.
    """
    opened: deque[_Opened | Failure] = deque()
    room = bytearray(SMALL_FILE_BYTES)
    with ExitStack() as stack:
        directories = stack.enter_context(placement.directories())
        twins = None
        if twin is not None:
            twins = TwinReader(
                stack.enter_context(twin.placement.directories()), directories, twin.taken_ns()
            )
        try:
            for index, path in enumerate(paths):
                one = _open_ahead(directories, twins, index, path)
                directories.trim()
                if twins is not None:
                    twins.trim()
                if not opened and isinstance(one, _Opened):
                    content = _read_now(one, room)
                    if content is not None:
                        os.close(one.fd)
                        yield content
                        continue
                opened.append(one)
                if isinstance(one, _Opened):
                    with suppress(OSError):  # a hint
                        os.posix_fadvise(one.fd, 0, 0, os.POSIX_FADV_WILLNEED)
                if len(opened) > READ_AHEAD:
                    yield _take(opened.popleft())
            while opened:
                yield _take(opened.popleft())
        finally:
            for one in opened:
                if not isinstance(one, Failure):
                    os.close(one.fd)


class _Opened(NamedTuple):
    """A file that is about to be read."""

    number: int
    path: bytes
    fd: int
    size_bytes: int


def _open_ahead(
    directories: Directories, twins: TwinReader | None, index: int, path: bytes
) -> _Opened | Failure:
    fd = -1
    try:
        parent, name = split_path(path)
        found = twins.untouched(parent, name) if twins is not None else None
        if found is None and twins is not None:
            wanted = os.stat(name, dir_fd=directories.get(parent).fd, follow_symlinks=False)
            found = twins.same(parent, name, wanted)
        if found is not None:
            fd, status = found
        else:
            fd = os.open(name, READ_FILE, dir_fd=directories.get(parent).fd)
            status = os.fstat(fd)
        if not stat_module.S_ISREG(status.st_mode):
            raise NotFound(what=path)
        if status.st_size > SMALL_FILE_BYTES:
            raise TooLarge(detail=f"{path!r}: {status.st_size} bytes do not travel in a bundle")
        return _Opened(index, path, fd, status.st_size)
    except (MirrorkeepError, OSError) as error:
        if fd >= 0:
            os.close(fd)
        return _failure(index, path, error)


def _read_now(one: _Opened, room: bytearray) -> bytes | None:
    """Return the whole content where it is in memory; None where it is not, or is not told."""
    if not one.size_bytes:
        return b""
    if not _NOWAIT:
        return None
    view = memoryview(room)[: one.size_bytes]
    try:
        count = os.preadv(one.fd, (view,), 0, _NOWAIT)
    except OSError:  # it would wait, or this file system cannot say; trouble shows when it is read in turn
        return None
    return bytes(view) if count == one.size_bytes else None


def _take(one: _Opened | Failure) -> bytes | Failure:
    """Read and close an opened file."""
    if isinstance(one, Failure):
        return one
    try:
        data = os.read(one.fd, one.size_bytes)
        while len(data) < one.size_bytes and (more := os.read(one.fd, one.size_bytes - len(data))):
            data += more
        return data
    except OSError as error:
        return _failure(one.number, one.path, error)
    finally:
        os.close(one.fd)


def _failure(index: int, path: bytes, error: MirrorkeepError | OSError) -> Failure:
    known = storage_error(error, path) if isinstance(error, OSError) else error
    return Failure(index, path, known.code, str(known))
