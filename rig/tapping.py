"""A TCP proxy that keeps what passes, and can make a long line of loopback.

Answers for: forwarding loopback connections to another port; all bytes of each connection, either way; a
line that lets a connection pass one window a round trip, as TCP does over a distance; holding everything
back that comes from the server once so much of it has passed.  Its threads end with
:meth:`TappingProxy.stop` or with the process.

Not here: what passes, which is kept in memory as it is.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

PIECE_BYTES = 1 << 16


@dataclass
class Tapped:
    """One connection: what went up to the server and down from it, and when each round of ``up`` was full."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)
    full_rounds: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each round trip in which at least half a window went up."""


class TappingProxy:
    """Forwards to ``port`` of loopback; with a window, at most so much goes up in each round trip."""

    def __init__(
        self, port: int, *, window_bytes: int = 0, round_trip_s: float = 0.0, hold_after: int | None = None
    ) -> None:
        """``hold_after``: bytes from the server, of all connections, after which no more of them pass."""
        self._target = port
        self._window_bytes = window_bytes
        self._round_trip_s = round_trip_s
        self._left = hold_after
        self._counting = threading.Lock()
        self.held = threading.Event()
        """Set when the first byte from the server is held back."""
        self._stopped = threading.Event()
        self.connections: list[Tapped] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> TappingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more connections, and let go of what is held back (it is not passed on)."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def url(self, url: str) -> str:
        """Return a URL of the server as it is reached through here."""
        return url.replace(f":{self._target}/", f":{self.port}/")

    # --- forwarding ------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._window_bytes:  # what waits here is what the sender has under way
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window_bytes)
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
                server.settimeout(None)
                tapped = Tapped()
                self.connections.append(tapped)
                for forward in (self._up, self._down):
                    threading.Thread(target=forward, args=(tapped, client, server), daemon=True).start()

    def _up(self, tapped: Tapped, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self._receive_round(tapped, client):
                tapped.up += data
                server.sendall(data)
        _end(server, socket.SHUT_WR)

    def _receive_round(self, tapped: Tapped, client: socket.socket) -> bytes:
        """Return what one round trip takes along; without a window, what is there."""
        if not self._window_bytes:
            return client.recv(PIECE_BYTES)
        if not client.recv(1, socket.MSG_PEEK):
            return b""
        began = time.monotonic()
        time.sleep(self._round_trip_s)  # the line itself
        data = b""
        with contextlib.suppress(BlockingIOError):
            while len(data) < self._window_bytes and (
                piece := client.recv(self._window_bytes - len(data), socket.MSG_DONTWAIT)
            ):
                data += piece
        if 2 * len(data) >= self._window_bytes:
            tapped.full_rounds.append((began, time.monotonic()))
        return data

    def _down(self, tapped: Tapped, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(PIECE_BYTES):
                if not self._passes(len(data)):
                    self.held.set()
                    self._stopped.wait()
                    break
                tapped.down += data
                client.sendall(data)
        _end(client, socket.SHUT_WR)

    def _passes(self, size_bytes: int) -> bool:
        with self._counting:
            if self._left is None:
                return True
            self._left -= size_bytes
            return self._left >= 0


def _end(side: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        side.shutdown(how)
