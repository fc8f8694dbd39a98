"""Which handler answers which request: the one table of verbs and paths.

Not here: what handlers do; rights (each handler asks for the place it needs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mirrorkeep.errors import NotFound
from mirrorkeep.server import api, dav, dav_write, extensions, locking
from mirrorkeep.server.address import Address
from mirrorkeep.server.call import Call, Upload
from mirrorkeep.server.request import Request
from mirrorkeep.server.response import Response
from mirrorkeep.tree import wire

Handler = Callable[[Call], Response]

XML_BODY_BYTES: Final = 1024 * 1024
JSON_BODY_BYTES: Final = 1024 * 1024
CODING_SLACK_BYTES: Final = 64 * 1024
"""A packed body may be a little larger than what it holds."""


@dataclass(frozen=True, slots=True)
class Route:
    """A handler for a collected body of limited size, or a maker of uploads for a streamed one."""

    handler: Handler | None
    body_limit_bytes: int = XML_BODY_BYTES
    upload: Callable[[Call], Upload] | None = None
    public: bool = False


TREE_ROUTES: Final[Mapping[str, Route]] = {
    "OPTIONS": Route(dav.options),
    "GET": Route(dav.get),
    "HEAD": Route(dav.get),
    "PROPFIND": Route(dav.propfind),
    "PROPPATCH": Route(dav_write.proppatch),
    "MKCOL": Route(dav_write.mkcol),
    "PUT": Route(None, upload=dav_write.PutUpload),
    "DELETE": Route(dav_write.delete),
    "COPY": Route(dav_write.copy),
    "MOVE": Route(dav_write.move),
    "LOCK": Route(locking.lock),
    "UNLOCK": Route(locking.unlock),
    "POST": Route(extensions.transaction, extensions.MAX_FINISH_BYTES),
    wire.PATCH_APPLY: Route(extensions.patch_apply, extensions.MAX_SEGMENT_BODY_BYTES + CODING_SLACK_BYTES),
    wire.BUNDLE_APPLY: Route(extensions.bundle_apply, wire.MAX_BUNDLE_BYTES + CODING_SLACK_BYTES),
    wire.BUNDLE_READ: Route(extensions.bundle_read, wire.MAX_BUNDLE_BYTES),
}


def find_route(request: Request, address: Address) -> Route:
    """Return the route; raises NotFound for a path that leads nowhere."""
    method = request.method
    if address.area == "api":
        return _api_route(method, address)
    if address.area == "other":
        raise NotFound(what="/" + address.path.decode("utf-8", "replace"))
    if method == "OPTIONS" and address.area == "root":
        return Route(dav.options, public=True)
    if method in ("GET", "HEAD") and b"signature" in request.query_string and "signature" in request.query:
        return Route(extensions.signature)
    if method == "DELETE" and "transaction" in request.query:
        return Route(extensions.transaction)
    return TREE_ROUTES.get(method) or Route(_refuse_method)


def _api_route(method: str, address: Address) -> Route:
    found = api.find_resource(address.path)
    if found is None:
        raise NotFound(what="/" + address.path.decode("utf-8", "replace"))
    resource, values = found
    if method in resource.uploads:
        make_upload = resource.uploads[method]
        return Route(None, upload=lambda call: make_upload(call, *values))
    handler = resource.handlers.get("GET" if method == "HEAD" else method)
    if handler is None:
        allow = ", ".join([*resource.handlers, *resource.uploads]).encode("ascii")
        return Route(lambda call: Response(405, [(b"allow", allow)]), public=resource.public)
    return Route(lambda call: handler(call, *values), JSON_BODY_BYTES, public=resource.public)


def _refuse_method(call: Call) -> Response:
    return Response(405, [(b"allow", dav.ALLOW.encode("ascii"))])
