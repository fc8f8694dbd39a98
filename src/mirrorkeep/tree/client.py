"""The client's end of the wire: connections to a store, requests, retries, errors.

One :class:`StoreClient` speaks for one target (a part of a volume).  It keeps one connection a thread,
opened on first use, so forked workers and their threads never share one.  Every request of the
protocol may be repeated, so a connection that breaks is opened anew and the request sent again, with
jittered back-off, until ``patience_s`` has passed (TX-25).  Where nobody listens, and the store has not
answered this client yet, that is a wrong address or a store that is down, and it gives up much sooner.

Plain ``http.client`` rather than a pool library: connections are few and long, and 50 ms less start-up
counts in a run that finds nothing changed (docs/adr/0002).

Not here: what is sent (``remote``), who may send it.  Credentials never appear in a message.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import quote

from mirrorkeep.errors import BadUsage, MirrorkeepError, NotAuthenticated, StoreUnreachable, error_for_code
from mirrorkeep.tree.local_errors import local_errors
from mirrorkeep.tree.target import Target, clean_token
from mirrorkeep.tree.tls import TlsConnection

TIMEOUT_S: Final = 120.0
PATIENCE_S: Final = 60.0
REFUSED_PATIENCE_S: Final = 6.0
"""How long a store is tried that answered nothing yet and refuses connections: it starts again in five."""
STREAM_TRIES: Final = 8
"""How often an answer that breaks off in the middle is asked for."""
_SAFE: Final = "/!$'()*+,;=:@-._~"


class Pieces(Protocol):
    """A body in pieces, sent chunked; iterated anew for each repetition.  Its length: what that gave."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __len__(self) -> int: ...


Body = bytes | bytearray | memoryview | Pieces


@dataclass(slots=True)
class Answer:
    """A whole response: status, headers (lower-case names) and body."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def quote_path(path: bytes) -> str:
    """Percent-encode the raw bytes of a path (trap 9)."""
    return quote(path, safe=_SAFE)


class StoreClient:
    """Speaks to one target on a store."""

    def __init__(
        self, target: Target, token: str | None, ca: str | None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self.target = target
        self.volume = target.volume
        self.part = target.part
        self.patience_s = patience_s
        self._token = token
        self._ca = ca
        self._context: ssl.SSLContext | None = None
        self._local = threading.local()
        self.sent_bytes = 0
        self.tell_waiting: Callable[[str], None] | None = None
        """Told once, when the store does not answer and the client goes on trying for a while."""
        self._has_answered = False

    @classmethod
    def from_target(cls, url: str, token: str | None = None, ca: str | None = None) -> StoreClient:
        """Make a client; credentials default to ``MIRRORKEEP_TOKEN`` and ``MIRRORKEEP_CA``.

        Raises BadUsage for a target or a token that cannot be one.
        """
        if token is None and (given := os.environ.get("MIRRORKEEP_TOKEN")):
            token = clean_token(given, "MIRRORKEEP_TOKEN")
        return cls(
            Target.parse(url),
            token,
            ca or os.environ.get("MIRRORKEEP_CA"),
        )

    # --- requests ------------------------------------------------------------------------------

    def url(self, path: bytes = b"", *, snapshot: str | None = None, **query: Any) -> str:
        """Return the request target of a path inside the part, in the tip or in a snapshot."""
        whole = self.part + b"/" + path if self.part and path else self.part or path
        stem = f"/snapshots/{quote(snapshot)}/{self.volume}" if snapshot else f"/volumes/{self.volume}"
        return stem + ("/" + quote_path(whole) if whole else "") + _query(query)

    def api(self, path: str, **query: Any) -> str:
        """Return the request target of an API resource; ``part`` is added for volume resources."""
        if path.startswith("volumes/"):
            query = {"part": self.part, **query}
        return f"/api/v1/{path}{_query(query)}"

    def request(
        self,
        method: str,
        url: str,
        body: Body | None = None,
        headers: dict[str, str] | None = None,
        *,
        allow: tuple[int, ...] = (),
    ) -> Answer:
        """Send one request and return the whole answer; error statuses raise, save those in ``allow``.

        Repeats after broken connections and retryable 5xx until patience ends: StoreUnreachable.
        """
        started = time.monotonic()
        deadline = started + self.patience_s
        pause_s = 0.1
        while True:
            try:
                answer = self._once(method, url, body, headers or {})
            except (OSError, http.client.HTTPException) as error:
                self._take_failure(error, started, pause_s)
            else:
                self._has_answered = True
                if answer.status < 400 or answer.status in allow:
                    return answer
                problem = _problem(answer)
                if answer.status not in (502, 503, 504) or time.monotonic() + pause_s > deadline:
                    raise problem
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = self._longer(pause_s)

    def get_json(self, path: str, **query: Any) -> Any:
        """GET an API resource as JSON."""
        return self.request("GET", self.api(path, **query)).json()

    def post_json(self, path: str, body: Any, **query: Any) -> Any:
        """POST JSON to an API resource and return the JSON answer."""
        raw = json.dumps(body).encode()
        return self.request("POST", self.api(path, **query), raw, {"Content-Type": "application/json"}).json()

    def stream(self, path: str, **query: Any) -> Iterator[bytes]:
        """GET an API resource as a stream of blocks; an empty answer (204) yields nothing."""
        return self.stream_url(self.api(path, **query))

    def stream_url(
        self,
        url: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[bytes]:
        """Send a request and yield the answer's body in blocks of up to 1 MiB.

        Only the beginning is repeated: a stream that breaks later raises StoreUnreachable with ``begun``
        in its fields, and may be asked for again at once.
        """
        _, response = self._open(method, url, body, headers or {})
        try:
            while block := response.read(1 << 20):
                yield block
            if response.length:  # read() takes an early end for the end
                raise http.client.IncompleteRead(b"", response.length)
        except (OSError, http.client.HTTPException) as error:
            self.disconnect()
            raise StoreUnreachable(url=self.target.origin, detail=_reason(error), begun=True) from error
        finally:
            if not response.isclosed():
                self.disconnect()

    def save(self, url: str, path: str) -> None:
        """GET into a file, from the beginning again when the answer breaks off.

        Raises StoreUnreachable, SystemFailure when the file cannot be written.
        """
        tries_left = STREAM_TRIES
        while True:
            tries_left -= 1
            try:
                with local_errors(path), open(path + ".new", "wb") as stream:
                    for block in self.stream_url(url):
                        stream.write(block)
            except StoreUnreachable as error:
                if not tries_left or "begun" not in error.fields:
                    raise
            else:
                os.replace(path + ".new", path)
                return

    def send_seconds(self) -> float:
        """Return how long this thread's last request took to leave, without waiting for its answer."""
        seconds: float = getattr(self._local, "send_seconds", 0.0)
        return seconds

    def disconnect(self) -> None:
        """Close this thread's connection; the next request opens a new one."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    # --- connections ---------------------------------------------------------------------------

    def _connection(self) -> TlsConnection:
        connection: TlsConnection | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid != os.getpid():
            connection.close()  # a fork's copy: the parent goes on with it, this process opens its own
            connection = None
        if connection is None:
            if self._context is None:
                self._context = _trusting(self._ca)
            connection = TlsConnection(
                self.target.host, self.target.port, timeout_s=TIMEOUT_S, context=self._context
            )
            self._local.connection = connection
            self._local.pid = os.getpid()
        return connection

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        if self._token:
            headers = {"Authorization": f"Bearer {self._token}", **headers}
        return headers

    def _once(self, method: str, url: str, body: Body | None, headers: dict[str, str]) -> Answer:
        connection = self._connection()
        started = time.perf_counter()
        connection.request(method, url, body, self._headers(headers))
        self._local.send_seconds = time.perf_counter() - started
        response = connection.getresponse()
        data = response.read()
        self.sent_bytes += len(body or b"")
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)

    def _open(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[TlsConnection, http.client.HTTPResponse]:
        started = time.monotonic()
        pause_s = 0.1
        while True:
            try:
                connection = self._connection()
                connection.request(method, url, body, self._headers(headers))
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._take_failure(error, started, pause_s)
                time.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = self._longer(pause_s)
                continue
            self._has_answered = True
            if response.status >= 400:
                answer = Answer(response.status, {}, response.read())
                raise _problem(answer)
            return connection, response

    def _longer(self, pause_s: float) -> float:
        """Return the next pause; short ones where a store is only tried for a short time."""
        return min(2 * pause_s, 5.0 if self._has_answered else 1.0)

    def _take_failure(self, error: Exception, started: float, pause_s: float) -> None:
        """Let go of a connection that failed; raises StoreUnreachable when it is not worth trying again."""
        self.disconnect()
        if isinstance(error, ssl.SSLCertVerificationError):
            raise StoreUnreachable(
                url=self.target.origin,
                detail=f"its certificate is not trusted ({error.verify_message}); give --ca",
            ) from error
        patience_s = self.patience_s
        if isinstance(error, ConnectionRefusedError) and not self._has_answered:
            patience_s = min(patience_s, REFUSED_PATIENCE_S)
        left_s = started + patience_s - time.monotonic()
        if pause_s > left_s:
            raise StoreUnreachable(url=self.target.origin, detail=_reason(error)) from error
        tell, self.tell_waiting = self.tell_waiting, None
        if tell is not None:
            tell(f"cannot reach {self.target.origin}: {_reason(error)}; trying for up to {left_s:.0f} s more")


def _query(query: dict[str, Any]) -> str:
    pairs = []
    for key, value in query.items():
        if value is None:
            continue
        raw = value if isinstance(value, bytes) else str(value).encode()
        pairs.append(f"{key}={quote(raw, safe='')}")
    return "?" + "&".join(pairs) if pairs else ""


def _trusting(ca: str | None) -> ssl.SSLContext:
    """Return a context that trusts the certificates of a file; raises BadUsage when it holds none."""
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise BadUsage(detail=f"{ca} holds no certificate (PEM) to trust the store by") from error
    except OSError as error:
        raise BadUsage(detail=f"{ca}, the certificate to trust, cannot be read: {error.strerror}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT_S:.0f} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _problem(answer: Answer) -> MirrorkeepError:
    try:
        problem = answer.json()
        code, fields = problem["code"], dict(problem.get("fields", {}))
        fields.setdefault("title", problem.get("title", code))
    except (ValueError, KeyError, TypeError):
        if answer.status == 401:
            return NotAuthenticated(detail="the store wants a token (MIRRORKEEP_TOKEN or --token-file)")
        return error_for_code("", {"title": answer.body[:200].decode("latin-1")}, answer.status)
    return error_for_code(code, fields, answer.status)
