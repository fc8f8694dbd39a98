"""The staging folder: files in the making, inside the same file system as the tree they are made for.

Everything that replaces something is written here first and then renamed, so that a reader sees the old
or the new.  ``ROOT/.mirrorkeep/.mirrorkeep.staging`` holds, by first letters: ``s.`` single files in the
making, ``h.KEY.DIGEST`` what the first phase of a move keeps, ``t.ID...`` transactions, ``m.ID`` logged moves
(``stored_plain`` replays them), ``d.ID`` what is being deleted.

Not here: what is published, and when (``placement``).  A crash leaves staged files behind; nothing reads
them as entries, and :meth:`Staging.empty` removes them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat as stat_module
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from mirrorkeep.tree.layout import HIDDEN, OPEN_DIRECTORY, STAGING, Directories, storage_errors
from mirrorkeep.tree.removal import remove_tree

NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_STAGED: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_JUST_HELD: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE: Final = HIDDEN + b"/" + STAGING
HELD: Final = b"h."
TRANSACTION: Final = b"t."
MOVE_LOG: Final = b"m."
DELETED: Final = b"d."
_FICLONE: Final = 0x40049409
_RENAME_EXCHANGE: Final = 2
_COPY_BYTES: Final = 1 << 24
_NO_EXCHANGE: Final = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_NO_CLONE: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY)
_GROUP: Final = re.compile(rb"(t\.[0-9a-f]+)")
_libc = ctypes.CDLL(None, use_errno=True)


class Staging:
    """The staging folder of one stored tree; made at the first write.  Safe for threads and forks."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._fd = -1

    @property
    def fd(self) -> int:
        """Descriptor of the folder, which is made when it is missing; raises OSError."""
        if self._fd < 0:
            self._fd = self._open()
        return self._fd

    def _open(self) -> int:
        directories = Directories(self._root_fd)
        try:
            hidden = directories.get(b"").open_hidden(make=True)
            try:
                os.mkdir(STAGING, 0o700, dir_fd=hidden)
            except FileExistsError:
                pass
            return os.open(STAGING, OPEN_DIRECTORY, dir_fd=hidden)
        finally:
            directories.close()

    def renew(self) -> None:
        """Go over to the folder that is there now, if somebody took the one that is open away (about 2 us).

        The descriptor keeps its number, for other threads are using it.  Raises NoSpace, StorageFailure.
        """
        if self._fd < 0:
            return
        try:
            there = os.stat(_PLACE, dir_fd=self._root_fd, follow_symlinks=False)
            if os.path.samestat(there, os.fstat(self._fd)):
                return
        except FileNotFoundError:
            pass
        with storage_errors(_PLACE):
            fresh = self._open()
        try:
            os.dup2(fresh, self._fd, inheritable=False)
        finally:
            os.close(fresh)

    def exists(self) -> bool:
        """Say whether the folder is there, without making it."""
        try:
            os.stat(_PLACE, dir_fd=self._root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> Iterator[bytes]:
        """Yield what is in the folder now; raises OSError.

        Listed through a descriptor of its own: btrfs leaves out what was made since a descriptor was opened.
        """
        fd = os.open(b".", OPEN_DIRECTORY, dir_fd=self.fd)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield os.fsencode(entry.name)
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def create(self, mode: int = 0o600, name: bytes | None = None) -> tuple[bytes, int]:
        """Make an empty staged file; returns its name and a descriptor to read and write it."""
        name = name or new_name()
        return name, os.open(name, _NEW_STAGED, mode, dir_fd=self.fd)

    def write(self, data: bytes, name: bytes | None = None, *, durable: bool = False) -> bytes:
        """Make a staged file with ``data`` and return its name; nothing stays behind on OSError."""
        name, fd = self.create(name=name)
        try:
            try:
                write_all(fd, data)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            self.discard(name)
            raise
        return name

    def discard(self, name: bytes) -> None:
        """Remove a staged file or link; missing is fine, and so is a failure (emptied later)."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError:
            pass

    def discard_behind(self, name: bytes) -> None:
        """Remove a large staged file as :meth:`discard` does; its memory is given back behind the scenes.

        The kernel does that with the last name, and takes 0.2 s for a GiB: a thread lets go of the file.
        Where there is no descriptor or no thread to be had, whoever calls waits for it.
        """
        fd = -1
        with suppress(OSError):
            fd = os.open(name, _JUST_HELD, dir_fd=self.fd)
        self.discard(name)
        if fd < 0:
            return
        try:
            threading.Thread(target=os.close, args=(fd,), name="discard", daemon=True).start()
        except RuntimeError:
            os.close(fd)

    def swap_in(self, staged: bytes, dir_fd: int, name: bytes) -> bytes:
        """Put ``staged`` at ``name``.  Returns the staged name of what was there; nothing was: ``b""``.

        A name that requests know (of a transaction, of what is held) is given up first.  It would name what
        was replaced, and a request that is repeated after a kill would take that for the new file.
        On OSError ``staged`` is as it was.
        """
        own = staged
        if staged.startswith((HELD, TRANSACTION)):
            own = new_name()
            os.rename(staged, own, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        try:
            return self._swap(own, dir_fd, name)
        except OSError:
            if own != staged:
                with suppress(OSError):  # it is missing then, and has to be sent again
                    os.rename(own, staged, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            raise

    def _swap(self, own: bytes, dir_fd: int, name: bytes) -> bytes:
        try:
            exchange(self.fd, own, dir_fd, name)
            return own
        except FileNotFoundError:
            os.rename(own, name, src_dir_fd=self.fd, dst_dir_fd=dir_fd)
            return b""
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
        kept = new_name()
        try:
            os.link(name, kept, src_dir_fd=dir_fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            kept = b""
        os.rename(own, name, src_dir_fd=self.fd, dst_dir_fd=dir_fd)
        self.discard(own)  # renaming a name over another of the same inode does nothing
        return kept

    def swap_out(self, replaced: bytes, dir_fd: int, name: bytes) -> None:
        """Undo :meth:`swap_in`, which returned ``replaced``: what was at ``name`` is there again."""
        if replaced:
            os.rename(replaced, name, src_dir_fd=self.fd, dst_dir_fd=dir_fd)
        else:
            os.unlink(name, dir_fd=dir_fd)

    def empty(self, older_than_s: float = 0.0) -> int:
        """Remove what nobody touched for ``older_than_s``, logged moves excepted; returns how many.

        The files of one transaction are as young as the youngest of them.
        """
        if not self.exists():
            return 0
        limit_ns = time.time_ns() - int(older_than_s * 1e9)
        youngest: dict[bytes, int] = {}
        members: dict[bytes, list[bytes]] = {}
        removed = 0
        for name in self.names():
            if name.startswith(MOVE_LOG):
                continue
            match = _GROUP.match(name)
            group = match[1] if match else name
            if older_than_s <= 0:  # one by one: a run that was cut off may have held any number of files
                self.remove_whole(name)
                removed += 1
                continue
            try:
                status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            members.setdefault(group, []).append(name)
            # The clock of the last change, for a held file carries the times of its entry.
            youngest[group] = max(youngest.get(group, 0), status.st_ctime_ns)
        for group, names in members.items():
            if youngest[group] <= limit_ns:
                for name in names:
                    self.remove_whole(name)
                    removed += 1
        return removed

    def remove_whole(self, name: bytes) -> None:
        """Remove a staged file, link or directory with all that is in it; missing is fine."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat_module.S_ISDIR(status.st_mode):
            with suppress(OSError):  # what stays is emptied later
                remove_tree(name, dir_fd=self.fd)
        else:
            self.discard(name)


def new_name(prefix: bytes = b"s.") -> bytes:
    """Return a name that no other process will choose."""
    return prefix + os.urandom(12).hex().encode()


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at the descriptor's position; raises OSError (ENOSPC for a short write)."""
    written = os.write(fd, data)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        count = os.write(fd, view[written:])
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += count


def exchange(src_dir_fd: int, src: bytes, dst_dir_fd: int, dst: bytes) -> None:
    """Exchange two names atomically (renameat2); raises OSError, ENOENT when either is missing."""
    if _libc.renameat2(src_dir_fd, src, dst_dir_fd, dst, _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), dst)


def sync_file_system(fd: int) -> None:
    """Make everything on the file system of ``fd`` durable (syncfs); raises OSError."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def try_clone(source_fd: int, target_fd: int) -> bool:
    """Make the target share all blocks of the source (FICLONE); False where that cannot be."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
        return True
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False


def copy_content(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """Make the empty target hold what the source holds, shared where possible, holes kept."""
    if try_clone(source_fd, target_fd):
        return
    os.ftruncate(target_fd, size_bytes)
    position = 0
    while position < size_bytes:
        try:
            position = os.lseek(source_fd, position, os.SEEK_DATA)
            end = min(os.lseek(source_fd, position, os.SEEK_HOLE), size_bytes)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole to the end
            end = size_bytes
        while position < end:
            position += copy_range(source_fd, target_fd, position, min(end - position, _COPY_BYTES))


def copy_range(source_fd: int, target_fd: int, position: int, count: int) -> int:
    """Copy up to ``count`` bytes at ``position`` and return how many, at least one; raises OSError."""
    try:
        done = os.copy_file_range(source_fd, target_fd, count, position, position)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        done = os.pwrite(target_fd, os.pread(source_fd, min(count, 1 << 20), position), position)
    if done == 0:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return done
