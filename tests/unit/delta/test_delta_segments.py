"""The cut into segments."""

from __future__ import annotations

import pytest

from mirrorkeep.delta.segments import SEGMENT_BYTES, plan_segments


@pytest.mark.parametrize("size_bytes", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 25 << 20])
def test_segments_cover_the_file_without_gap_or_overlap(size_bytes: int) -> None:
    position = 0
    for start, end in plan_segments(size_bytes):
        assert start == position
        assert start < end <= start + SEGMENT_BYTES
        position = end
    assert position == size_bytes


def test_25_mb_are_three_segments_of_at_most_10_mb() -> None:
    spans = list(plan_segments(25_000_000))
    assert len(spans) == 3
    assert max(end - start for start, end in spans) <= 10_000_000


def test_borders_lie_on_the_borders_of_blocks() -> None:
    assert SEGMENT_BYTES % (512 * 1024) == 0


def test_a_segment_has_bytes() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        list(plan_segments(1, 0))
