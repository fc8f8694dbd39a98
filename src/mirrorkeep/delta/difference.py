"""What changed between the base that a signature describes and the file as it is now, by segment.

Each segment is read once and judged: *unchanged* in place, a *delta* that may copy from anywhere in
the base, or *plain* bytes where the base is of no use.  Segments of one file are independent, may be
asked for in any order and by several threads at once, and tell each other the shifts that they found.

Not here: the search itself (``alignment.py``), sending (``tree.remote``), hashing for the manifest:
``SegmentChange.data`` holds exactly the bytes that were compared, so that the caller hashes those.

Nothing is written.  A file that changes while it is read makes a delta of something that the digest
check refuses; a file that becomes shorter raises SourceChanged.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import Final

from mirrorkeep.delta.alignment import Alignment, Shifts
from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.delta.signature import Signature
from mirrorkeep.errors import SourceChanged

_WORTH: Final = 64
"""A delta is worth its base when at least one byte in so many is copied."""


class ChangeKind(enum.Enum):
    """What became of a segment."""

    UNCHANGED = "unchanged"
    DELTA = "delta"
    PLAIN = "plain"


UNCHANGED: Final = ChangeKind.UNCHANGED
DELTA: Final = ChangeKind.DELTA
PLAIN: Final = ChangeKind.PLAIN


@dataclass(frozen=True, slots=True)
class SegmentChange:
    """One segment's difference.

    ``body`` is a librsync delta over the whole base (for an unchanged segment the few bytes that copy
    it), or the segment's bytes when plain.  ``data`` is the segment as it was read.
    """

    kind: ChangeKind
    start: int
    end: int
    body: bytes
    data: memoryview

    @property
    def is_unchanged(self) -> bool:
        """Say whether the segment equals the same range of the base."""
        return self.kind is UNCHANGED


class Difference:
    """The difference of an open file of ``size_bytes`` to the base of ``signature``.

    ``fd`` is read by position and stays the caller's.  Memory: one segment, two blocks and the delta
    for each thread inside :meth:`segment`.
    """

    def __init__(self, signature: Signature, fd: int, size_bytes: int, *, origin: int = 0) -> None:
        """Compare ``size_bytes`` of ``fd`` from byte ``origin`` on, which counts as the file's first."""
        self._signature = signature
        self._origin = origin
        self._fd = fd
        self._size_bytes = size_bytes
        self._shifts = Shifts()

    def segment(self, start: int, end: int) -> SegmentChange:
        """Read and compare bytes ``start`` to ``end``; may be repeated.

        Raises SourceChanged when the file became shorter, EngineMissing without librsync (only where
        something changed), MalformedSignature when librsync refuses the signature, OSError.
        """
        copies, data = self._align(start, end)
        copied = sum(length for _, _, length in copies)
        if copied == end - start and all(place == base for place, base, _ in copies):
            return SegmentChange(UNCHANGED, start, end, build_delta([Copy(start, end - start)]), data)
        if copied * _WORTH < end - start:
            return SegmentChange(PLAIN, start, end, bytes(data), data)
        return SegmentChange(DELTA, start, end, _encode(copies, data, start), data)

    def copies(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return ``(offset in the file, offset in the base, bytes)`` of what a segment shares with the base.

        In the order of the file, without overlaps in it; raises as :meth:`segment` does.
        """
        return self._align(start, end)[0]

    def _align(self, start: int, end: int) -> tuple[list[tuple[int, int, int]], memoryview]:
        if not 0 <= start <= end <= self._size_bytes:
            raise ValueError(f"bytes {start} to {end} of {self._size_bytes}")
        margin = self._signature.block_bytes
        low, high = max(start - margin, 0), min(end + margin, self._size_bytes)
        window = self._read(low, high)
        copies = Alignment(self._signature, self._shifts, window, (low, start, end)).copies()
        return copies, memoryview(window)[start - low : end - low]

    def _read(self, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end``; not into a buffer, whose clearing holds the interpreter lock."""
        pieces: list[bytes] = []
        start, end = start + self._origin, end + self._origin
        while start < end:
            piece = os.pread(self._fd, end - start, start)
            if not piece:
                raise SourceChanged(path="the file being compared")
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _encode(copies: list[tuple[int, int, int]], data: memoryview, start: int) -> bytes:
    """Return the delta: the copies in order, and literal bytes for what lies between them."""
    operations: list[Copy | Literal] = []
    position = start
    for place, base, length in copies:
        if place > position:
            operations.append(Literal(data[position - start : place - start]))
        operations.append(Copy(base, length))
        position = place + length
    operations.append(Literal(data[position - start :]))
    return build_delta(operations)
