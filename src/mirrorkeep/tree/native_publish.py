"""Files in the making and the one moment in which they get their name.

A new file has no name at all (``O_TMPFILE``) until it is linked to its own; what replaces something is
given a temporary name beside it and renamed over it.  Where the file system cannot hold nameless files
the temporary name comes first.  A restore may make a file under a name that is free (docs/adr/0017): until
it is whole its mode is ``MAKING``, by which anybody, and the next restore, can tell it.

A crash leaves the old entry or the new one, and at worst a name that begins with
``.mirrorkeep-part-``, or a new file of mode ``MAKING``.  Nothing is made durable here.  Not here: what goes
into the file.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat as st
import sys
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from mirrorkeep.errors import AlreadyExists
from mirrorkeep.manifest import keys
from mirrorkeep.tree.metadata.flags import PROTECTING, clear_protection, read_flags, write_flags
from mirrorkeep.tree.metadata.posix import OPEN_ENTRY

PART_PREFIX: Final = b".mirrorkeep-part-"
"""Names of files in the making; whatever begins so may be removed when nothing is running."""

MAKING: Final = 0o1000
"""Mode of a file that has its name and is not whole yet: nobody may read it, and the sticky bit, which means
nothing on a file, tells it from the files of others."""

_MARKS: Final = sys.platform == "linux"
_NOT_IN_PLACE: Final = (errno.EEXIST, errno.EPERM, errno.EINVAL)
_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_UNNAMED: Final = getattr(os, "O_TMPFILE", 0)
_NO_UNNAMED: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_MARK: Final = os.urandom(4).hex().encode()
_numbers = itertools.count()
_Result = TypeVar("_Result")


def temporary_name() -> bytes:
    """Return a name that no other process and no earlier call uses."""
    return b"%b%x-%b-%x" % (PART_PREFIX, os.getpid(), _MARK, next(_numbers))


class NewFile:
    """A regular file in the making in one directory: open, empty, not yet visible.

    ``mode`` is what it may be read by already, as far as the process's mask lets it: a file that needs a
    name from the beginning has 0600 until it is stamped.  Close it in every case; a file that was not
    published is then gone.

    ``free_name`` is a name that may be free: then the file is made under it, with the mode ``MAKING``, which
    the caller changes last, and ``status`` says what the new file is.  Else ``status`` is None.
    """

    __slots__ = ("_dir_fd", "_named", "_temporary", "fd", "status")

    def __init__(self, dir_fd: int, mode: int = 0o600, *, free_name: bytes | None = None) -> None:
        self._dir_fd = dir_fd
        self._temporary: bytes | None = None
        self._named: bytes | None = None
        self.status: os.stat_result | None = None
        fd = self._create_in_place(free_name) if free_name is not None and _MARKS else -1
        self.fd = fd if fd >= 0 else self._create(mode)

    def _create_in_place(self, name: bytes) -> int:
        """Make the file under its own name; -1 where that is taken, or the mark is not kept."""
        try:
            fd = os.open(name, _CREATE, MAKING, dir_fd=self._dir_fd)
        except OSError as error:
            if error.errno in _NOT_IN_PLACE:
                return -1
            raise
        status = os.fstat(fd)
        if st.S_IMODE(status.st_mode) != MAKING:  # a file system without modes
            os.close(fd)
            discard(self._dir_fd, name)
            return -1
        self._named, self.status = name, status
        return fd

    def _create(self, mode: int) -> int:
        if _UNNAMED:
            try:
                return os.open(b".", os.O_RDWR | os.O_CLOEXEC | _UNNAMED, mode, dir_fd=self._dir_fd)
            except OSError as error:
                if error.errno not in _NO_UNNAMED and error.errno != errno.EPERM:
                    raise
        self._temporary = temporary_name()

        def create() -> int:
            return os.open(self._temporary or b"", _CREATE, 0o600, dir_fd=self._dir_fd)

        return unprotected(create, self._dir_fd)

    def publish(self, name: bytes, *, replace: bool = True) -> None:
        """Give the file its name, in the place of whatever non-directory has it.

        With ``replace=False`` a name that is taken raises FileExistsError.  AlreadyExists when a
        directory is in the way.
        """
        if self._named is not None:
            self._named = None
            return
        dir_fd = self._dir_fd
        if self._temporary is None:
            path = b"/proc/self/fd/%d" % self.fd
            try:
                os.link(path, name, dst_dir_fd=dir_fd, follow_symlinks=True)
                return
            except FileExistsError:
                if not replace:
                    raise
            self._temporary = temporary_name()
            unprotected(
                lambda: os.link(path, self._temporary or b"", dst_dir_fd=dir_fd, follow_symlinks=True), dir_fd
            )
        if replace:
            rename_over(dir_fd, self._temporary, dir_fd, name)
        else:
            os.link(self._temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            discard(dir_fd, self._temporary)
        self._temporary = None

    def close(self) -> None:
        """Close the file; it is gone unless it was published."""
        os.close(self.fd)
        if self._temporary is not None:
            discard(self._dir_fd, self._temporary)
        if self._named is not None and _has(self._dir_fd, self._named, self.status):
            discard(self._dir_fd, self._named)


def rename_over(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """Rename, replacing any non-directory; AlreadyExists when a directory is in the way."""

    def rename() -> None:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    try:
        unprotected(rename, target_fd, target)
    except IsADirectoryError:
        raise AlreadyExists(what=target) from None


def unprotected(action: Callable[[], _Result], dir_fd: int, *names: bytes) -> _Result:
    """Do ``action``; where an immutable or append-only flag forbids it, clear that flag and do it again.

    Looks at the directory and at ``names`` in it.  The directory gets its flags with its next STAMP, which
    every change in it brings about; one that no record describes gets them back from its :class:`Protection`.
    """
    try:
        return action()
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        cleared = [_clear(dir_fd, name) for name in (b".", *names)]
        if not any(cleared):
            raise
        return action()


class Protection:
    """The flags that protect a directory, to be given back after work in it that may clear them."""

    def __init__(self, directory: bytes) -> None:
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._flags = read_flags(self._fd) & PROTECTING

    def renounce(self) -> None:
        """Leave the flags as they are by now: a record said what they should be."""
        self._flags = 0

    def close(self) -> None:
        """Give back the flags that are gone."""
        now = read_flags(self._fd) if self._flags else 0
        if self._flags & ~now:
            write_flags(self._fd, now | self._flags)
        os.close(self._fd)


def is_newer(found: os.stat_result, mtime_ns: int) -> bool:
    """Say whether an entry was changed after ``mtime_ns``; one that a restore left half made never was."""
    if st.S_ISREG(found.st_mode) and st.S_IMODE(found.st_mode) == MAKING:
        return False
    return found.st_mtime_ns > mtime_ns


def is_shared(found: os.stat_result, fields: Mapping[bytes, bytes]) -> bool:
    """Say whether an entry has more names than its record: others that are not to change with it."""
    names = fields.get(keys.LINKS, b"1")
    return found.st_nlink > max(1, int(names) if names.isdigit() else 1)


def discard(dir_fd: int, name: bytes) -> None:
    """Remove a temporary name if it is there; trouble is left for the next cleaning."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except OSError:
        pass


def clean_directory(dir_fd: int, name: bytes) -> int:
    """Remove every temporary name directly in directory ``name``; return how many there were."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        leftover = [entry for entry in map(os.fsencode, os.listdir(fd)) if entry.startswith(PART_PREFIX)]
        for entry in leftover:
            discard(fd, entry)
        return len(leftover)
    finally:
        os.close(fd)


def _has(dir_fd: int, name: bytes, status: os.stat_result | None) -> bool:
    try:
        return status is not None and os.path.samestat(
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False), status
        )
    except OSError:
        return False


def _clear(dir_fd: int, name: bytes) -> bool:
    try:
        if st.S_IFMT(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode) not in (
            st.S_IFREG,
            st.S_IFDIR,
        ):
            return False
        fd = os.open(name, OPEN_ENTRY, dir_fd=dir_fd)
    except OSError:
        return False
    try:
        return clear_protection(fd)
    finally:
        os.close(fd)
