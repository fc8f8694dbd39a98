"""Waiting for what validation says of a snapshot."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from mirrorkeep.tree.client import StoreClient

_ROUND_S: Final = 20


def wait_for_verdict(
    client: StoreClient, snapshot: str, validation: str | None = None, *, since: str = ""
) -> dict[str, Any]:
    """Return the verdict of a snapshot once there is one (long polling; no time limit)."""
    while True:
        answer = read_verdict(client, snapshot, validation, wait_s=_ROUND_S, since=since)
        if answer.get("state") == "done":
            return answer


def read_verdict(
    client: StoreClient, snapshot: str, validation: str | None = None, *, wait_s: float = 0, since: str = ""
) -> dict[str, Any]:
    """Return what the store says about a snapshot's verdict now, or within ``wait_s``.

    It is the store's word.  With ``since``, the digest of an earlier verdict of the part, the links of the
    chain that lead there come with it, for whoever checks (``cli.trust``).
    """
    path = f"volumes/{client.volume}/verdicts/{quote(snapshot)}"
    answer: dict[str, Any] = client.get_json(
        path, validation=validation, wait=wait_s or None, since=since or None
    )
    return answer
