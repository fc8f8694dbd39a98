"""The ordered walk of a native directory tree: what there is, with what ``stat`` says, in manifest order.

The walk opens every directory by descriptor with ``O_NOFOLLOW``, so a link planted in the middle of a
run never leads it out of the tree, and reads only names and ``stat``: no file is opened (CHG-16).
Entries come as *blobs*: the packed ``stat`` fields that tell whether an entry changed, then its name.
Whole runs of siblings are compared with last time's blobs by one memory comparison (``sync/index``).

However deep a tree is, few directories stay open (``descent``).  One that cannot be found again on the way up
counts as not readable.  Directories beyond ``MAX_NAMES_IN_MEMORY`` names are sorted in spilled runs (MAN-39).

Not here: metadata, content, rules of inclusion (a ``keep`` function may be given).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

from mirrorkeep.errors import SourceUnmounted
from mirrorkeep.manifest.spill import SpilledSort
from mirrorkeep.tree.descent import Descent
from mirrorkeep.tree.mounts import Mounts

STAT: Final = struct.Struct("<IIIIqqqQQ")
"""mode, uid, gid, nlink, size, mtime (ns), inode change time (ns), inode, place.

The *place* stands for the parent's path: the children of a renamed directory keep their names and their
``stat``, and are not the same entries for all that.
"""

_HALF: Final = 1 << 63

MAX_NAMES_IN_MEMORY: Final = 50_000
MAX_SIBLINGS: Final = 1024
"""Most entries in one run of siblings, so that memory stays bounded in huge directories."""

_Names = Iterator[tuple[bytes, os.DirEntry[str]]] | Iterator[tuple[bytes, None]]
"""Names of a directory that are still to be looked at, each with its entry of the listing."""

Keep = Callable[[bytes, bool, int], bool]
"""``keep(path, is_directory, dir_fd)``: whether the entry in ``dir_fd`` belongs to the tree at all."""


class Stat(NamedTuple):
    """The unpacked head of a blob."""

    mode: int
    uid: int
    gid: int
    links: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    place: int


class Siblings(NamedTuple):
    """A run of entries of one directory, none of them a directory, in order."""

    parent: bytes
    names: list[bytes]
    blobs: list[bytes]


class Directory(NamedTuple):
    """A directory, after everything in it."""

    path: bytes
    blob: bytes


class Unreadable(NamedTuple):
    """An entry that cannot be looked at; nothing may be concluded about it or anything below it."""

    path: bytes
    detail: str


class Unmounted(NamedTuple):
    """A directory whose file system is not mounted; it is not walked, and what is known of it stays."""

    path: bytes
    detail: str


Event = Siblings | Directory | Unreadable | Unmounted


def blob_stat(blob: bytes) -> Stat:
    """Return what a blob says about its entry."""
    return Stat._make(STAT.unpack_from(blob))


def place_of(parent: bytes) -> int:
    """Return the number that stands for a parent's path in blobs."""
    return int.from_bytes(blake2b(parent, digest_size=8).digest(), "little")


def pack_stat(status: os.stat_result, parent: bytes) -> bytes:
    """Return the packed ``stat`` fields that tell whether an entry changed."""
    return _pack_far(status, place_of(parent))


def _pack_far(status: os.stat_result, place: int) -> bytes:
    """Pack the times of any ``stat``: file systems know years that 64 bits of nanoseconds do not (2262)."""
    return STAT.pack(
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_nlink,
        status.st_size,
        wrapped_ns(status.st_mtime_ns),
        wrapped_ns(status.st_ctime_ns),
        status.st_ino,
        place,
    )


def wrapped_ns(time_ns: int) -> int:
    """Return a time as a blob holds it: what does not fit goes round, and differs from others near it."""
    return (time_ns + _HALF) % (2 * _HALF) - _HALF


@dataclass(slots=True)
class _Level:
    """A directory on the way down: what is still to come of it, by name and as it is looked at in ``fd``."""

    path: bytes
    fd: int
    blob: bytes
    device: int
    left: _Names
    names: Iterator[tuple[bytes, os.stat_result]]


def walk(
    root: str | bytes,
    *,
    keep: Keep | None = None,
    one_file_system: bool = False,
    mounts: Mounts | None = None,
) -> Iterator[Event]:
    """Walk the tree at ``root``; the root itself comes last, with the empty path.

    ``mounts`` says what was mounted last time, and is told what is.  Raises OSError when the root cannot be
    opened, SourceUnmounted when it is not mounted.  Every other trouble is an event.
    """
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with Descent(root_fd) as descent:
        status = os.fstat(root_fd)
        if mounts is None:
            mounts = Mounts()
        elif mounts.is_missing(b"", status.st_dev, _device_above(root_fd, status.st_dev)):
            raise SourceUnmounted(path=root)
        blob = pack_stat(status, b"") + b"\0"
        stack = [_Level(b"", root_fd, blob, status.st_dev, *_listing(root_fd))]
        while stack:
            yield from _advance(stack, descent, keep, one_file_system, mounts)


def _advance(
    stack: list[_Level], descent: Descent, keep: Keep | None, one_file_system: bool, mounts: Mounts
) -> Iterator[Event]:
    """Go on in the innermost directory until it ends or a child directory opens."""
    level, path, fd = stack[-1], stack[-1].path, descent.fd
    if fd != level.fd:  # closed meanwhile, far below
        level.fd, level.names = fd, _stats_in(fd, level.left)
    place = place_of(path)
    names: list[bytes] = []
    blobs: list[bytes] = []
    pack = STAT.pack
    is_dir = stat.S_ISDIR
    try:
        for name, st in level.names:
            mode = st.st_mode
            if keep is not None and not keep(path + b"/" + name if path else name, is_dir(mode), fd):
                continue
            try:
                packed = pack(
                    mode,
                    st.st_uid,
                    st.st_gid,
                    st.st_nlink,
                    st.st_size,
                    st.st_mtime_ns,
                    st.st_ctime_ns,
                    st.st_ino,
                    place,
                )
            except struct.error:
                packed = _pack_far(st, place)
            blob = packed + name + b"\0"
            if is_dir(mode):
                if names:
                    yield Siblings(path, names, blobs)
                    names, blobs = [], []
                yield from _enter(stack, descent, name, blob, st, one_file_system, mounts)
                if stack[-1] is not level:
                    return
                continue
            names.append(name)
            blobs.append(blob)
            if len(names) >= MAX_SIBLINGS:
                yield Siblings(path, names, blobs)
                names, blobs = [], []
    except OSError as error:
        # what was listed before the error stands; the directory itself is reported as not readable
        if names:
            yield Siblings(path, names, blobs)
            names = []
        yield Unreadable(path, error.strerror or str(error))
    if names:
        yield Siblings(path, names, blobs)
    stack.pop()
    if stack:
        try:
            descent.leave()
        except OSError:
            pass  # then there is no descriptor of the directory that is gone on in next
    yield Directory(path, level.blob)


def _enter(
    stack: list[_Level],
    descent: Descent,
    name: bytes,
    blob: bytes,
    status: os.stat_result,
    one_file_system: bool,
    mounts: Mounts,
) -> Iterator[Event]:
    """Open a child directory as the new innermost level, or report it."""
    parent = stack[-1]
    path = parent.path + b"/" + name if parent.path else name
    if one_file_system and status.st_dev != parent.device:
        yield Directory(path, blob)  # the mount point stays as an empty directory
        return
    try:
        parent_fd = descent.fd
        fd, device, missing = descent.enter(name), status.st_dev, False
        try:
            if device != parent.device or path in mounts.before:
                device = os.fstat(fd).st_dev
                missing = _is_missing(path, device, parent, parent_fd, mounts)
            listing = _listing(fd) if not missing else (iter(()), iter(()))
        except BaseException:
            descent.leave()
            raise
    except FileNotFoundError:
        return  # gone since it was listed
    except OSError as error:
        yield Unreadable(path, error.strerror or str(error))
        yield Directory(path, blob)
        return
    if missing:
        with suppress(OSError):  # then there is no descriptor of the directory that is gone on in next
            descent.leave()
        yield Unmounted(path, str(SourceUnmounted(path=path)))
        return
    stack.append(_Level(path, fd, blob, device, *listing))


def _device_above(root_fd: int, unknown: int) -> int:
    try:
        return os.stat("..", dir_fd=root_fd).st_dev
    except OSError:
        return unknown


def _is_missing(path: bytes, device: int, parent: _Level, parent_fd: int, mounts: Mounts) -> bool:
    """Return whether a mount is missing, by the devices of directories that are open."""
    above = os.fstat(parent_fd).st_dev
    if above != parent.device:  # its own file system was mounted when it was opened
        parent.device = above
        mounts.found.add(parent.path)
    return mounts.is_missing(path, device, above)


def _listing(fd: int) -> tuple[_Names, Iterator[tuple[bytes, os.stat_result]]]:
    """Return the names in the directory ``fd``, in byte order, and the same with each one's ``stat``."""
    with os.scandir(fd) as entries:
        first: list[os.DirEntry[str]] = []
        for entry in entries:
            first.append(entry)
            if len(first) > MAX_NAMES_IN_MEMORY:
                spilled = _spilled_names(first, entries)
                return spilled, _stats_in(fd, spilled)
    try:
        named = [(entry.name.encode(), entry) for entry in first]
    except UnicodeEncodeError:
        named = [(os.fsencode(entry.name), entry) for entry in first]
    named.sort(key=_name_of)
    left = iter(named)
    return left, _stats(left)


def _name_of(item: tuple[bytes, os.DirEntry[str]]) -> bytes:
    return item[0]


def _stats(left: Iterator[tuple[bytes, os.DirEntry[str]]]) -> Iterator[tuple[bytes, os.stat_result]]:
    for name, entry in left:
        try:
            yield name, entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # gone since it was listed


def _stats_in(fd: int, left: _Names) -> Iterator[tuple[bytes, os.stat_result]]:
    """Look at names anew by descriptor: a directory entry knows only the one that it was listed with."""
    if fd < 0:
        raise OSError(errno.ESTALE, "it was moved or replaced while what is in it was looked at")
    for name, _ in left:
        try:
            yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue


def _spilled_names(
    first: list[os.DirEntry[str]], rest: Iterable[os.DirEntry[str]]
) -> Iterator[tuple[bytes, None]]:
    spool = tempfile.mkdtemp(prefix="mirrorkeep-names-")
    names = SpilledSort(spool)
    for entry in first:
        names.add(os.fsencode(entry.name))
    first.clear()
    for entry in rest:
        names.add(os.fsencode(entry.name))
    return _sorted_names(names, spool)


def _sorted_names(names: SpilledSort, spool: str) -> Iterator[tuple[bytes, None]]:
    try:
        for name in names:
            yield name, None
    finally:
        names.close()
        os.rmdir(spool)
