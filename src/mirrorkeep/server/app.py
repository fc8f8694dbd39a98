"""The ASGI application of one worker: who asks, for what, with what body; one thread hop; the answer.

Every request goes the same way: the URL is taken apart, the credentials are checked, the body is
collected (or streamed, for PUT), the handler runs in one thread, the answer goes out, a line goes to the
access log.  Handlers are plain functions; nothing in them knows ASGI.

Not here: what the verbs do (``dav``, ``extensions``, ``api``), processes and sockets (``serve``).
A crash of the worker leaves what the handlers leave: whole old files, staging that start-up empties.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from mirrorkeep.errors import Locked, MirrorkeepError, RequestTimeout
from mirrorkeep.server import auth, dav_write, routes
from mirrorkeep.server.address import parse_address
from mirrorkeep.server.audit import AccessLog
from mirrorkeep.server.balance import Balance
from mirrorkeep.server.call import Call, Upload
from mirrorkeep.server.hashing import Hasher
from mirrorkeep.server.request import IDLE_TIMEOUT_S, ClientGone, Receive, Request
from mirrorkeep.server.response import Response, problem_response
from mirrorkeep.store.pool import Store
from mirrorkeep.store.registry import Grant
from mirrorkeep.tree import wire

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

THREADS: Final = 12
POLL_S: Final = 0.2
CLIENT_GONE_STATUS: Final = 499
"""In the access log alone: the client went away, nothing was answered."""

log = logging.getLogger("mirrorkeep.server")


def create_app(data: str, *, idle_timeout_s: float = IDLE_TIMEOUT_S, balance: Balance | None = None) -> App:
    """Return the application for the store at ``data``; opens the store and the access log at once."""
    return Application(Store.open(data), AccessLog(os.path.join(data, "log")), idle_timeout_s, balance)


class Application:
    """One worker's application; all state beside the store is its threads and its log."""

    def __init__(
        self, store: Store, access_log: AccessLog, idle_timeout_s: float, balance: Balance | None = None
    ) -> None:
        self.store = store
        self.access_log = access_log
        self.hasher = Hasher()
        self._idle_timeout_s = idle_timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request")
        self._balance = balance

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: an HTTP request, or the worker's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        """End the threads and write the access log out."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.hasher.close()
        self.access_log.close()

    # --- one request ---------------------------------------------------------------------------

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        request = Request(scope, receive, idle_timeout_s=self._idle_timeout_s)
        principal: list[str] = []
        status, code, sent_bytes = CLIENT_GONE_STATUS, "client_gone", 0
        try:
            try:
                response = await self._answer(request, principal)
            except ClientGone:
                # The connection is closed: this ends the exchange for the server below, nobody reads it.
                await send({"type": "http.response.start", "status": 400, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            except Exception as error:
                response = problem_response(error)
                if not isinstance(error, RequestTimeout):
                    await request.drain()
            if self._balance is not None and self._balance.give_away(scope.get("client")):
                response.header("connection", "close")
            status, code = response.status, "cut_off"
            sent_bytes = await self._send(request, response, send)
            code = response.code
        except ClientGone:
            return
        finally:
            self._note(request, principal, status, code, sent_bytes, began)

    def _note(
        self, request: Request, principal: list[str], status: int, code: str, sent_bytes: int, began: float
    ) -> None:
        row: dict[str, Any] = {
            "time": round(time.time(), 3),
            "client": request.client,
            "principal": principal[0] if principal else "",
            "method": request.method,
            "path": request.raw_path.decode("latin-1"),
            "status": status,
            "received_bytes": request.received_bytes,
            "sent_bytes": sent_bytes,
            "milliseconds": round((time.perf_counter() - began) * 1000, 2),
        }
        if code:
            row["code"] = code
        if run := request.header(wire.RUN_HEADER):
            row["run"] = run.partition(";")[0][:80]
        self.access_log.add(row)

    async def _answer(self, request: Request, principal: list[str]) -> Response:
        request.check_framing()
        address = parse_address(request.raw_path)
        route = routes.find_route(request, address)
        grant = None
        if not route.public:
            grant = await self._authenticate(request)
            principal.append(grant.principal)
        call = Call(self.store, request, address, grant, self.hasher)
        try:
            return await self._handle(request, call, route)
        except Locked as error:
            return await self._hop(dav_write.locked_answer, call, error)

    async def _handle(self, request: Request, call: Call, route: routes.Route) -> Response:
        if route.upload is not None:
            return await self._stream_upload(request, route.upload(call))
        handler = route.handler
        assert handler is not None  # a route has the one or the other
        if request.has_body:
            call.pieces = await request.collect(route.body_limit_bytes)
        response = await self._hop(call.answer, handler)
        deadline = time.monotonic() + call.wait_s
        while response.waiting and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            response = await self._hop(call.answer, handler)
        return response

    async def _authenticate(self, request: Request) -> Grant:
        credentials = auth.parse_credentials(request.header("authorization"))
        if credentials.user is None:  # one look at a small cached file: not worth a thread
            return auth.authenticate(self.store.registry, credentials)
        return await self._hop(auth.authenticate, self.store.registry, credentials)

    async def _stream_upload(self, request: Request, upload: Upload) -> Response:
        """Feed a body to an upload, a megabyte a hop; small bodies take one hop in all."""
        try:
            first = await request.read_batch()
            rest = await request.read_batch() if first else b""
            if not rest:
                return await self._hop(upload.whole, first)
            await self._hop(upload.feed, first)
            while rest:
                await self._hop(upload.feed, rest)
                rest = await request.read_batch()
            return await self._hop(upload.finish)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the pool is closed when the worker ends
                await asyncio.shield(self._hop(upload.abandon))
            raise

    async def _hop(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    # --- the way out ---------------------------------------------------------------------------

    async def _send(self, request: Request, response: Response, send: Send) -> int:
        if "gzip" in request.header("accept-encoding").lower():
            response.compress()
        if response.compressible:
            response.header("vary", "Accept-Encoding")
        length = response.length_bytes if response.stream is not None else len(response.body)
        if request.method == "HEAD" and response.length_bytes is not None:
            length = response.length_bytes
        if length is not None and response.status not in (204, 304):
            response.header("content-length", str(length))
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        if response.stream is None or request.method == "HEAD":
            body = b"" if request.method == "HEAD" else response.body
            await send({"type": "http.response.body", "body": body})
            if response.stream is not None:
                await self._hop(_close, response.stream)
            return len(body)
        return await self._send_stream(request, response.stream, send)

    async def _send_stream(self, request: Request, stream: Iterator[bytes], send: Send) -> int:
        """Send pieces while the next one is being read; stop reading when the client is gone."""
        sent_bytes = 0
        gone = asyncio.ensure_future(request.wait_until_gone())
        try:
            piece = await self._hop(next, stream, None)
            while piece is not None and not gone.done():
                ahead = asyncio.ensure_future(self._hop(next, stream, None))
                try:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                finally:
                    sent_bytes += len(piece)
                    piece = await ahead
            if piece is not None:
                raise ClientGone
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except MirrorkeepError as error:  # the status is out: only the connection can tell the client
            log.warning("an answer was cut off: %s", error)
            raise _CutOff from error
        finally:
            gone.cancel()
            await self._hop(_close, stream)
        return sent_bytes


class _CutOff(Exception):
    """An answer broke after its headers were sent; the server below closes the connection."""


def _close(stream: Iterator[bytes]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()
