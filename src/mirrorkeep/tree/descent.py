"""The way down a tree of any depth: open directories, of which only the innermost hold descriptors.

Answers for: the directory that is come back to is the one that was gone down from, by device and inode,
although it was closed meanwhile and whatever was moved.  Steps go by ``dir_fd`` and ``O_NOFOLLOW``: no path
is too long, and a link planted in a tree leads nowhere (design, trap 10).

Not here: what is in a directory, what it is looked at for.  Nothing is kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

LEVELS_OPEN: Final = 64
"""Most levels that hold a descriptor, beside the top: as many as any ordinary tree has."""

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Descent:
    """A directory and, one in the other, those that were entered below it.  Belongs to one thread."""

    __slots__ = ("_closed", "_fds", "_names")

    def __init__(self, top_fd: int) -> None:
        """Begin at the open directory ``top_fd``, which belongs to this object from now on."""
        self._fds = [top_fd]
        self._names: list[str | bytes] = [b""]
        self._closed: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """Descriptor of the innermost directory, this object's; -1 where :meth:`leave` failed to open it."""
        return self._fds[-1]

    @property
    def name(self) -> str | bytes:
        """Name of the innermost directory in the one around it."""
        return self._names[-1]

    def enter(self, name: str | bytes) -> int:
        """Go down to the child ``name`` and return its descriptor; raises OSError: nothing has changed."""
        fds = self._fds
        fd = os.open(name, _OPEN, dir_fd=fds[-1])
        fds.append(fd)
        self._names.append(name)
        if len(fds) > LEVELS_OPEN + 1:
            self._let_go(len(fds) - 1 - LEVELS_OPEN)
        return fd

    def leave(self) -> int:
        """Go up again and return the descriptor of the directory there, maybe another one than before.

        Raises OSError when that directory cannot be found again; it is the innermost one all the same, and
        may be left in its turn.
        """
        fds = self._fds
        child = fds.pop()
        self._names.pop()
        try:
            if fds[-1] < 0:
                fds[-1] = self._find_again(child)
        finally:
            if child >= 0:
                os.close(child)
        return fds[-1]

    def close(self) -> None:
        """Close every directory."""
        while self._fds:
            fd = self._fds.pop()
            if fd >= 0:
                os.close(fd)

    def _let_go(self, level: int) -> None:
        fd = self._fds[level]
        if fd >= 0:
            self._closed[level] = _identity(fd)
            os.close(fd)
            self._fds[level] = -1

    def _find_again(self, child: int) -> int:
        """Open the innermost directory anew: through its child, or from the top if that was moved away."""
        wanted = self._closed[len(self._fds) - 1]
        if child >= 0:
            with suppress(OSError):
                return _checked(os.open(b"..", _OPEN, dir_fd=child), wanted)
        try:
            return _checked(_open_below(self._fds[0], self._names[1:]), wanted)
        except FileNotFoundError:
            raise _moved() from None


def _open_below(top_fd: int, names: Iterable[str | bytes]) -> int:
    fd = os.dup(top_fd)
    for name in names:
        try:
            below = os.open(name, _OPEN, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _checked(fd: int, wanted: tuple[int, int]) -> int:
    if _identity(fd) == wanted:
        return fd
    os.close(fd)
    raise _moved()


def _moved() -> OSError:
    return OSError(errno.ESTALE, "the directory was moved or replaced meanwhile")


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
