"""A whole run through the edge: begin, bundles, segments, commit, close, and reading it all back."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from typing import Any
from urllib.parse import quote

import pytest

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.tree import wire
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.transaction import segment_digest

from .conftest import Edge


def file_line(path: bytes, data: bytes, **more: bytes) -> bytes:
    fields = {
        b"type": b"file",
        b"st_size": b"%d" % len(data),
        b"st_mtime": b"1700000000.5",
        b"st_mode": b"100644",
        b"hash": hashlib.sha256(data).hexdigest().encode(),
    }
    return format_record(path, fields | {key.encode(): value for key, value in more.items()})


def put_frame(path: bytes, data: bytes) -> Frame:
    return Frame(Op.PUT, file_line(path, data), data)


ROOT = format_record(b"", {b"type": b"directory", b"st_mode": b"40755", b"st_mtime": b"1700000000"})


class Run:
    """A run of one part, as a client would hold it."""

    def __init__(self, edge: Edge, volume: str, part: str = "", **state: Any) -> None:
        body = json.dumps({"volume": volume, "part": part, "source": "test", "state": state}).encode()
        reply = edge("POST", "/api/v1/runs", body)
        assert reply.status == 201, reply.body
        self.edge, self.info = edge, reply.json()
        self.url = f"/volumes/{volume}" + (f"/{part}" if part else "")
        self.header = f"{self.info['run']};epoch={self.info['epoch']};incarnation={self.info['incarnation']}"

    def bundle(self, *frames: Frame, **headers: str) -> Any:
        body = wire.pack_bundle(frames)
        return self.edge("BUNDLE-APPLY", self.url, body, Mirrorkeep_Run=self.header, **headers)

    def commit(self, position: Any) -> Any:
        body = {"epoch": self.info["epoch"], "incarnation": self.info["incarnation"], "position": position}
        return self.edge("POST", f"/api/v1/runs/{self.info['run']}/commit", json.dumps(body).encode())

    def close(self, *lines: bytes) -> Any:
        stream = io.BytesIO()
        writer = ManifestWriter(stream, {b"source": b"test"})
        for line in lines:
            writer.add(line)
        digest = writer.finish().digest
        query = f"epoch={self.info['epoch']}&incarnation={self.info['incarnation']}&form=full&digest={digest}"
        body = gzip.compress(stream.getvalue())
        url = f"/api/v1/runs/{self.info['run']}/close?{query}"
        return self.edge("POST", url, body, Content_Encoding="gzip")


@pytest.fixture
def run(edge: Edge, base: str) -> Run:
    return Run(edge, base.rpartition("/")[2])


def test_a_run_ends_in_a_snapshot_that_is_read_back(edge: Edge, base: str, run: Run) -> None:
    reply = run.bundle(put_frame(b"a", b"one"), put_frame(b"d/b", b"two"), Frame(Op.STAMP, ROOT))
    assert reply.json() == {"applied": 3, "failed": []}
    assert run.commit({"entries": 3}).json() == {"commit": 1}
    closed = run.close(file_line(b"a", b"one"), file_line(b"d/b", b"two"), ROOT)
    assert closed.status == 200, closed.body
    snapshot = closed.json()["snapshot"]
    volume = base.rpartition("/")[2]
    frozen = f"/snapshots/{snapshot}/{volume}"
    assert edge("GET", f"{frozen}/a").body == b"one"
    assert edge("PUT", f"{frozen}/a", b"x").status == 403
    listed = edge("GET", f"/api/v1/volumes/{volume}/snapshots").json()["snapshots"]
    assert [row["name"] for row in listed] == [snapshot]
    assert edge("GET", f"/api/v1/volumes/{volume}/manifest").body.startswith(b"=")
    actual = edge("GET", f"/api/v1/volumes/{volume}/manifest?snapshot=actual").body
    assert file_line(b"a", b"one") in actual
    verdict = edge("GET", f"/api/v1/volumes/{volume}/verdicts/{snapshot}").json()
    assert verdict["state"] == "pending"
    again = edge("POST", f"/api/v1/volumes/{volume}/validations", b'{"snapshot":null,"mode":"full"}')
    assert again.status == 202
    assert again.json()["sequence"] >= 1
    names = edge("PROPFIND", f"/snapshots/{snapshot}/", Depth="1").body
    assert f"/snapshots/{snapshot}/{volume}/".encode() in names


def test_frames_that_fail_are_named_and_stop_nothing(edge: Edge, run: Run) -> None:
    wrong = Frame(Op.PUT, file_line(b"w", b"right"), b"wrong")
    reply = run.bundle(put_frame(b"a", b"1"), wrong, put_frame(b"z", b"2")).json()
    assert reply["applied"] == 2
    assert [(one["index"], one["path"], one["code"]) for one in reply["failed"]] == [
        (1, "w", "digest_mismatch")
    ]


def test_a_bundle_is_refused_whole_when_it_is_torn(edge: Edge, base: str, run: Run) -> None:
    body = wire.pack_bundle([put_frame(b"a", b"1")])
    for torn in (body[:-1], body + b"x", body[: -wire.HEAD_BYTES]):
        reply = edge("BUNDLE-APPLY", base, torn, Mirrorkeep_Run=run.header)
        assert (reply.status, reply.code) == (400, "malformed_bundle")
    flipped = bytearray(gzip.compress(body))
    flipped[-6] ^= 1
    reply = edge("BUNDLE-APPLY", base, bytes(flipped), Mirrorkeep_Run=run.header, Content_Encoding="gzip")
    assert reply.status == 400
    assert edge("GET", f"{base}/a").status == 404


def test_an_older_epoch_is_refused(edge: Edge, base: str, run: Run) -> None:
    newer = Run(edge, base.rpartition("/")[2])
    assert run.bundle(put_frame(b"a", b"1")).code == "run_superseded"
    assert newer.bundle(put_frame(b"a", b"1")).status == 200
    stranger = newer.header.rpartition("=")[0] + "=other"
    reply = edge("BUNDLE-APPLY", base, wire.pack_bundle([]), Mirrorkeep_Run=stranger)
    assert (reply.status, reply.code) == (409, "store_restarted")


def test_a_mirrored_part_is_read_only_to_plain_writes(edge: Edge, base: str, run: Run) -> None:
    run.bundle(put_frame(b"a", b"1"))
    for method, headers in (
        ("PUT", {}),
        ("DELETE", {}),
        ("MKCOL", {}),
        ("MOVE", {"Destination": f"{base}/b"}),
        ("LOCK", {}),
        ("BUNDLE-APPLY", {}),
    ):
        scope = b"<lockscope><exclusive/></lockscope><locktype><write/></locktype>"
        body = b"<lockinfo xmlns='DAV:'>" + scope + b"</lockinfo>"
        reply = edge(method, f"{base}/a", body if method == "LOCK" else b"", **headers)
        assert reply.status in (400, 403), method
    assert edge("GET", f"{base}/a").body == b"1"


def test_bundle_read_gives_back_what_was_applied(edge: Edge, base: str, run: Run) -> None:
    frames = [put_frame(b"f%03d" % n, b"x" * 50_000) for n in range(100)]
    run.bundle(*frames)
    paths = b"\0".join([*(b"f%03d" % n for n in range(100)), b"missing"])
    reply = edge("BUNDLE-READ", base, paths)
    assert reply.pieces > 3
    assert [(one.line, one.data) for one in wire.unpack_bundle(reply.body)] == [
        (one.line, one.data) for one in frames
    ]
    packed = edge("BUNDLE-READ", base, paths, Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == reply.body
    assert len(packed.body) < len(reply.body) / 10


def test_bundle_read_refuses_paths_out_of_the_tree(edge: Edge, base: str, run: Run) -> None:
    for path in (b"../x", b"a//b", b".mirrorkeep/../../a", b"a\0/etc/passwd"):
        assert edge("BUNDLE-READ", base, path).status == 403


def test_a_large_file_is_a_transaction_of_segments(edge: Edge, base: str, run: Run) -> None:
    old = bytes(range(256)) * 1024
    run.bundle(put_frame(b"big", old))
    new = old[:100_000] + b"!" * 1000 + old[101_000:]
    line = file_line(b"big", new)
    common = {"Mirrorkeep_Run": run.header, "Mirrorkeep_Record": quote(line)}
    begun = edge("POST", f"{base}/big?transaction=begin&base=1", b"", **common)
    name = begun.json()["transaction"]
    delta = build_delta([Copy(65536, 34464), Literal(b"!" * 1000), Copy(101_000, 30_072)])
    segment = {
        "Mirrorkeep_Run": run.header,
        "Mirrorkeep_Transaction": name,
        "Content_Range": "bytes:65536-131071/262144",
        "Mirrorkeep_Digest": f"{wire.SEGMENT_DIGEST}={segment_digest(new[65536:131072]).hex()}",
    }
    missing = edge("POST", f"{base}/big?transaction={name}", b'{"segments":[[65536,131072]]}', **common)
    assert (missing.status, missing.code) == (500, "patch_target_missing")
    assert edge("PATCH-APPLY", f"{base}/big", delta, **segment).status == 204
    assert edge("GET", f"{base}/big").body == old
    done = edge("POST", f"{base}/big?transaction={name}", b'{"segments":[[65536,131072]]}', **common)
    assert done.status == 204
    assert edge("GET", f"{base}/big").body == new
    assert edge("DELETE", f"{base}/big?transaction={name}", b"").status in (204, 404)


def test_an_abandoned_transaction_leaves_the_old_file(edge: Edge, base: str, run: Run) -> None:
    run.bundle(put_frame(b"big", b"old"))
    record = {"Mirrorkeep_Run": run.header, "Mirrorkeep_Record": quote(file_line(b"big", b"new"))}
    name = edge("POST", f"{base}/big?transaction=begin&base=0", b"", **record).json()["transaction"]
    assert edge("DELETE", f"{base}/big?transaction={name}").status == 204
    finish = edge("POST", f"{base}/big?transaction={name}", b'{"segments":[]}', **record)
    assert finish.status == 404
    assert edge("GET", f"{base}/big").body == b"old"


def test_a_transaction_wants_a_record_of_its_own_file(edge: Edge, base: str, run: Run) -> None:
    for record in ("", quote(file_line(b"other", b""))):
        reply = edge(
            "POST", f"{base}/x?transaction=begin", b"", Mirrorkeep_Run=run.header, Mirrorkeep_Record=record
        )
        assert reply.status == 400
    for url in (f"{base}/x?transaction=../..", f"{base}/x"):
        assert edge("POST", url, b"", Mirrorkeep_Run=run.header).status == 400


def test_parts_are_kept_apart(edge: Edge, base: str) -> None:
    volume = base.rpartition("/")[2]
    mine = Run(edge, volume, "hosts/a")
    assert mine.bundle(put_frame(b"f", b"1")).status == 200
    assert edge("GET", f"{base}/hosts/a/f").body == b"1"
    assert edge("PUT", f"{base}/plain", b"2").status == 201
    assert edge("DELETE", f"{base}/hosts").code == "read_only"
    assert edge("MOVE", f"{base}/hosts", Destination=f"{base}/other").code == "read_only"
    assert edge("COPY", f"{base}/hosts/a/f", Destination=f"{base}/f").status == 502
    token = edge.store.registry.create_token(volume, b"hosts/b")
    theirs = json.dumps({"volume": volume, "part": "hosts/a", "source": "x"}).encode()
    assert edge("POST", "/api/v1/runs", theirs, token=token).status == 404
    assert edge("GET", f"{base}/hosts/a/f", token=token).status == 404
    assert edge("POST", f"/api/v1/runs/{mine.info['run']}/commit", b"{}", token=token).status == 404
    inner = json.dumps({"volume": volume, "part": "hosts/a/inner", "source": "x"}).encode()
    assert edge("POST", "/api/v1/runs", inner).code == "part_nesting"


def test_latest_is_the_newest_by_sequence(edge: Edge, base: str, run: Run) -> None:
    volume = base.rpartition("/")[2]
    run.bundle(put_frame(b"a", b"one"), Frame(Op.STAMP, ROOT))
    run.close(file_line(b"a", b"one"), ROOT)
    later = Run(edge, volume)
    later.bundle(put_frame(b"a", b"two"))
    later.close(file_line(b"a", b"two"), ROOT)
    assert edge("GET", f"/snapshots/latest/{volume}/a").body == b"two"
    names = [row["name"] for row in edge("GET", f"/api/v1/volumes/{volume}/snapshots").json()["snapshots"]]
    assert [edge("GET", f"/snapshots/{name}/{volume}/a").body for name in names] == [b"one", b"two"]
