"""TLS of the client's connections, with many records to a system call.

``ssl.SSLSocket`` gives each record of 16 KiB to the kernel by itself, which wakes the other side as often,
and asks for each record twice.  Here records pass through memory and travel up to ``BATCH_BYTES`` at a time;
the first copy of a large file takes 4 % less time for it.  Handshake, certificate checks and records are
OpenSSL's as ever (``ssl.SSLObject``).

Not here: which certificates are trusted (the caller's context), HTTP (``client``).  A connection that ends
without TLS saying so looks like one that ended: HTTP knows how long an answer is.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
from typing import Any, Final

BATCH_BYTES: Final = 256 * 1024


class TlsConnection(http.client.HTTPConnection):
    """``http.client.HTTPSConnection`` over a :class:`TlsSocket`."""

    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, port: int, *, timeout_s: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._context = context

    def connect(self) -> None:
        """Connect and shake hands; raises OSError, ssl.SSLCertVerificationError among them."""
        super().connect()
        plain = self.sock
        try:
            self.sock: Any = TlsSocket(plain, self._context, self.host)
        except BaseException:
            self.sock = None
            plain.close()
            raise


class TlsSocket:
    """As much of a socket as ``http.client`` uses, over a connected ``plain`` one; for one thread.

    Each wait is as long as the time-out of ``plain`` at most, however much is sent or received in all.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Shake hands; raises ssl.SSLError, ssl.SSLCertVerificationError, OSError, TimeoutError."""
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._received = bytearray(BATCH_BYTES)
        # Any: typeshed knows only the read() that makes bytes.
        self._tls: Any = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._readers = 0
        self._is_closed = False
        try:
            self._shake_hands()
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._send_records()  # tells the other side why
            raise

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; raises OSError: what came over of it is unknown."""
        view = memoryview(data)
        for start in range(0, len(view), BATCH_BYTES):
            end = min(start + BATCH_BYTES, len(view))
            while start < end:
                start += self._tls.write(view[start:end])
            self._send_records()

    def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes, put those of a record at most into ``buffer`` and return how many; 0: the end."""
        while True:
            try:
                got: int = self._tls.read(len(buffer), buffer)
            except ssl.SSLWantReadError:
                self._receive_records()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0
            else:
                return got

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a reader; the connection stays open until it is closed as well, as a socket's does."""
        if mode != "rb":
            raise ValueError(f"only for reading, not {mode}")
        self._readers += 1
        return io.BufferedReader(_Reader(self), 64 * 1024)

    def close(self) -> None:
        """Close the connection when its readers are closed; may be repeated."""
        self._is_closed = True
        if not self._readers:
            self._plain.close()

    def _forget_reader(self) -> None:
        self._readers -= 1
        if self._is_closed:
            self.close()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._receive_records()
            else:
                self._send_records()
                return

    def _send_records(self) -> None:
        left = memoryview(self._outgoing.read())
        while left:  # not sendall, whose time-out is one for everything
            left = left[self._plain.send(left) :]

    def _receive_records(self) -> None:
        """Wait for bytes; what TLS has to say meanwhile (handshakes, new keys) is sent before."""
        self._send_records()
        got = self._plain.recv_into(self._received)
        if got:
            self._incoming.write(memoryview(self._received)[:got])
        else:
            self._incoming.write_eof()


class _Reader(io.RawIOBase):
    def __init__(self, stream: TlsSocket) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._stream.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stream._forget_reader()
