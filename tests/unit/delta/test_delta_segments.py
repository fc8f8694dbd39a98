"""The cut into segments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from mirrorkeep.delta.segments import (
    DIGEST_BYTES,
    MOST_DIGESTS,
    SEGMENT_BYTES,
    digest_range,
    digest_segments,
    digest_unit,
    pack_digests,
    plan_segments,
    segment_digest,
    unpack_digests,
)


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


@pytest.mark.parametrize(
    "size_bytes",
    [SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, 128 * SEGMENT_BYTES, 128 * SEGMENT_BYTES + 5, 50 << 40],
)
def test_digests_of_any_size_pack_into_a_short_field(size_bytes: int) -> None:
    class Numbered(dict[tuple[int, int], bytes]):
        """A digest for every segment there may be."""

        def __missing__(self, span: tuple[int, int]) -> bytes:
            return blake3(repr(span).encode()).digest(DIGEST_BYTES)

    if size_bytes > 1 << 40:  # as many as a disk image of 50 TB has would take long to make up
        assert -(-size_bytes // digest_unit(size_bytes)) <= MOST_DIGESTS
        return
    value = pack_digests(size_bytes, Numbered())
    digests = unpack_digests(value, size_bytes)
    assert len(value) < 4200
    assert list(digests) == list(plan_segments(size_bytes, digest_unit(size_bytes)))
    is_segment = size_bytes <= 128 * SEGMENT_BYTES
    assert (next(iter(digests.values())) == Numbered()[0, SEGMENT_BYTES]) == is_segment


def test_small_files_need_none_and_wrong_ones_are_refused() -> None:
    assert pack_digests(SEGMENT_BYTES, {}) == b""
    with pytest.raises(KeyError):
        pack_digests(SEGMENT_BYTES + 1, {})
    for value in (b"", b":", b"1:00", b"9961472:" + b"00" * 16, b"9961472:" + b"zz" * 32):
        with pytest.raises(ValueError):
            unpack_digests(value, 2 * SEGMENT_BYTES)


def test_a_range_hashes_to_what_its_segments_say(tmp_path: Path) -> None:
    content = os.urandom(2 * SEGMENT_BYTES + 100)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as stream:
        digests = digest_segments(stream.fileno(), len(content))
        assert list(digests.values()) == [segment_digest(content[start:end]) for start, end in digests]
        joined = digest_range(stream.fileno(), (0, 2 * SEGMENT_BYTES), 2 * SEGMENT_BYTES)
    first, second, _ = digests.values()
    assert joined == blake3(first + second).digest(DIGEST_BYTES)
