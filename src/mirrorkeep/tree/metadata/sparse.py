"""Sparse files: where the data is, found by ``SEEK_DATA`` and ``SEEK_HOLE``, and as text.

Text form: ``offset+length;offset+length``, ascending, in bytes; empty means that all is hole.  A file
without holes has no text at all.  Not here: writing files with holes (``native_write``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TypeAlias

Ranges: TypeAlias = Sequence[tuple[int, int]]
"""``(start, end)`` of stretches of data, ascending, not touching; end is exclusive."""


def find_data(fd: int, size_bytes: int) -> list[tuple[int, int]] | None:
    """Return the stretches of data of an open file, or None when it has no hole (or hides them).

    Moves the descriptor's position.
    """
    ranges: list[tuple[int, int]] = []
    position = 0
    try:
        while position < size_bytes:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only hole up to the end
                    break
                raise
            if start >= size_bytes:
                break
            position = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
            ranges.append((start, position))
    except OSError:  # a file system without the question: holes are then ordinary zeros
        return None
    return None if ranges == [(0, size_bytes)] or not size_bytes else ranges


def ranges_to_text(ranges: Ranges) -> bytes:
    """Return the text of ``ranges``."""
    return b";".join(b"%d+%d" % (start, end - start) for start, end in ranges)


def ranges_from_text(text: bytes, size_bytes: int) -> list[tuple[int, int]]:
    """Return the ranges of ``text``; ValueError unless they ascend inside ``size_bytes``."""
    ranges: list[tuple[int, int]] = []
    position = 0
    for item in text.split(b";") if text else ():
        offset, plus, length = item.partition(b"+")
        if not (plus and offset.isdigit() and length.isdigit()):
            raise ValueError(f"not a range: {item!r}")
        start = int(offset)
        end = start + int(length)
        if start < position or end <= start or end > size_bytes:
            raise ValueError(f"range {item!r} overlaps, is empty or leaves the file")
        ranges.append((start, end))
        position = end
    return ranges


def holes(ranges: Ranges, size_bytes: int) -> list[tuple[int, int]]:
    """Return what lies between the stretches of data."""
    gaps = []
    position = 0
    for start, end in ranges:
        if start > position:
            gaps.append((position, start))
        position = end
    if position < size_bytes:
        gaps.append((position, size_bytes))
    return gaps
