"""TLS in batches of records: what arrives, how often the kernel is asked, and how it can end."""

from __future__ import annotations

import http.client
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.store import keys
from mirrorkeep.tree.tls import BATCH_BYTES, TlsConnection, TlsSocket

HOST = "127.0.0.1"


class Counting:
    """A connected socket that counts what it is asked."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self.sends = self.receives = 0
        self.is_closed = False

    def send(self, data: memoryview) -> int:
        self.sends += 1
        return self._plain.send(data)

    def recv_into(self, buffer: bytearray) -> int:
        self.receives += 1
        return self._plain.recv_into(buffer)

    def close(self) -> None:
        self.is_closed = True
        self._plain.close()


class Peer:
    """The other end: TLS of the standard library, in a thread."""

    def __init__(self, folder: Path) -> None:
        keys.create_keys(str(folder), [HOST])
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(*keys.server_certificate(str(folder)))
        self.trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        self.heard: list[Any] = []
        self._threads: list[threading.Thread] = []

    def serve(self, handle: Callable[[ssl.SSLSocket], None], plain: socket.socket) -> None:
        def run() -> None:
            try:
                with self._server.wrap_socket(plain, server_side=True) as stream:
                    handle(stream)
            except OSError as error:
                self.heard.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def connect(self, handle: Callable[[ssl.SSLSocket], None], *, timeout_s: float = 20.0) -> Any:
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout_s)
        self.serve(handle, theirs)
        counting: Any = Counting(ours)
        return TlsSocket(counting, self.trusting, HOST), counting

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "keys")
    yield peer
    peer.join()


def receive(stream: ssl.SSLSocket, length: int) -> bytes:
    parts = []
    while length and (part := stream.recv(min(length, 65536))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


SIZES = [0, 1, 16384, 16385, BATCH_BYTES, BATCH_BYTES + 1, 3 * BATCH_BYTES + 17]


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_sent_arrives_and_comes_back(
    peer: Peer, size_bytes: int, kind: Callable[[bytes], Any]
) -> None:
    body = random.Random(size_bytes).randbytes(size_bytes)

    def echo(stream: ssl.SSLSocket) -> None:
        stream.sendall(receive(stream, size_bytes))

    stream, _ = peer.connect(echo)
    reader = stream.makefile("rb")
    stream.sendall(kind(body))
    assert reader.read(size_bytes) == body
    assert reader.read(1) == b""  # the peer ended the connection
    reader.close()
    stream.close()


def test_many_records_go_with_one_call(peer: Peer) -> None:
    body = os.urandom(8 * BATCH_BYTES)
    stream, counting = peer.connect(lambda stream: peer.heard.append(receive(stream, len(body))))
    before = counting.sends
    stream.sendall(body)
    stream.close()
    peer.join()
    assert peer.heard == [body]
    # A socket pair takes less than a batch at once; a record a call would be 128.
    assert counting.sends - before < 40


def test_many_records_come_with_one_call(peer: Peer) -> None:
    body = os.urandom(6 * 16384)  # little enough to be sent before anybody listens
    stream, counting = peer.connect(lambda stream: stream.sendall(body))
    peer.join()
    before = counting.receives
    with stream.makefile("rb") as reader:
        assert reader.read(len(body)) == body
    assert counting.receives - before <= 2  # a record would take two
    stream.close()


def test_the_connection_stays_open_for_its_readers(peer: Peer) -> None:
    stream, counting = peer.connect(lambda stream: stream.sendall(b"answer"))
    reader = stream.makefile("rb")
    stream.close()
    assert (reader.read(), counting.is_closed) == (b"answer", False)
    reader.close()
    reader.close()
    assert counting.is_closed
    with pytest.raises(ValueError):
        stream.makefile("wb")


@pytest.mark.parametrize("announced", [True, False])
def test_an_end_is_an_end_whether_tls_announces_it_or_not(peer: Peer, announced: bool) -> None:
    def end(stream: ssl.SSLSocket) -> None:
        stream.sendall(b"half")
        if announced:
            stream.unwrap()

    stream, _ = peer.connect(end)
    reader = stream.makefile("rb")
    assert reader.read() == b"half"
    stream.close()


def test_a_broken_connection_is_an_error_of_sending(peer: Peer) -> None:
    stream, _ = peer.connect(lambda stream: stream.close())
    peer.join()
    with pytest.raises(OSError):
        for _ in range(20):
            stream.sendall(os.urandom(BATCH_BYTES))
    stream.close()


def test_the_time_out_is_for_each_wait(peer: Peer) -> None:
    """A line that takes a second for what fits into the socket is slow, not dead."""

    def sip(stream: ssl.SSLSocket) -> None:
        got = 0
        while got < 4 * BATCH_BYTES:
            got += len(stream.recv(16384))
            time.sleep(0.02)
        time.sleep(3)  # now it is dead, for longer than anybody waits

    stream, _ = peer.connect(sip, timeout_s=1.0)
    began = time.monotonic()
    stream.sendall(bytes(4 * BATCH_BYTES))
    with pytest.raises(TimeoutError):
        stream.makefile("rb").read(1)
    assert time.monotonic() - began > 1.5  # of which the time-out was one
    stream.close()


@pytest.fixture
def listening(peer: Peer) -> Iterator[tuple[Peer, Callable[[Callable[[ssl.SSLSocket], None]], int]]]:
    listener = socket.create_server((HOST, 0))

    def listen(handle: Callable[[ssl.SSLSocket], None]) -> int:
        def accept() -> None:
            plain, _ = listener.accept()
            peer.serve(handle, plain)

        threading.Thread(target=accept, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    yield peer, listen
    listener.close()


def test_http_answers_and_closes(listening: Any) -> None:
    peer, listen = listening

    def answer(stream: ssl.SSLSocket) -> None:
        peer.heard.append(stream.recv(65536).split(b"\r\n")[0])
        stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")

    connection = TlsConnection(HOST, listen(answer), timeout_s=20, context=peer.trusting)
    connection.request("GET", "/x")
    response = connection.getresponse()
    assert connection.sock is None  # closed for requests, not for the answer
    assert response.read() == b"until the end"
    assert peer.heard == [b"GET /x HTTP/1.1"]


def test_an_answer_that_is_cut_off_is_not_whole(listening: Any) -> None:
    peer, listen = listening

    def answer(stream: ssl.SSLSocket) -> None:
        stream.recv(65536)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot a hundred")

    connection = TlsConnection(HOST, listen(answer), timeout_s=20, context=peer.trusting)
    connection.request("GET", "/x")
    with pytest.raises(http.client.IncompleteRead):
        connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_certificate_that_is_not_trusted_ends_the_handshake(
    listening: Any, tmp_path: Path, wrong: str
) -> None:
    peer, listen = listening
    keys.create_keys(str(tmp_path / "others"), [HOST])
    context = peer.trusting
    if wrong == "authority":
        context = ssl.create_default_context(cafile=str(tmp_path / "others" / "ca.pem"))
    port = listen(lambda stream: peer.heard.append(stream.recv(100)))
    connection = TlsConnection(HOST, port, timeout_s=20, context=context)
    if wrong == "name":
        plain = socket.create_connection((HOST, port))
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            TlsSocket(plain, context, "127.0.0.2")
        plain.close()
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
            connection.request("GET", "/secret", headers={"Authorization": "Bearer token"})
        assert connection.sock is None
    peer.join()
    (said,) = peer.heard  # it heard why, and nothing of the request
    assert isinstance(said, ssl.SSLError) and said.reason is not None and "ALERT" in said.reason
