"""WebDAV, writing: PUT, MKCOL, DELETE, COPY, MOVE, PROPPATCH.

Every write holds the shared lock of its tree, obeys preconditions and locks, and is durable before it is
answered unless it belongs to a run.  An upload is staged beside the file it may replace and published
whole, or not at all.

Not here: how that is done on disk (``tree.stored``), LOCK and UNLOCK (``locking``).
A crash leaves the old state or the new one, and staged files that start-up removes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from mirrorkeep.errors import (
    BadUsage,
    DigestMismatch,
    ForeignDestination,
    Locked,
    MalformedRequest,
    NotAllowedHere,
    NotFound,
    ParentMissing,
    PathRefused,
    PreconditionFailed,
    UnsupportedBody,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_time_ns, parse_record
from mirrorkeep.server import auth, dav_xml
from mirrorkeep.server.address import Address, parse_address
from mirrorkeep.server.call import Call
from mirrorkeep.server.conditions import Conditions, url_path
from mirrorkeep.server.dav_locks import LockTable
from mirrorkeep.server.dav_properties import change_answer, change_properties
from mirrorkeep.server.place import Place, find_place, refuse_around_parts, writing
from mirrorkeep.server.request import Unpacker
from mirrorkeep.server.response import Response
from mirrorkeep.tree import wire
from mirrorkeep.tree.stored import StoredEntry
from mirrorkeep.tree.stored_plain import StagedFile

MAX_XML_BYTES: Final = 256 * 1024
_DIGEST: Final = re.compile(r"(sha256|blake3|sha1)=([0-9a-fA-F]{40,64})")
_PLAIN_MODE: Final = b"100644"


# --- PUT ----------------------------------------------------------------------------------------


class PutUpload:
    """One PUT: staged while it arrives, published whole; see ``call.Upload``."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._staged: StagedFile | None = None
        self._unpacker = Unpacker(gzipped=call.request.gzipped)
        self._digest = _asked_digest(call.request.header(wire.DIGEST_HEADER))
        if call.request.header("content-range"):
            raise MalformedRequest(detail="PUT takes whole files; PATCH-APPLY takes ranges")

    def whole(self, packed: bytes) -> Response:
        self.feed(packed)
        return self.finish()

    def feed(self, packed: bytes) -> None:
        if self._staged is None:
            self._begin()
        assert self._staged is not None
        for piece in self._unpacker.feed(packed):
            self._take(piece)

    def _begin(self) -> None:
        call = self._call
        self._place = place = call.writable()
        self._conditions = Conditions(call, place)
        if not place.path or call.address.slash:
            raise NotAllowedHere(path=place.path or b"/", detail="a collection takes no content")
        with writing(place, call.run_header, call.request.announced_bytes or 1):
            entry = place.look()
            if entry is not None and entry.kind == keys.DIRECTORY:
                raise NotAllowedHere(path=place.path, detail="there is a collection of that name")
            if entry is None:
                require_parent(place, place.path)
            self._conditions.check(LockTable(place.tree), entry)
        self._staged = place.tree.stage(place.path)

    def _take(self, piece: bytes) -> None:
        assert self._staged is not None
        self._staged.write(piece)
        if self._digest is not None:
            self._digest[0].update(piece)

    def finish(self) -> Response:
        for piece in self._unpacker.finish():
            self._take(piece)
        assert self._staged is not None
        if self._digest is not None and self._digest[0].hexdigest() != self._digest[1]:
            raise DigestMismatch(
                path=self._place.path, expected=self._digest[1], actual=self._digest[0].hexdigest()
            )
        call, place = self._call, self._place
        with writing(place, call.run_header) as at_once:
            old = place.look()
            table = LockTable(place.tree)
            self._conditions.check(table, old)
            if not call.run_header:
                require_unlocked(table, place.path, self._conditions, created=old is None)
            expected = (old.generation if old is not None else 0) if self._conditions.expects_state else None
            fields, accepted_mtime = self._fields()
            entry = self._staged.publish(fields, if_generation=expected, durable=at_once)
        self._staged = None
        if not call.run_header and not (fields or {}).get(keys.HASH):
            call.hash_later(place, entry.generation)
        response = Response(204 if old is not None else 201).header("etag", entry.etag)
        return response.header("x-oc-mtime", "accepted") if accepted_mtime else response

    def _fields(self) -> tuple[dict[bytes, bytes] | None, bool]:
        """Return the record's fields: the sender's, or (None) what the file system says."""
        line = self._call.record_line
        if line:
            record = parse_record(line)
            if record.path != self._place.path or record.kind != keys.FILE:
                raise MalformedRequest(detail=f"{wire.RECORD_HEADER} is not the record of this file")
            return record.fields, False
        given = self._call.request.header("x-oc-mtime")
        mtime_ns = _seconds_ns(given) if given else None
        if mtime_ns is None:
            return None, False
        assert self._staged is not None
        size = b"%d" % self._staged.size_bytes
        return {
            keys.TYPE: keys.FILE,
            keys.SIZE: size,
            keys.MTIME: format_time_ns(mtime_ns),
            keys.MODE: _PLAIN_MODE,
        }, True

    def abandon(self) -> None:
        if self._staged is not None:
            self._staged.abandon()
            self._staged = None


def _asked_digest(header: str) -> tuple[Any, str] | None:
    if not header:
        return None
    match = _DIGEST.fullmatch(header.strip())
    if match is None:
        raise MalformedRequest(detail=f"{wire.DIGEST_HEADER} is not NAME=HEX")
    if match.group(1) == "blake3":
        from blake3 import blake3

        return blake3(), match.group(2).lower()
    return hashlib.new(match.group(1), usedforsecurity=False), match.group(2).lower()


def _seconds_ns(text: str) -> int | None:
    try:
        return int(float(text) * 1_000_000_000)
    except (ValueError, OverflowError):
        return None


# --- MKCOL and DELETE -----------------------------------------------------------------------------


def mkcol(call: Call) -> Response:
    """Make a collection."""
    if any(call.pieces):
        raise UnsupportedBody(detail="MKCOL takes no body")
    place = call.writable()
    conditions = Conditions(call, place)
    with writing(place, call.run_header) as at_once:
        entry = place.look()
        if entry is not None or not place.path:
            raise NotAllowedHere(path=place.path or b"/", detail="it exists already")
        require_parent(place, place.path)
        table = LockTable(place.tree)
        conditions.check(table, entry)
        require_unlocked(table, place.path, conditions, created=True)
        place.tree.make_directory(place.path, durable=at_once)
    return Response(201)


def delete(call: Call) -> Response:
    """Remove a resource, a collection with all that is in it."""
    place = call.writable()
    conditions = Conditions(call, place)
    with writing(place, call.run_header) as at_once:
        if not place.path:
            raise NotAllowedHere(path=b"/", detail="the root stays")
        entry = existing(place)
        table = LockTable(place.tree)
        conditions.check(table, entry)
        require_unlocked(table, place.path, conditions, created=True, deep=entry.kind == keys.DIRECTORY)
        expected = entry.generation if conditions.expects_state else None
        place.tree.delete(place.path, if_generation=expected, durable=at_once)
    return Response(204)


# --- COPY and MOVE --------------------------------------------------------------------------------


def copy(call: Call) -> Response:
    """Copy a resource inside its tree; properties go along, locks do not."""
    depth = call.request.header("depth", "infinity").lower()
    if depth not in ("0", "infinity"):
        raise BadUsage(detail="COPY takes Depth 0 or infinity")
    place = call.reading()
    target = _destination(call, place)
    conditions = Conditions(call, place)
    overwrite = _overwrite(call)
    with writing(target, call.run_header) as at_once:
        entry = existing(place)
        there = _check_target(target, conditions, LockTable(place.tree), entry, overwrite=overwrite)
        _apart(place, target, into_itself=depth == "0")
        place.tree.copy(place.path, target.path, overwrite, depth, durable=at_once)
    return Response(204 if there else 201)


def move(call: Call) -> Response:
    """Move a resource inside its tree; locks stay behind and end."""
    if call.request.header("depth", "infinity").lower() != "infinity":
        raise BadUsage(detail="MOVE takes Depth infinity")
    place = call.writable()
    target = _destination(call, place)
    conditions = Conditions(call, place)
    overwrite = _overwrite(call)
    with writing(target, call.run_header) as at_once:
        refuse_around_parts(place, place.path)
        if not place.path:
            raise NotAllowedHere(path=b"/", detail="the root stays")
        entry = existing(place)
        table = LockTable(place.tree)
        there = _check_target(target, conditions, table, entry, overwrite=overwrite)
        _apart(place, target, into_itself=False)
        require_unlocked(table, place.path, conditions, created=True, deep=entry.kind == keys.DIRECTORY)
        place.tree.move(place.path, target.path, overwrite, durable=at_once)
        if entry.kind == keys.DIRECTORY and not table.idle():
            for lock in list(table.below(target.path)):
                table.remove(lock)
    return Response(204 if there else 201)


def _destination(call: Call, place: Place) -> Place:
    """Return where COPY or MOVE goes: a place in the same tree that the caller may write."""
    header = call.request.header("destination")
    if not header:
        raise MalformedRequest(detail="Destination is missing")
    scheme, separator, rest = header.partition("://")
    if separator:
        host = rest.partition("/")[0].rpartition("@")[2]
        if scheme.lower() not in ("http", "https") or host.lower() != call.request.header("host").lower():
            raise ForeignDestination(detail="the destination lies on another server")
    address: Address = parse_address(url_path(header))
    if place.frozen or place.relative(address) is None:
        raise ForeignDestination(detail="the destination lies in another tree")
    auth.require_write(call.grant, address.volume, address.path)
    return find_place(call.store, address)


def _overwrite(call: Call) -> bool:
    value = call.request.header("overwrite", "T").upper()
    if value not in ("T", "F"):
        raise BadUsage(detail="Overwrite is T or F")
    return value == "T"


def _check_target(
    target: Place, conditions: Conditions, table: LockTable, source: StoredEntry, *, overwrite: bool
) -> bool:
    """Check all that speaks against a target; returns whether something is there."""
    conditions.check(table, source)
    if not target.path:
        raise NotAllowedHere(path=b"/", detail="the root stays")
    there = target.look()
    if there is not None and not overwrite:
        raise PreconditionFailed(path=target.path, detail="it exists, and Overwrite is F")
    if there is None:
        require_parent(target, target.path)
    deep = there is not None and there.kind == keys.DIRECTORY
    require_unlocked(table, target.path, conditions, created=there is None, deep=deep)
    return there is not None


def _apart(place: Place, target: Place, *, into_itself: bool) -> None:
    """Refuse to copy or move something onto itself, into itself, or over what it lies in."""
    source, goal = place.path, target.path
    same = source == goal
    below = goal.startswith(source + b"/") or not source
    above = source.startswith(goal + b"/")
    if same or above or (below and not into_itself):
        raise PathRefused(path=goal, detail="source and destination lie in each other")


# --- PROPPATCH ------------------------------------------------------------------------------------


def proppatch(call: Call) -> Response:
    """Set and remove dead properties, all of them or none."""
    changes = dav_xml.parse_proppatch(call.body(MAX_XML_BYTES))
    place = call.writable()
    conditions = Conditions(call, place)
    stats, allowed = change_answer(changes)
    with writing(place, call.run_header) as at_once:
        entry = existing(place)
        table = LockTable(place.tree)
        conditions.check(table, entry)
        require_unlocked(table, place.path, conditions, created=False)
        if allowed:
            place.tree.update_sidecar(
                place.path, lambda entries: change_properties(entries, changes), durable=at_once
            )
    href = place.href(place.path, collection=entry.kind == keys.DIRECTORY)
    body = b"".join(dav_xml.multistatus([dav_xml.property_response(href, stats)]))
    return Response(207, [(b"content-type", dav_xml.CONTENT_TYPE)], body)


# --- what every write asks ------------------------------------------------------------------------


def existing(place: Place) -> StoredEntry:
    """Return the entry of a place; raises NotFound."""
    entry = place.look()
    if entry is None:
        raise NotFound(what=place.path or b"/")
    return entry


def require_parent(place: Place, path: bytes) -> None:
    """Raise ParentMissing unless the collection above ``path`` exists."""
    parent = place.look(path.rpartition(b"/")[0])
    if parent is None or parent.kind != keys.DIRECTORY:
        raise ParentMissing(path=path)


def require_unlocked(
    table: LockTable, path: bytes, conditions: Conditions, *, created: bool, deep: bool = False
) -> None:
    """Raise Locked when somebody else's lock covers ``path`` or, with ``created``, its collection."""
    table.require(path, conditions.tokens, conditions.principal, deep=deep)
    if created:
        table.require_membership(path, conditions.tokens, conditions.principal)


def locked_answer(call: Call, error: Locked) -> Response:
    """Answer 423 in the form that WebDAV clients read (RFC 4918, 9.10.6)."""
    place = find_place(call.store, call.address)
    path = error.fields["path"]
    href = place.href(path, collection=False) if isinstance(path, bytes) else None
    response = Response(423, [(b"content-type", dav_xml.CONTENT_TYPE)])
    response.body = dav_xml.error_body("lock-token-submitted", href)
    response.code = error.code
    return response
