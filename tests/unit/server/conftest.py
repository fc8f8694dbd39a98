"""A store of driver ``dir`` and its application, called in this process without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.server.app import Application
from mirrorkeep.server.audit import AccessLog
from mirrorkeep.store.pool import Store


@dataclass
class Reply:
    """What the application answered; ``headers`` has lower-case names, the last of repeated ones."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: int
    all_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["code"])


@dataclass
class Edge:
    """Sends requests to one application."""

    app: Application
    token: str

    @property
    def store(self) -> Store:
        return self.app.store

    def __call__(
        self,
        method: str,
        url: str | bytes,
        body: bytes | list[bytes] = b"",
        *,
        token: str | None = None,
        cut_off: bool = False,
        anonymous: bool = False,
        headers: list[tuple[bytes, bytes]] | None = None,
        **named: str,
    ) -> Reply:
        """Send one request; ``named`` headers have underscores for dashes, a list body is sent in pieces."""
        raw = url if isinstance(url, bytes) else url.encode("ascii")
        path, _, query = raw.partition(b"?")
        pieces = body if isinstance(body, list) else [body]
        sent = list(headers or [])
        sent += [(k.replace("_", "-").lower().encode(), v.encode("latin-1")) for k, v in named.items()]
        if not anonymous:
            sent.append((b"authorization", b"Bearer " + (token or self.token).encode()))
        size = sum(map(len, pieces))
        if size and not any(name in (b"content-length", b"transfer-encoding") for name, _ in sent):
            sent.append((b"content-length", b"%d" % size))
        scope = {
            "type": "http",
            "method": method,
            "raw_path": path,
            "query_string": query,
            "headers": sent,
            "client": ("127.0.0.1", 1),
        }
        return asyncio.run(self._exchange(scope, pieces, cut_off))

    async def _exchange(self, scope: dict[str, Any], pieces: list[bytes], cut_off: bool) -> Reply:
        waiting = list(pieces)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if waiting:
                piece = waiting.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(waiting) or cut_off}
            if cut_off:
                return {"type": "http.disconnect"}
            await asyncio.sleep(3600)
            raise AssertionError("nobody waits that long")

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        assert sent[0]["type"] == "http.response.start"
        assert not sent[-1].get("more_body", False)
        bodies = [message["body"] for message in sent[1:]]
        named = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], named, b"".join(bodies), len(bodies), sent[0]["headers"])


@pytest.fixture(scope="session")
def store_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that the whole session shares: its keys take long to make."""
    data = tmp_path_factory.mktemp("served") / "data"
    Store.create(str(data), "dir").close()
    return data


_count = 0


@pytest.fixture
def edge(store_data: Path) -> Iterator[Edge]:
    """An application on the shared store, with a volume of its own (its name: ``edge.volume``)."""
    global _count
    _count += 1
    store = Store.open(str(store_data))
    app = Application(store, AccessLog(str(store_data / "log")), 0.3)
    store.create_volume(f"v{_count}")
    made = Edge(app, store.registry.create_token(f"v{_count}"))
    yield made
    app.close()
    store.close()


@pytest.fixture
def base(edge: Edge) -> str:
    """The URL of the volume's root, without a trailing slash."""
    return f"/volumes/v{_count}"
