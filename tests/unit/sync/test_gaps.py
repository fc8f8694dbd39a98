"""What is sent of a file with holes: all of its data, and little else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.sync.gaps import LEAST_GAP_BYTES, pieces_to_send
from mirrorkeep.tree.protocol import Segment

MIB = 1 << 20
RANGES = [(0, 100), (MIB, 3 * MIB), (9 * MIB, 9 * MIB + 5), (12 * MIB, 13 * MIB)]


def content(size_bytes: int, ranges: list[tuple[int, int]]) -> bytes:
    made = bytearray(size_bytes)
    for start, end in ranges:
        made[start:end] = b"x" * (end - start)
    return bytes(made)


FILE = content(20 * MIB, RANGES)


@pytest.mark.parametrize(
    ("start", "end", "pieces"),
    [
        (0, 10 * MIB, [(0, 3 * MIB), (9 * MIB, 9 * MIB + 5)]),  # a hole that is short goes with its data
        (2 * MIB, 12 * MIB, [(2 * MIB, 3 * MIB), (9 * MIB, 9 * MIB + 5)]),
        (9 * MIB + 2, 12 * MIB + 1, [(9 * MIB + 2, 9 * MIB + 5), (12 * MIB, 12 * MIB + 1)]),
        (3 * MIB, 9 * MIB, []),
        (13 * MIB, 20 * MIB, []),
        (MIB, 2 * MIB, [(MIB, 2 * MIB)]),
    ],
)
def test_what_is_data_is_sent_and_holes_are_not(start: int, end: int, pieces: list[tuple[int, int]]) -> None:
    assert pieces_to_send(Segment(start, end), FILE[start:end], RANGES) == [Segment(*one) for one in pieces]


@pytest.mark.parametrize("at", [3 * MIB, 5 * MIB - 1, 9 * MIB - 1, 10 * MIB - 1])
def test_a_hole_that_was_written_to_since_is_sent(at: int) -> None:
    changed = bytearray(FILE[: 10 * MIB])
    changed[at] = 1
    whole = Segment(0, 10 * MIB)
    assert pieces_to_send(whole, bytes(changed), RANGES) == [whole]


@given(st.lists(st.integers(0, 160), min_size=2, max_size=16, unique=True), st.integers(0, 80))
def test_whatever_the_holes_nothing_but_zeros_is_left_out(borders: list[int], first: int) -> None:
    unit = LEAST_GAP_BYTES // 8
    borders = [border * unit // 8 for border in sorted(borders)]
    ranges = list(zip(borders[::2], borders[1::2], strict=False))
    segment = Segment(first * unit // 8, (first + 80) * unit // 8)
    data = content(segment.end, ranges)[segment.start : segment.end]
    made = bytearray(len(data))
    pieces = pieces_to_send(segment, data, ranges)
    for piece in pieces:
        at = slice(piece.start - segment.start, piece.end - segment.start)
        made[at] = data[at]
    assert bytes(made) == data
    assert all(one.end + LEAST_GAP_BYTES <= two.start for one, two in itertools.pairwise(pieces))
