"""Connections that the kernel dealt to one worker alone do not stay there when it is busy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import threading
import time

from rig.served import Served, Volume

CONNECTIONS = 12
KEPT = 3
PATIENCE_S = 60.0


def logged(store: Served) -> list[list[str]]:
    """Return the paths that each worker's access log names."""
    files = sorted((store.data / "log").iterdir())
    return [[json.loads(line)["path"] for line in file.read_text().splitlines()] for file in files]


def ask(connection: http.client.HTTPSConnection, volume: Volume, method: str, path: str, body: bytes) -> bool:
    """Send one request; returns whether the answer ended the connection."""
    headers = {"Authorization": f"Bearer {volume.token}"}
    connection.request(method, f"/volumes/{volume.name}/{path}", body or None, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.getheader("connection") == "close"


def test_a_busy_worker_shares_its_connections(store: Served) -> None:
    volume = store.create_volume("shared")
    context = ssl.create_default_context(cafile=volume.ca)
    connections = [
        http.client.HTTPSConnection("127.0.0.1", store.port, timeout=60, context=context)
        for _ in range(CONNECTIONS)
    ]
    with contextlib.ExitStack() as opened:
        for number, connection in enumerate(connections):
            opened.callback(connection.close)
            ask(connection, volume, "GET", f"mark-{number}", b"")
        ask(connections[0], volume, "PUT", "large", os.urandom(8 << 20))
        deadline = time.monotonic() + PATIENCE_S
        while sum(path.count("/mark-") for paths in logged(store) for path in paths) < CONNECTIONS:
            assert time.monotonic() < deadline, logged(store)
            time.sleep(0.05)
        marks = [{path.rpartition("-")[2] for path in paths if "/mark-" in path} for paths in logged(store)]
        crowded = max(marks, key=len)
        kept = [connections[int(number)] for number in sorted(crowded)][:KEPT]
        assert len(kept) == KEPT

        ended: list[bool] = []
        busy = threading.Event()

        def keep_asking(connection: http.client.HTTPSConnection) -> None:
            while not busy.is_set() and time.monotonic() < deadline:
                ended.append(ask(connection, volume, "GET", "large?signature=1", b""))

        threads = [threading.Thread(target=keep_asking, args=(one,)) for one in kept]
        for thread in threads:
            thread.start()
        while time.monotonic() < deadline:
            asked = [sum("large" in path for path in paths) for paths in logged(store)]
            if len(asked) == 2 and min(asked) > 5:
                break
            time.sleep(0.1)
        busy.set()
        for thread in threads:
            thread.join()
        assert len(asked) == 2 and min(asked) > 5, asked
        assert any(ended)
