"""Small durable records: one JSON object a file, replaced whole, and a cache that follows the file.

Answers for: a reader sees the old record or the new one, never a mixture; after :func:`write_record`
returned, the new one survives a power cut.  A crash inside it leaves the old record and at worst a
``*.tmp`` file, which the next write of the same record overwrites.

Not here: what the records mean (``registry``, ``volume``, ``runs``), locking between writers.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from mirrorkeep.errors import DamagedRecord
from mirrorkeep.tree.durability import flush_directory
from mirrorkeep.tree.staging import write_all

Record = dict[str, Any]


_FRESH_S = 0.05
_Stamp = tuple[int, int, int, int]


def write_record(path: str, record: Mapping[str, Any], *, mode: int = 0o644) -> None:
    """Replace the record at ``path`` atomically and durably.  Writers of one path must hold a lock.

    Raises OSError: then the old record stands (or, when only the last flush failed, either one).
    """
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(fd, json.dumps(record, separators=(",", ":")).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    flush_directory(os.path.dirname(path))


def remove_record(path: str) -> bool:
    """Remove the record durably; False when there was none.  Repeatable: one that somebody removed who was
    killed before it was durable is gone for good as well."""
    removed = True
    try:
        os.unlink(path)
    except FileNotFoundError:
        removed = False
    flush_directory(os.path.dirname(path))
    return removed


def make_durable_folder(path: str, mode: int = 0o700) -> None:
    """Make a folder and what is missing above it; each name is durable when this returns.  Repeatable."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(one, mode)
        flush_directory(os.path.dirname(one))


def read_record(path: str) -> Record | None:
    """Return the record at ``path``, None when there is none.  Raises DamagedRecord."""
    try:
        with open(path, "rb") as stream:
            return _parse(path, stream.read())
    except FileNotFoundError:
        return None


def _parse(path: str, data: bytes) -> Record:
    try:
        record = json.loads(data)
    except ValueError as error:
        raise DamagedRecord(path=path, detail=str(error)) from None
    if not isinstance(record, dict):
        raise DamagedRecord(path=path, detail="it is no object")
    return record


class RecordCache:
    """Parsed records by path, checked against the file with one ``stat`` a look (about 2 us).

    Every write makes a new inode; inode, size and times together name a version.  Inodes are used again and
    clocks tick in milliseconds, so a record is remembered only once it is older than a few ticks.  The
    records returned are shared: callers must not change them.  Safe for several threads.
    """

    def __init__(self, most: int = 4096) -> None:
        self._entries: dict[str, tuple[_Stamp, Record]] = {}
        self._most = most

    def read(self, path: str) -> Record | None:
        """Return the present record at ``path``, None when there is none.  Raises DamagedRecord."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            self._entries.pop(path, None)
            return None
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns)
        known = self._entries.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        return self._load(path)

    def _load(self, path: str) -> Record | None:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
            found = os.fstat(stream.fileno())  # of what is read, not of what has replaced it since
            record = _parse(path, stream.read())
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns)
            if time.time() - found.st_ctime_ns / 1e9 > _FRESH_S:
                if len(self._entries) >= self._most:
                    self._entries.clear()
                self._entries[path] = (stamp, record)
            return record
        return None

    def forget(self, path: str) -> None:
        """Drop what is known of ``path`` (after this process replaced it)."""
        self._entries.pop(path, None)
