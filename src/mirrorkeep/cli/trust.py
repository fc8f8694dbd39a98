"""What a client remembers of the store whose verdicts it reads, so that it need not take the store's word.

Answers for: a verdict counts only when it is about what was asked, is signed by the key that was pinned when
this target was first asked (or by one that it handed over to), and when the chain of the part's verdicts goes
through the newest one that was seen here before.  ``trust.json`` in the target's state folder keeps keys and
digest; it is replaced durably, under a lock.  A crash leaves the old one or the new one.  Whoever removes it
trusts the store as it is then.

Not here: the checks of one verdict (``store.verdict``), waiting for it (``sync.verdicts``).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mirrorkeep.errors import BadUsage, DamagedRecord, VerdictRefused
from mirrorkeep.store import locks, verdict
from mirrorkeep.store.records import make_durable_folder, read_record, write_record
from mirrorkeep.sync.verdicts import read_verdict
from mirrorkeep.tree.client import StoreClient


class Trust:
    """What is known of one target's store: its keys, and the newest verdict that was seen."""

    def __init__(self, client: StoreClient, folder: str) -> None:
        """``folder`` is the state folder of the target, made when missing.

        Raises BadUsage where it cannot be made, VerdictRefused where what it remembers is damaged.
        """
        self._client = client
        self._path = os.path.join(folder, "trust.json")
        try:
            make_durable_folder(folder)
        except OSError as error:
            raise BadUsage(detail=f"{folder}: {error.strerror}; name another folder by --state") from error
        self.head: str = self._known()["head"]
        """Digest of that verdict, empty before the first: what the answer's ``links`` have to lead to."""

    def check(self, answer: dict[str, Any], snapshot: str, manifest: str | None = None) -> None:
        """Return when the verdict, read ``since`` :attr:`head`, holds; remember it, and take its links out.

        ``manifest`` is the digest of the one that was sent, where that is known.  Raises VerdictRefused:
        nothing may be concluded, and what is remembered stays.
        """
        with locks.exclusive(f"{self._path}.lock"):
            known = self._known()
            if known["head"] != self.head:  # another command has seen newer ones in the meantime
                again = read_verdict(self._client, snapshot, answer["validation"], since=known["head"])
                answer["links"] = again.get("links")
            links = answer.pop("links", None) or [answer]
            try:
                self._check_subject(answer, snapshot, manifest)
                fresh: dict[str, Any] = {
                    "target": f"{self._client.volume}/{quote(self._client.part, safe='/')}",
                    "keys": self._check_signatures(answer, links, known["keys"]),
                    "head": _check_links(answer, links, known["head"]),
                }
            except VerdictRefused as error:
                remedy = f"only if the store was made anew or its key replaced by hand, remove {self._path}"
                raise VerdictRefused(detail=f"{error.fields['detail']}; {remedy}") from None
            if fresh != known:
                write_record(self._path, fresh, mode=0o600)

    def _check_subject(self, answer: Mapping[str, Any], snapshot: str, manifest: str | None) -> None:
        verdict.check_form(answer)
        asked = (self._client.volume, quote(self._client.part, safe="/"), snapshot)
        if (answer["volume"], answer["part"], answer["snapshot"]) != asked:
            raise VerdictRefused(detail=f"it is about {answer['volume']} {answer['snapshot']}")
        if manifest is not None and answer["manifest"] != manifest:
            raise VerdictRefused(detail=f"it is about another manifest than the one sent ({manifest})")

    def _check_signatures(
        self, answer: Mapping[str, Any], links: list[dict[str, Any]], pinned: list[str]
    ) -> list[str]:
        """Return the keys to trust from now on, raw in base64, once they signed the verdict and the head."""
        if not pinned:
            pem = self._client.request("GET", self._client.api("key")).body
            pinned = _texts(verdict.follow_rotations(pem, []))
        stated = [step for one in (*links, answer) for step in verdict.stated_rotations(one)]
        trusted = list(pinned)
        for key in pinned:
            followed = _texts(verdict.follow_rotations(key.encode(), stated))
            trusted += [new for new in followed if new not in trusted]
        for one in (answer, links[-1]):
            verdict.check_signature(one, [key.encode() for key in trusted])
        return trusted

    def _known(self) -> dict[str, Any]:
        try:
            return read_record(self._path) or {"keys": [], "head": ""}
        except DamagedRecord as error:
            raise VerdictRefused(detail=f"{error}; remove it to trust the store as it is now") from None


def _texts(keys: list[bytes]) -> list[str]:
    return [base64.b64encode(raw).decode("ascii") for raw in keys]


def _check_links(answer: Mapping[str, Any], links: list[dict[str, Any]], head: str) -> str:
    """Return the digest of the newest verdict, once its chain leads through the answer and ``head``."""
    met = {verdict.digest_of(links[-1])}
    newest = next(iter(met))
    for one in reversed(links):
        verdict.check_form(one)
        if verdict.digest_of(one) not in met:
            raise VerdictRefused(detail=f"the chain breaks after the verdict of {one['snapshot']}")
        met.add(one["previous"])
    if not head:
        return newest
    if head not in met or verdict.digest_of(answer) not in met:
        raise VerdictRefused(
            detail="its chain does not lead through the newest verdict that was seen here: verdicts were"
            " removed or rewritten"
        )
    return newest
