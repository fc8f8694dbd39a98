"""Further names of files in a restore: which become links, to what, and which need the content themselves.

A name is linked only to one that this restore has *settled*: written, or found to hold what its record says.
What else lies where a leader should be (a newer file of the user's that was kept, something old where the
leader failed, another file where the leader is gone since its folder was renamed) leads nobody: then one of
the other names gets the content, and the rest lead to it.

Not here: bringing content and making links (``restore``, ``restore_worker``); links whose leader lies outside
of what is restored (``manifest.subtree``).  Memory: tables and lists that spill into a folder.
"""

from __future__ import annotations

import enum
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.manifest.spill import SpilledList
from mirrorkeep.sync.links import LinkTable, number_of
from mirrorkeep.tree.native_publish import is_newer
from mirrorkeep.tree.protocol import Frame, Op

MAX_CARRIERS: Final = 3
"""How many names of a file are tried as carriers of its content before all others get it by themselves."""

Fetch = Callable[[bytes], None]
"""``fetch(line)``: have the content of this record brought, as that of a file with one name."""


class There(enum.IntEnum):
    """What the destination has where a file is to go, as far as the walk told."""

    NOTHING = 0
    SOMETHING = 1
    SHARED = 2
    """A file that a name which is another file in the snapshot has as well."""


class FurtherNames:
    """The further names that one restore meets, and the names that they may lead to."""

    def __init__(self, folder: str, destination: bytes, *, overwrite: bool) -> None:
        """``overwrite``: what is newer in the destination stays nobody's obstacle."""
        self._folder = folder
        self._destination = destination
        self._overwrite = overwrite
        self._settled = self._table()
        self._carriers = self._table()
        self._holders = self._table()
        self._stranded = SpilledList(folder)
        self._round: SpilledList | None = None
        self._rounds = 0

    def look(self, path: bytes) -> There:
        """Say what the destination has at ``path``."""
        try:
            found = os.lstat(os.path.join(self._destination, path))
        except OSError:
            return There.NOTHING
        return self.hold(path, found.st_nlink, found.st_ino)

    def hold(self, path: bytes, links: int, inode: int) -> There:
        """Say whether a file may keep its inode in the destination: the first that asks for one does.

        For files that have, or once had, further names; those of one file ask only by their leader.
        """
        if links < 2 or self._holders.lead(0, inode, path) == path:
            return There.SOMETHING
        return There.SHARED

    def settle(self, names: Iterable[tuple[bytes, bytes]]) -> None:
        """Take note of names (path, digest) that are as their records say."""
        for path, digest in names:
            number = number_of(path)
            self._settled.lead(0, number, path)
            self._settled.note_digest(0, number, digest)

    def strand(self, line: bytes) -> None:
        """Take note of a record that could not be linked to its leader."""
        self._stranded.append(line)

    def linked(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines that may be linked to the leaders they name; the others are stranded."""
        for line in lines:
            record = parse_record(line, check=False)
            if self._is_settled(record.fields[keys.HARD_LINK], record.hash):
                yield line
            else:
                self.strand(line)

    def next_carriers(self, fetch: Fetch) -> bool:
        """Have one name of each stranded file brought with its content; return whether there was any.

        A name where something newer stands would not take it, as long as there are others.
        """
        self._close_round()
        if not len(self._stranded):
            return False
        self._round, self._stranded = self._stranded, SpilledList(self._folder)
        self._carriers = self._table()
        self._rounds += 1
        for line in self._round:
            record = parse_record(line, check=False)
            if self._rounds > MAX_CARRIERS or (not self._is_kept(record) and self._carries(record)):
                fetch(alone(record))
        return True

    def linked_to_carriers(self, fetch: Fetch) -> Iterator[bytes]:
        """Yield the other stranded names as links to the carriers, once those have been brought.

        Names of a file that has no carrier, for something newer is everywhere, are tried by themselves.
        """
        if self._round is None or self._rounds > MAX_CARRIERS:
            return
        for line in self._round:
            record = parse_record(line, check=False)
            carrier = self._carriers.leader(0, number_of(file_of(record)))
            if carrier == record.path:
                continue
            if not carrier:
                fetch(alone(record))
            elif self._is_settled(carrier, record.hash):
                yield format_record(record.path, {**record.fields, keys.HARD_LINK: carrier})
            else:
                self.strand(line)

    def close(self) -> None:
        """Forget everything."""
        self._close_round()
        self._stranded.close()
        self._holders.close()
        self._settled.close()

    def _table(self) -> LinkTable:
        return LinkTable(tempfile.mkdtemp(dir=self._folder))

    def _close_round(self) -> None:
        self._carriers.close()
        if self._round is not None:
            self._round.close()
            self._round = None

    def _is_settled(self, path: bytes, digest: bytes) -> bool:
        number = number_of(path)
        if self._settled.leader(0, number) != path:
            return False
        return not digest or self._settled.digest(0, number) == digest

    def _carries(self, record: Record) -> bool:
        """Say whether the name is the first of its file that this was asked for in this round."""
        return self._carriers.lead(0, number_of(file_of(record)), record.path) == record.path

    def _is_kept(self, record: Record) -> bool:
        """Say whether what is in the way seems to be newer; only a closer look tells."""
        if self._overwrite:
            return False
        try:
            found = os.lstat(os.path.join(self._destination, record.path))
        except OSError:
            return False
        return is_newer(found, record.mtime_ns)


def has_further_names(record: Record) -> bool:
    """Say whether other records may lead to this one."""
    return record.fields.get(keys.LINKS) != b"1"


def alone(record: Record) -> bytes:
    """Return the line of a further name as that of a file by itself."""
    return format_record(record.path, {k: v for k, v in record.fields.items() if k != keys.HARD_LINK})


def file_of(record: Record) -> bytes:
    """Return what the records of one file's names have in common."""
    same = record.fields.get(keys.INODE) or record.fields.get(keys.HARD_LINK, b"")
    return same + b" " + record.hash


def missing_leaders(frames: Iterable[Frame], failures: list[tuple[bytes, str, str]]) -> Iterator[bytes]:
    """Yield the records of hard links that failed for want of their leader."""
    missing = {path for path, code, _ in failures if code == "not_found"}
    for frame in frames if missing else ():
        if frame.op == Op.HARD_LINK and parse_record(frame.line, check=False).path in missing:
            yield frame.line
