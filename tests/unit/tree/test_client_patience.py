"""How long a client tries a store that does not answer, and what it says meanwhile."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import BadUsage, StoreUnreachable
from mirrorkeep.tree import client as client_module
from mirrorkeep.tree.client import Answer, StoreClient


def client_of_nobody() -> StoreClient:
    """Return the client of a store at a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return StoreClient.from_target(f"https://127.0.0.1:{port}/volumes/v")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_store_that_was_never_there_is_given_up_soon_and_that_is_told_at_once(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "REFUSED_PATIENCE_S", 0.5)
    client, told = client_of_nobody(), []
    started = time.monotonic()
    client.tell_waiting = lambda message: told.append((message, time.monotonic() - started))
    with pytest.raises(StoreUnreachable, match="Connection refused"):
        list(client.stream("status")) if streamed else client.get_json("status")
    assert time.monotonic() - started < 5
    [(message, after_s)] = told
    assert "Connection refused" in message and "trying for up to" in message and after_s < 0.4


def test_a_store_that_starts_again_within_five_seconds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    started, pauses = 1000.0, [0.0]
    monkeypatch.setattr(client_module.time, "monotonic", lambda: started + sum(pauses))
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)
    with pytest.raises(StoreUnreachable):
        client_of_nobody().get_json("status")
    assert 5 < sum(pauses) <= client_module.REFUSED_PATIENCE_S


class Restarting(StoreClient):
    """Answers once, refuses connections for a while, and answers again."""

    tries = 0

    def _once(self, *_: Any) -> Answer:
        self.tries += 1
        if 1 < self.tries < 5:
            raise ConnectionRefusedError(111, "Connection refused")
        return Answer(200, {}, b"{}")


def test_a_store_that_answered_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REFUSED_PATIENCE_S", 0.0)
    client = Restarting(client_of_nobody().target, None, None)
    client.get_json("status")
    client.get_json("status")
    assert client.tries == 5


def test_a_file_without_a_certificate_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"no certificate")
    client = StoreClient.from_target("https://127.0.0.1:1/volumes/v", None, str(tmp_path / "ca.pem"))
    with pytest.raises(BadUsage, match="holds no certificate"):
        client.get_json("status")
