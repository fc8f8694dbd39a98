"""One validation, from the snapshot to the signed verdict and the patch.

Answers for the order in which a validation's outcome becomes durable: findings, patch, what stays open, the
cycle, and last the verdict, which makes everything before it known.  A crash anywhere leaves the job in the
queue; the repeated validation goes on from its last checkpoint (a place in the manifest, every few seconds)
and writes the same files again.

A manifest that does not belong to the snapshot, or is damaged, yields no finding: the verdict is *failed*
with the reason (VAL-15).

Not here: the queue and its loop (``validation``), comparing (``examine``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Protocol
from urllib.parse import quote

from mirrorkeep.errors import ForeignManifest, MalformedManifest, MirrorkeepError, printable
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.store import change, findings, verdict
from mirrorkeep.store.chain import Chain
from mirrorkeep.store.cycle import load_cycle, save_cycle
from mirrorkeep.store.examine import (
    Choice,
    Examination,
    Found,
    Setting,
    Tally,
    content_size,
    manifest_digest,
    manifest_path,
)
from mirrorkeep.store.pacing import Policy
from mirrorkeep.store.records import read_record, remove_record, write_record
from mirrorkeep.store.repair import finding_path, patch_lines

FULL: Final = "full"
INCREMENTAL: Final = "incremental"
METADATA: Final = "metadata"
MODES: Final = (FULL, INCREMENTAL, METADATA)

CHECKPOINT_S: Final = 5.0
PROGRESS_S: Final = 1.0
_OVERDUE: Final = 1.5
"""A rolling read that is this many cycles late is made good by a full validation."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The snapshot that is validated, and where its part keeps what is known of it."""

    volume: str
    part: str
    """Path of the part in its volume, percent-encoded."""
    snapshot: str
    sequence: int
    root: str
    manifest: str
    """Digest of the manifest that the run closed with."""
    folder: str
    """``parts/KEY`` of the volume."""
    entries: int = 0
    bytes: int = 0
    patched: bool = False
    """Whether the run of this snapshot began with the patch of an earlier failed verdict."""
    newest: bool = True


@dataclass(frozen=True, slots=True)
class Base:
    """The last validated snapshot, and which stored paths changed since, if the storage can tell."""

    root: str
    changed: Iterator[bytes] | None


class SigningKey(Protocol):
    """The store's key at one instant (``keys.SigningKey``)."""

    @property
    def sign(self) -> verdict.Sign: ...

    @property
    def public_key(self) -> bytes: ...

    @property
    def rotations(self) -> Sequence[Mapping[str, Any]]: ...


Signer = Callable[[], SigningKey]
"""Gives the key when the verdict is signed: it may have been rotated while everything was read."""


class Assessment:
    """One validation of one snapshot."""

    def __init__(
        self,
        subject: Subject,
        validation: str,
        mode: str,
        policy: Policy,
        *,
        setting: Setting,
        find_base: Callable[[str], Base | None] = lambda snapshot: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``find_base`` tells about the snapshot of that name, None when it is gone."""
        self.subject = subject
        self.validation = validation
        self.policy = policy
        self._setting = setting
        self._find_base = find_base
        self._now = now
        self._cycle = load_cycle(subject.folder)
        self._open = f"{subject.folder}/open"
        stem = f"{subject.folder}/findings/{subject.sequence}-{validation}"
        self._checkpoint_path = f"{stem}.checkpoint"
        self._findings_path = stem
        self._progress_path = f"{subject.folder}/progress.json"
        checkpoint = self._load_checkpoint()
        self._started: float = checkpoint.get("started", now())
        self._share_bytes: int | None = checkpoint.get("share_bytes")
        self.mode: str = checkpoint.get("mode") or self._settle_mode(mode)
        self._checkpoint = checkpoint
        self._last_checkpoint = self._last_progress = self._began = time.monotonic()
        self._last_path = b""

    def run(self, signer: Signer, tick: Callable[[], None] = lambda: None) -> verdict.Verdict:
        """Validate and return the signed verdict; everything about it is durable then.

        ``tick`` is called all the time and may raise to stop; the same validation then goes on from its
        last checkpoint.  Raises StorageFailure, NoSpace, OSError: there is no verdict yet.
        """
        os.makedirs(os.path.dirname(self._findings_path), exist_ok=True)
        try:
            self._check_manifest()
        except (ForeignManifest, MalformedManifest) as error:
            return self._conclude(signer, verdict.FAILED, Tally(), None, error)
        file = findings.FindingsFile(
            self._findings_path, resume_bytes=int(self._checkpoint.get("findings_bytes", 0))
        )
        try:
            choice = self._choose()
            tally = self._examine(choice, file, tick)
            file.publish()
        finally:
            file.close()
        healed = verdict.REPAIRED if self.subject.patched else verdict.VERIFIED
        word = verdict.FAILED if file.count else healed
        self._follow_up(choice, file.count)
        return self._conclude(signer, word, tally, file, None)

    def refuse(self, signer: Signer, error: MirrorkeepError) -> verdict.Verdict:
        """Return a failed verdict for what cannot be validated at all; ``error`` is the reason."""
        return self._conclude(signer, verdict.FAILED, Tally(), None, error)

    # --- what is read ---------------------------------------------------------------------------

    def _check_manifest(self) -> None:
        """Raise unless the snapshot's manifest is whole and the one its run closed with."""
        subject = self.subject
        digest = manifest_digest(subject.root, subject.snapshot)
        if subject.manifest and digest != subject.manifest:
            detail = f"the snapshot was closed with manifest {subject.manifest}, this is {digest}"
            raise ForeignManifest(snapshot=subject.snapshot, detail=detail)
        with open(manifest_path(subject.root), "rb") as stream:
            part = ManifestReader(stream).header.get(b"part")
        if part is not None and quote(part, safe="/") != subject.part:
            raise ForeignManifest(snapshot=subject.snapshot, detail="it describes another part")

    def _settle_mode(self, mode: str) -> str:
        """Return the mode that keeps the promise: full where there is nothing to build on, or too old."""
        oldest = self._cycle.oldest_read
        if mode != INCREMENTAL:
            return mode
        if oldest is None or self._now() - oldest > _OVERDUE * self.policy.cycle_s:
            return FULL
        return INCREMENTAL if self._base is not None else FULL

    @cached_property
    def _base(self) -> Base | None:
        return self._find_base(self._cycle.base)

    def _choose(self) -> Choice:
        open_paths = (path for path, _ in findings.partial_lines(self._open))
        if self.mode == FULL:
            return change.Everything()
        base = None if self.mode == METADATA else self._base
        if base is None:
            return change.Known(open_paths)
        if base.changed is not None:
            findings_folder = f"{self.subject.folder}/findings"
            changed = change.sorted_keys(base.changed, manifest_path(self.subject.root), findings_folder)
        else:
            root = self.subject.root
            changed = change.changed_by_manifest(
                base.root, manifest_path(base.root), root, manifest_path(root)
            )
        if self._share_bytes is None:
            total = self.subject.bytes or _stored_bytes(self.subject.root)
            self._share_bytes = self._cycle.share_bytes(total, self._now(), self.policy.cycle_s)
        position = self._cycle.position
        return change.Changed(changed, open_paths, position=position, share_bytes=self._share_bytes)

    def _examine(self, choice: Choice, file: findings.FindingsFile, tick: Callable[[], None]) -> Tally:
        def take(found: list[Found], tally: Tally, last: bytes) -> None:
            for one in found:
                file.add(*one)
            self._last_path = last

        def beat() -> None:
            self._keep_up(examination, file)
            tick()

        examination = Examination(self.subject.root, choice, take, self._setting)
        if "after" in self._checkpoint:
            paths = (finding_path(row) for row in findings.read_findings(f"{self._findings_path}.partial"))
            after = bytes.fromhex(self._checkpoint["after"])
            examination.resume(after, Tally(**self._checkpoint["tally"]), paths)
        self._report(examination.tally, 0)
        return examination.run(beat)

    def _load_checkpoint(self) -> dict[str, Any]:
        """Return where a killed validation of this id was, {} when it has to begin anew."""
        checkpoint = read_record(self._checkpoint_path) or {}
        if checkpoint.get("findings_bytes", 0) > findings.partial_bytes(self._findings_path):
            return {}  # killed after its findings were published
        if checkpoint.get("mode") != INCREMENTAL:
            return checkpoint
        # It goes on only from where it began: same base, same place of the rolling read.
        same = checkpoint["cycle"] == self._cycle_mark() and self._base is not None
        return checkpoint if same else {}

    def _cycle_mark(self) -> list[Any]:
        return [self._cycle.base, self._cycle.position.hex()]

    # --- while it runs --------------------------------------------------------------------------

    def _keep_up(self, examination: Examination, file: findings.FindingsFile) -> None:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_S:
            self._last_progress = now
            self._report(examination.tally, file.count)
        if now - self._last_checkpoint >= CHECKPOINT_S and self._last_path:
            self._last_checkpoint = now
            file.flush()
            record = {
                "after": self._last_path.hex(),
                "findings_bytes": file.size_bytes,
                "tally": asdict(examination.tally),
                "started": self._started,
                "mode": self.mode,
                "share_bytes": self._share_bytes,
                "cycle": self._cycle_mark(),
            }
            write_record(self._checkpoint_path, record)

    def _report(self, tally: Tally, found: int) -> None:
        """Write the progress for clients; a convenience, so neither durable nor worth failing for."""
        elapsed_s = max(0.001, time.monotonic() - self._began)
        entries_left = max(0, self.subject.entries - tally.entries)
        speed = tally.entries / elapsed_s
        progress = {
            "validation": self.validation,
            "snapshot": self.subject.snapshot,
            "mode": self.mode,
            "entries": tally.entries,
            "entries_total": self.subject.entries,
            "bytes": tally.content_bytes,
            "bytes_per_second": int(tally.content_bytes / elapsed_s),
            "findings": found,
            "eta_s": round(entries_left / speed, 1) if speed and self.subject.entries else None,
            "updated": time.time(),
        }
        try:
            write_record(self._progress_path, progress)
        except OSError:
            pass

    # --- what comes of it -----------------------------------------------------------------------

    def _follow_up(self, choice: Choice, count: int) -> None:
        """Leave the patch for the next run, remember what stays open, move the cycle on."""
        subject, cycle = self.subject, self._cycle
        current = subject.sequence >= cycle.base_sequence
        if count:
            wiped = self._wipe() if self.policy.repair == "wipe" else None
            findings.add_to_patch(subject.folder, self._patch(), wiped)
        if current:
            findings.write_partial(self._open, self._patch())
        elif count:
            findings.overlay(self._open, self._patch())
        if current and self.mode != METADATA:
            self._move_on(choice)
        save_cycle(subject.folder, cycle)
        findings.publish_newest(self._findings_path, f"{subject.folder}/findings/{subject.sequence}")

    def _move_on(self, choice: Choice) -> None:
        if isinstance(choice, change.Changed):
            self._cycle.read_stretch(choice.end(), self._started)
        else:
            self._cycle.read_all(self._started)
        self._cycle.base, self._cycle.base_sequence = self.subject.snapshot, self.subject.sequence

    def _patch(self) -> Iterator[bytes]:
        return patch_lines(self.subject.root, self._findings_path)

    def _wipe(self) -> Iterator[bytes]:
        """Yield a record for every entry that says nothing is known: the next run compares everything."""
        for path, _ in change.manifest_lines(manifest_path(self.subject.root)):
            yield findings.unknown_record(path)

    def _conclude(
        self,
        signer: Signer,
        word: str,
        tally: Tally,
        file: findings.FindingsFile | None,
        error: MirrorkeepError | None,
    ) -> verdict.Verdict:
        """Sign and chain the verdict; then nothing of the validation in the making is left."""
        subject, oldest = self.subject, self._oldest_read(error)
        statement: dict[str, Any] = {
            "version": verdict.VERSION,
            "volume": subject.volume,
            "part": subject.part,
            "snapshot": subject.snapshot,
            "sequence": subject.sequence,
            "manifest": subject.manifest,
            "verdict": word,
            "mode": self.mode,
            "coverage": {
                **tally.coverage(complete=self.mode == FULL and error is None),
                "oldest_read": iso_time(oldest) if oldest is not None else None,
            },
            "findings": file.count if file else 0,
            "findings_digest": file.digest if file else findings.EMPTY_DIGEST,
            "started": iso_time(self._started),
            "ended": iso_time(self._now()),
        }
        if error is not None:
            fields = {name: printable(value) for name, value in error.fields.items()}
            statement["error"] = {"code": error.code, "title": str(error), "fields": fields}
        counts = word == verdict.FAILED or self.mode != METADATA
        key = signer()
        made = Chain(subject.folder).add(
            statement, self.validation, key.sign, key.public_key, counts=counts, rotations=key.rotations
        )
        remove_record(self._checkpoint_path)
        remove_record(self._progress_path)
        return made

    def _oldest_read(self, error: MirrorkeepError | None) -> float | None:
        if self.mode == FULL and error is None:
            return self._started
        return self._cycle.oldest_read


def iso_time(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stored_bytes(root: str) -> int:
    """Return the size of everything that the manifest names, where the snapshot's record does not tell."""
    lines = (line for _, line in change.manifest_lines(manifest_path(root)))
    return sum(content_size(line) or 0 for line in lines)
