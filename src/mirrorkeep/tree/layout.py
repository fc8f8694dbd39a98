"""Where things lie inside a stored tree, and how to get there without leaving it.

Every path is walked one name at a time with ``dir_fd`` and ``O_NOFOLLOW``, so that a link planted in a
tree leads nowhere (design, trap 10).  The hidden folder and everything that belongs to the server begins
with ``.mirrorkeep``; a user's name that does too, or that the file system cannot hold, is stored as
``.mirrorkeep~ID`` with the true name in its sidecar's record (trap 9): no path that a user can write
reaches a hidden folder.

Not here: what sidecars contain (``sidecar``), putting entries in place (``placement``).
A crash leaves at most directories that were made on the way to an entry, empty and without a sidecar.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stat_module
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mirrorkeep.errors import (
    AlreadyExists,
    MirrorkeepError,
    NoSpace,
    NotFound,
    PathRefused,
    ReadOnly,
    StorageFailure,
)

HIDDEN: Final = b".mirrorkeep"
ROOT_SIDECAR: Final = b".mirrorkeep.root"
MANIFEST: Final = b".mirrorkeep.manifest"
STAGING: Final = b".mirrorkeep.staging"
FILE_SYSTEM_FOLDER: Final = b"lost+found"
"""What ext4 puts in its root: no entry of a tree that begins there, unless something was stored there."""
_LONG_PREFIX: Final = b".mirrorkeep~"
MAX_NAME_BYTES: Final = 255
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REFUSED_NAMES: Final = frozenset((b"", b".", b".."))


def stored_name(name: bytes) -> bytes:
    """Return the name under which the server's file system holds ``name``; raises PathRefused."""
    if name.startswith(HIDDEN) or len(name) > MAX_NAME_BYTES:
        return _LONG_PREFIX + hashlib.sha256(name).hexdigest()[:32].encode()
    if name in _REFUSED_NAMES or b"\0" in name:
        raise PathRefused(path=name, detail="not a name")
    return name


def is_replaced_name(native: bytes) -> bool:
    """Say whether ``native`` stands for a name that only the sidecar knows."""
    return native.startswith(_LONG_PREFIX)


def is_own_name(native: bytes) -> bool:
    """Say whether a native name belongs to the server and is no entry of the tree."""
    return native.startswith(HIDDEN) and not native.startswith(_LONG_PREFIX)


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """Return the parent's path and the stored name of the last component (b"" for the root)."""
    if not path:
        return b"", b""
    parent, slash, name = path.rpartition(b"/")
    if slash and not parent:
        raise PathRefused(path=path, detail="paths in a tree are relative")
    return parent, stored_name(name)


def storage_error(error: OSError, path: bytes) -> MirrorkeepError:
    """Return what ``error`` at ``path`` means in the one error tree; the caller raises or reports it."""
    detail = f"{printable_path(path)}: {error.strerror}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpace(detail=detail)
        case errno.ENOENT:
            return NotFound(what=path)
        case errno.EEXIST | errno.ENOTEMPTY | errno.EISDIR:
            return AlreadyExists(what=path)
        case errno.ELOOP | errno.ENOTDIR:
            return PathRefused(path=path, detail="a link or a file stands where a directory is needed")
        case errno.ENAMETOOLONG | errno.EILSEQ:
            return PathRefused(path=path, detail="the storage cannot hold this name")
        case errno.EROFS:
            return ReadOnly(path=path, detail="the storage is read-only")
        case _:
            return StorageFailure(detail=detail)


def printable_path(path: bytes) -> str:
    """Return ``path`` for a message, ``/`` for the root."""
    return path.decode("utf-8", "backslashreplace") or "/"


@contextmanager
def storage_errors(path: bytes) -> Iterator[None]:
    """Turn OSError inside the block into the one error tree, naming ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


class Directory:
    """An open directory of the tree, with its hidden folder once that was needed.

    ``gid`` is the group that new entries get here (-1: not known to be the process's), and ``inherits``
    says that new entries get an ACL from the directory's default, which then has to be taken off.
    """

    __slots__ = ("fd", "gid", "hidden", "inherits")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.hidden = -1
        status = os.fstat(fd)
        self.gid = status.st_gid if status.st_mode & stat_module.S_ISGID else os.getegid()
        try:
            os.getxattr(fd, b"system.posix_acl_default")
            self.inherits = True
        except OSError:
            self.inherits = False

    def open_hidden(self, make: bool) -> int:
        """Return the descriptor of the hidden folder, making it when ``make``; raises OSError."""
        if self.hidden < 0:
            try:
                self.hidden = os.open(HIDDEN, OPEN_DIRECTORY, dir_fd=self.fd)
            except FileNotFoundError:
                if not make:
                    raise
                try:
                    os.mkdir(HIDDEN, 0o700, dir_fd=self.fd)
                except FileExistsError:
                    pass
                self.hidden = os.open(HIDDEN, OPEN_DIRECTORY, dir_fd=self.fd)
                if self.inherits:
                    strip_acl(self.hidden, 0o700)
        return self.hidden

    def close(self) -> None:
        os.close(self.fd)
        if self.hidden >= 0:
            os.close(self.hidden)
            self.hidden = -1


def strip_acl(fd: int, mode: int) -> None:
    """Take off the ACLs that an entry inherited at its creation and set its mode; raises OSError."""
    for name in (b"system.posix_acl_access", b"system.posix_acl_default"):
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES):
                raise
    os.fchmod(fd, mode)


class Directories:
    """A cache of open directories, by path, for the length of one call (or for ever when read-only).

    Directories that others move away while they are cached would be written to at their new place:
    writable trees therefore keep a cache for one call only.  Not thread-safe.  Descriptors are closed by
    :meth:`trim` and :meth:`close`, never while :meth:`get` may still hand them out.
    """

    def __init__(self, root_fd: int, capacity: int = 64) -> None:
        self._root_fd = root_fd
        self._capacity = capacity
        self._open: dict[bytes, Directory] = {}

    def __del__(self) -> None:
        self.close()

    def get(self, path: bytes, make: bool = False) -> Directory:
        """Return the directory at ``path``, making missing ones with ``make`` (mode 0700, no sidecar).

        Stays valid until the next :meth:`trim`.  Raises PathRefused, OSError.
        """
        found = self._open.get(path)
        if found is not None:
            return found
        if not path:
            found = Directory(os.open(b".", OPEN_DIRECTORY, dir_fd=self._root_fd))
        else:
            parent, slash, name = path.rpartition(b"/")
            if slash and not parent:
                raise PathRefused(path=path, detail="paths in a tree are relative")
            if parent in self._open or not parent:
                above = self.get(parent)
                found = Directory(self._open_child(above, stored_name(name), make))
            else:
                found = self._descend(path, make)
        self._open[path] = found
        return found

    def _descend(self, path: bytes, make: bool) -> Directory:
        """Open ``path`` from its nearest open ancestor, keeping no more descriptors than the capacity.

        Of a way that is longer its end is kept: what comes next is mostly near.
        """
        names = path.split(b"/")
        known = len(names) - 1
        while known and b"/".join(names[:known]) not in self._open:
            known -= 1
        room = self._capacity - len(self._open)
        if len(names) - known > self._capacity:
            room = max(room, self._capacity // 4)  # until the next trim
        here, borrowed = self.get(b"/".join(names[:known])), True
        for depth in range(known + 1, len(names) + 1):
            try:
                below = Directory(self._open_child(here, stored_name(names[depth - 1]), make))
            finally:
                if not borrowed:
                    here.close()
            here = below
            borrowed = 0 < len(names) - depth < room
            if borrowed:
                self._open[b"/".join(names[:depth])] = here
        return here

    def _open_child(self, above: Directory, name: bytes, make: bool) -> int:
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=above.fd)
        except FileNotFoundError:
            if not make:
                raise
        try:
            os.mkdir(name, 0o700, dir_fd=above.fd)
        except FileExistsError:
            pass
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=above.fd)
        if above.inherits:
            strip_acl(fd, 0o700)
        return fd

    def forget(self, path: bytes) -> None:
        """Close ``path`` and everything below it: it was removed, replaced or moved."""
        below = path + b"/"
        for known in [p for p in self._open if p == path or p.startswith(below)]:
            self._open.pop(known).close()

    def trim(self) -> None:
        """Close the longest-open directories beyond the capacity."""
        while len(self._open) > self._capacity:
            self._open.pop(next(iter(self._open))).close()

    def close(self) -> None:
        """Close every directory."""
        while self._open:
            self._open.popitem()[1].close()
