"""WebDAV, reading: OPTIONS, GET, HEAD, PROPFIND, in trees and in the virtual collections above them.

Hidden folders are never shown (the tree does not list them); links are small resources of their own and
are never followed; Depth infinity is refused, Depth 1 is streamed, whatever the size of the collection.

Not here: writing (``dav_write``), locks (``locking``).  Nothing is changed, nothing is left behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mirrorkeep.errors import BadUsage, NotAllowedHere
from mirrorkeep.manifest import keys
from mirrorkeep.server import dav_xml, virtual
from mirrorkeep.server.address import quote_path
from mirrorkeep.server.call import Call
from mirrorkeep.server.conditions import Conditions, matches
from mirrorkeep.server.dav_index import Row, index_page
from mirrorkeep.server.dav_locks import Lock, LockTable, locks_in
from mirrorkeep.server.dav_properties import (
    QUOTA,
    Resource,
    content_type,
    dead_properties,
    find_properties,
    http_date,
    known_digest,
)
from mirrorkeep.server.dav_xml import Find
from mirrorkeep.server.place import Place
from mirrorkeep.server.response import PIECE_BYTES, Response
from mirrorkeep.tree import wire
from mirrorkeep.tree.compression import packed_by_type

if TYPE_CHECKING:
    from mirrorkeep.tree.stored import StoredEntry

ALLOW: Final = (
    "OPTIONS, GET, HEAD, PROPFIND, PROPPATCH, MKCOL, PUT, DELETE, COPY, MOVE, LOCK, UNLOCK, POST, "
    f"{wire.PATCH_APPLY}, {wire.BUNDLE_APPLY}, {wire.BUNDLE_READ}"
)
MAX_PROPFIND_BYTES: Final = 256 * 1024
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)
_PASSIVE: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""For a browser: what a mirrored machine wrote runs no script with the rights of whoever looks at it."""


def options(call: Call) -> Response:
    """Say what the server understands; the same everywhere, so nothing is given away."""
    response = Response(200)
    response.header("dav", "1, 2").header("ms-author-via", "DAV").header("allow", ALLOW)
    return response.header("accept-ranges", "bytes")


# --- GET and HEAD -------------------------------------------------------------------------------


def get(call: Call) -> Response:
    """Answer with a file, a range of it, the text of a link, or a short index of a collection."""
    children = virtual.children(call)
    if children is not None:
        return index_page(call, (Row(name, collection=True) for name in children))
    place = call.reading()
    entry = place.tree.stat(place.path)
    if entry.kind == keys.DIRECTORY:
        return index_page(call, map(_row, place.tree.list(place.path)))
    if call.address.slash:
        raise NotAllowedHere(path=place.path, detail="this is no collection")
    if entry.kind == keys.FILE:
        return _file(call, place)
    return _headers(Response(200, body=_special_body(entry)), entry)


def _row(entry: StoredEntry) -> Row:
    collection = entry.kind == keys.DIRECTORY
    return Row(entry.name, collection, entry.size if entry.kind == keys.FILE else None, entry.mtime_ns)


def _special_body(entry: StoredEntry) -> bytes:
    record = entry.record
    return record.fields.get(keys.LINK_TARGET, b"") if record is not None else b""


def _headers(response: Response, entry: StoredEntry) -> Response:
    response.header("etag", entry.etag).header("last-modified", http_date(entry.mtime_ns))
    response.header("content-type", content_type(entry.name, entry.kind))
    response.header("accept-ranges", "bytes").header("x-content-type-options", "nosniff")
    response.header("content-security-policy", _PASSIVE)
    if digest := known_digest(entry):
        response.header(wire.DIGEST_HEADER, digest)
    return response


def _file(call: Call, place: Place) -> Response:
    fd, entry = place.tree.open_read(place.path)
    call.on_close(os.close, fd)
    conditions = Conditions(call, place)
    if conditions.is_not_modified(entry):
        return Response(304).header("etag", entry.etag)
    conditions.check(LockTable(place.tree), entry)
    size = entry.size
    start, end, status = 0, size, 200
    wanted = call.request.header("range")
    if wanted and _range_applies(call, entry):
        chosen = parse_range(wanted, size)
        if chosen is None:
            return Response(416).header("content-range", f"bytes */{size}")
        if chosen != (0, -1):
            start, end, status = *chosen, 206
    response = _headers(Response(status), entry)
    if status == 206:
        response.header("content-range", f"bytes {start}-{end - 1}/{size}")
    response.length_bytes = end - start
    response.compressible = status == 200 and not packed_by_type(place.path)
    if end - start <= PIECE_BYTES:
        response.body = b"" if call.request.method == "HEAD" else _read_exactly(fd, start, end)
    else:
        response.stream = _pieces(fd, start, end)
    return response


def _range_applies(call: Call, entry: StoredEntry) -> bool:
    condition = call.request.header("if-range")
    return not condition or matches(condition, entry.etag)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return (start, end exclusive) of one range; None: not satisfiable; (0, -1): to be ignored."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return 0, -1  # several ranges, other units: the whole file is a right answer too
    first, last = match.groups()
    if not first:
        length = int(last)
        return (max(size - length, 0), size) if length and size else None
    start, end = int(first), int(last) + 1 if last else size
    if last and end <= start:
        return 0, -1
    return (start, min(end, size)) if start < size else None


def _read_exactly(fd: int, start: int, end: int) -> bytes:
    """Return the range; a file that became shorter under our hands ends the answer early, visibly."""
    data = os.pread(fd, end - start, start)
    while len(data) < end - start and (more := os.pread(fd, end - start - len(data), start + len(data))):
        data += more
    return data


def _pieces(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (piece := os.pread(fd, min(PIECE_BYTES, end - start), start)):
        start += len(piece)
        yield piece


# --- PROPFIND -----------------------------------------------------------------------------------


def propfind(call: Call) -> Response:
    """Answer with properties of a resource (Depth 0) and of its members (Depth 1)."""
    depth = call.request.header("depth", "infinity").lower()
    if depth not in ("0", "1", "infinity"):
        raise BadUsage(detail="Depth is 0, 1 or infinity")
    find = dav_xml.parse_propfind(call.body(MAX_PROPFIND_BYTES))
    children = virtual.children(call)
    if children is not None:
        if depth == "infinity":
            return _refuse_infinity()
        return _answer(_virtual_responses(call, find, children if depth == "1" else []))
    place = call.reading()
    entry = place.tree.stat(place.path)
    collection = entry.kind == keys.DIRECTORY
    if depth == "infinity" and collection:
        return _refuse_infinity()
    quota = place.quota() if QUOTA.intersection(find.names) else None
    return _answer(_responses(place, find, entry, quota, members=depth == "1" and collection))


def _refuse_infinity() -> Response:
    body = dav_xml.error_body("propfind-finite-depth")
    return Response(403, [(b"content-type", dav_xml.CONTENT_TYPE)], body)


def _answer(responses: Iterator[bytes]) -> Response:
    """Answer with a multi-status; small ones whole, large ones as they are made."""
    pieces = _batches(dav_xml.multistatus(responses))
    first = next(pieces)
    response = Response(207, [(b"content-type", dav_xml.CONTENT_TYPE)], compressible=True)
    second = next(pieces, None)
    if second is None:
        response.body = first
    else:
        response.stream = _chain(first, second, pieces)
    return response


def _chain(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest


def _batches(pieces: Iterator[bytes]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= 256 * 1024:
            yield b"".join(batch)
            batch, size = [], 0
    yield b"".join(batch)


def _responses(
    place: Place, find: Find, entry: StoredEntry, quota: tuple[int, int] | None, *, members: bool
) -> Iterator[bytes]:
    table = LockTable(place.tree)
    above = [] if place.frozen or table.idle() else table.on(place.path)
    resource = resource_of(place, entry, above, quota)
    yield dav_xml.property_response(
        place.href(place.path, collection=resource.collection), find_properties(find, resource)
    )
    if not members:
        return
    above = [lock for lock in above if lock.infinite]
    now = table.now()
    for member in place.tree.list(place.path):
        own = locks_in(member.path, member.sidecar.entries.items(), now) if member.sidecar is not None else []
        resource = resource_of(place, member, own + above, quota)
        href = place.href(member.path, collection=resource.collection)
        yield dav_xml.property_response(href, find_properties(find, resource))


def resource_of(
    place: Place, entry: StoredEntry, locks: list[Lock], quota: tuple[int, int] | None = None
) -> Resource:
    """Return what properties of a stored entry are made from."""
    collection = entry.kind == keys.DIRECTORY
    return Resource(
        name=entry.name if entry.path else place.name,
        collection=collection,
        entry=entry,
        locks=() if place.frozen else locks,
        lockable=not place.frozen,
        quota=quota if collection else None,
        lock_href=lambda lock: place.href(lock.path, collection=False),
        dead=dead_properties(entry.sidecar.entries) if entry.sidecar is not None else {},
    )


def _virtual_responses(call: Call, find: Find, children: list[bytes]) -> Iterator[bytes]:
    path = call.request.raw_path.rstrip(b"/") + b"/" if call.request.raw_path != b"*" else b"/"
    name = path.rstrip(b"/").rpartition(b"/")[2]
    yield dav_xml.property_response(path, find_properties(find, Resource(name, collection=True)))
    for child in children:
        resource = Resource(child, collection=True)
        yield dav_xml.property_response(path + quote_path(child) + b"/", find_properties(find, resource))
