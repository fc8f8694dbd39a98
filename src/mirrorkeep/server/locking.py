"""LOCK and UNLOCK: write locks, exclusive or shared, on one resource or on all that is below it.

A lock on a path where nothing is makes an empty file (RFC 4918, 7.3).

Not here: how locks are kept and what they forbid (``dav_locks``).  A crash leaves a lock that nobody was
told of; it expires.
"""

from __future__ import annotations

import time

from mirrorkeep.errors import BadUsage, Locked, MalformedRequest, NotAllowedHere, PreconditionFailed
from mirrorkeep.manifest import keys
from mirrorkeep.server import dav_locks, dav_xml
from mirrorkeep.server.call import Call
from mirrorkeep.server.conditions import Conditions
from mirrorkeep.server.dav_locks import Lock, LockTable
from mirrorkeep.server.dav_properties import LOCK_DISCOVERY, active_lock
from mirrorkeep.server.dav_write import MAX_XML_BYTES, require_parent
from mirrorkeep.server.dav_xml import LockAsk
from mirrorkeep.server.place import Place, writing
from mirrorkeep.server.response import Response


def lock(call: Call) -> Response:
    """Make a lock, or with an empty body refresh the one that the If header names."""
    depth = call.request.header("depth", "infinity").lower()
    if depth not in ("0", "infinity"):
        raise BadUsage(detail="LOCK takes Depth 0 or infinity")
    ask = dav_xml.parse_lock(call.body(MAX_XML_BYTES))
    place = call.writable()
    conditions = Conditions(call, place)
    timeout_s = dav_locks.parse_timeout(call.request.header("timeout"))
    with writing(place, ""):
        table = LockTable(place.tree)
        if ask is None:
            return _answer(place, _refresh(place, table, conditions, timeout_s), created=False)
        return _make(call, place, table, conditions, ask, infinite=depth == "infinity", timeout_s=timeout_s)


def _refresh(place: Place, table: LockTable, conditions: Conditions, timeout_s: int) -> Lock:
    conditions.check(table, place.look())
    for known in table.on(place.path):
        if known.token in conditions.tokens and known.principal == conditions.principal:
            return table.refresh(known, timeout_s)
    raise PreconditionFailed(path=place.path or b"/", detail="the If header names no lock of this resource")


def _make(
    call: Call,
    place: Place,
    table: LockTable,
    conditions: Conditions,
    ask: LockAsk,
    *,
    infinite: bool,
    timeout_s: int,
) -> Response:
    if len(ask.owner) > dav_locks.MAX_OWNER_CHARACTERS:
        raise BadUsage(detail="the owner of a lock is too long")
    entry = place.look()
    conditions.check(table, entry)
    if entry is None:
        if call.address.slash:
            raise NotAllowedHere(path=place.path, detail="a lock makes a file, not a collection")
        require_parent(place, place.path)
        table.require_membership(place.path, conditions.tokens, conditions.principal)
    conflict = table.conflict(place.path, exclusive=ask.exclusive, infinite=infinite)
    if conflict is not None:
        response = Response(423, [(b"content-type", dav_xml.CONTENT_TYPE)])
        href = place.href(conflict.path, collection=False)
        response.body, response.code = dav_xml.error_body("no-conflicting-lock", href), Locked.code
        return response
    if entry is None:
        staged = place.tree.stage(place.path)
        try:
            staged.publish(None, if_generation=None, durable=True)
        finally:
            staged.abandon()
    made = Lock(
        token=dav_locks.new_token(),
        path=place.path,
        exclusive=ask.exclusive,
        infinite=infinite and (entry is None or entry.kind == keys.DIRECTORY),
        owner=ask.owner,
        principal=conditions.principal,
        expires=time.time() + timeout_s,
        timeout_s=timeout_s,
    )
    table.add(place.path, made)
    response = _answer(place, made, created=entry is None)
    return response.header("lock-token", f"<{made.token}>")


def _answer(place: Place, made: Lock, *, created: bool) -> Response:
    discovery = dav_xml.text_element(
        LOCK_DISCOVERY, active_lock(made, place.href(made.path, collection=False))
    )
    body = f'{dav_xml.HEAD}<D:prop xmlns:D="DAV:" xmlns:M="{dav_xml.OWN}">{discovery}</D:prop>\n'
    return Response(201 if created else 200, [(b"content-type", dav_xml.CONTENT_TYPE)], body.encode("utf-8"))


def unlock(call: Call) -> Response:
    """Take away the lock that Lock-Token names; only its owner may."""
    token = call.request.header("lock-token").strip()
    if not (token.startswith("<") and token.endswith(">")):
        raise MalformedRequest(detail="Lock-Token is missing")
    place = call.writable()
    with writing(place, ""):
        table = LockTable(place.tree)
        for known in table.on(place.path):
            if known.token == token[1:-1]:
                if known.principal != call.grant.principal:
                    raise Locked(path=known.path)
                table.remove(known)
                return Response(204)
    response = Response(409, [(b"content-type", dav_xml.CONTENT_TYPE)])
    response.body, response.code = dav_xml.error_body("lock-token-matches-request-uri"), "no_such_lock"
    return response
