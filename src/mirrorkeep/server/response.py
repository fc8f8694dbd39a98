"""An answer as handlers make it, and how it goes out: whole or streamed, plain or gzip.

A streamed body is a plain iterator that is pulled in a thread of the worker's pool, one piece ahead of
the network (a queue of one piece: a slow reader costs neither memory nor a waiting thread).  When the
client goes away the iterator is closed.  Errors become ``application/problem+json`` (RFC 9457) here and
nowhere else; what is not one of ours is a 500 without details, its traceback goes to the log.

Not here: what is answered.  Nothing is stored.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Protocol

from mirrorkeep.errors import (
    MirrorkeepError,
    NoSpace,
    NotAuthenticated,
    NotFound,
    PathRefused,
    StorageFailure,
)

_deflater: ModuleType = zlib
with contextlib.suppress(ImportError):
    from isal import isal_zlib as _deflater

log = logging.getLogger("mirrorkeep.server")

PIECE_BYTES: Final = 1024 * 1024
GZIP_LEVEL: Final = 1
MIN_GZIP_BYTES: Final = 512
CHALLENGES: Final = (
    (b"www-authenticate", b'Basic realm="mirrorkeep", charset="UTF-8"'),
    (b"www-authenticate", b'Bearer realm="mirrorkeep"'),
)
_NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_REFUSED: Final = frozenset((errno.ENAMETOOLONG, errno.ELOOP))
_MISSING: Final = frozenset((errno.ENOENT, errno.ENOTDIR))


class Deflate(Protocol):
    """What zlib and isal have in common."""

    def compress(self, data: bytes) -> bytes: ...

    def flush(self) -> bytes: ...


@dataclass(slots=True)
class Response:
    """Status, headers, and a body: ``body`` whole, or ``stream`` in pieces (then ``body`` is empty)."""

    status: int
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    stream: Iterator[bytes] | None = None
    length_bytes: int | None = None
    """Content-Length of a streamed body or of a HEAD answer, where known."""
    compressible: bool = False
    """The body is worth gzip when the client takes it."""
    waiting: bool = False
    """Not the last word: ask the same handler again while the client is willing to wait."""
    code: str = ""
    """The error's stable code, for the access log."""

    def header(self, name: str, value: str | bytes) -> Response:
        """Add a header and return self."""
        raw = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
        self.headers.append((name.lower().encode("ascii"), raw))
        return self

    def compress(self) -> None:
        """Pack the body as gzip, in both ways of saying it; the ETag of the packed form is another."""
        if not self.compressible or (self.stream is None and len(self.body) < MIN_GZIP_BYTES):
            return
        self.headers = [
            (name, _packed_etag(value) if name == b"etag" else value) for name, value in self.headers
        ]
        self.header("content-encoding", "gzip").header("content-transfer-encoding", "gzip")
        if self.stream is not None:
            self.stream, self.length_bytes = _packed(self.stream), None
        else:
            packer = new_packer()
            self.body = packer.compress(self.body) + packer.flush()


def json_response(value: Any, status: int = 200) -> Response:
    """Answer with JSON; lone surrogates stay escapes."""
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    return Response(status, [(b"content-type", b"application/json")], body)


def problem_response(error: BaseException) -> Response:
    """Translate any exception into the answer that the client gets."""
    known = translate(error)
    if known is None:
        log.error("internal error", exc_info=error)
        known = MirrorkeepError(detail="internal error; the server's log has the details")
    elif known.http_status >= 500:
        log.warning("%s: %s", known.code, known)
    body = json.dumps(known.problem(), separators=(",", ":")).encode("ascii")
    response = Response(known.http_status, [(b"content-type", b"application/problem+json")], body)
    response.code = known.code
    if isinstance(known, NotAuthenticated):
        response.headers.extend(CHALLENGES)
    return response


def translate(error: BaseException) -> MirrorkeepError | None:
    """Return the error of ours that ``error`` is, None for one that nobody foresaw."""
    if isinstance(error, MirrorkeepError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _NO_SPACE:
            return NoSpace(detail=error.strerror or "")
        if error.errno in _REFUSED:
            return PathRefused(path="", detail=error.strerror or "")
        if error.errno in _MISSING:
            return NotFound(what="the resource")
        if error.errno == errno.EIO:
            return StorageFailure(detail=error.strerror or "")
    return None


def new_packer() -> Deflate:
    """Return a gzip packer (level 1: as fast as the disk)."""
    packer: Deflate = _deflater.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return packer


def _packed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = new_packer()
    try:
        for piece in pieces:
            if packed := packer.compress(piece):
                yield packed
        yield packer.flush()
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _packed_etag(value: bytes) -> bytes:
    return value[:-1] + b';gzip"' if value.endswith(b'"') else value
