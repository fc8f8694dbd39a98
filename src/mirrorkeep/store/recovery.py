"""Putting a store in order after whatever ended the last service, before anybody is served.

Answers for: closes that were decided are finished, directory moves replayed, staging emptied, folders of
deleted volumes and half-made parts removed.  Every step is repeatable, so that a crash in here is made good
by the next start.  A part that cannot be recovered is named in the log and left alone; the others serve.

Not here: mounting (``drivers``), the queue of validations, which recovers by itself.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from mirrorkeep.errors import DamagedRecord
from mirrorkeep.store.closing import finish_closing
from mirrorkeep.store.volume import is_in_the_making

if TYPE_CHECKING:
    from mirrorkeep.store.pool import Store
    from mirrorkeep.store.volume import Part, Volume

_log = logging.getLogger(__name__)


def recover_store(store: Store) -> None:
    """Recover every volume; see the module's header.  The caller makes sure that nobody serves."""
    for name in store.registry.deletions():
        store.finish_deletion(name)
    deleted = os.path.join(store.pool, "deleted")
    for name in os.listdir(deleted):
        store.driver.delete_tree(os.path.join(deleted, name))
    for volume in store.volumes():
        _recover_volume(volume)


def _recover_volume(volume: Volume) -> None:
    records = os.path.join(volume.folder, "parts")
    try:
        names = os.listdir(records)
    except FileNotFoundError:
        _log.error("volume %s has no storage", volume.name)
        return
    for name in names:
        if is_in_the_making(name):
            volume.store.driver.delete_tree(os.path.join(records, name))
    parts = volume.parts()
    for part in parts:
        try:
            _recover_part(part)
        except DamagedRecord as error:
            _log.error("part %r of volume %s could not be recovered: %s", part.path, volume.name, error)
        except Exception:
            _log.exception("part %r of volume %s could not be recovered", part.path, volume.name)
    if not any(part.path == b"" for part in parts):
        tree = volume.plain_tree()
        tree.recover()
        tree.empty_staging()


def _recover_part(part: Part) -> None:
    with part.frozen():
        finish_closing(part)
        tree = part.tree()
        tree.recover()
        tree.empty_staging()
