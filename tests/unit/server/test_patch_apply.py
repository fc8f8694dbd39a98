"""PATCH-APPLY outside of a transaction: TX-11 to TX-20, status by status."""

from __future__ import annotations

import gzip
import os

import pytest

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.errors import MalformedRequest
from mirrorkeep.server.extensions import parse_content_range
from mirrorkeep.tree import wire
from mirrorkeep.tree.transaction import segment_digest

from .conftest import Edge

OLD = bytes(range(256)) * 16


@pytest.fixture
def url(edge: Edge, base: str) -> str:
    assert edge("PUT", f"{base}/file", OLD).status == 201
    return f"{base}/file"


@pytest.mark.parametrize("header", ["bytes:0-1023/4096", "bytes 0-1023/4096", "Bytes: 0-1023/4096"])
def test_both_spellings_of_the_range_patch_the_file(edge: Edge, url: str, header: str) -> None:
    delta = build_delta([Literal(b"new!"), Copy(2048, 1020)])
    before = edge("GET", url).headers["etag"]
    reply = edge("PATCH-APPLY", url, delta, Content_Range=header)
    assert (reply.status, reply.body) == (204, b"")
    got = edge("GET", url)
    assert got.body == b"new!" + OLD[2048:3068] + OLD[1024:]
    assert got.headers["etag"] == reply.headers["etag"] != before
    edge.app.hasher.drain()
    assert "mirrorkeep-digest" in edge("GET", url).headers


def test_the_delta_may_be_packed_and_chunked(edge: Edge, url: str) -> None:
    delta = gzip.compress(build_delta([Literal(b"z" * 10)]))
    reply = edge(
        "PATCH-APPLY",
        url,
        [delta[:7], delta[7:]],
        Content_Range="bytes:0-9/4096",
        Content_Transfer_Encoding="gzip",
        Transfer_Encoding="chunked",
    )
    assert reply.status == 204
    assert edge("GET", url).body == b"z" * 10 + OLD[10:]


@pytest.mark.parametrize(
    ("value", "size"), [("true", 100), ("TRUE", 100), ("1", 4096), ("false", 4096), (None, 4096), ("", 4096)]
)
def test_truncation(edge: Edge, url: str, value: str | None, size: int) -> None:
    headers = {} if value is None else {"FileTruncate": value}
    delta = build_delta([Literal(b"!" * 50)])
    reply = edge("PATCH-APPLY", url, delta, Content_Range="bytes:50-99/100", **headers)
    assert reply.status == 204
    assert edge("GET", url).body == (OLD[:50] + b"!" * 50 + OLD[100:])[:size]


def test_a_file_grows_at_its_end(edge: Edge, url: str) -> None:
    delta = build_delta([Literal(b"tail")])
    assert edge("PATCH-APPLY", url, delta, Content_Range="bytes:4096-4099/4100").status == 204
    assert edge("GET", url).body == OLD + b"tail"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content_Range": "bytes=0-9/4096"},
        {"Content_Range": "bytes:9-0/4096"},
        {"Content_Range": "bytes:0-9/9"},
        {"Content_Range": "bytes:0-9/*"},
        {"Content_Range": "bytes:-9/4096"},
        {"Content_Range": "bytes:0-9/4096", "Content_Length": "x"},
        {"Content_Range": "bytes:0-9/4096", "Content_Length": "99"},
        {"Content_Range": "bytes:0-9/4096", "Content_Encoding": "gzip"},
        {"Content_Range": "bytes:0-9/4096", "Mirrorkeep_Digest": "crc=1"},
    ],
)
def test_bad_requests_are_400(edge: Edge, url: str, headers: dict[str, str]) -> None:
    assert edge("PATCH-APPLY", url, build_delta([Literal(b"!" * 10)]), **headers).status == 400
    assert edge("GET", url).body == OLD


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"nonsense",
        build_delta([Literal(b"!" * 10)])[:-1],
        build_delta([Literal(b"!" * 9)]),
        build_delta([Literal(b"!" * 11)]),
        build_delta([Copy(4090, 10)]),
    ],
)
def test_bad_deltas_are_400_and_change_nothing(edge: Edge, url: str, delta: bytes) -> None:
    reply = edge("PATCH-APPLY", url, delta, Content_Range="bytes:0-9/4096")
    assert (reply.status, reply.code) == (400, "malformed_delta")
    assert edge("GET", url).body == OLD


def test_a_cut_off_delta_changes_nothing(edge: Edge, url: str) -> None:
    delta = build_delta([Literal(b"!" * 10)])
    reply = edge("PATCH-APPLY", url, delta[:5], cut_off=True, Content_Range="bytes:0-9/4096")
    assert reply.status == 400
    assert edge("GET", url).body == OLD


def test_what_does_not_exist_is_500(edge: Edge, base: str, url: str) -> None:
    delta = build_delta([Literal(b"!")])
    edge("MKCOL", f"{base}/dir")
    for target, where in ((f"{base}/none", "0-0"), (url, "4097-4097"), (f"{base}/dir", "0-0")):
        reply = edge("PATCH-APPLY", target, delta, Content_Range=f"bytes:{where}/9999")
        assert (reply.status, reply.code) == (500, "patch_target_missing")
    assert edge("GET", url).body == OLD


def test_a_segment_is_checked_against_its_digest(edge: Edge, url: str) -> None:
    delta = build_delta([Literal(b"!" * 10)])
    good, bad = (f"{wire.SEGMENT_DIGEST}={segment_digest(data).hex()}" for data in (b"!" * 10, b"?" * 10))
    common = {"Content_Range": "bytes:0-9/4096"}
    assert edge("PATCH-APPLY", url, delta, Mirrorkeep_Digest=bad, **common).status == 422
    assert edge("GET", url).body == OLD
    assert edge("PATCH-APPLY", url, delta, Mirrorkeep_Digest=good, **common).status == 204


def test_preconditions_and_locks_hold_for_patches(edge: Edge, url: str) -> None:
    delta, common = build_delta([Literal(b"!")]), {"Content_Range": "bytes:0-0/4096"}
    assert edge("PATCH-APPLY", url, delta, If_Match='"other"', **common).status == 412
    scope = b"<lockscope><exclusive/></lockscope><locktype><write/></locktype>"
    info = b"<lockinfo xmlns='DAV:'>" + scope + b"</lockinfo>"
    token = edge("LOCK", url, info).headers["lock-token"]
    assert edge("PATCH-APPLY", url, delta, **common).status == 423
    assert edge("PATCH-APPLY", url, delta, If=f"({token})", **common).status == 204


def test_a_repeated_patch_gives_the_same_file(edge: Edge, url: str) -> None:
    delta = build_delta([Literal(b"same"), Copy(1000, 96)])
    for _ in range(2):
        assert edge("PATCH-APPLY", url, delta, Content_Range="bytes:0-99/4096").status == 204
    assert edge("GET", url).body == b"same" + OLD[1000:1096] + OLD[100:]


def test_nothing_stays_in_staging(edge: Edge, base: str, url: str) -> None:
    edge("PATCH-APPLY", url, build_delta([Literal(b"!")]), Content_Range="bytes:0-0/4096")
    edge("PATCH-APPLY", url, b"broken", Content_Range="bytes:0-0/4096")
    edge("PUT", url, b"torn", cut_off=True)
    edge.app.hasher.drain()
    tip = edge.store.volume(base.rpartition("/")[2]).tip
    assert os.listdir(f"{tip}/.mirrorkeep/.mirrorkeep.staging") == []


def test_a_signature_is_made_on_demand(edge: Edge, url: str) -> None:
    from mirrorkeep.delta.signature import Signature

    reply = edge("GET", f"{url}?signature=1")
    assert reply.status == 200
    assert Signature.load(reply.body).block_bytes >= 4096
    assert edge("GET", f"{url}x?signature=1").status == 404


def test_ranges_are_parsed_to_the_byte() -> None:
    assert parse_content_range("bytes:0-1023/2097152") == (0, 1024, 2097152)
    with pytest.raises(MalformedRequest):
        parse_content_range("bytes:0-1023")


def test_pieces_of_a_signature_make_the_whole(edge: Edge, base: str) -> None:
    url = f"{base}/signed"
    assert edge("PUT", url, os.urandom(3 * 65536 + 5)).status == 201
    whole = edge("GET", f"{url}?signature=1").body
    first = edge("GET", f"{url}?signature=1&start=0&end=131072").body
    rest = edge("GET", f"{url}?signature=1&start=131072&end=196613").body
    assert first[: wire.SIGNATURE_HEAD_BYTES] == rest[: wire.SIGNATURE_HEAD_BYTES]
    assert first + rest[wire.SIGNATURE_HEAD_BYTES :] == whole
    assert edge("GET", f"{url}?signature=1&start=0&end=196614").status == 400
    assert edge("GET", f"{url}?signature=1&start=0").status == 400
