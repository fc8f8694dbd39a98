"""What a local file already has of the one that is wanted: zsync's way, roles swapped (LOC-03).

The store signs the wanted file; the signature is searched for in the local one, the *seed*, as ``rdiff``
searches a base's signature in a new file.  Every stretch that is found is a *piece*; what lies between
the pieces has to be fetched.  Server and wire do no more than for an upload, whatever the number of
clients that revert.

Not here: fetching, writing, and the proof: a piece rests on a block sum of 16 bytes, so the caller
checks the digest of the whole before it replaces anything, and fetches everything when it is wrong.

Nothing is written.  Memory: the signature (under 16 MiB, and as much again inside librsync) and a row for
each stretch that was found.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from mirrorkeep.delta.difference import Difference
from mirrorkeep.delta.segments import Span, digest_range, plan_segments
from mirrorkeep.delta.signature import Signature
from mirrorkeep.errors import SourceChanged

WORTH: Final = 64
"""A seed is searched when it has at least one byte for so many of the wanted file."""
MERGE_BYTES: Final = 32 * 1024
"""A piece shorter than this between two ranges that are missing is fetched along with them."""


@runtime_checkable
class Signer(Protocol):
    """A master behind a wire, where every byte costs: it signs what it has."""

    def signature_of_range(self, path: bytes, start: int, end: int) -> bytes:
        """Return a librsync signature of a range, which begins on a border of the file's blocks."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes ``start`` to ``end`` of the wanted file: at ``seed_start`` of the seed, or missing (-1)."""

    start: int
    end: int
    seed_start: int = -1

    @property
    def is_missing(self) -> bool:
        """Whether it has to be fetched."""
        return self.seed_start < 0

    @property
    def is_in_place(self) -> bool:
        """Whether the seed has it where the wanted file has it."""
        return self.seed_start == self.start


class Seed:
    """An open local file, and which stretches of the wanted file it holds.

    ``fd`` stays the caller's.  ``in_destination``: it is the very file that will be replaced.
    """

    def __init__(self, fd: int, pieces: list[Stretch], *, in_destination: bool) -> None:
        self.fd = fd
        self.in_destination = in_destination
        self._pieces = pieces

    @property
    def found_bytes(self) -> int:
        """Return how many bytes of the wanted file the seed has."""
        return sum(piece.end - piece.start for piece in self._pieces)

    def stretches(self, start: int, end: int) -> list[Stretch]:
        """Return bytes ``start`` to ``end`` of the wanted file as stretches, in order and without gaps."""
        stretches: list[Stretch] = []
        position = start
        for piece in self._within(start, end):
            if piece.start > position:
                stretches.append(Stretch(position, piece.start))
            stretches.append(piece)
            position = piece.end
        if position < end:
            stretches.append(Stretch(position, end))
        return _merge(stretches)

    def read(self, stretch: Stretch) -> bytes:
        """Return a stretch that is there; raises SourceChanged when the seed became shorter."""
        parts: list[bytes] = []
        position, left = stretch.seed_start, stretch.end - stretch.start
        while left:
            part = os.pread(self.fd, left, position)
            if not part:
                raise SourceChanged(path="the local copy that served as seed")
            parts.append(part)
            position, left = position + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _within(self, start: int, end: int) -> Iterator[Stretch]:
        first = bisect.bisect_right(self._pieces, start, key=lambda piece: piece.end)
        for piece in self._pieces[first:]:
            if piece.start >= end:
                return
            skipped = max(start - piece.start, 0)
            yield Stretch(piece.start + skipped, min(piece.end, end), piece.seed_start + skipped)


def find_unchanged(fd: int, size_bytes: int, digests: dict[Span, bytes], unit: int) -> list[Stretch]:
    """Return the ranges of an open file that are what the wanted file has there, by their digests (MAN-38).

    Raises OSError.
    """
    pieces: list[Stretch] = []
    for span, digest in digests.items():
        if span[1] <= size_bytes and digest_range(fd, span, unit) == digest:
            if pieces and pieces[-1].end == span[0]:
                pieces[-1] = Stretch(pieces[-1].start, span[1], pieces[-1].seed_start)
            else:
                pieces.append(Stretch(*span, span[0]))
    return pieces


def find_pieces(
    signature: Signature, fd: int, size_bytes: int, wanted_bytes: int, *, origin: int = 0
) -> list[Stretch]:
    """Search ``size_bytes`` of an open file for the blocks of a signature; return the pieces, disjoint.

    ``origin`` is where in both files the search and what was signed begin.  Raises
    SourceChanged when the file became shorter, EngineMissing, MalformedSignature, OSError.
    """
    difference = Difference(signature, fd, size_bytes, origin=origin)
    found: list[tuple[int, bool, int, int]] = []
    for start, end in plan_segments(size_bytes):
        for place, base, length in difference.copies(start, end):
            found.append((base, place != base, place, length))
    found.sort()
    pieces: list[Stretch] = []
    position = 0
    for base, _, place, length in ((origin + row[0], row[1], origin + row[2], row[3]) for row in found):
        begin, stop = max(base, position), min(base + length, origin + wanted_bytes)
        if begin >= stop:
            continue
        seed_start = place + begin - base
        if (
            pieces
            and pieces[-1].end == begin
            and seed_start - pieces[-1].seed_start == begin - pieces[-1].start
        ):
            pieces[-1] = Stretch(pieces[-1].start, stop, pieces[-1].seed_start)
        else:
            pieces.append(Stretch(begin, stop, seed_start))
        position = stop
    return pieces


def find_gaps(pieces: list[Stretch], end: int) -> list[tuple[int, int]]:
    """Return the ranges up to ``end`` that lie between pieces, which are in order."""
    gaps: list[tuple[int, int]] = []
    position = 0
    for piece in [*pieces, Stretch(end, end)]:
        if piece.start > position:
            gaps.append((position, piece.start))
        position = piece.end
    return gaps


def _merge(stretches: list[Stretch]) -> list[Stretch]:
    """Join missing stretches over what is not worth a request of its own."""
    merged: list[Stretch] = []
    for number, one in enumerate(stretches):
        if merged and merged[-1].is_missing:
            short = one.end - one.start < MERGE_BYTES
            before_missing = number + 1 < len(stretches) and stretches[number + 1].is_missing
            if one.is_missing or (short and before_missing):
                merged[-1] = Stretch(merged[-1].start, one.end)
                continue
        merged.append(one)
    return merged
