"""Bodies: gzip said either way, cut-offs, lengths, time-outs, bombs."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.errors import LengthMismatch, MalformedRequest, RequestTimeout, TooLarge
from mirrorkeep.server import request as request_module
from mirrorkeep.server.request import ClientGone, Request, Unpacker, unpack


def make(messages: list[dict[str, Any]], *headers: tuple[bytes, bytes], hang: bool = False) -> Request:
    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if hang:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {
        "method": "PUT",
        "raw_path": b"/",
        "query_string": b"a=1&b=%2Fx+y&flag",
        "headers": list(headers),
    }
    return Request(scope, receive, idle_timeout_s=0.05)


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_is_collected_and_its_end_is_seen() -> None:
    request = make([part(b"ab"), part(b"c", more=False)], (b"Content-Length", b"3"))
    assert asyncio.run(request.collect(10)) == [b"ab", b"c"]
    assert request.received_bytes == 3


def test_a_cut_off_body_is_never_taken_for_a_whole_one() -> None:
    with pytest.raises(ClientGone):
        asyncio.run(make([part(b"ab")]).collect(10))


def test_a_length_that_is_not_kept() -> None:
    with pytest.raises(LengthMismatch):
        asyncio.run(make([part(b"abc", more=False)], (b"content-length", b"4")).collect(10))


def test_a_slow_client_is_given_up() -> None:
    with pytest.raises(RequestTimeout):
        asyncio.run(make([part(b"a")], hang=True).collect(10))


def test_too_large_is_said_before_the_body_is_read() -> None:
    untouched = [part(b"x")]
    with pytest.raises(TooLarge):
        asyncio.run(make(untouched, (b"content-length", b"11")).collect(10))
    assert untouched
    with pytest.raises(TooLarge):
        asyncio.run(make([part(b"x" * 11, more=False)]).collect(10))


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"3"), (b"content-length", b"4")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"0x10")],
        [(b"transfer-encoding", b"gzip, chunked")],
    ],
)
def test_conflicting_framing_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedRequest):
        make([], *headers).check_framing()


def test_query_values_are_bytes() -> None:
    assert make([]).query == {"a": b"1", "b": b"/x y", "flag": b""}


@pytest.mark.parametrize("name", [b"content-encoding", b"content-transfer-encoding"])
def test_gzip_is_understood_both_ways(name: bytes) -> None:
    assert make([], (name, b"GZIP")).gzipped
    assert not make([], (name, b"identity")).gzipped
    with pytest.raises(MalformedRequest):
        assert make([], (name, b"br")).gzipped


@pytest.fixture(params=["isal", "zlib"])
def inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(request_module, "_inflater", zlib)


@pytest.mark.usefixtures("inflater")
def test_damage_anywhere_in_a_container_is_seen() -> None:
    data = b"mirror " * 300
    packed = gzip.compress(data)
    assert unpack(packed, gzipped=True, limit_bytes=9999) == data
    for position in (0, 1, 2, 20, len(packed) // 2, len(packed) - 8, len(packed) - 1):
        damaged = bytearray(packed)
        damaged[position] ^= 0x55
        with pytest.raises(MalformedRequest):
            unpack(bytes(damaged), gzipped=True, limit_bytes=9999)
    for cut in range(0, len(packed), 5):
        with pytest.raises(MalformedRequest):
            unpack(packed[:cut], gzipped=True, limit_bytes=9999)
    with pytest.raises(MalformedRequest):
        unpack(packed + b"more", gzipped=True, limit_bytes=9999)


@pytest.mark.usefixtures("inflater")
def test_a_bomb_is_unpacked_in_small_pieces_and_stopped() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(TooLarge):
        unpack(bomb, gzipped=True, limit_bytes=1_000_000)
    assert max(map(len, Unpacker(gzipped=True).feed(bomb))) <= request_module.BATCH_BYTES


@given(st.binary(max_size=5000), st.lists(st.integers(1, 400), max_size=20))
def test_any_split_of_a_container_unpacks_the_same(data: bytes, cuts: list[int]) -> None:
    packed = gzip.compress(data)
    unpacker, out, position = Unpacker(gzipped=True), b"", 0
    for cut in [*cuts, len(packed)]:
        out += b"".join(unpacker.feed(packed[position : position + cut]))
        position += cut
    out += b"".join(unpacker.finish())
    assert out == data
