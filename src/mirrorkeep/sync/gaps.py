"""What of a segment has to be sent of a file with holes: the data, not the zeros between.

A store takes what the record calls a hole as zeros where nothing was written (``tree/transaction``), so that
holes cost nothing on the way and need no room.  What is called a hole here was also read, and is zeros.

Not here: where the holes of a file are (``tree/metadata/sparse``).  Nothing is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from mirrorkeep.tree.content import is_zeros
from mirrorkeep.tree.metadata.sparse import Ranges
from mirrorkeep.tree.protocol import Data, Segment

LEAST_GAP_BYTES: Final = 1 << 20
"""Shorter holes are sent as zeros with what is around them: each piece is a request of its own."""


def pieces_to_send(segment: Segment, data: Data, ranges: Ranges) -> list[Segment]:
    """Return the parts of ``segment``, which holds ``data``, that are not zeros in a hole.

    ``ranges`` are the stretches of data of the file, ascending.  A hole that is no zeros was written to
    since: the whole segment is sent then.
    """
    pieces: list[Segment] = []
    for start, end in _inside(segment, ranges):
        if pieces and start - pieces[-1].end < LEAST_GAP_BYTES:
            pieces[-1] = Segment(pieces[-1].start, end)
        else:
            pieces.append(Segment(start, end))
    position, view = segment.start, memoryview(data)
    for piece in [*pieces, Segment(segment.end, segment.end)]:
        if not is_zeros(view[position - segment.start : piece.start - segment.start]):
            return [segment]
        position = piece.end
    return pieces


def _inside(segment: Segment, ranges: Ranges) -> Iterator[tuple[int, int]]:
    first = max(0, bisect_right(ranges, (segment.start, segment.start)) - 1)
    for number in range(first, len(ranges)):
        start, end = ranges[number]
        if start >= segment.end:
            return
        if end > segment.start:
            yield max(start, segment.start), min(end, segment.end)
