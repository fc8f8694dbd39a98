"""What is known of a snapshot beside its tree: its record, its name, and the list of a part's history.

Answers for: names in the form of SNP-16 that are distinct also within one second, and order by sequence
number, never by clock.  A record is written after its snapshot exists, so that every record has a tree;
a crash in between is made good by the part's recovery (``closing.finish_closing``).

Not here: making snapshots (``closing``, ``snapshot``), how long they are kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirrorkeep.errors import NotFound
from mirrorkeep.store.records import RecordCache, write_record

LATEST: Final = "latest"


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot of a part.  ``time`` is UTC in ISO 8601, ``manifest`` the manifest's digest ("" when
    the part had none), ``run`` the run that made it ("" on demand), ``patched`` whether that run began
    with a patch of findings, ``generation`` the storage's own count where it keeps one."""

    name: str
    sequence: int
    time: str
    manifest: str
    entries: int
    bytes: int
    run: str = ""
    patched: bool = False
    generation: int | None = None


def snapshot_name(at_s: float, is_taken: Callable[[str], bool]) -> str:
    """Return ``auto_YYYY-MM-DD_HHMMSS_UTC``, with ``_2``, ``_3`` ... behind it while that is taken."""
    plain = time.strftime("auto_%Y-%m-%d_%H%M%S_UTC", time.gmtime(at_s))
    name, number = plain, 1
    while is_taken(name):
        number += 1
        name = f"{plain}_{number}"
    return name


def iso_time(at_s: float) -> str:
    """Return a time as UTC in ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


class History:
    """The snapshot records of one part, in ``parts/KEY/snapshots/SEQ.json``."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._cache = RecordCache()

    def add(self, info: SnapshotInfo) -> None:
        """Record the snapshot durably.  Repeatable; callers hold the part's exclusive lock."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        write_record(os.path.join(self._folder, f"{info.sequence}.json"), asdict(info))

    def all(self) -> list[SnapshotInfo]:
        """Return all snapshots, oldest first."""
        return [info for number in self._sequences() if (info := self._read(number)) is not None]

    def find(self, name: str) -> SnapshotInfo:
        """Return the snapshot of that name; ``latest`` is the newest by sequence.  Raises NotFound."""
        for number in reversed(self._sequences()):
            info = self._read(number)
            if info is not None and name in (LATEST, info.name):
                return info
        raise NotFound(what=f"snapshot {name}")

    def _sequences(self) -> list[int]:
        return sorted(_numbers(self._folder))

    def _read(self, number: int) -> SnapshotInfo | None:
        record = self._cache.read(os.path.join(self._folder, f"{number}.json"))
        return None if record is None else from_record(record)


def from_record(record: dict[str, Any]) -> SnapshotInfo:
    """Return the snapshot of a record; keys of newer versions are passed over."""
    known = SnapshotInfo.__dataclass_fields__
    return SnapshotInfo(**{key: value for key, value in record.items() if key in known})


def _numbers(folder: str) -> Iterator[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        stem = name.removesuffix(".json")
        if stem != name and stem.isdigit():
            yield int(stem)
