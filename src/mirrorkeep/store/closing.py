"""Rolling a decided close forward: manifest into place, snapshot, record, validation, and the state says so.

Answers for: from the moment that ``state.json`` says ``closing`` everything the snapshot needs is durable and
nobody writes, so that the rest can be done, and done again, by whoever comes next: the same request, a
repeated one, the next begin, or recovery at start-up.  Every step finds out whether it was done.  A
validation may be queued twice by a crash; that costs a validation.

Not here: deciding to close (``runs``, ``snapshot``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mirrorkeep.errors import MirrorkeepError, NoSpace, StorageFailure
from mirrorkeep.store.drivers.system import make_folder, storage_errors
from mirrorkeep.store.history import SnapshotInfo, snapshot_name
from mirrorkeep.store.intake import digest_of_file
from mirrorkeep.tree.durability import flush_directory

if TYPE_CHECKING:
    from mirrorkeep.store.volume import Part, PartState


def free_name(part: Part, now_s: float) -> str:
    return snapshot_name(now_s, lambda name: os.path.lexists(part.place_of(name)))


def finish_closing(part: Part) -> PartState:
    """Roll a close that was decided forward to its end; return the state.  Repeatable.

    The caller holds :meth:`Part.frozen`.  Does nothing for a part without one.
    """
    state = part.state()
    closing = state.closing
    if closing is None:
        return state
    if closing["staged"]:
        _place_manifest(part, closing["staged"], closing["manifest"]["digest"])
    if closing["ends_run"]:
        part.tree().empty_staging()  # else the snapshot keeps what nobody finished
    if closing["snapshot"]:
        _freeze(part, closing)
    if not closing["ends_run"]:
        return part.change_state(state, sequence=closing["sequence"], closing=None)
    closed = {
        "run": closing["run"],
        "snapshot": closing["snapshot"],
        "sequence": closing["sequence"],
        "validation": _enqueue(part, closing["snapshot"]),
    }
    _clear_patch(part, closing["patch"])
    return part.change_state(
        state,
        run=None,
        commits=[],
        manifest=closing["manifest"],
        dirty=False,
        sequence=closing["sequence"],
        closing=None,
        closed=closed,
    )


def _place_manifest(part: Part, staged: str, digest: str) -> None:
    """Put the staged manifest in place; raises StorageFailure when it is neither there nor in place."""
    target = part.manifest_path()
    with storage_errors(target):
        try:
            os.rename(os.path.join(part.root, staged), target)
        except FileNotFoundError:
            if digest_of_file(target) != digest:
                raise StorageFailure(detail=f"{staged}: the manifest of a decided close is gone") from None
        flush_directory(os.path.dirname(target))


def _freeze(part: Part, closing: dict[str, Any]) -> None:
    target = part.place_of(closing["snapshot"])
    driver = part.volume.store.driver
    if not os.path.lexists(target):
        with storage_errors(target):
            make_folder(os.path.dirname(target))
        _make_snapshot(part, target)
    else:  # who made it may have been killed before its name was durable
        with storage_errors(target):
            flush_directory(os.path.dirname(target))
    manifest = closing["manifest"] or {"digest": "", "entries": 0, "bytes": 0}
    info = SnapshotInfo(
        name=closing["snapshot"],
        sequence=closing["sequence"],
        time=closing["time"],
        manifest=manifest["digest"],
        entries=manifest["entries"],
        bytes=manifest["bytes"],
        run=closing["run"],
        patched=closing["patch"] is not None,
        generation=driver.generation(target),
    )
    with storage_errors(target):
        part.history.add(info)


def _make_snapshot(part: Part, target: str) -> None:
    """Make the snapshot; raises NoSpace, and for any other trouble a StorageFailure that says what waits for
    it: whoever asks next wants something else, and needs to know why that is refused."""
    try:
        part.volume.store.driver.snapshot(part.root, target)
    except NoSpace:
        raise
    except MirrorkeepError as error:
        told = "no run begins before the last one's snapshot is made, which each begin tries again"
        raise StorageFailure(detail=f"{told}: {error}") from error


def _enqueue(part: Part, snapshot: str | None) -> str | None:
    if snapshot is None:
        return None
    from mirrorkeep.store.validation import request_validation

    return request_validation(part, snapshot, "incremental", requested=False).id


def patch_stamp(part: Part) -> list[int] | None:
    try:
        found = os.stat(part.patch_path)
    except FileNotFoundError:
        return None
    return [found.st_ino, found.st_mtime_ns]


def _clear_patch(part: Part, stamp: list[int] | None) -> None:
    """Remove the patch that the run was given; one that validation wrote since stays for the next run."""
    if stamp is None:
        return
    from mirrorkeep.store.findings import patch_lock

    with patch_lock(part.folder), storage_errors(part.patch_path):
        if patch_stamp(part) == stamp:
            os.unlink(part.patch_path)


def make_durable(part: Part) -> None:
    """Flush everything written to the part.  An error tells that some write of *some* part was lost: the
    kernel tells each descriptor once and not whose it was, so all open runs go back to their commits.
    """
    store = part.volume.store
    try:
        store.driver.make_durable(part.root)
    except MirrorkeepError:
        store.start_incarnation()
        raise
