"""Validations of a store: asking for one, reading what came of it, and the process that does them.

Answers for what the server exposes (:func:`request_validation`, :func:`read_verdict`, :func:`findings_path`)
and for :class:`Validator`, one process beside the server's workers.  Serving comes first: see ``pacing``.

A crash loses nothing: jobs lie in the durable queue until their verdict is signed and chained.

Not here: one validation (``assess``), comparing (``examine``), who may ask (``server``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote_to_bytes

from mirrorkeep.errors import BadUsage, DamagedRecord, Interrupted, MirrorkeepError, NotFound
from mirrorkeep.store import keys, queue, verdict
from mirrorkeep.store.assess import INCREMENTAL, MODES, Assessment, Base, Signer, Subject
from mirrorkeep.store.chain import Chain
from mirrorkeep.store.cycle import load_cycle
from mirrorkeep.store.examine import Setting
from mirrorkeep.store.intake import digest_of_file, distrust_damaged_manifest
from mirrorkeep.store.pacing import Policy, load_policy, yield_to_others
from mirrorkeep.store.records import read_record

if TYPE_CHECKING:
    from mirrorkeep.store.history import SnapshotInfo
    from mirrorkeep.store.pool import Store
    from mirrorkeep.store.volume import Part

POLL_S: Final = 0.2
FAILED_POLL_S: Final = 1.0
STORAGE_PAUSE_S: Final = 60.0
"""So long a job rests when the storage does not even take the note that it failed."""
ROLL_CHECK_S: Final = 600.0
ROLL_EVERY_S: Final = 86_400.0
"""A part whose machine is silent is read on all the same, a day's share a day."""
MAX_TRIES: Final = 5
_STALE_PROGRESS_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ValidationTicket:
    """A validation that was queued: ask for its verdict by this id."""

    validation: str
    snapshot: str
    sequence: int

    @property
    def id(self) -> str:
        """The validation's id, 16 hex digits."""
        return self.validation


def request_validation(
    part: Part, snapshot: str | None, mode: str, *, requested: bool = True
) -> ValidationTicket:
    """Queue a validation of a snapshot; durable when this returns.

    ``snapshot=None``: of what is there now.  When the tip changed since the newest snapshot and no run is
    open, a snapshot is made first; else it is the newest by sequence.  ``requested=False`` is for what
    follows a run by itself.  Raises NotFound, BadUsage.
    """
    if mode not in MODES:
        raise BadUsage(detail=f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    if snapshot is None:
        _freeze_present(part)
    info = part.snapshot(snapshot or "latest")
    return _enqueue(part, info, mode, queue.REQUESTED if requested else queue.AFTER_RUN)


def read_verdict(
    part: Part, snapshot: str, validation: str | None = None, *, waited_for: bool = False, since: str = ""
) -> dict[str, Any]:
    """Return the verdict of a snapshot, or of one validation of it, with its ``state``.

    ``waited_for``: somebody waits.  Then it is no validation that nobody asked for: it goes before those that
    are, and keeps no hours.  With ``since``, the digest of a verdict of the part, ``links`` is what leads
    from the newest one through that and the one asked for, so that a client sees that the chain is whole.

    ``done``: the signed verdict's own fields; ``pending`` and ``running``: ``verdict`` is ``pending``,
    and ``progress`` says how far it is.  Raises NotFound for a validation that nobody asked for.
    """
    info = part.snapshot(snapshot)
    chain = Chain(part.folder)
    made = chain.of(info.sequence, validation) if validation else chain.newest(info.sequence)
    if made is not None:
        return _answer(chain, made, since)
    if validation and not part.volume.store.queue.holds(validation):
        made = chain.of(info.sequence, validation)  # it may have ended just now
        if made is None:
            raise NotFound(what=f"validation {validation} of snapshot {info.name}")
        return _answer(chain, made, since)
    progress = _progress(part, info.name, validation)
    if waited_for and not validation and not progress:
        part.volume.store.queue.promote(_after_run_id(part, info), {"background": False})
    return {
        "state": "running" if progress else "pending",
        "verdict": verdict.PENDING,
        "volume": part.volume.name,
        "part": part_name(part),
        "snapshot": info.name,
        "sequence": info.sequence,
        "progress": progress,
    }


def _answer(chain: Chain, made: verdict.Verdict, since: str) -> dict[str, Any]:
    answer = {**made, "state": "done", "progress": None}
    return {**answer, "links": chain.links(since, verdict.digest_of(made))} if since else answer


def describe_snapshot(part: Part, info: SnapshotInfo) -> dict[str, Any]:
    """Return a snapshot with what is known of it, for lists."""
    made = Chain(part.folder).newest(info.sequence)
    return {
        "name": info.name,
        "sequence": info.sequence,
        "time": info.time,
        "verdict": made["verdict"] if made else verdict.PENDING,
        "coverage": made["coverage"] if made else None,
        "entries": info.entries,
        "bytes": info.bytes,
    }


def findings_path(part: Part, snapshot: str, validation: str | None = None) -> str:
    """Return the findings file of a snapshot's newest validation, or of one.  Raises NotFound."""
    info = part.snapshot(snapshot)
    name = f"{info.sequence}-{validation}" if validation else f"{info.sequence}"
    path = f"{part.folder}/findings/{name}"
    if not os.path.exists(path):
        raise NotFound(what=f"findings of snapshot {info.name}")
    return path


def part_name(part: Part) -> str:
    """Return the part's path as verdicts name it: percent-encoded, empty for the whole volume."""
    return quote(part.path, safe="/")


def _enqueue(part: Part, info: SnapshotInfo, mode: str, priority: int) -> ValidationTicket:
    """Queue a validation; the one that follows a run has the same id however often it is queued."""
    validation = secrets.token_hex(8)
    if priority == queue.AFTER_RUN:
        validation = _after_run_id(part, info)
    payload = {
        "volume": part.volume.name,
        "part": part_name(part),
        "snapshot": info.name,
        "mode": mode,
        "background": priority != queue.REQUESTED,
        "rolling": priority == queue.ROLLING,
    }
    part.volume.store.queue.publish(payload, priority=priority, job_id=validation)
    return ValidationTicket(validation, info.name, info.sequence)


def _after_run_id(part: Part, info: SnapshotInfo) -> str:
    place = f"{part.volume.name}/{part_name(part)}/{info.name}/{info.sequence}"
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def freeze_now(part: Part) -> SnapshotInfo:
    """Make a snapshot of what is there and queue its validation; durable when this returns.

    Raises BadUsage while a run is at work or has not ended: its snapshot would be one of half a run.
    """
    from mirrorkeep.store.snapshot import snapshot_now

    state = part.state()
    if state.run is not None or state.dirty:
        raise BadUsage(
            detail="a run is at work here, or was cut off; the end of the next one makes a snapshot"
        )
    made = snapshot_now(part)
    _enqueue(part, made, "incremental", queue.AFTER_RUN)
    return made


def _freeze_present(part: Part) -> None:
    """Make a snapshot of a tip that was written to since the last one, unless a run is at work."""
    from mirrorkeep.store.snapshot import snapshot_now, tip_changed_since_snapshot

    state = part.state()
    if state.run is None and not state.dirty and tip_changed_since_snapshot(part):
        snapshot_now(part)


def _progress(part: Part, snapshot: str, validation: str | None) -> dict[str, Any] | None:
    try:
        progress = read_record(f"{part.folder}/progress.json")
    except DamagedRecord:
        return None
    if progress is None or progress["snapshot"] != snapshot:
        return None
    if validation is not None and progress["validation"] != validation:
        return None
    return progress if time.time() - progress["updated"] < _STALE_PROGRESS_S else None


class Validator:
    """The process that validates: one job at a time, for ever, with no client present."""

    def __init__(self, store: Store, *, now: Callable[[], float] = time.time) -> None:
        self.store = store
        self.queue = store.queue
        self._now = now
        self._stopping = False
        self._next_roll = 0.0
        self._resting: dict[str, float] = {}

    def run_forever(self) -> None:
        """Validate what is queued until SIGTERM or SIGINT; what is being done then is taken up again."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        yield_to_others(idle=False)
        self.queue.sweep()
        while not self._stopping:
            time.sleep(self.turn())

    def turn(self) -> float:
        """Do what is due; returns how long to wait for more.  Storage that fails ends nothing."""
        try:
            self.queue_rolling()
            return 0.0 if self.run_once() else POLL_S
        except (MirrorkeepError, OSError) as error:
            _log(f"no validation can be done: {error}")
            return FAILED_POLL_S

    def run_once(self) -> bool:
        """Do one job; False when none is due.

        Raises NoSpace, StorageFailure, OSError where its outcome cannot be kept in the queue: it rests.
        """
        policy = load_policy(self.store.data)
        open_now = policy.open_at(time.localtime(self._now()).tm_hour)
        lease = self.queue.lease(
            lambda job: (
                (open_now or not job.payload["background"]) and self._resting.get(job.id, 0.0) <= self._now()
            )
        )
        if lease is None:
            return False
        self._resting.pop(lease.job.id, None)
        with lease:
            try:
                self._do(lease, policy)
            except (MirrorkeepError, OSError):
                self._resting[lease.job.id] = self._now() + STORAGE_PAUSE_S
                raise
        return True

    def _do(self, lease: queue.Lease, policy: Policy) -> None:
        """Do a job and take it from the queue, or put it back."""
        try:
            self._validate(lease.job, policy, lease.fileno())
        except Interrupted:
            lease.put_back(tried=False)
        except (MirrorkeepError, OSError) as error:
            _log(f"validation {lease.job.id} of {lease.job.payload}: {error}")
            if lease.job.tries + 1 >= MAX_TRIES:
                self._give_up(lease.job, error)
                lease.done()
            else:
                lease.put_back(pause_s=min(600.0, 5.0 * 4**lease.job.tries))
        else:
            lease.done()

    def queue_rolling(self) -> None:
        """Queue a share of the rolling read for every part that was not read for a day."""
        now = self._now()
        if now < self._next_roll:
            return
        self._next_roll = now + ROLL_CHECK_S
        queued = {(job.payload["volume"], job.payload["part"]) for job in self.queue.jobs()}
        for part in self._parts():
            rolled_at = load_cycle(part.folder).rolled_at
            if (
                rolled_at
                and now - rolled_at > ROLL_EVERY_S
                and (part.volume.name, part_name(part)) not in queued
            ):
                with contextlib.suppress(NotFound):
                    _enqueue(part, part.snapshot("latest"), INCREMENTAL, queue.ROLLING)

    # --- one job --------------------------------------------------------------------------------

    def _validate(self, job: queue.Job, policy: Policy, lease_fd: int) -> None:
        assessment = self._assessment(job, policy, lease_fd)
        if assessment is None:
            return
        made = assessment.run(self._signer(), self._check_stop)
        if made["findings"]:
            _log(f"{made['volume']}/{made['part']} {made['snapshot']}: {made['findings']} findings")
        subject = assessment.subject
        if made.get("error"):  # the manifest was not the one to compare with: nor is the tip's, perhaps
            distrust_damaged_manifest(self._part(job))
        if made["findings"] and not subject.newest:
            # What an old snapshot lost may be lost in the present too: look there.
            part = self._part(job)
            _enqueue(part, part.snapshot("latest"), INCREMENTAL, queue.AFTER_RUN)

    def _assessment(self, job: queue.Job, policy: Policy, lease_fd: int) -> Assessment | None:
        try:
            part = self._part(job)
            info = part.snapshot(job.payload["snapshot"])
        except NotFound as error:
            _log(f"validation {job.id} is void: {error}")
            return None
        setting = Setting(
            processes=policy.processes,
            idle=bool(job.payload["rolling"]),
            bytes_per_second=policy.bytes_per_second,
            leave=(lease_fd,),
        )
        return Assessment(
            _subject(part, info),
            job.id,
            job.payload["mode"],
            policy,
            setting=setting,
            find_base=lambda name: self._base(part, name, info),
            now=self._now,
        )

    def _base(self, part: Part, name: str, info: SnapshotInfo) -> Base | None:
        if not name:
            return None
        try:
            root = part.snapshot_root(name)
        except NotFound:
            return None
        if not os.path.isdir(root):
            return None
        if name == info.name:
            return Base(root, iter(()))
        changed = self.store.driver.changed_between(root, part.snapshot_root(info.name))
        known = part.snapshot(name).manifest
        if changed is None and known and digest_of_file(part.manifest_path(name)) != known:
            return None  # damaged: it tells nothing about what has changed since
        return Base(root, changed)

    def _give_up(self, job: queue.Job, error: MirrorkeepError | OSError) -> None:
        assessment = self._assessment(job, Policy(), -1)
        if assessment is not None:
            problem = error if isinstance(error, MirrorkeepError) else MirrorkeepError(detail=str(error))
            assessment.refuse(self._signer(), problem)

    def _part(self, job: queue.Job) -> Part:
        return self.store.volume(job.payload["volume"]).part(unquote_to_bytes(job.payload["part"]))

    def _parts(self) -> Iterator[Part]:
        for volume in self.store.volumes():
            with contextlib.suppress(NotFound):
                yield from volume.parts()

    def _signer(self) -> Signer:
        return partial(keys.signing_key, self.store.keys_folder)

    # --- stopping -------------------------------------------------------------------------------

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _check_stop(self) -> None:
        if self._stopping:
            raise Interrupted


def _subject(part: Part, info: SnapshotInfo) -> Subject:
    newest = part.snapshot("latest")
    return Subject(
        volume=part.volume.name,
        part=part_name(part),
        snapshot=info.name,
        sequence=info.sequence,
        root=part.snapshot_root(info.name),
        manifest=info.manifest,
        folder=part.folder,
        entries=info.entries,
        bytes=info.bytes,
        patched=info.patched,
        newest=newest.sequence == info.sequence,
    )


def _log(message: str) -> None:
    print(f"validator: {message}", file=sys.stderr, flush=True)
