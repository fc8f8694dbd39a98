"""Content of a snapshot, read in the tree it was taken of, where that still has the same file (ADR 0015).

A snapshot's inodes are in no cache, and looking one up costs more than reading a small file.  Nothing here is
trusted: whoever reads compares with a digest, and asks for the snapshot's own file when it does not agree.

Not here: reading.  Nothing is changed.
"""

from __future__ import annotations

import os
import stat as stat_module
from dataclasses import dataclass
from typing import Final, NamedTuple

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.tree.layout import Directories
from mirrorkeep.tree.placement import READ_FILE, Placement

SLACK_NS: Final = 2_000_000_000
"""A write may note its time, then wait while a snapshot is taken."""


@dataclass(frozen=True, slots=True)
class Twin:
    """The tree that a snapshot was taken of, and when (ns; None: not known)."""

    placement: Placement
    taken_ns: int | None


class Found(NamedTuple):
    """An open file, the caller's to close, and what it is."""

    fd: int
    status: os.stat_result


class TwinReader:
    """Finds files in the other tree; for one call."""

    def __init__(self, directories: Directories, taken_ns: int | None) -> None:
        self._directories = directories
        self._before_ns = 0 if taken_ns is None else taken_ns - SLACK_NS
        self._settled: dict[bytes, bool] = {}

    def untouched(self, parent: bytes, name: bytes) -> Found | None:
        """Open the file if neither it nor a folder on its way was changed, moved or made since the snapshot.

        Then it is the snapshot's, which need not be looked at: every change sets the inode change time, which
        nobody can set back (but a clock that is).
        """
        if not self._before_ns:
            return None
        found = None
        try:
            if self._is_settled(parent):
                found = self._open(parent, name)
                if stat_module.S_ISREG(found.status.st_mode) and found.status.st_ctime_ns < self._before_ns:
                    return found
        except (MirrorkeepError, OSError):
            pass
        if found is not None:
            os.close(found.fd)
        return None

    def same(self, parent: bytes, name: bytes, wanted: os.stat_result) -> Found | None:
        """Open the file if it is the very one that the snapshot has."""
        try:
            found = self._open(parent, name)
        except (MirrorkeepError, OSError):
            return None
        if _version(found.status) == _version(wanted):
            return found
        os.close(found.fd)
        return None

    def trim(self) -> None:
        """Close directories beyond the cache."""
        self._directories.trim()

    def _open(self, parent: bytes, name: bytes) -> Found:
        fd = os.open(name, READ_FILE, dir_fd=self._directories.get(parent).fd)
        try:
            return Found(fd, os.fstat(fd))
        except OSError:
            os.close(fd)
            raise

    def _is_settled(self, parent: bytes) -> bool:
        """Say whether no folder from the root to ``parent`` was changed since."""
        known = self._settled.get(parent)
        if known is not None:
            return known
        good, path = True, b""
        for step in (b"", *parent.split(b"/")) if parent else (b"",):
            path = path + b"/" + step if path else step
            known = self._settled.get(path)
            if known is None:
                known = good and os.fstat(self._directories.get(path).fd).st_ctime_ns < self._before_ns
                self._settled[path] = known
            good = good and known
        return good


def _version(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return what no write leaves as it was: whoever sets the times back changes the last of them."""
    return status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
