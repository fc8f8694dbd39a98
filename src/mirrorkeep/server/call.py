"""What a handler gets: the request, who asks, where it points, and the body once it is there.

Not here: how the parts were obtained (``app``), what to answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mirrorkeep.errors import BadUsage, MalformedRequest, NotAuthenticated, ReadOnly
from mirrorkeep.server import auth
from mirrorkeep.server.address import Address, check_part_path, unquote
from mirrorkeep.server.place import Place, find_place
from mirrorkeep.server.request import Request, unpack
from mirrorkeep.store.registry import Grant
from mirrorkeep.tree import wire

if TYPE_CHECKING:
    from mirrorkeep.server.hashing import Hasher
    from mirrorkeep.server.response import Response
    from mirrorkeep.store.pool import Store

MAX_WAIT_S = 60.0


class Upload(Protocol):
    """A body that is taken in pieces; each method runs in a thread, one at a time."""

    def whole(self, packed: bytes) -> Response:
        """Take the whole body at once and answer."""

    def feed(self, packed: bytes) -> None:
        """Take the next piece, as sent."""

    def finish(self) -> Response:
        """All pieces came: answer."""

    def abandon(self) -> None:
        """Something failed: leave nothing behind.  Repeatable; may come before the first piece."""


@dataclass(slots=True)
class Call:
    """One request on its way through a handler, which runs in one thread."""

    store: Store
    request: Request
    address: Address
    known_grant: Grant | None
    hasher: Hasher | None = None
    pieces: list[bytes] = field(default_factory=list)
    """The body as it came in, packed as it was sent."""
    _opened: ExitStack = field(default_factory=ExitStack)

    @property
    def grant(self) -> Grant:
        """Who asks; raises NotAuthenticated on a public route."""
        if self.known_grant is None:
            raise NotAuthenticated(detail="credentials are needed")
        return self.known_grant

    @property
    def run_header(self) -> str:
        """The run that a write belongs to, "" for none."""
        return self.request.header(wire.RUN_HEADER)

    @property
    def record_line(self) -> bytes:
        """The manifest record of the header, b"" for none."""
        return unquote(self.request.headers.get(wire.RECORD_HEADER.lower().encode("ascii"), b""))

    @property
    def wait_s(self) -> float:
        """How long the client is willing to wait for a final answer (``wait=`` in seconds)."""
        value = self.request.query.get("wait")
        if value is None:
            return 0.0
        try:
            return min(max(float(value), 0.0), MAX_WAIT_S)
        except ValueError:
            raise BadUsage(detail="wait= takes seconds") from None

    def body(self, limit_bytes: int) -> bytes:
        """Return the unpacked body.  Raises MalformedRequest, TooLarge."""
        return unpack(b"".join(self.pieces), gzipped=self.request.gzipped, limit_bytes=limit_bytes)

    def body_pieces(self, limit_bytes: int) -> list[bytes]:
        """Return the unpacked body in pieces of any length: nothing is copied when it came as it is.

        Raises MalformedRequest, TooLarge.
        """
        if self.request.gzipped or sum(map(len, self.pieces)) > limit_bytes:
            return [self.body(limit_bytes)]
        return self.pieces

    def json(self, limit_bytes: int = 1 << 20) -> dict[str, Any]:
        """Return the body as a JSON object; raises MalformedRequest."""
        try:
            value = json.loads(self.body(limit_bytes) or b"{}")
        except (ValueError, RecursionError):
            raise MalformedRequest(detail="the body is not JSON") from None
        if not isinstance(value, dict):
            raise MalformedRequest(detail="the body is not a JSON object")
        return value

    def query_part(self) -> bytes:
        """Return the ``part`` of the query, b"" for the whole volume."""
        return check_part_path(self.request.query.get("part", b""))

    def reading(self) -> Place:
        """Return the place to read; raises NotFound where the caller may not."""
        auth.require_read(self.grant, self.address.volume, self.address.path)
        place = find_place(self.store, self.address)
        if place.frozen:
            self.on_close(place.tree.close)
        return place

    def writable(self) -> Place:
        """Return the place to write; rights are checked here, runs and locks by ``place.writing``."""
        auth.require_write(self.grant, self.address.volume, self.address.path)
        if self.address.area == "snapshots":
            raise ReadOnly(path=self.address.path or b"/", detail="snapshots never change")
        return find_place(self.store, self.address)

    # --- what outlives the handler ------------------------------------------------------------

    def on_close(self, close: Callable[..., None], *args: Any) -> None:
        """Have something closed when the answer is out, streamed or not, or has failed."""
        self._opened.callback(close, *args)

    def hash_later(self, place: Place, generation: int) -> None:
        """Have a plainly written file hashed after the answer (META-12)."""
        if self.hasher is not None:
            self.hasher.add(place, generation)

    def answer(self, handler: Callable[[Call], Response]) -> Response:
        """Run a handler and close what it opened, a streamed body's at its end."""
        try:
            response = handler(self)
        except BaseException:
            self._opened.close()
            raise
        if response.stream is None:
            self._opened.close()
        else:
            response.stream = self._closing(response.stream)
            next(response.stream)  # so that closing it closes what was opened, read or not
        return response

    def _closing(self, stream: Iterator[bytes]) -> Iterator[bytes]:
        with self._opened:
            yield b""
            yield from stream
