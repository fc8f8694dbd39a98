"""What a store was asked for, as its access log tells: every request, in the order in which they ended.

Answers for: reading the log without missing what is still on its way to it.  The store has to be served by
one worker (each has a file of its own).

Not here: what is in a request; the log does not have it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.served import Served, ServedError

PATIENCE_S = 30.0
POLL_S = 0.02


@dataclass(frozen=True)
class Request:
    """One request of the log."""

    method: str
    path: str
    status: int
    received_bytes: int
    sent_bytes: int
    began_s: float
    ended_s: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> Request:
        """Return what a line of the log says."""
        ended_s = float(row["time"])
        return cls(
            row["method"],
            row["path"],
            row["status"],
            row["received_bytes"],
            row["sent_bytes"],
            ended_s - row["milliseconds"] / 1000,
            ended_s,
        )


class Requests:
    """The log of a store, read on from where it was read before."""

    _numbers = itertools.count()

    def __init__(self, served: Served) -> None:
        if served.workers != 1:
            raise ServedError("the requests of several workers have no order")
        self._served = served
        self.new()

    def new(self) -> list[Request]:
        """Return all requests since the last call (none the first time) that had ended by now."""
        probe = f"/volumes/probe-{next(self._numbers)}"
        self._ask(probe)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = [Request.of(row) for row in self._rows()]
            places = [place for place, one in enumerate(found) if one.path == probe]
            if places:
                before = [
                    place for place in range(places[0]) if found[place].path.startswith("/volumes/probe-")
                ]
                return found[before[-1] + 1 : places[0]] if before else []
            time.sleep(POLL_S)
        raise ServedError(f"{probe} never came to the access log")

    def _ask(self, path: str) -> None:
        context = ssl.create_default_context(cafile=str(self._served.data / "keys" / "ca.pem"))
        connection = http.client.HTTPSConnection("127.0.0.1", self._served.port, context=context, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            connection.getresponse().read()

    def _rows(self) -> list[dict[str, Any]]:
        log = Path(self._served.data, "log", "access-1.jsonl")
        return [json.loads(line) for line in log.read_text().split("\n")[:-1]]


def overlapping(requests: list[Request]) -> int:
    """Return how many of the requests were under way at one time, at most."""
    steps = sorted([(one.began_s, 1) for one in requests] + [(one.ended_s, -1) for one in requests])
    return max(itertools.accumulate(step for _, step in steps), default=0)
