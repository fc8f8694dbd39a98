"""Deltas of any length, read as they arrive: one command, or a piece of literal bytes, in memory at a time.

A segment's delta is checked as a whole before anything is written (``patch``).  What is made here goes to a
staged file whose digest decides, so every command is checked when it is reached, and an error leaves a file
that nobody publishes.

Not here: staging and digests, which are the caller's.  A crash leaves the output cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from mirrorkeep.delta.patch import (
    DELTA_MAGIC,
    END,
    FIRST_RESERVED,
    LAST_SHORT_LITERAL,
    Copy,
    Literal,
    field_widths,
)
from mirrorkeep.errors import MalformedDelta

PIECE_BYTES: Final = 256 * 1024


class Writable(Protocol):
    """Where the result goes."""

    def write(self, data: bytes, /) -> object: ...


class _Incoming:
    """Blocks of a delta as one stream of bytes."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""
        self._position = 0

    def some(self, most: int) -> bytes:
        """Return the next bytes, at most ``most``; nothing at the end."""
        while self._position == len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._block, self._position = block, 0
        found = self._block[self._position : self._position + most]
        self._position += len(found)
        return found

    def exactly(self, length: int, where: str) -> bytes:
        """Return ``length`` bytes; raises MalformedDelta where there are fewer."""
        found = self.some(length)
        while len(found) < length:
            more = self.some(length - len(found))
            if not more:
                raise MalformedDelta(detail=where)
            found += more
        return found


def stream_operations(blocks: Iterable[bytes]) -> Iterator[Copy | Literal]:
    """Yield the operations of the delta that ``blocks`` make; long literals come in pieces of 256 KiB.

    Raises MalformedDelta as :func:`~mirrorkeep.delta.patch.delta_operations`.
    """
    incoming = _Incoming(blocks)
    if incoming.exactly(len(DELTA_MAGIC), "its magic number is cut off") != DELTA_MAGIC:
        raise MalformedDelta(detail="it does not begin with librsync's magic number")
    while True:
        command = incoming.exactly(1, "its end is missing")[0]
        if command == END:
            if incoming.some(1):
                raise MalformedDelta(detail="bytes after its end")
            return
        if command >= FIRST_RESERVED:
            raise MalformedDelta(detail=f"reserved command {command}")
        length = command
        if command > LAST_SHORT_LITERAL:
            offset_bytes, length_bytes = field_widths(command)
            fields = incoming.exactly(offset_bytes + length_bytes, "it ends inside a command")
            length = int.from_bytes(fields[offset_bytes:], "big")
            if not length:
                raise MalformedDelta(detail="a command of no bytes")
            if offset_bytes:
                yield Copy(int.from_bytes(fields[:offset_bytes], "big"), length)
                continue
        while length:
            piece = incoming.some(min(length, PIECE_BYTES))
            if not piece:
                raise MalformedDelta(detail="it ends inside literal bytes")
            yield Literal(piece)
            length -= len(piece)


def patch_from(blocks: Iterable[bytes], base_fd: int, out: Writable) -> None:
    """Write what the delta that ``blocks`` make does to the file ``base_fd`` to ``out``.

    Memory: a block and a piece, whatever the delta says.  Raises MalformedDelta when a command is reached
    that is none or copies from beyond the base, and what ``out`` raises: it is the one to limit the size.
    """
    base_bytes = os.fstat(base_fd).st_size
    for operation in stream_operations(blocks):
        if isinstance(operation, Literal):
            out.write(bytes(operation.data))
            continue
        offset, end = operation.offset, operation.offset + operation.length
        if end > base_bytes:
            raise MalformedDelta(detail="it copies from beyond the end of its base")
        while offset < end:
            piece = os.pread(base_fd, min(end - offset, PIECE_BYTES), offset)
            if not piece:
                raise MalformedDelta(detail="its base became shorter while it was applied")
            out.write(piece)
            offset += len(piece)
