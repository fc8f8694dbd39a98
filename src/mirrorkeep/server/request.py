"""A request as handlers see it: headers, query, and a body that is limited, timed and unpacked.

The body arrives through ``receive()`` of ASGI, which has no time-out of its own and reports a cut-off
upload as ``http.disconnect``; both become errors here, so that whoever gets bytes from this module got
what the client meant to send.  gzip is understood in both ways of saying it (``Content-Encoding`` and
``Content-Transfer-Encoding``), its checksum and length trailer are verified, and unpacking is bounded.

A request that says both Content-Length and Transfer-Encoding is refused where both are visible; the
HTTP layer below already takes the chunked framing alone and closes the connection after the answer.

Not here: what a request means (``app``, ``dav``, ``extensions``, ``api``).
Nothing here is stored; a crash leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from types import ModuleType
from typing import Any, Final, Protocol

from mirrorkeep.errors import (
    BadUsage,
    LengthMismatch,
    MalformedRequest,
    MirrorkeepError,
    RequestTimeout,
    TooLarge,
)
from mirrorkeep.server.address import unquote

_inflater: ModuleType = zlib
with contextlib.suppress(ImportError):  # the plain zlib reads the same container, four times slower
    from isal import isal_zlib as _inflater

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

IDLE_TIMEOUT_S: Final = 60.0
"""No byte of the body for this long ends the request with 408."""
BATCH_BYTES: Final = 1024 * 1024
"""Bodies are handed to threads in pieces of about this size."""
DRAIN_BYTES: Final = 16 * 1024 * 1024
DRAIN_IDLE_S: Final = 2.0
MAX_QUERY_BYTES: Final = 16 * 1024
_GZIP_WINDOW: Final = 31


class ClientGone(Exception):
    """The client closed the connection before its body was whole; there is nobody to answer."""


class _Inflate(Protocol):
    unused_data: bytes
    unconsumed_tail: bytes
    eof: bool

    def decompress(self, data: bytes, max_length: int = 0) -> bytes: ...


class Request:
    """One HTTP request; header names are lower-case bytes, values stripped bytes (repeats are joined)."""

    __slots__ = (
        "_ended",
        "_query",
        "_receive",
        "client",
        "headers",
        "idle_timeout_s",
        "method",
        "query_string",
        "raw_path",
        "received_bytes",
    )

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, *, idle_timeout_s: float) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.query_string: bytes = scope["query_string"]
        self.client: str = (scope.get("client") or ("",))[0]
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            name = name.lower()
            known = self.headers.get(name)
            value = value.strip()
            self.headers[name] = value if known is None else known + b", " + value
        self.idle_timeout_s = idle_timeout_s
        self.received_bytes = 0
        self._receive = receive
        self._ended = False
        self._query: dict[str, bytes] | None = None

    def header(self, name: str, default: str = "") -> str:
        """Return a header as text (latin-1, as HTTP has it)."""
        value = self.headers.get(name.lower().encode("ascii"))
        return default if value is None else value.decode("latin-1")

    @property
    def query(self) -> dict[str, bytes]:
        """The query, percent-decoded to bytes; the last of repeated keys counts."""
        if self._query is None:
            if len(self.query_string) > MAX_QUERY_BYTES:
                raise MalformedRequest(detail="the query is too long")
            pairs = (pair.partition(b"=") for pair in self.query_string.split(b"&") if pair)
            self._query = {
                unquote(key).decode("utf-8", "replace"): unquote(value.replace(b"+", b"%20"))
                for key, _, value in pairs
            }
        return self._query

    def query_int(self, name: str) -> int:
        """Return a whole, non-negative number of the query; raises BadUsage when it is none."""
        value = self.query.get(name, b"")
        if not value.isdigit() or len(value) > 18:
            raise BadUsage(detail=f"the query needs {name}=NUMBER")
        return int(value)

    @property
    def gzipped(self) -> bool:
        """Whether the body is a gzip container, said either way; other codings raise MalformedRequest."""
        found = False
        for name in (b"content-encoding", b"content-transfer-encoding"):
            value = self.headers.get(name, b"").lower()
            if value in (b"gzip", b"x-gzip"):
                found = True
            elif value not in (b"", b"identity", b"binary", b"8bit", b"7bit"):
                raise MalformedRequest(detail=f"the coding {value.decode('latin-1')} is not understood")
        return found

    @property
    def announced_bytes(self) -> int | None:
        """Content-Length; None when there is none, or none that ``check_framing`` would take."""
        value = self.headers.get(b"content-length", b"")
        return int(value) if value.isdigit() and len(value) <= 18 else None

    @property
    def has_body(self) -> bool:
        """Whether the headers announce a body that is not empty."""
        return b"transfer-encoding" in self.headers or bool(self.announced_bytes)

    def check_framing(self) -> None:
        """Refuse a body whose length is said twice, wrongly, or in a coding nobody agreed on."""
        length = self.headers.get(b"content-length")
        transfer = self.headers.get(b"transfer-encoding")
        if length is not None and not (length.isdigit() and len(length) <= 18):
            raise MalformedRequest(detail="Content-Length is not one whole number")
        if transfer is not None:
            if length is not None:
                raise MalformedRequest(detail="both Content-Length and Transfer-Encoding")
            if transfer.lower() != b"chunked":
                raise MalformedRequest(detail="only Transfer-Encoding: chunked is understood")

    async def read_batch(self) -> bytes:
        """Return the next bytes of the body as they were sent, about 1 MiB or the rest; b"" at the end.

        Raises ClientGone when the connection ended first, RequestTimeout when nothing came for
        ``idle_timeout_s``, LengthMismatch when Content-Length was not kept.
        """
        return b"".join(await self._read_pieces(BATCH_BYTES))

    async def _read_pieces(self, limit_bytes: int) -> list[bytes]:
        """Return the next pieces of the body, ``limit_bytes`` or one piece more; [] at the end."""
        pieces: list[bytes] = []
        size = 0
        receive = self._receive
        loop = asyncio.get_running_loop()
        try:
            # One timer for many pieces (a slow line brings 16 kB each): it is put off as bytes arrive.
            async with asyncio.timeout(self.idle_timeout_s) as idle:
                step_s = min(1.0, self.idle_timeout_s / 8)
                put_off_s = loop.time() + step_s
                while not self._ended and size < limit_bytes:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientGone
                    piece = message.get("body", b"")
                    if piece:
                        pieces.append(piece)
                        size += len(piece)
                    if not message.get("more_body", False):
                        self._ended = True
                    if loop.time() > put_off_s:
                        put_off_s = loop.time() + step_s
                        idle.reschedule(loop.time() + self.idle_timeout_s)
        except TimeoutError:
            raise RequestTimeout(seconds=f"{self.idle_timeout_s:g}") from None
        self.received_bytes += size
        announced = self.announced_bytes
        if self._ended and announced is not None and announced != self.received_bytes:
            raise LengthMismatch(path="body", expected=announced, actual=self.received_bytes)
        return pieces

    async def collect(self, limit_bytes: int) -> list[bytes]:
        """Return the whole body as sent, in pieces, at most ``limit_bytes``; TooLarge early where it can."""
        if (self.announced_bytes or 0) > limit_bytes:
            raise TooLarge(detail=f"the body is larger than {limit_bytes} bytes")
        pieces: list[bytes] = []
        while some := await self._read_pieces(limit_bytes - self.received_bytes + 1):
            pieces += some
            if self.received_bytes > limit_bytes:
                raise TooLarge(detail=f"the body is larger than {limit_bytes} bytes")
        return pieces

    async def drain(self) -> None:
        """Take and forget what is left of a body, within reason, so that a client that sends before it
        listens gets to hear why it was refused instead of a broken connection."""
        if self._ended or not self.has_body or self.header("expect"):
            return
        limit = self.received_bytes + DRAIN_BYTES
        self.idle_timeout_s = min(self.idle_timeout_s, DRAIN_IDLE_S)
        with contextlib.suppress(ClientGone, MirrorkeepError):
            while self.received_bytes < limit and await self.read_batch():
                pass

    async def wait_until_gone(self) -> None:
        """Return when the client closes the connection; for answers that take long."""
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return


class Unpacker:
    """Unpacks a body piece by piece; plain bodies pass through.  Use from one thread at a time."""

    def __init__(self, *, gzipped: bool) -> None:
        self._inflate: _Inflate | None = _inflater.decompressobj(_GZIP_WINDOW) if gzipped else None
        self.size_bytes = 0

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """Yield the unpacked bytes of ``packed``, at most 1 MiB at a time, however dense it is.

        Raises MalformedRequest when the container is broken, its CRC is wrong, or bytes follow it.
        """
        if self._inflate is None:
            self.size_bytes += len(packed)
            yield packed
            return
        while packed:
            if self._inflate.eof:
                raise MalformedRequest(detail="bytes after the end of the gzip body")
            try:
                piece = self._inflate.decompress(packed, BATCH_BYTES)
            except Exception as error:  # zlib.error or isal's own class of the same meaning
                raise MalformedRequest(detail=f"the gzip body is damaged ({error})") from None
            packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if piece:
                self.size_bytes += len(piece)
                yield piece

    def finish(self) -> Iterator[bytes]:
        """Yield what is left; raises MalformedRequest when the container was cut off."""
        if self._inflate is None or self._inflate.eof:
            return
        while True:
            try:
                piece = self._inflate.decompress(b"", BATCH_BYTES)
            except Exception as error:
                raise MalformedRequest(detail=f"the gzip body is damaged ({error})") from None
            if not piece:
                break
            self.size_bytes += len(piece)
            yield piece
        if not self._inflate.eof:
            raise MalformedRequest(detail="the gzip body ends too early")


def unpack(packed: bytes, *, gzipped: bool, limit_bytes: int) -> bytes:
    """Return the whole unpacked body, at most ``limit_bytes``; raises MalformedRequest, TooLarge."""
    if not gzipped:
        if len(packed) > limit_bytes:
            raise TooLarge(detail=f"the body is larger than {limit_bytes} bytes")
        return packed
    unpacker = Unpacker(gzipped=True)
    pieces: list[bytes] = []
    for stage in (unpacker.feed(packed), unpacker.finish()):
        for piece in stage:
            pieces.append(piece)
            if unpacker.size_bytes > limit_bytes:
                raise TooLarge(detail=f"the unpacked body is larger than {limit_bytes} bytes")
    return b"".join(pieces)
