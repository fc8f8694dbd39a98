"""Hard links: which names are one file.

The member that comes first in manifest order is the group's leader; its content travels, the others
become links to it.  A name that did not change (the others came, or moved with their folder) leads instead
once the walk is over: the mirror has it already.  The table holds an inode only while the walk may still
meet more of its names, and goes to a temporary database when there are very many.

Nothing here survives the run.
"""

from __future__ import annotations

import os
import sqlite3
from hashlib import blake2b
from typing import Final

MAX_IN_MEMORY: Final = 50_000


class LinkTable:
    """Inodes with several names: the leader's path and, once it is known, its digest."""

    def __init__(self, folder: str, *, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._path = os.path.join(folder, "links.sqlite")
        self._memory: dict[bytes, tuple[bytes, bytes]] = {}
        self._limit = max_in_memory
        self._database: sqlite3.Connection | None = None

    def lead(self, device: int, inode: int, path: bytes) -> bytes:
        """Return the leader of the group, which becomes ``path`` when there is none yet."""
        key = b"%x:%x" % (device, inode)
        found = self._get(key)
        if found is None:
            self._put(key, path, b"")
            return path
        return found[0]

    @property
    def is_empty(self) -> bool:
        """Whether no file with several names was met."""
        return not self._memory and self._database is None

    def adopt(self, device: int, inode: int, path: bytes, digest: bytes) -> None:
        """Make a name that the mirror holds already the leader, if other names of its file were met."""
        key = b"%x:%x" % (device, inode)
        if self._get(key) is not None:
            self._put(key, path, digest)

    def leader(self, device: int, inode: int) -> bytes:
        """Return the leader of the group, or nothing when none of its names was met."""
        found = self._get(b"%x:%x" % (device, inode))
        return found[0] if found else b""

    def note_digest(self, device: int, inode: int, digest: bytes) -> None:
        """Remember the digest of the leader's content."""
        key = b"%x:%x" % (device, inode)
        found = self._get(key)
        if found is not None:
            self._put(key, found[0], digest)

    def digest(self, device: int, inode: int) -> bytes:
        """Return the digest of the leader's content, or nothing when it could not be brought over."""
        found = self._get(b"%x:%x" % (device, inode))
        return found[1] if found else b""

    def close(self) -> None:
        """Forget everything; may be called twice."""
        if self._database is not None:
            self._database.close()
            self._database = None
            os.unlink(self._path)
        self._memory.clear()

    def _get(self, key: bytes) -> tuple[bytes, bytes] | None:
        found = self._memory.get(key)
        if found is None and self._database is not None:
            row = self._database.execute("SELECT path, digest FROM link WHERE key = ?", (key,)).fetchone()
            found = (row[0], row[1]) if row else None
        return found

    def _put(self, key: bytes, path: bytes, digest: bytes) -> None:
        self._memory[key] = (path, digest)
        if len(self._memory) < self._limit:
            return
        if self._database is None:
            self._database = sqlite3.connect(self._path, isolation_level=None)
            self._database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                "CREATE TABLE link (key BLOB PRIMARY KEY, path BLOB, digest BLOB) WITHOUT ROWID"
            )
        rows = [(key, path, digest) for key, (path, digest) in self._memory.items()]
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR REPLACE INTO link VALUES (?, ?, ?)", rows)
        self._database.execute("COMMIT")
        self._memory.clear()


class OutsideLeaders:
    """Remembers, for hard links whose first name lies outside a part, their first name inside."""

    def __init__(self, folder: str) -> None:
        self._links = LinkTable(folder)

    def lead(self, outside: bytes, path: bytes) -> bytes:
        """Return the first path that this was asked with for ``outside``."""
        return self._links.lead(0, number_of(outside), path)

    def close(self) -> None:
        """Forget everything."""
        self._links.close()


def number_of(text: bytes) -> int:
    """Return the number that stands for a path, or for what else groups names, in a table of inodes."""
    return int.from_bytes(blake2b(text, digest_size=16).digest(), "big")
