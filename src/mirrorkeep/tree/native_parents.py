"""The opened directories of one call: every entry is reached by name in its parent's descriptor.

A path is walked component by component with ``O_NOFOLLOW``, so a link planted anywhere in it is
refused, and nothing outside the root can be reached.  Descriptors are kept for the length of one call
(a bundle), least recently used first out, because the entries of a bundle share their parents.

Not here: what is done with an entry.  The only change on disk is that missing directories are made,
when a caller asks for that; a crash leaves them, empty.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections import OrderedDict
from typing import Final

from mirrorkeep.errors import PathRefused
from mirrorkeep.tree.metadata.acl import DEFAULT_XATTR
from mirrorkeep.tree.metadata.flags import read_flags
from mirrorkeep.tree.native_publish import unprotected

MOST_DESCRIPTORS: Final = 64
OPEN_PARENT: Final = (
    getattr(os, "O_PATH", os.O_RDONLY)
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_REFUSED: Final = {b"", b".", b".."}


class Parents:
    """Descriptors of directories under ``root``; belongs to one thread, close it after the call."""

    __slots__ = ("_handing_down", "_open", "_root")

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._handing_down: dict[bytes, bool] = {}

    def locate(self, path: bytes, *, create: bool = False) -> tuple[int, bytes]:
        """Return the descriptor of the parent of ``path`` and the entry's name in it (``.``: the root).

        With ``create`` a directory that is missing on the way is made (mode 700: its record comes later,
        and until then nobody else looks into it); never the root.  The descriptor stays open until at
        least the next call.  Raises PathRefused for a path that is not plain or leads through a link,
        OSError when a directory on the way is missing.
        """
        parent, _, name = path.rpartition(b"/")
        if name in _REFUSED or path[:1] == b"/":
            if path:
                raise PathRefused(path=path, detail="a component is empty, '.' or '..'")
            name = b"."
        if b"\0" in name:
            raise PathRefused(path=path, detail="a name cannot hold NUL")
        fd = self._open.get(parent)
        if fd is None:
            fd = self._descend(parent, create)
        else:
            self._open.move_to_end(parent)
        return fd, name

    def knows(self, path: bytes) -> bool:
        """Return whether the parent of ``path`` was opened before and may therefore be out of date."""
        return path.rpartition(b"/")[0] in self._open

    def hands_down(self, path: bytes) -> bool:
        """Return whether the parent of ``path`` (located before) may give new files something of its own.

        An access list for new entries, a flag: what a new file has from the start and its record may not.
        """
        parent = path.rpartition(b"/")[0]
        known = self._handing_down.get(parent)
        if known is None:
            known = self._handing_down[parent] = _hands_down(self._open[parent])
        return known

    def forget(self, directory: bytes) -> None:
        """Close ``directory`` and everything below it; the next use opens it afresh."""
        below = directory + b"/" if directory else b""
        for path in [p for p in self._open if p == directory or p.startswith(below)]:
            self._drop(path, self._open.pop(path))

    def close(self) -> None:
        """Close all descriptors."""
        while self._open:
            self._drop(*self._open.popitem())

    def _drop(self, path: bytes, fd: int) -> None:
        self._handing_down.pop(path, None)
        os.close(fd)

    def _descend(self, directory: bytes, create: bool) -> int:
        """Open ``directory`` and what is not open of the way to it, from the nearest that is; step by step,
        for a tree may be deeper than calls can be nested."""
        nearest = directory
        while nearest and nearest not in self._open:
            nearest = nearest.rpartition(b"/")[0]
        fd = self._open.get(nearest)
        if fd is None:
            # The root itself may be reached through links: it is the user's own choice of place.
            fd = self._keep(b"", os.open(self._root, OPEN_PARENT & ~getattr(os, "O_NOFOLLOW", 0)))
        if nearest == directory:
            return fd
        names = directory[len(nearest) + 1 if nearest else 0 :].split(b"/")
        if not _REFUSED.isdisjoint(names) or b"\0" in directory:
            raise PathRefused(path=directory, detail="a component is empty, '.' or '..'")
        here = nearest
        for name in names:
            here = here + b"/" + name if here else name
            fd = self._keep(here, self._open_child(fd, here, name, create))
        return fd

    def _open_child(self, fd: int, directory: bytes, name: bytes, create: bool) -> int:
        try:
            return os.open(name, OPEN_PARENT, dir_fd=fd)
        except FileNotFoundError:
            if not create:
                raise
            with contextlib.suppress(FileExistsError):  # another worker was faster
                unprotected(functools.partial(os.mkdir, name, 0o700, dir_fd=fd), fd)
            return os.open(name, OPEN_PARENT, dir_fd=fd)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(fd, name):
                raise PathRefused(path=directory, detail="leads through a symbolic link") from None
            raise

    def _keep(self, directory: bytes, fd: int) -> int:
        while len(self._open) >= MOST_DESCRIPTORS:
            self._drop(*self._open.popitem(last=False))
        self._open[directory] = fd
        return fd


def _hands_down(dir_fd: int) -> bool:
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    except (OSError, AttributeError):
        return True
    try:
        return bool(read_flags(fd)) or DEFAULT_XATTR in os.listxattr(fd)
    except (OSError, AttributeError):
        return True
    finally:
        os.close(fd)


def _is_link(dir_fd: int, name: bytes) -> bool:
    try:
        os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return False
    return True
