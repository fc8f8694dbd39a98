"""Destinations that take ``A`` and ``a`` for one name: collisions are refused, never merged.

Whether a root folds case is found out once, by making a file and looking for it in capitals.  Where it
does, a name that is found but not listed in exactly that spelling belongs to another entry.

A crash leaves at worst the empty probe file, whose name begins with ``.mirrorkeep-part-``.
"""

from __future__ import annotations

import os

from mirrorkeep.errors import PathRefused
from mirrorkeep.tree.native_publish import discard, temporary_name


class CaseGuard:
    """Knows of one root whether it folds case; one instance serves all threads."""

    __slots__ = ("_listed", "_names", "folds")

    def __init__(self, folds: bool | None = None) -> None:
        self.folds = folds
        self._listed: tuple[int, int] | None = None
        self._names: frozenset[bytes] = frozenset()

    def check(self, dir_fd: int, name: bytes, path: bytes) -> None:
        """Raise PathRefused when ``name`` would fall on an entry that is spelled differently."""
        if self.folds is None:
            self.folds = folds_case(dir_fd)
        if not self.folds:
            return
        try:
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        directory = os.stat(b".", dir_fd=dir_fd)
        if self._listed == (directory.st_dev, directory.st_ino) and name in self._names:
            return
        self._names, self._listed = _list_names(dir_fd), (directory.st_dev, directory.st_ino)
        if name not in self._names:
            raise PathRefused(
                path=path, detail="this place does not tell capitals apart, and another spelling is taken"
            )


def folds_case(dir_fd: int) -> bool:
    """Return whether names in this directory that differ only in capitals are one and the same."""
    probe = temporary_name() + b"-case"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=dir_fd))
    except OSError:
        return False  # nothing can be written here: the write itself will say why
    try:
        os.stat(probe.upper(), dir_fd=dir_fd, follow_symlinks=False)
        return True
    except OSError:
        return False
    finally:
        discard(dir_fd, probe)


def _list_names(dir_fd: int) -> frozenset[bytes]:
    fd = os.open(b".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return frozenset(map(os.fsencode, os.listdir(fd)))
    finally:
        os.close(fd)
