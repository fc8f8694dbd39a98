"""Who leads whom among the hard links of a run: the table of groups, asked in the run's own terms.

A crash forgets everything; the next run meets the same names again.

Not here: the table itself (``links``), when which name is brought over (``mirror``, ``late``).
"""

from __future__ import annotations

import os
import stat
from typing import Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import digest_of, is_hard_link
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.sync.journal import Item, Journal
from mirrorkeep.sync.links import LinkTable
from mirrorkeep.sync.orders import Wanted, version_now, version_of
from mirrorkeep.tree.walk import STAT

_UNDER_WAY: Final = b"-"
"""In the table instead of what is known of a leader: it is being brought over."""
_ADOPTED: Final = b"="
"""In the table before what is known of a leader that did not change, and was not looked at."""


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
        """Let names that did not change lead the groups whose other names are waiting.

        Only where the source is still as their record says: of a file that changed and could not be read,
        the journal has the old record.
        """
        if not journal.late_count or self._table.is_empty:
            return
        for path, inode, line in journal.linked_files():
            try:
                found = os.lstat(os.path.join(self._source, path))
            except OSError:
                continue
            if found.st_ino != inode or is_hard_link(line) or not self._table.leader(found.st_dev, inode):
                continue
            version = version_of(parse_record(line.rstrip(b"\n"), check=False))
            if version == version_now(found):
                self._table.adopt(found.st_dev, inode, path, _ADOPTED + _pack(digest_of(line), version))

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
        """Remember what a leader was when it was brought over."""
        if item.directory or STAT.unpack_from(item.blob)[3] < 2:
            return
        device, inode = self._place(item)
        if self._table.leader(device, inode) == item.path:
            version = version_of(parse_record(line, check=False))
            self._table.note_digest(device, inode, _pack(digest_of(line), version))

    def lead(self, item: Item, wanted: Wanted) -> bool:
        """Say of a further name what it is to be a link to; False when no name leads that it may follow.

        A name that did not change has not been read.  Where the content of another is in doubt, its own is.
        """
        device, inode = self._place(item)
        known = self._table.digest(device, inode)
        in_doubt = item.forced and bool(item.old_line)
        if known in (b"", _UNDER_WAY) or (in_doubt and known.startswith(_ADOPTED)):
            return False
        wanted.link_to = self._table.leader(device, inode)
        wanted.digest, _, wanted.version = known.removeprefix(_ADOPTED).partition(b"/")
        return True

    def take_lead(self, item: Item) -> bool:
        """Let a name lead that has to bring the content itself; False while another is about to."""
        device, inode = self._place(item)
        if self._table.digest(device, inode) == _UNDER_WAY:
            return False
        self._table.adopt(device, inode, item.path, _UNDER_WAY)
        return True

    def give_up(self, item: Item) -> None:
        """Forget the leader of a group, which is none: another name has to bring the content."""
        self._table.note_digest(*self._place(item), b"")

    def give_up_own(self, item: Item) -> None:
        """Forget that the entry leads, if it does: it was not brought over."""
        if STAT.unpack_from(item.blob)[3] > 1 and not item.directory:
            device, inode = self._place(item)
            if self._table.leader(device, inode) == item.path:
                self._table.note_digest(device, inode, b"")

    def close(self) -> None:
        """Forget everything."""
        self._table.close()

    def _place(self, item: Item) -> tuple[int, int]:
        return self._device(item.path), STAT.unpack_from(item.blob)[7]

    def _device(self, path: bytes) -> int:
        try:
            return os.lstat(os.path.join(self._source, path)).st_dev
        except OSError:
            return 0


def _pack(digest: bytes, version: bytes) -> bytes:
    return digest + b"/" + version if digest and version else b""
