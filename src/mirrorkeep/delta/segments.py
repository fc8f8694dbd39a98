"""How a large file is cut into segments: the unit that is compared, sent, retried and digested.

Segments are of one length, so that workers on both sides agree on borders without talking, and a
multiple of every block length up to 512 KiB.  Deltas may copy from anywhere in the base, so the
borders cost a shifted or moved stretch only its instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SEGMENT_BYTES: Final = 152 * 65536
"""9.5 MiB: at most 10 MB in either reading (TX-04)."""


def plan_segments(size_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ``(start, end)`` of each segment of a file of ``size_bytes``, in order; none when it is empty."""
    if segment_bytes <= 0:
        raise ValueError("a segment has at least one byte")
    for start in range(0, size_bytes, segment_bytes):
        yield start, min(start + segment_bytes, size_bytes)
