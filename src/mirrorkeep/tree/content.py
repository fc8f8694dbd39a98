"""Content of files: checking a whole file, writing with holes, copying.

Everything here works on open descriptors of files in the making.  A crash in the middle leaves a file
that nobody sees.  Not here: names and publishing (``native_publish``), metadata (``metadata``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from mirrorkeep.errors import DigestMismatch, LengthMismatch
from mirrorkeep.manifest import keys
from mirrorkeep.tree.digest import new_hasher
from mirrorkeep.tree.metadata.sparse import holes, ranges_from_text
from mirrorkeep.tree.protocol import Data

if sys.platform != "win32":
    import fcntl

_FICLONE: Final = 0x40049409
_PIECE_BYTES: Final = 1024 * 1024
_ZEROS: Final = bytes(1 << 18)
_COPY_BYTES: Final = 128 * 1024 * 1024
_NO_COPY_RANGE: Final = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_PUNCH_HOLE: Final = 0x02 | 0x01  # and keep the size


def check_file(path: bytes, fields: Mapping[bytes, bytes], fd: int) -> None:
    """Raise LengthMismatch or DigestMismatch unless an open file holds what the record says.

    Reads it from its beginning in pieces, without moving the descriptor's position.
    """
    size = int(fields[keys.SIZE])
    if os.fstat(fd).st_size != size:
        raise LengthMismatch(path=path, actual=os.fstat(fd).st_size, expected=size)
    digest = new_hasher(fields)
    position = 0
    while chunk := os.pread(fd, _PIECE_BYTES, position):
        digest.update(chunk)
        position += len(chunk)
    actual, expected = digest.hexdigest().encode(), fields.get(keys.HASH, b"")
    if actual != expected:
        raise DigestMismatch(path=path, expected=expected, actual=actual)


def write_content(fd: int, data: Data, sparse: bytes | None) -> None:
    """Write all of ``data`` into an empty file, leaving the record's holes; ValueError for bad ranges.

    A range that calls data a hole cannot lose bytes: what lies outside the ranges is only skipped when
    it is zeros.
    """
    if sparse is None:
        write_all(fd, data, 0)
        return
    ranges = ranges_from_text(sparse, len(data))
    os.ftruncate(fd, len(data))
    view = memoryview(data)
    for start, end in ranges:
        write_all(fd, view[start:end], start)
    for start, end in holes(ranges, len(data)):
        if not is_zeros(view[start:end]):
            write_all(fd, view[start:end], start)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write ``data`` at ``offset``, whatever the number of calls it takes."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)


def clone(source_fd: int, target_fd: int) -> None:
    """Make the empty target hold the source's bytes: shared blocks where possible, else a copy."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
        return
    except OSError:
        pass
    size, position = os.fstat(source_fd).st_size, 0
    os.ftruncate(target_fd, size)
    while position < size:
        try:
            position = data = os.lseek(source_fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only hole up to the end
                return
            data = position
        end = os.lseek(source_fd, data, os.SEEK_HOLE)
        _copy_range(source_fd, target_fd, data, end)
        position = end


def _copy_range(source_fd: int, target_fd: int, start: int, end: int) -> None:
    if hasattr(os, "copy_file_range"):
        try:
            while start < end:
                copied = os.copy_file_range(source_fd, target_fd, min(end - start, _COPY_BYTES), start, start)
                if not copied:
                    break
                start += copied
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
    while start < end and (chunk := os.pread(source_fd, min(end - start, _PIECE_BYTES), start)):
        write_all(target_fd, chunk, start)
        start += len(chunk)


def punch_holes(fd: int, sparse: bytes, size_bytes: int) -> None:
    """Give back the blocks between the record's ranges; quietly nothing where that is not possible.

    The caller checks the digest afterwards: a range that was not zeros would show.
    """
    _punch(fd, holes(ranges_from_text(sparse, size_bytes), size_bytes))


def punch_zeros(fd: int, sparse: bytes, size_bytes: int) -> None:
    """Give back blocks of zeros between the record's ranges; what is not zeros stays.

    For a file that nobody checks afterwards.  Moves the descriptor's position.
    """
    gaps = holes(ranges_from_text(sparse, size_bytes), size_bytes)
    _punch(fd, (stretch for gap in gaps for stretch in _zeros(fd, *gap)))


def _punch(fd: int, gaps: Iterable[tuple[int, int]]) -> None:
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if fallocate is None:
        return
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    for start, end in gaps:
        if fallocate(fd, _PUNCH_HOLE, start, end - start):
            return


def _zeros(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches from ``start`` to ``end`` that were read and are zeros: no hole there yet."""
    position = _next_data(fd, start, end)
    while position < end and (piece := os.pread(fd, min(_PIECE_BYTES, end - position), position)):
        if is_zeros(piece):
            yield position, position + len(piece)
        position = _next_data(fd, position + len(piece), end)


def _next_data(fd: int, position: int, end: int) -> int:
    try:
        return min(os.lseek(fd, position, os.SEEK_DATA), end)
    except OSError as error:  # a hole to the end, or a file system without the question
        return end if error.errno == errno.ENXIO else position


def is_zeros(data: Data) -> bool:
    """Say whether all of ``data`` is zeros, at the speed of memory."""
    view = memoryview(data)
    for start in range(0, len(view), len(_ZEROS)):
        piece = bytes(view[start : start + len(_ZEROS)])
        if piece != _ZEROS[: len(piece)]:
            return False
    return True
