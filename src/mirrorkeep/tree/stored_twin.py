"""Content of a snapshot, read in the tree it was taken of, where that still has the same file (ADR 0015).

A snapshot's inodes are in no cache, and looking one up costs more than reading a small file.  Nothing here is
trusted: whoever reads compares with a digest, and asks for the snapshot's own file when it does not agree.

Not here: reading.  Nothing is changed.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.tree.layout import Directories
from mirrorkeep.tree.placement import READ_FILE, Placement

SLACK_NS: Final = 2_000_000_000
"""A write may note its time, then wait while a snapshot is taken."""


@dataclass(frozen=True, slots=True)
class Twin:
    """The tree that a snapshot was taken of, and a way to ask when (ns; None: not known)."""

    placement: Placement
    taken_ns: Callable[[], int | None]


class Found(NamedTuple):
    """An open file, the caller's to close, and what it is."""

    fd: int
    status: os.stat_result


class TwinReader:
    """Finds files in the other tree; for one call."""

    def __init__(self, directories: Directories, snapshot: Directories, taken_ns: int | None) -> None:
        """Look in ``directories`` for what ``snapshot`` has."""
        self._directories = directories
        self._snapshot = snapshot
        self._before_ns = 0 if taken_ns is None else taken_ns - SLACK_NS
        self._same_folder: dict[bytes, bool] = {}

    def untouched(self, parent: bytes, name: bytes) -> Found | None:
        """Open the file if its folder is the snapshot's and it was not changed, moved or made since then.

        Then it is the snapshot's, which need not be looked at: every change, of the name too, sets the inode
        change time, which nobody can set back (but a clock that is).
        """
        before_ns = self._before_ns
        try:
            if not before_ns or not self._is_same_folder(parent):
                return None
        except (MirrorkeepError, OSError):
            return None
        return self._open_if(
            parent, name, lambda found: stat_module.S_ISREG(found.st_mode) and found.st_ctime_ns < before_ns
        )

    def same(self, parent: bytes, name: bytes, wanted: os.stat_result) -> Found | None:
        """Open the file if it is the very one that the snapshot has."""
        return self._open_if(parent, name, lambda found: _version(found) == _version(wanted))

    def trim(self) -> None:
        """Close directories beyond the cache."""
        self._directories.trim()

    def _open_if(self, parent: bytes, name: bytes, fits: Callable[[os.stat_result], bool]) -> Found | None:
        fd = -1
        try:
            fd = os.open(name, READ_FILE, dir_fd=self._directories.get(parent).fd)
            status = os.fstat(fd)
            if fits(status):
                return Found(fd, status)
        except (MirrorkeepError, OSError):
            pass
        if fd >= 0:
            os.close(fd)
        return None

    def _is_same_folder(self, path: bytes) -> bool:
        """Say whether both have the same folder at ``path``, wherever it or those above it have been."""
        known = self._same_folder.get(path)
        if known is None:
            here, there = self._directories.get(path).fd, self._snapshot.get(path).fd
            known = self._same_folder[path] = os.fstat(here).st_ino == os.fstat(there).st_ino
        return known


def _version(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return what no write leaves as it was: whoever sets the times back changes the last of them."""
    return status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
