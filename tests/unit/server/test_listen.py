"""The address of a service: names are resolved, and nobody else listens there."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from mirrorkeep.errors import BadUsage
from mirrorkeep.server import listen
from mirrorkeep.server.listen import AddressInUse, Listen, reserved


def listener(port: int = 0) -> socket.socket:
    """Return a socket that listens as a worker does: others may listen at its port, too."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def test_a_name_is_resolved_and_stays_in_urls() -> None:
    with reserved(Listen.parse("localhost:0")) as address:
        assert address.host in ("127.0.0.1", "::1") and address.port
        assert address.shown == f"localhost:{address.port}"
    with reserved(Listen.parse("127.0.0.1:0")) as address:
        assert address.shown == f"127.0.0.1:{address.port}"


@pytest.mark.parametrize("text", ["nowhere.invalid:0", "203.0.113.7:1", "h:port", "h", "127.0.0.1:70000"])
def test_what_is_no_address_of_this_machine_is_bad_usage(text: str) -> None:
    with pytest.raises(BadUsage), reserved(Listen.parse(text)):
        pass


def test_an_address_where_somebody_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "FREE_WITHIN_S", 0.1)
    with (
        listener() as other,
        pytest.raises(AddressInUse) as refused,
        reserved(Listen("127.0.0.1", other.getsockname()[1])),
    ):
        pass
    assert refused.value.code == "address_in_use" and refused.value.exit_status == 1


def test_of_two_services_that_start_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "FREE_WITHIN_S", 0.1)
    with listener() as free:
        port = free.getsockname()[1]
    address = Listen("127.0.0.1", port)
    with reserved(address), pytest.raises(AddressInUse), reserved(address):  # nobody listens yet
        pass


def test_workers_bind_beside_the_reservation() -> None:
    with reserved(Listen("127.0.0.1", 0)) as address, listener(address.port), listener(address.port):
        pass


def test_a_start_waits_for_workers_that_still_end() -> None:
    other = listener()
    other_address = Listen("127.0.0.1", other.getsockname()[1])
    threading.Timer(0.3, other.close).start()
    started = time.monotonic()
    with reserved(other_address):
        assert time.monotonic() - started < listen.FREE_WITHIN_S


def test_connections_of_an_ended_service_keep_nobody_from_its_address() -> None:
    with listener() as other:
        address = Listen("127.0.0.1", other.getsockname()[1])
        with socket.create_connection((address.host, address.port)) as client:
            other.accept()[0].close()  # this side ends first, and its port is remembered for a minute
            assert client.recv(1) == b""
    with reserved(address) as again:
        assert again.port == address.port
