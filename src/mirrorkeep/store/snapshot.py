"""Snapshots on demand, between runs or during one, bound to the manifest that lies in the tip.

Not here: the snapshot that ends a run (``runs``), records and names (``history``).  A crash leaves either
nothing or a decided snapshot, which ``closing.finish_closing`` completes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirrorkeep.errors import NotFound
from mirrorkeep.store.closing import finish_closing, free_name, make_durable
from mirrorkeep.store.history import SnapshotInfo, iso_time

if TYPE_CHECKING:
    from mirrorkeep.store.volume import Part

__all__ = ["SnapshotInfo", "snapshot_now", "tip_changed_since_snapshot"]


def snapshot_now(part: Part) -> SnapshotInfo:
    """Make a snapshot of the tip as it is, bound to the manifest in it; an open run stays open.

    Raises StorageFailure, NoSpace: then there is none.
    """
    with part.frozen():
        state = finish_closing(part)
        make_durable(part)
        now = part.volume.store.clock()
        closing = {
            "run": "",
            "ends_run": False,
            "manifest": state.manifest,
            "staged": None,
            "snapshot": free_name(part, now),
            "sequence": state.sequence + 1,
            "time": iso_time(now),
            "patch": None,
        }
        part.change_state(state, closing=closing)
        finish_closing(part)
        return part.snapshot(str(closing["snapshot"]))


def tip_changed_since_snapshot(part: Part) -> bool:
    """Whether anything in the tip changed since the newest snapshot, by the storage's own account.

    True also when there is no snapshot, or when the storage keeps no account.
    """
    driver = part.volume.store.driver
    try:
        newest = part.snapshot("latest")
    except NotFound:
        return True
    if newest.generation is None:
        return True
    with part.frozen():
        driver.make_durable(part.root)  # the account is of what is on disk
        return driver.generation(part.root) != newest.generation
