"""Who leads whom among the hard links of a run: the table of groups, asked in the run's own terms.

A crash forgets everything; the next run meets the same names again.

Not here: the table itself (``links``), when which name is brought over (``mirror``, ``late``).
"""

from __future__ import annotations

import os
import stat

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import digest_of
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.sync.journal import Item, Journal
from mirrorkeep.sync.links import LinkTable
from mirrorkeep.tree.walk import STAT


class Leaders:
    """The groups of hard links that one run meets in ``source``."""

    def __init__(self, source: bytes, folder: str) -> None:
        """``folder`` is for the table, when there are very many."""
        self._source = source
        self._table = LinkTable(folder)
        self._lost_one = False

    def is_further(self, item: Item) -> bool:
        """Return whether the entry is a further name of a file that was met before, and note its leader."""
        _, _, _, links, _, _, _, inode, _ = STAT.unpack_from(item.blob)
        if links < 2:
            return False
        leader = self._table.lead(self._device(item.path), inode, item.path)
        if leader == item.path:
            return False
        item.link_to = leader
        return True

    def leader_of(self, item: Item) -> bytes:
        """Return the name that a late entry is to become another name of, or nothing."""
        mode, _, _, links, _, _, _, inode, _ = STAT.unpack_from(item.blob)
        if links < 2 or not stat.S_ISREG(mode):
            return b""
        leader = self._table.leader(self._device(item.path), inode)
        return b"" if leader == item.path else leader

    def adopt(self, journal: Journal) -> None:
        """Let names that did not change lead the groups whose other names are waiting."""
        if not journal.late_count or self._table.is_empty:
            return
        for path, inode, line in journal.linked_files():
            try:
                found = os.lstat(os.path.join(self._source, path))
            except OSError:
                continue
            if found.st_ino == inode and b",hard_link=" not in line:
                self._table.adopt(found.st_dev, inode, path, digest_of(line))

    def lose(self, line: bytes) -> None:
        """Take note of a record that goes: others, which nothing tells to be looked at, may lead to it.

        A folder that leaves the tree takes names with it and changes nothing about their files.
        """
        if b",type=file," in line and b",st_nlink=1," not in line and b",hard_link=" not in line:
            self._lost_one = True

    def strayed(self, journal: Journal) -> bool:
        """Return whether a record that did not change names a leader that did, or that is gone."""
        if self._table.is_empty and not self._lost_one:
            return False
        journal.mark()
        for path, inode, line in journal.linked_files():
            leader = parse_record(line.rstrip(b"\n"), check=False).fields.get(keys.HARD_LINK)
            if leader is None or not (self._lost_one or self._table.leader(self._device(path), inode)):
                continue
            try:
                led = os.lstat(os.path.join(self._source, leader)).st_ino == inode
            except OSError:
                led = False
            if not led:
                return True
        return False

    def note(self, item: Item, line: bytes) -> None:
        """Remember the digest of what was brought over, if the file has other names."""
        _, _, _, links, _, _, _, inode, _ = STAT.unpack_from(item.blob)
        if links > 1 and not item.directory:
            self._table.note_digest(self._device(item.path), inode, digest_of(line))

    def digest(self, item: Item) -> bytes:
        """Return the digest of the content that a hard link leads to; nothing when it was not brought."""
        return self._table.digest(self._device(item.path), STAT.unpack_from(item.blob)[7])

    def close(self) -> None:
        """Forget everything."""
        self._table.close()

    def _device(self, path: bytes) -> int:
        try:
            return os.lstat(os.path.join(self._source, path)).st_dev
        except OSError:
            return 0
