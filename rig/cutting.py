"""A TCP proxy that cuts connections at random, in the middle of whatever passes.

Answers for: forwarding loopback connections to another port, each cut off (reset) after a random number of
bytes, in either direction.  Its threads end with :meth:`CuttingProxy.stop` or with the process.

Not here: what passes through.  Nothing is kept.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading

_RESET = struct.pack("ii", 1, 0)
PIECE_BYTES = 16_384


class CuttingProxy:
    """Forwards to ``port`` of loopback; each connection lives for one of ``lives`` while armed.

    A life is a range of bytes, of which some number is chosen.
    """

    def __init__(self, port: int, rng: random.Random, *lives: tuple[int, int]) -> None:
        self._target = port
        self._rng = rng
        self._lives = lives
        self.armed = True
        self.cuts = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                left = self._rng.randint(*self._rng.choice(self._lives)) if self.armed else None
                threading.Thread(target=self._forward, args=(client, left), daemon=True).start()

    def _forward(self, client: socket.socket, left: int | None) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            with server, selectors.DefaultSelector() as ready:
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                while True:
                    for key, _ in ready.select():
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(PIECE_BYTES)
                        if not data:
                            return
                        if left is not None and len(data) >= left:
                            self._cut(client, server, key.data, data[:left])
                            return
                        left = left - len(data) if left is not None else None
                        key.data.sendall(data)

    def _cut(self, client: socket.socket, server: socket.socket, other: socket.socket, last: bytes) -> None:
        self.cuts += 1
        other.sendall(last)
        for side in (client, server):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
