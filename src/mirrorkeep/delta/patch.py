"""librsync deltas: our own strict parser, builder and patcher.

A delta is a magic number and commands: *copy* a range of the base, *literal* bytes, *end*.  librsync's
own patch job is not used on what a client sent: here every field is checked before anything is
written, nothing aborts the process, and memory stays bounded whatever the delta says.

Not here: searching (``difference.py``), staging and digests (``tree``): a delta that parses may still
make the wrong bytes, so the caller checks the result's digest before it publishes.

A crash in the middle of :func:`apply_delta` leaves the output range partly written: the output is
always a staged file that nobody else sees, and applying the same delta again repairs it.

Source: librsync ``doc/format.md``; FACT-5, DEL-06..08.  Frozen by ``tests/golden/delta``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mirrorkeep.errors import MalformedDelta

DELTA_MAGIC: Final = b"rs\x026"
END: Final = 0
LAST_SHORT_LITERAL: Final = 64
_FIRST_LITERAL: Final = 65
_FIRST_COPY: Final = 69
FIRST_RESERVED: Final = 85
_WIDTHS: Final = (1, 2, 4, 8)
_PIECE_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 4096
"""Nothing smaller can stay shared between a file and its clone."""
_NO_COPY_RANGE: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF}
)


@dataclass(frozen=True, slots=True)
class Copy:
    """Take ``length`` bytes of the base from ``offset``."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Literal:
    """Take these bytes (a view into the delta where it was parsed)."""

    data: bytes | memoryview


def delta_operations(delta: bytes | memoryview) -> Iterator[Copy | Literal]:
    """Yield the operations of ``delta`` in order, each checked when it is reached.

    Raises MalformedDelta: wrong magic, reserved command, zero or cut-off length, missing or early end.
    """
    view = memoryview(delta)
    if bytes(view[:4]) != DELTA_MAGIC:
        raise MalformedDelta(detail="it does not begin with librsync's magic number")
    position, total = 4, len(view)
    while position < total:
        command = view[position]
        position += 1
        if command == END:
            if position != total:
                raise MalformedDelta(detail=f"{total - position} bytes after its end")
            return
        if command <= LAST_SHORT_LITERAL:
            length = command
        elif command < FIRST_RESERVED:
            offset_bytes, length_bytes = field_widths(command)
            fields_end = position + offset_bytes + length_bytes
            if fields_end > total:
                raise MalformedDelta(detail="it ends inside a command")
            length = int.from_bytes(view[position + offset_bytes : fields_end], "big")
            offset = int.from_bytes(view[position : position + offset_bytes], "big")
            position = fields_end
            if not length:
                raise MalformedDelta(detail="a command of no bytes")
            if offset_bytes:
                yield Copy(offset, length)
                continue
        else:
            raise MalformedDelta(detail=f"reserved command {command}")
        if length > total - position:
            raise MalformedDelta(detail="it ends inside literal bytes")
        yield Literal(view[position : position + length])
        position += length
    raise MalformedDelta(detail="its end is missing")


def field_widths(command: int) -> tuple[int, int]:
    """Return the bytes of a command's offset (0 for a literal) and of its length."""
    if command < _FIRST_COPY:
        return 0, _WIDTHS[command - _FIRST_LITERAL]
    offset_width, length_width = divmod(command - _FIRST_COPY, 4)
    return _WIDTHS[offset_width], _WIDTHS[length_width]


def check_delta(delta: bytes | memoryview, base_bytes: int, expected_bytes: int | None = None) -> int:
    """Parse ``delta`` to its end and return how many bytes it makes; nothing is read or written.

    Raises MalformedDelta when it copies from beyond ``base_bytes`` or does not make ``expected_bytes``.
    """
    made = 0
    for operation in delta_operations(delta):
        if isinstance(operation, Copy):
            if operation.offset + operation.length > base_bytes:
                raise MalformedDelta(detail="it copies from beyond the end of its base")
            made += operation.length
        else:
            made += len(operation.data)
        if expected_bytes is not None and made > expected_bytes:
            raise MalformedDelta(detail=f"it makes more than the expected {expected_bytes} bytes")
    if expected_bytes is not None and made != expected_bytes:
        raise MalformedDelta(detail=f"it makes {made} bytes instead of {expected_bytes}")
    return made


def apply_delta(
    delta: bytes, base_fd: int, out_fd: int, out_offset: int, *, expected_bytes: int, cloned: bool = True
) -> None:
    """Write what ``delta`` makes of the file ``base_fd`` into ``out_fd`` from ``out_offset``.

    ``out_fd`` is another file than the base.  With ``cloned`` it began as a clone of the base: stretches
    that stay where they were are not written, and stay shared with the snapshots.  The whole delta is
    checked first: MalformedDelta means that nothing was written.  OSError (ENOSPC, EIO) is the
    caller's: the range counts as unwritten and may be written again.
    """
    check_delta(delta, os.fstat(base_fd).st_size, expected_bytes)
    position = out_offset
    for operation in delta_operations(delta):
        if isinstance(operation, Literal):
            _write_all(out_fd, memoryview(operation.data), position)
            position += len(operation.data)
            continue
        if not (cloned and operation.offset == position):
            _copy_range(base_fd, operation.offset, out_fd, position, operation.length)
        position += operation.length


class Piece(NamedTuple):
    """Bytes of a delta's result, one behind the other, and whether they stay where they were in the base."""

    data: bytes | memoryview
    stays: bool


def patch_pieces(
    delta: bytes | memoryview, base_fd: int, start: int = 0, *, expected_bytes: int
) -> list[Piece]:
    """Return what ``delta`` makes of the file ``base_fd``, in memory; literals are views into the delta.

    ``start`` is where the result begins in the new file.  The whole delta is checked before anything is
    read: a few bytes of it can ask for any number of copies.  What is smaller than a block is joined, and
    counts as moved: however fine a delta is, its pieces are few.  Raises MalformedDelta, OSError.
    """
    check_delta(delta, os.fstat(base_fd).st_size, expected_bytes)
    pieces: list[Piece] = []
    joined = bytearray()
    for operation in delta_operations(delta):
        if isinstance(operation, Literal):
            parts, stays = [operation.data], False
        else:
            parts, stays = _read(base_fd, operation), operation.offset == start
        for data in parts:
            start += len(data)
            if len(data) < _BLOCK_BYTES:
                joined += data
                continue
            if joined:
                pieces.append(Piece(memoryview(joined), False))
                joined = bytearray()
            pieces.append(Piece(data, stays))
    if joined:
        pieces.append(Piece(memoryview(joined), False))
    return pieces


def _read(base_fd: int, copy: Copy) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    offset, end = copy.offset, copy.offset + copy.length
    while offset < end:
        data = os.pread(base_fd, end - offset, offset)
        if not data:
            raise MalformedDelta(detail="its base became shorter while it was applied")
        parts.append(data)
        offset += len(data)
    return parts


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def _copy_range(base_fd: int, base_offset: int, out_fd: int, out_offset: int, length: int) -> None:
    """Copy inside the kernel where it can, else through 1 MiB of memory."""
    while length:
        try:
            copied = os.copy_file_range(base_fd, out_fd, length, base_offset, out_offset)
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
            copied = 0
        if not copied:
            piece = os.pread(base_fd, min(length, _PIECE_BYTES), base_offset)
            if not piece:
                raise MalformedDelta(detail="its base became shorter while it was applied")
            _write_all(out_fd, memoryview(piece), out_offset)
            copied = len(piece)
        base_offset += copied
        out_offset += copied
        length -= copied


def build_delta(operations: Iterable[Copy | Literal]) -> bytes:
    """Return the librsync delta of ``operations``: neighbouring copies joined, empty ones left out."""
    return b"".join(delta_pieces(operations))


def delta_pieces(operations: Iterable[Copy | Literal]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of :func:`build_delta`, a command or the bytes of a literal at a time."""
    yield DELTA_MAGIC
    start = end = 0  # the copy that is still growing
    for operation in operations:
        if isinstance(operation, Copy):
            if not operation.length:
                continue
            if operation.offset != end or start == end:
                yield _copy_command(start, end)
                start = operation.offset
            end = operation.offset + operation.length
        elif operation.data:
            yield _copy_command(start, end)
            start = end = 0
            yield _literal_head(len(operation.data))
            yield operation.data
    yield _copy_command(start, end)
    yield b"\0"


def _copy_command(start: int, end: int) -> bytes:
    if start == end:
        return b""
    offset_width, length_width = _narrowest(start), _narrowest(end - start)
    return (
        bytes((_FIRST_COPY + 4 * offset_width + length_width,))
        + start.to_bytes(_WIDTHS[offset_width], "big")
        + (end - start).to_bytes(_WIDTHS[length_width], "big")
    )


def _literal_head(length: int) -> bytes:
    if length <= LAST_SHORT_LITERAL:
        return bytes((length,))
    width = _narrowest(length)
    return bytes((_FIRST_LITERAL + width,)) + length.to_bytes(_WIDTHS[width], "big")


def _narrowest(value: int) -> int:
    """Return the index of the narrowest field that holds ``value``; OverflowError never for file sizes."""
    return 0 if value < 1 << 8 else 1 if value < 1 << 16 else 2 if value < 1 << 32 else 3
