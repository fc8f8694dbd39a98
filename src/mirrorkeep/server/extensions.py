"""The verbs beyond WebDAV: bundles of small files, segments of large ones, signatures.

Answers for: ``BUNDLE-APPLY``, ``BUNDLE-READ``, ``PATCH-APPLY`` (TX-11..18, alone and inside a
transaction), ``POST``/``DELETE`` with ``?transaction=``, ``GET ?signature=1``.

Not here: how a frame or a segment is stored (``tree.stored``), framing (``tree.wire``).
A crash inside a bundle leaves some of its frames applied, each whole; inside a transaction, a staged
file that nobody sees and that expires.  Every request may be repeated.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any, Final

from mirrorkeep.delta.signature import choose_block_bytes, make_signature, sign_range
from mirrorkeep.errors import BadUsage, MalformedRequest, NotFound, TooLarge
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.server import auth, patching
from mirrorkeep.server.address import check_tree_path
from mirrorkeep.server.call import Call
from mirrorkeep.server.conditions import Conditions
from mirrorkeep.server.dav_locks import LockTable
from mirrorkeep.server.dav_write import require_unlocked
from mirrorkeep.server.place import find_place, writing
from mirrorkeep.server.response import PIECE_BYTES, Response, json_response
from mirrorkeep.tree import wire
from mirrorkeep.tree.protocol import Data, Frame, Op, Segment

MAX_SEGMENT_BODY_BYTES: Final = wire.SEGMENT_BYTES + 2 * 1024 * 1024
MAX_FINISH_BYTES: Final = 8 * 1024 * 1024
_RANGE: Final = re.compile(r"bytes[: ]\s*(\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)
_DIGEST: Final = re.compile(r"(sha256|blake3)=([0-9a-fA-F]{64})")
_TRANSACTION: Final = re.compile(rb"[0-9A-Za-z_-]{1,128}")


# --- bundles ----------------------------------------------------------------------------------


def bundle_apply(call: Call) -> Response:
    """Apply a bundle to the part at the URL; the answer names what failed, frame by frame."""
    place = call.writable()
    if not call.run_header:
        raise BadUsage(detail="a bundle belongs to a run")
    if place.part is None or place.path:
        raise NotFound(what=f"a part at {place.href(place.path, collection=False).decode()}")
    body = call.body(wire.MAX_BUNDLE_BYTES)
    frames = list(wire.unpack_bundle(body))
    if len(frames) > wire.MAX_BUNDLE_FRAMES:
        raise TooLarge(detail=f"more than {wire.MAX_BUNDLE_FRAMES} frames in one bundle")
    # What brings no content needs no room, and removing makes some.
    incoming_bytes = len(body) if any(frame.data and frame.op == Op.PUT for frame in frames) else 0
    with writing(place, call.run_header, incoming_bytes):
        failures = place.tree.apply(frames, place.part.turn())
    failed = [
        {
            "index": failure.index,
            "path": failure.path.decode("utf-8", "surrogateescape"),
            "code": failure.code,
            "detail": failure.detail,
        }
        for failure in failures
    ]
    return json_response({"applied": len(frames) - len(failed), "failed": failed})


def bundle_read(call: Call) -> Response:
    """Answer with the frames of the paths in the body (joined by NUL), streamed as they are read."""
    place = call.reading()
    if place.part is None or place.path:
        raise NotFound(what=f"a part at {place.href(place.path, collection=False).decode()}")
    paths = call.body(wire.MAX_BUNDLE_BYTES).split(b"\0")
    for path in paths:
        check_tree_path(path)
    if call.request.query.get("content") == b"1":
        stream = _pack_pieces(_numbered(place.tree.contents(paths)))
    else:
        stream = _pack_pieces(place.tree.frames(paths))
    headers = [(b"content-type", b"application/octet-stream")]
    return Response(200, headers, stream=stream, compressible=True)


def _numbered(contents: Iterator[Any]) -> Iterator[Any]:
    for index, content in enumerate(contents):
        yield Frame(Op.PUT, b"%d" % index, content) if isinstance(content, bytes) else content


def _pack_pieces(frames: Iterator[Any]) -> Iterator[bytes]:
    pieces: list[Data] = []
    size = 0
    for frame in frames:
        if not isinstance(frame, Frame):
            continue  # what cannot be read is missing from the answer
        pieces += (wire.pack_head(frame.op, frame.line, len(frame.data)), frame.line, frame.data)
        size += wire.HEAD_BYTES + len(frame.line) + len(frame.data)
        if size >= PIECE_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    pieces.append(wire.END)
    yield b"".join(pieces)


# --- segments ---------------------------------------------------------------------------------


def transaction(call: Call) -> Response:
    """``POST`` begins or finishes a transaction on a file, ``DELETE`` abandons it."""
    name = call.request.query.get("transaction")
    if name is None or not _TRANSACTION.fullmatch(name):
        raise BadUsage(detail="POST takes ?transaction=begin or ?transaction=ID")
    if call.request.method == "DELETE":
        return _abandon(call, name.decode("ascii"))
    line = call.record_line
    place = call.writable()
    if not line or parse_record(line).path != place.path:
        raise MalformedRequest(detail=f"{wire.RECORD_HEADER} has to hold the record of this file")
    if name == b"begin":
        on_base = call.request.query.get("base", b"0") == b"1"
        with writing(place, call.run_header):
            begun = place.tree.begin(line, on_base=on_base)
        return json_response({"transaction": begun.id})
    segments = _segments(call.json(MAX_FINISH_BYTES))
    with writing(place, call.run_header) as at_once:
        place.tree.resume(name.decode("ascii")).finish(line, segments, durable=at_once)
    return Response(204)


def _abandon(call: Call, name: str) -> Response:
    auth.require_write(call.grant, call.address.volume, call.address.path)
    place = find_place(call.store, call.address)
    place.tree.resume(name).abandon()
    return Response(204)


def _segments(body: dict[str, Any]) -> list[Segment]:
    rows = body.get("segments")
    if not isinstance(rows, list):
        raise MalformedRequest(detail='the body is {"segments":[[start,end],...]}')
    segments: list[Segment] = []
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and all(type(one) is int for one in row)):
            raise MalformedRequest(detail="a segment is [start, end] in bytes")
        if not 0 <= row[0] <= row[1]:
            raise MalformedRequest(detail="a segment ends before it starts")
        segments.append(Segment(row[0], row[1]))
    return segments


def patch_apply(call: Call) -> Response:
    """Apply one delta to a range of a file: 204 done; 400 for a bad request, 500 as TX-18 has it.

    Inside a transaction the range goes into the file in the making; alone, the request is a
    transaction of one on the file as it stands, and ``FileTruncate: true`` ends the file at the range.
    """
    place = call.writable()
    start, end, _ = parse_content_range(call.request.header("content-range"))
    plain = call.request.header(wire.PLAIN_SEGMENT_HEADER).lower() == "true"
    pieces = call.body_pieces(MAX_SEGMENT_BODY_BYTES)
    name = call.request.header(wire.TRANSACTION_HEADER)
    digest = _segment_digest(call.request.header(wire.DIGEST_HEADER))
    if name:
        if not _TRANSACTION.fullmatch(name.encode("latin-1")):
            raise MalformedRequest(detail="this is no transaction")
        if digest is None:
            raise MalformedRequest(detail=f"a segment of a transaction needs {wire.DIGEST_HEADER}")
        segment = Segment(start, end)
        with writing(place, call.run_header, end - start):
            transaction = place.tree.resume(name)
            if plain:
                transaction.write_pieces(segment, pieces, digest=digest)
            else:
                transaction.write(segment, b"".join(pieces), delta=True, digest=digest)
        return Response(204)
    change = patching.Change(
        start=start,
        end=end,
        body=b"".join(pieces),
        delta=not plain,
        truncate=call.request.header("filetruncate").lower() == "true",
        digest=digest,
    )
    line = call.record_line
    if line and parse_record(line).path != place.path:
        raise MalformedRequest(detail=f"{wire.RECORD_HEADER} is not the record of this file")
    conditions = Conditions(call, place)
    with writing(place, call.run_header, end - start) as at_once:
        table = LockTable(place.tree)
        conditions.check(table, place.look())
        if not call.run_header:
            require_unlocked(table, place.path, conditions, created=False)
        entry = patching.patch_file(place, change, line, time.time_ns(), durable=at_once)
    if not line:
        call.hash_later(place, entry.generation)
    return Response(204).header("etag", entry.etag)


def parse_content_range(header: str) -> tuple[int, int, int]:
    """Return (start, end exclusive, total) of ``bytes:0-1023/2048`` or ``bytes 0-1023/2048`` (TX-12)."""
    if not header:
        raise MalformedRequest(detail="Content-Range is missing")
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        raise MalformedRequest(detail="Content-Range is not bytes:START-END/TOTAL")
    start, last, total = (int(group) for group in match.groups())
    if last < start or last >= total:
        raise MalformedRequest(detail="Content-Range does not lie inside the file that it announces")
    return start, last + 1, total


def _segment_digest(header: str) -> bytes | None:
    if not header:
        return None
    match = _DIGEST.fullmatch(header.strip())
    if match is None or match.group(1) != wire.SEGMENT_DIGEST:
        raise MalformedRequest(detail=f"{wire.DIGEST_HEADER} is not {wire.SEGMENT_DIGEST}=HEX")
    return bytes.fromhex(match.group(2))


# --- signatures -------------------------------------------------------------------------------


def signature(call: Call) -> Response:
    """Answer with a librsync signature of the file, made now; ``start`` and ``end``: of that range of it.

    The range begins on a block's border and keeps the block length that the whole file has.
    """
    place = call.reading()
    fd, entry = place.tree.open_read(place.path)
    call.on_close(os.close, fd)
    if "start" in call.request.query:
        start, end = call.request.query_int("start"), call.request.query_int("end")
        if not start <= end <= entry.size:
            raise BadUsage(detail="start= and end= lie inside the file")
        body = sign_range(fd, start, end, choose_block_bytes(entry.size))
    else:
        body = make_signature(fd, entry.size)
    response = Response(200, [(b"content-type", b"application/octet-stream")], body)
    return response.header("etag", entry.etag)
