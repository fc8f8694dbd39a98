"""Copying a tree inside one file system: by reflink, by hard link, or byte by byte, metadata included.

Answers for: a copy that a stored tree can be read from as from the original: data, holes, modes, times to
the nanosecond, owners (as root), xattrs and ACLs, symbolic links, hard links, hidden folders.

Not here: naming and publishing the copy; the caller makes it under a temporary name.  A crash leaves a part
of the copy under that name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Final

from mirrorkeep.tree.descent import Descent
from mirrorkeep.tree.removal import remove_tree

_FICLONE: Final = 0x40049409
_PIECE_BYTES: Final = 1 << 30
_LINKS: Final = ".mirrorkeep.links"
_JOINED: Final = "joined"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS))


def has_reflinks(folder: str) -> bool:
    """Whether the file system of ``folder`` can share blocks between files (tried, not guessed)."""
    source = target = -1
    try:
        source = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.pwrite(source, b"\0" * 4096, 0)
        target = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
        fcntl.ioctl(target, _FICLONE, source)
        return True
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    finally:
        for fd in (source, target):
            if fd >= 0:
                os.close(fd)


def copy_tree(source: str, target: str, *, link_files: bool, skip: frozenset[str] = frozenset()) -> None:
    """Copy the directory ``source`` as ``target`` (new, or empty); ``link_files`` shares inodes.

    Entries named in ``skip`` are left out, at any depth.  Reflinks are used where they work, else the
    bytes are copied.  Raises OSError: a part of the copy stays at ``target``.
    """
    links = os.path.join(target, _LINKS)  # inside: links do not reach from one subvolume to another
    os.makedirs(target, 0o700, exist_ok=True)
    os.mkdir(links, 0o700)
    source_fd, target_fd, links_fd = (os.open(path, _DIRECTORY) for path in (source, target, links))
    try:
        _Copy(link_files, links_fd, skip).tree(source_fd, target_fd)
        if link_files and os.listdir(links_fd):
            _rejoin(target_fd, links_fd)
        remove_tree(links)
        _stamp(source_fd, target_fd, os.fstat(source_fd))
    finally:
        for fd in (source_fd, target_fd, links_fd):
            os.close(fd)


class _Copy:
    """One copy under way; files with several names stay one file, found again by a link in ``links_fd``."""

    def __init__(self, link_files: bool, links_fd: int, skip: frozenset[str]) -> None:
        self._skip = skip
        self._link_files = link_files
        self._links_fd = links_fd

    def tree(self, source_fd: int, target_fd: int) -> None:
        """Copy what is in one open directory to the other, which is empty: level by level, for a tree may be
        deeper than calls can be nested."""
        with Descent(os.dup(source_fd)) as source, Descent(os.dup(target_fd)) as target:
            pending = [self._files(source_fd, target_fd)]
            while True:
                if pending[-1]:
                    name = pending[-1].pop()
                    os.mkdir(name, 0o700, dir_fd=target.fd)
                    pending.append(self._files(source.enter(name), target.enter(name)))
                    continue
                _stamp(source.fd, target.fd, os.fstat(source.fd))
                pending.pop()
                if not pending:
                    return
                source.leave()
                target.leave()

    def _files(self, source_fd: int, target_fd: int) -> list[str]:
        """Copy what is in one directory and no folder; returns the names of the folders."""
        with os.scandir(source_fd) as entries:
            names = [entry.name for entry in entries if entry.name not in self._skip]
        folders: list[str] = []
        for name in names:
            found = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                folders.append(name)
            elif self._link_files and _link(source_fd, target_fd, name):
                continue
            elif found.st_nlink == 1:
                _copy_entry(source_fd, target_fd, name, found)
            else:
                self._member(source_fd, target_fd, name, found)
        return folders

    def _member(self, source_fd: int, target_fd: int, name: str, found: os.stat_result) -> None:
        group = f"{found.st_dev}-{found.st_ino}"
        try:
            os.link(group, name, src_dir_fd=self._links_fd, dst_dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            _copy_entry(source_fd, target_fd, name, found)
            os.link(name, group, src_dir_fd=target_fd, dst_dir_fd=self._links_fd, follow_symlinks=False)


def _rejoin(target_fd: int, links_fd: int) -> None:
    """Make files with several names one file again where some names were linked and the others copied,
    because the inode had all the links it can have by then: the copy takes the place of those links."""
    with Descent(os.dup(target_fd)) as place:
        pending = [_rejoin_files(target_fd, links_fd)]
        while True:
            if pending[-1]:
                pending.append(_rejoin_files(place.enter(pending[-1].pop()), links_fd))
                continue
            pending.pop()
            if not pending:
                return
            place.leave()


def _rejoin_files(folder_fd: int, links_fd: int) -> list[str]:
    """Do so in one directory; returns the names of the folders in it."""
    times, folders = os.fstat(folder_fd), []
    for name in os.listdir(folder_fd):
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            folders.append(name)
            continue
        group = f"{found.st_dev}-{found.st_ino}"
        with suppress(FileNotFoundError):
            os.link(group, _JOINED, src_dir_fd=links_fd, dst_dir_fd=links_fd, follow_symlinks=False)
            os.rename(_JOINED, name, src_dir_fd=links_fd, dst_dir_fd=folder_fd)
    os.utime(folder_fd, ns=(times.st_atime_ns, times.st_mtime_ns))
    return folders


def _link(source_fd: int, target_fd: int, name: str) -> bool:
    """Make the name a link to the same inode; False when the inode has all the links it can have."""
    try:
        os.link(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EMLINK:
            return False
        raise
    return True


def _copy_entry(source_fd: int, target_fd: int, name: str, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source_fd)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=target_fd)
            try:
                _copy_content(source, target, found.st_size)
                _stamp(source, target, found)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target_fd)
    if os.geteuid() == 0:
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target_fd, follow_symlinks=False)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target_fd, follow_symlinks=False)


def _copy_content(source: int, target: int, size_bytes: int) -> None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    os.truncate(target, size_bytes)
    position = 0
    while position < size_bytes:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(source, position, os.SEEK_HOLE)
        while position < end:
            done = os.copy_file_range(source, target, min(end - position, _PIECE_BYTES), position, position)
            if not done:
                return
            position += done


def _stamp(source: int, target: int, found: os.stat_result) -> None:
    """Give the open copy its metadata; mode after owner (chown clears bits), times last."""
    if os.geteuid() == 0:
        os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        with suppress(PermissionError):  # security.* without root: recorded in the sidecar all the same
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
