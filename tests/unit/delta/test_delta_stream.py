"""A delta read as it arrives gives what a delta in memory gives, and is refused for the same reasons."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.delta.patch import Copy, Literal, build_delta, check_delta, delta_operations, patch_pieces
from mirrorkeep.delta.stream import PIECE_BYTES, patch_from, stream_operations
from mirrorkeep.errors import MalformedDelta

BASE = bytes(range(256)) * 4096

copies = st.builds(Copy, st.integers(0, len(BASE) - 70_000), st.integers(1, 70_000))
literals = st.builds(Literal, st.binary(min_size=1, max_size=400))
operations = st.lists(copies | literals, max_size=12)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        yield b""  # an unpacker may give nothing for a block


@given(wanted=operations, size=st.integers(1, 500))
def test_it_makes_what_the_whole_delta_makes(wanted: list[Copy | Literal], size: int) -> None:
    delta = build_delta(wanted)
    streamed = io.BytesIO()
    with tempfile.TemporaryFile() as base:
        base.write(BASE)
        base.flush()
        pieces = patch_pieces(delta, base.fileno(), expected_bytes=check_delta(delta, len(BASE)))
        patch_from(cut(delta, size), base.fileno(), streamed)
    assert streamed.getvalue() == b"".join(piece.data for piece in pieces)


@given(wanted=operations, keep=st.integers(0, 2000), junk=st.binary(max_size=3), size=st.integers(1, 100))
def test_it_refuses_what_the_whole_delta_is_refused_for(
    wanted: list[Copy | Literal], keep: int, junk: bytes, size: int
) -> None:
    delta = build_delta(wanted)[:keep] + junk
    try:
        expected = [one for one in delta_operations(delta) if isinstance(one, Copy)]
    except MalformedDelta:
        with pytest.raises(MalformedDelta):
            list(stream_operations(cut(delta, size)))
    else:
        assert [one for one in stream_operations(cut(delta, size)) if isinstance(one, Copy)] == expected


def test_a_long_literal_comes_in_pieces() -> None:
    data = b"x" * (3 * PIECE_BYTES + 1)
    found = list(stream_operations([build_delta([Literal(data)])]))
    assert [len(one.data) for one in found if isinstance(one, Literal)] == [PIECE_BYTES] * 3 + [1]


def test_a_copy_from_beyond_the_base_is_refused() -> None:
    with tempfile.TemporaryFile() as base, pytest.raises(MalformedDelta, match="beyond"):
        patch_from([build_delta([Copy(0, 1)])], base.fileno(), io.BytesIO())
