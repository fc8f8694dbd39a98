"""Waiting for what validation says of a snapshot."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from mirrorkeep.tree.client import StoreClient

_ROUND_S: Final = 20


def wait_for_verdict(client: StoreClient, snapshot: str, validation: str | None = None) -> str:
    """Return the verdict of a snapshot once there is one (long polling; no time limit)."""
    while True:
        answer = read_verdict(client, snapshot, validation, wait_s=_ROUND_S)
        if answer.get("state") == "done":
            return str(answer.get("verdict"))


def read_verdict(
    client: StoreClient, snapshot: str, validation: str | None = None, *, wait_s: float = 0
) -> dict[str, Any]:
    """Return what the store says about a snapshot's verdict now, or within ``wait_s``."""
    answer: dict[str, Any] = client.get_json(
        f"volumes/{client.volume}/verdicts/{quote(snapshot)}", validation=validation, wait=wait_s or None
    )
    return answer
