"""The verdicts of a part: one file a validation, the newest of each snapshot, and the head of their chain.

Answers for every verdict of a part naming the one before it, whatever is killed in between.  Under the
part's ``verdicts/``: ``head.json`` holds the newest link whole, and writing it is the one step that adds a
link; ``SEQ-VALIDATION.json`` is a verdict, kept for ever; ``SEQ.json`` the one that counts for the snapshot.
A crash leaves a head whose other files are missing; the next :meth:`Chain.add` writes them.

Not here: what a verdict says and its signature (``verdict``), findings (``findings``).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from mirrorkeep.store.records import read_record, write_record
from mirrorkeep.store.verdict import (
    FIRST,
    Sign,
    Verdict,
    digest_of,
    fingerprint,
    rotations_between,
    sign_verdict,
)
from mirrorkeep.tree.durability import flush_directory

MAX_LINKS: Final = 5000
"""So many verdicts one answer carries at most; a client that was away for longer has to begin anew."""


class Chain:
    """The verdicts in the folder of one part; holds nothing open."""

    def __init__(self, folder: str) -> None:
        self.directory = f"{folder}/verdicts"

    def head(self) -> str:
        """Return the digest of the newest verdict; zeros before the first."""
        record = read_record(f"{self.directory}/head.json")
        return str(record["digest"]) if record else FIRST

    def newest(self, sequence: int) -> Verdict | None:
        """Return the verdict that counts for a snapshot; None while there is none."""
        return read_record(f"{self.directory}/{sequence}.json")

    def links(self, *digests: str) -> list[Verdict]:
        """Return the newest verdicts, oldest first, as far as needed to lead through those of ``digests``.

        The whole chain where one of them is not on it, up to ``MAX_LINKS``.  Usually the head will do.
        """
        head = read_record(f"{self.directory}/head.json")
        if head is None:
            return []
        wanted = set(digests) - {head["digest"]}
        found = [head["verdict"]]
        earlier: Iterator[Verdict] | None = None
        known: dict[str, Verdict] = {}
        while wanted and len(found) < MAX_LINKS:
            previous = found[-1]["previous"]
            wanted.discard(previous)
            if not wanted or previous == FIRST:
                break
            earlier = earlier or self._newest_first()
            while previous not in known and (one := next(earlier, None)) is not None:
                known[digest_of(one)] = one
            if previous not in known:
                break
            found.append(known.pop(previous))
        return found[::-1]

    def _newest_first(self) -> Iterator[Verdict]:
        """Yield the verdicts by the times of their files, which are in the chain's order unless copied."""
        with os.scandir(self.directory) as entries:
            files = [(entry.stat().st_mtime_ns, entry.path) for entry in entries if "-" in entry.name]
        for _, path in sorted(files, reverse=True):
            if path.endswith(".json") and (one := read_record(path)) is not None:
                yield one

    def of(self, sequence: int, validation: str) -> Verdict | None:
        """Return the verdict of one validation; None while there is none."""
        return read_record(self._path(sequence, validation))

    def add(
        self,
        statement: Mapping[str, Any],
        validation: str,
        sign: Sign,
        public_key: bytes,
        *,
        counts: bool = True,
        rotations: Sequence[Mapping[str, Any]] = (),
    ) -> Verdict:
        """Chain, sign and keep a verdict; durable when this returns.  A repeated call changes nothing.

        ``counts=False`` keeps the snapshot's own verdict as it is.  Of ``rotations`` (all of the store's) the
        verdict carries those that lead from the key of the one before it to its own.  Raises OSError: nothing
        was chained, or all of it was and the repeated call returns it.
        """
        os.makedirs(self.directory, exist_ok=True)
        sequence = int(statement["sequence"])
        with self._locked():
            self._spread()
            known = self.of(sequence, validation)
            if known is not None:
                flush_directory(self.directory)  # who wrote it may have been killed before that
                return known
            link = {**statement, "validation": validation, "previous": self.head()}
            if handed_over := self._handed_over(public_key, rotations):
                link["rotations"] = handed_over
            verdict = sign_verdict(link, sign, public_key)
            head = {"digest": digest_of(verdict), "counts": counts, "verdict": verdict}
            write_record(f"{self.directory}/head.json", head)
            self._spread()
            return verdict

    def _handed_over(
        self, public_key: bytes, rotations: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        record = read_record(f"{self.directory}/head.json")
        own = fingerprint(public_key)
        if record is None or record["verdict"]["key"] == own:
            return []
        return rotations_between(rotations, record["verdict"]["key"], own)

    def _spread(self) -> None:
        """Write the head's other files where a crash left them unwritten."""
        head = read_record(f"{self.directory}/head.json")
        if head is None:
            return
        verdict = head["verdict"]
        sequence, path = verdict["sequence"], self._path(verdict["sequence"], verdict["validation"])
        if os.path.exists(path):
            return
        if head["counts"]:
            write_record(f"{self.directory}/{sequence}.json", verdict)
        write_record(path, verdict)

    def _path(self, sequence: int, validation: str) -> str:
        return f"{self.directory}/{sequence}-{validation}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
