"""Requests that go wrong on the wire, as raw bytes over TLS: the old file stays, the answer says why.

Cut-off uploads, slow clients, wrong lengths and digests, conflicting framing, path tricks, readers that
stop reading, workers that are killed.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import scratch
from rig.served import Served, Volume, descendants

OLD = b"the old content\n" * 1000


class Wire:
    """Raw TLS connections and plain requests to one served volume."""

    def __init__(self, served: Served, volume: Volume) -> None:
        self.served, self.volume = served, volume
        self._context = ssl.create_default_context(cafile=volume.ca)
        self.login = f"Authorization: Bearer {volume.token}\r\n"

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.served.port), timeout=20)
        return self._context.wrap_socket(plain, server_hostname="127.0.0.1")

    def raw(self, head: str, body: bytes = b"") -> bytes:
        """Send bytes, then read until the server closes or answers; ``head`` lacks login and blank line."""
        with self.connect() as link:
            link.sendall(f"{head}\r\nHost: 127.0.0.1\r\n{self.login}\r\n".encode("latin-1") + body)
            link.settimeout(10)
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = link.recv(65536)
                if not more:
                    break
                answer += more
            return answer

    def status(self, head: str, body: bytes = b"") -> int:
        match = re.match(rb"HTTP/1\.1 (\d+)", self.raw(head, body))
        assert match is not None
        return int(match[1])

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        link = http.client.HTTPSConnection("127.0.0.1", self.served.port, context=self._context, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            bearer = {"Authorization": f"Bearer {self.volume.token}"}
            link.request(method, path, body or None, {**bearer, **named})
            answer = link.getresponse()
            return answer.status, answer.read(), answer.msg
        finally:
            link.close()

    def get(self, path: str) -> bytes:
        status, body, _ = self.request("GET", path)
        assert status == 200
        return body


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    folder = tmp_path_factory.mktemp("wire")
    served = Served(folder / "data", driver="dir")
    try:
        served.create()
        served.start()
        yield Wire(served, served.create_volume("v"))
    finally:
        served.stop()
        scratch.discard(folder)


@pytest.fixture
def file(wire: Wire) -> str:
    assert wire.request("PUT", "/volumes/v/file", OLD)[0] in (201, 204)
    return "/volumes/v/file"


def staged(wire: Wire) -> list[str]:
    folder = wire.served.native_path("v") / ".mirrorkeep" / ".mirrorkeep.staging"
    return [name for name in os.listdir(folder) if name.startswith("s.")] if folder.exists() else []


def eventually(what: object, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 5000000", b"x" * 3_000_000),
        ("Content-Length: 100", b""),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n"),
        ("Transfer-Encoding: chunked", b"ffffff\r\nhello"),
    ],
)
def test_a_cut_off_upload_leaves_the_old_file(wire: Wire, file: str, framing: str, body: bytes) -> None:
    with wire.connect() as link:
        link.sendall(f"PUT {file} HTTP/1.1\r\nHost: h\r\n{wire.login}{framing}\r\n\r\n".encode() + body)
        time.sleep(0.05)
    eventually(lambda: not staged(wire))
    assert wire.get(file) == OLD


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: -3",
        "Content-Length: 0x3",
        "Content-Length: ",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity\r\nContent-Length: 3",
        "Content-Encoding: br\r\nContent-Length: 3",
        "Content-Range: bytes 0-2/3\r\nContent-Length: 3",
        "Content-Length: 3\r\nMirrorkeep-Digest: nonsense",
    ],
)
def test_framing_that_makes_no_sense_is_400(wire: Wire, file: str, framing: str) -> None:
    assert wire.status(f"PUT {file} HTTP/1.1\r\n{framing}", b"abc") == 400
    assert wire.get(file) == OLD


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
    ],
)
def test_a_length_said_twice_smuggles_nothing(wire: Wire, file: str, framing: str) -> None:
    smuggled = f"DELETE {file} HTTP/1.1\r\nHost: h\r\n{wire.login}\r\n".encode()
    with wire.connect() as link:
        head = f"PUT {file}2 HTTP/1.1\r\nHost: h\r\n{wire.login}{framing}\r\n\r\n"
        link.sendall(head.encode() + b"3\r\nabc\r\n0\r\n\r\n" + smuggled)
        answer = b""
        while more := link.recv(65536):  # until it closes: the next request is not read
            answer += more
    assert answer.count(b"HTTP/1.1") == 1
    assert wire.get(file) == OLD


def test_wrong_digests_and_damaged_containers_change_nothing(wire: Wire, file: str) -> None:
    new = b"new" * 5000
    packed = bytearray(gzip.compress(new))
    packed[-5] ^= 1
    digest = "sha256=" + hashlib.sha256(new).hexdigest()
    for body, headers, status in (
        (new + b"!", {"Mirrorkeep_Digest": digest}, 422),
        (bytes(packed), {"Content_Transfer_Encoding": "gzip"}, 400),
        (gzip.compress(new)[:-4], {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(new) + b"more", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(new + b"!"), {"Content_Encoding": "gzip", "Mirrorkeep_Digest": digest}, 422),
    ):
        assert wire.request("PUT", file, body, **headers)[0] == status
    assert wire.get(file) == OLD
    headers = {"Content_Transfer_Encoding": "gzip", "Mirrorkeep_Digest": digest}
    assert wire.request("PUT", file, gzip.compress(new), **headers)[0] == 204
    assert wire.get(file) == new


@pytest.mark.parametrize(
    "target",
    [
        "/volumes/v/../v/file",
        "/volumes/v/%2e%2e/%2e%2e/registry",
        "/volumes/v/a%2F..%2Ffile",
        "/volumes/v//file",
        "//volumes/v/file",
        "/volumes/v/file%00",
        "/volumes/v/.mirrorkeep/../file",
        "/volumes/v/.mirrorkeep%2F.mirrorkeep.root",
        "/volumes/.mirrorkeep/file",
        "/snapshots/.mirrorkeep/v/file",
        "/snapshots/../volumes/v/file",
        "/volumes/v/./file",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "MKCOL", "PROPFIND"])
def test_path_tricks_are_refused(wire: Wire, file: str, method: str, target: str) -> None:
    assert wire.status(f"{method} {target} HTTP/1.1\r\nContent-Length: 0") in (403, 404)
    assert wire.status(f"COPY {file} HTTP/1.1\r\nDestination: {target}") in (403, 404, 502)


def test_broken_escapes_and_raw_bytes_are_400(wire: Wire, file: str) -> None:
    for target in ("/volumes/v/%", "/volumes/v/%4", "/volumes/v/%xy", "/volumes/v/\xff"):
        assert wire.status(f"GET {target} HTTP/1.1") == 400


def test_links_planted_in_the_tree_are_not_followed(wire: Wire, file: str) -> None:
    tip = wire.served.native_path("v")
    (tip / "etc").symlink_to("/etc")
    try:
        for method, path in (
            ("GET", "/etc/passwd"),
            ("PUT", "/etc/mirrorkeep-was-here"),
            ("PROPFIND", "/etc/"),
        ):
            assert wire.request(method, f"/volumes/v{path}", b"", Depth="0")[0] in (403, 404, 409)
        assert not Path("/etc/mirrorkeep-was-here").exists()
    finally:
        (tip / "etc").unlink()


def test_an_early_refusal_is_heard_by_a_client_that_only_sends(wire: Wire) -> None:
    status, body, _ = wire.request("BUNDLE-APPLY", "/volumes/other", b"x" * 5_000_000)
    assert (status, b"not_found" in body) == (404, True)
    status, _, _ = wire.request("PROPFIND", "/volumes/v", b"x" * 3_000_000, Depth="0")
    assert status == 413


def test_expect_is_answered_before_the_body(wire: Wire, file: str) -> None:
    with wire.connect() as link:
        head = f"PUT {file} HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
        link.sendall(f"{head}Authorization: Bearer wrong\r\n\r\n".encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 401")
    with wire.connect() as link:
        link.sendall(f"{head}{wire.login}\r\n".encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 100")
        link.sendall(b"abc")
        assert link.recv(4096).startswith(b"HTTP/1.1 204")
    assert wire.get(file) == b"abc"


def test_slow_clients_do_not_keep_others_waiting(wire: Wire, file: str) -> None:
    slow = [wire.connect() for _ in range(60)]
    try:
        for number, link in enumerate(slow):
            head = (
                f"PUT /volumes/v/slow{number} HTTP/1.1\r\nHost: h\r\n{wire.login}Content-Length: 1000\r\n\r\n"
            )
            link.sendall(head.encode() + b"x")
        for _ in range(20):  # each within the patience of ``request``, far less than that of the server
            assert wire.get(file) == OLD
    finally:
        for link in slow:
            link.close()


def test_a_reader_that_stops_costs_no_memory(wire: Wire) -> None:
    tip = wire.served.native_path("v")
    assert wire.request("PUT", "/volumes/v/huge", b"x")[0] in (201, 204)
    os.truncate(tip / "huge", 400 << 20)
    before = resident_bytes(wire.served)
    links = []
    for _ in range(4):
        link = wire.connect()
        link.sendall(f"GET /volumes/v/huge HTTP/1.1\r\nHost: h\r\n{wire.login}\r\n".encode())
        link.recv(65536)
        links.append(link)
    time.sleep(1.0)
    grown = resident_bytes(wire.served) - before
    for link in links:
        link.close()
    assert grown < 64 << 20
    assert wire.request("DELETE", "/volumes/v/huge")[0] == 204


def resident_bytes(served: Served) -> int:
    pages = 0
    for pid in served.pids:
        pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_killed_worker_is_replaced_and_nothing_is_torn(wire: Wire, file: str) -> None:
    assert wire.served.process is not None
    supervisor = wire.served.process.pid
    with wire.connect() as link:
        head = f"PUT {file} HTTP/1.1\r\nHost: h\r\n{wire.login}Content-Length: 9000000\r\n\r\n"
        link.sendall(head.encode() + b"y" * 4_000_000)
        for pid in descendants(supervisor)[1:]:
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(OSError):
            while True:  # until the connection is noticed to be gone
                link.sendall(b"y" * 100_000)
                time.sleep(0.02)

    def answers() -> bool:
        try:
            return wire.get(file) == OLD
        except OSError:
            return False

    eventually(answers)


def test_killed_and_started_again_at_once(wire: Wire, file: str) -> None:
    served = wire.served
    assert served.process is not None
    children = descendants(served.process.pid)[1:]
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()
    served.start()
    assert wire.get(file) == OLD
    eventually(lambda: not any(map(is_alive, children)))
    assert staged(wire) == []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_store_has_one_service(wire: Wire) -> None:
    second = Served(wire.served.data, driver="dir")
    with pytest.raises(Exception, match="exists already"):
        second.start(within_s=60)


def test_a_polite_end_is_quick_and_complete(wire: Wire, file: str) -> None:
    served = wire.served
    pids = served.pids
    assert served.process is not None
    groups = {os.getpgid(pid) for pid in pids}
    assert groups == {os.getpgid(served.process.pid)}
    with wire.connect():  # an idle connection keeps nobody
        assert served.stop(within_s=60) == 0
    eventually(lambda: not any(map(is_alive, pids)))  # the resource tracker goes last
    served.start()
    assert wire.get(file) == OLD
