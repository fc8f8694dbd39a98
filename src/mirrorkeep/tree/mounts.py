"""Where other file systems are mounted in a tree, last time and now.

A mount point whose file system is not mounted is a folder like any other: empty, or with files that had been
hidden.  What was mounted there must not be taken for deleted (design, trap 6), so a walk is told where the
mount points of last time were.  A mount point is a directory whose device is not that of the directory above;
device numbers themselves change when a machine starts, and are never kept.

Not here: the walk, where the paths are remembered (``sync/state``).  Nothing here writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


class Mounts:
    """The mount points that one walk of ``root`` meets, beside those of last time; paths below ``root``."""

    def __init__(self, root: bytes = b"", before: Iterable[bytes] = (), *, may_be_gone: bool = False) -> None:
        """``may_be_gone``: what is no longer mounted was meant to go; its folder is one like any other."""
        self._root = root
        self._may_be_gone = may_be_gone
        self.before = frozenset(before)
        self.found: set[bytes] = set()
        self._missing: set[bytes] = set()
        self._given_up: set[bytes] = set()

    def is_missing(self, path: bytes, device: int, above: int) -> bool:
        """Take note of a directory, and return whether the mount that was there is missing.

        The devices are those of the open directories: an automounter mounts when a directory is opened.
        """
        if device != above:
            self.found.add(path)
        elif path in self.before:
            (self._given_up if self._may_be_gone else self._missing).add(path)
            return not self._may_be_gone
        return False

    def all(self) -> set[bytes]:
        """Return what is to be remembered while a run is open: its target may hold files of any of these."""
        return self.found | self.before

    def remaining(self) -> set[bytes]:
        """Return what is to be remembered once a run has closed.

        A mount point is forgotten when its folder is gone, or was taken for an ordinary one.  A folder that
        this walk did not come to may be looked at by the next.
        """
        doubtful = self.before - self._given_up
        return self.found | {path for path in doubtful if self._is_below_missing(path) or self._may_be(path)}

    def _is_below_missing(self, path: bytes) -> bool:
        return any(path.startswith(missing + b"/") for missing in self._missing)

    def _may_be(self, path: bytes) -> bool:
        try:
            os.lstat(os.path.join(self._root, path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True
