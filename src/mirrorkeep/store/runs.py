"""Runs: who may write a part, what of it is durable, and the close that ends in a snapshot.

Answers for: epochs (a newer run shuts out an older one at once), incarnations (what was acknowledged by
a service that is gone counts from its last commit), commits, and closing.  All state of a run is the
part's ``state.json``, changed only under the part's exclusive lock.

A close is crash-safe between any two lines.  Its steps: (1) the manifest is received and checked, in
staging; (2) under the exclusive lock everything is made durable; (3) the state says ``closing``: from here
on the close is rolled forward, before it the run is still open at its last commit; (4) manifest into place,
snapshot, record, validation queued, each repeatable; (5) the state says ``closed``.  A repeated close of the
same run gets the same answer.

Not here: HTTP (``server``), the queue of validations, retention.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mirrorkeep.errors import MalformedRequest, MirrorkeepError, NotFound, RunSuperseded, StoreRestarted
from mirrorkeep.store import doubt
from mirrorkeep.store.closing import finish_closing, free_name, make_durable, patch_stamp
from mirrorkeep.store.drivers.system import storage_errors
from mirrorkeep.store.history import iso_time
from mirrorkeep.store.intake import Manifest, discard_manifest, receive_manifest
from mirrorkeep.store.volume import Part, PartState
from mirrorkeep.tree.durability import flush_directory

if TYPE_CHECKING:
    from mirrorkeep.store.pool import Store

_COMMITS_KEPT: Final = 2
"""The newest, and the one before it for a client that never heard the answer to the newest."""

_NO_COMMIT: Final[dict[str, Any]] = {"run": "", "commit": 0, "position": None}


@dataclass(frozen=True)
class RunInfo:
    """The answer to a begin.  ``manifest``: digest of the server's manifest ("" for none, or one that
    somebody removed from the tip); ``dirty``: an earlier run left the tip unlike that manifest; ``resume``:
    the client's last commit is the recorded one; ``patch``: validation left findings for this run."""

    run: str
    epoch: int
    incarnation: str
    manifest: str
    dirty: bool
    resume: bool
    patch: bool


@dataclass(frozen=True)
class Closed:
    """The answer to a close: the snapshot's name (None without one), its sequence number, the id of the
    validation that was queued (None without one)."""

    snapshot: str | None
    sequence: int
    validation: str | None


# --- finding --------------------------------------------------------------------------------------


def find_part(store: Store, run: str) -> Part:
    """Return the part that the run belongs to (its id begins with a digest of the part's place).

    Raises NotFound for a run of no part of this store.
    """
    for volume in store.volumes():
        for part in volume.parts():
            if run.startswith(_prefix(volume.name, part.path)):
                return part
    raise NotFound(what=f"run {run}")


@functools.lru_cache(maxsize=4096)
def _prefix(volume: str, path: bytes) -> str:
    return hashlib.sha256(volume.encode() + b"\0" + path).hexdigest()[:16] + "-"


# --- who may write --------------------------------------------------------------------------------


def begin_run(part: Part, source: str, state: dict[str, Any]) -> RunInfo:
    """Begin a run of the part, superseding its unfinished one.  Durable when this returns.

    ``state`` is what the client knows: ``manifest`` (digest), ``run`` and ``commit`` of its last commit.
    Waits for publishes that are under way.  What the superseded one had in staging goes: nobody can finish
    it.  A full pool refuses content, not runs, for a run is what can remove something.  Raises NoSpace,
    StorageFailure: nothing has begun.
    """
    store = part.volume.store
    with part.frozen():
        known = finish_closing(part)
        if known.dirty:  # superseded now, or given up before
            part.tree().empty_staging()
        run: dict[str, Any] = {
            "id": _prefix(part.volume.name, part.path) + secrets.token_hex(12),
            "epoch": known.epoch + 1,
            "source": source,
            "begun": iso_time(store.clock()),
            "patch": patch_stamp(part),
        }
        part.change_state(known, epoch=known.epoch + 1, run=run, dirty=True)
    there = os.path.exists(part.manifest_path())  # else what is in the tip has to be listed
    return RunInfo(
        run=run["id"],
        epoch=run["epoch"],
        incarnation=store.incarnation,
        manifest=known.manifest_digest if there else "",
        dirty=known.dirty,
        resume=_is_recorded(known, state),
        patch=run["patch"] is not None,
    )


def _is_recorded(known: PartState, state: dict[str, Any]) -> bool:
    if not known.dirty or not state.get("run"):
        return False
    return any(
        commit["run"] == state["run"] and commit["commit"] == state.get("commit") for commit in known.commits
    )


def check_run(part: Part, header: str) -> None:
    """Raise unless the run of a ``Mirrorkeep-Run`` header may write now (about 10 us).

    To be called under ``part.publishing()``, so that no write slips in behind a newer run's begin.
    Raises RunSuperseded, StoreRestarted, MalformedRequest.
    """
    run, epoch, incarnation = parse_header(header)
    state = part.raw_state()
    _check(part, state["run"], run, epoch, incarnation)
    if state["closing"]:
        raise RunSuperseded(run=run)


@functools.lru_cache(maxsize=1024)
def parse_header(header: str) -> tuple[str, int, str]:
    """Return run, epoch and incarnation of ``RUN;epoch=N;incarnation=ID``.  Raises MalformedRequest."""
    run, *pairs = header.split(";")
    fields = dict(pair.strip().partition("=")[::2] for pair in pairs)
    try:
        return run.strip(), int(fields["epoch"]), fields["incarnation"]
    except (KeyError, ValueError):
        raise MalformedRequest(detail=f"not a run: {header!r}") from None


def _check(part: Part, open_run: dict[str, Any] | None, run: str, epoch: int, incarnation: str) -> None:
    if open_run is None or open_run["id"] != run or open_run["epoch"] != epoch:
        raise RunSuperseded(run=run)
    if incarnation != part.volume.store.incarnation:
        raise StoreRestarted(run=run)


# --- commit -----------------------------------------------------------------------------------------


def commit_run(part: Part, run: str, epoch: int, incarnation: str, position: Any) -> int:
    """Make everything that the run was answered so far durable; return the commit's number.

    Waits for publishes under way, flushes, records.  A repeated commit of the same position keeps its
    number.  Raises RunSuperseded, StoreRestarted; StorageFailure and NoSpace mean that nothing since
    the last commit counts, for no run of this store: all resume from their last commit.
    """
    with part.frozen():
        state = part.state()
        _check(part, state.run, run, epoch, incarnation)
        now_ns = time.time_ns()
        make_durable(part)
        last: dict[str, Any] = (
            state.commits[-1] if state.commits else {"run": "", "commit": 0, "position": None}
        )
        if last["run"] == run and last["position"] == position:
            return int(last["commit"])
        commit = {"run": run, "commit": last["commit"] + 1, "position": position}
        commits = [*state.commits, commit][-_COMMITS_KEPT:]
        part.change_state(
            state, commits=commits, **doubt.committed(state, part.volume.store.started_ns, now_ns)
        )
        return int(commit["commit"])


def abandon_run(part: Part, run: str) -> None:
    """Give the run up: its writes are refused from now on, its last commit stays.  Repeatable."""
    with part.frozen():
        state = part.state()
        if state.run is not None and state.run["id"] == run and not state.closing:
            part.change_state(state, run=None)


# --- close ------------------------------------------------------------------------------------------


def close_run(
    part: Part,
    run: str,
    epoch: int,
    incarnation: str,
    *,
    form: str,
    base: str = "",
    digest: str,
    body_path: str | None = None,
    snapshot: bool = True,
) -> Closed:
    """End the run: take its manifest, commit, snapshot, queue the validation.

    ``form`` is ``same`` (the tip's manifest already has ``digest``), ``delta`` (the body is a librsync
    delta over the manifest of digest ``base``) or ``full``; the body may be gzipped.  Raises as
    :func:`commit_run`; MalformedManifest, MalformedDelta, DigestMismatch, ForeignManifest (send it
    ``full``): the run is open as before.
    """
    state = part.state()
    answer = _known_answer(state, run)
    if answer is not None:
        with storage_errors(part.folder):
            flush_directory(part.folder)  # who closed it may have been killed before that
        return answer
    if state.closing is None:
        _check(part, state.run, run, epoch, incarnation)
        try:
            manifest = receive_manifest(part, state, form=form, base=base, digest=digest, body_path=body_path)
        except (MirrorkeepError, OSError):
            # The same close came twice at once, and the other one has emptied the staging folder since.
            if not _is_decided(part.state(), run):
                raise
        else:
            try:
                _decide_close(part, run, epoch, incarnation, manifest, snapshot)
            except BaseException:
                _discard_undecided(part, manifest)
                raise
    with part.frozen():
        state = finish_closing(part)
    answer = _known_answer(state, run)
    if answer is None:
        raise RunSuperseded(run=run)
    return answer


def _discard_undecided(part: Part, manifest: Manifest) -> None:
    """Remove a manifest after an error, unless the state already says that it is to be placed: writing a
    record may fail in its last flush and yet have replaced the old one."""
    closing = part.state().closing
    if closing is None or closing["staged"] != manifest.staged:
        discard_manifest(manifest)


def _known_answer(state: PartState, run: str) -> Closed | None:
    closed = state.closed
    if closed is None or closed["run"] != run or state.closing:
        return None
    return Closed(closed["snapshot"], closed["sequence"], closed["validation"])


def _is_decided(state: PartState, run: str) -> bool:
    """Say whether the run is closed, or will be whatever happens."""
    return _known_answer(state, run) is not None or bool(state.closing and state.closing["run"] == run)


def _decide_close(
    part: Part, run: str, epoch: int, incarnation: str, manifest: Manifest, snapshot: bool
) -> None:
    with part.frozen():
        state = part.state()
        if _is_decided(state, run):
            discard_manifest(manifest)  # the same close came twice at once
            return
        _check(part, state.run, run, epoch, incarnation)
        assert state.run is not None
        part.tree().recover()  # a move that a worker's death cut off
        now_ns = time.time_ns()
        make_durable(part)
        now = part.volume.store.clock()
        closing = {
            "run": run,
            "ends_run": True,
            "manifest": {"digest": manifest.digest, "entries": manifest.entries, "bytes": manifest.bytes},
            "staged": manifest.staged,
            "snapshot": free_name(part, now) if snapshot else None,
            "sequence": state.sequence + (1 if snapshot else 0),
            "time": iso_time(now),
            "patch": state.run["patch"],
        }
        part.change_state(state, closing=closing, **doubt.closed(now_ns))


# --- what is really there ---------------------------------------------------------------------------


def actual_manifest(part: Part) -> Iterator[bytes]:
    """Yield a manifest of what the tip really holds, made from its sidecars, in pieces (MAN-49).

    Content that no commit confirmed, written by a service that is gone, has no digest in it (``doubt``).
    """
    from mirrorkeep.store.actual import write_actual

    yield from write_actual(part.tree(), doubt.doubted_spans(part.state(), part.volume.store.started_ns))
