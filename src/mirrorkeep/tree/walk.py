"""The ordered walk of a native directory tree: what there is, with what ``stat`` says, in manifest order.

The walk opens every directory by descriptor with ``O_NOFOLLOW``, so a link planted in the middle of a
run never leads it out of the tree, and reads only names and ``stat``: no file is opened (CHG-16).
Entries come as *blobs*: the packed ``stat`` fields that tell whether an entry changed, then its name.
Whole runs of siblings are compared with last time's blobs by one memory comparison (``sync/index``).

Directories beyond ``MAX_NAMES_IN_MEMORY`` names are sorted in spilled runs (MAN-39).

Not here: metadata, content, rules of inclusion (a ``keep`` function may be given).
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

from mirrorkeep.manifest.spill import SpilledSort

STAT: Final = struct.Struct("<IIIIqqqQQ")
"""mode, uid, gid, nlink, size, mtime (ns), inode change time (ns), inode, place.

The *place* stands for the parent's path: the children of a renamed directory keep their names and their
``stat``, and are not the same entries for all that.
"""

_HALF: Final = 1 << 63

MAX_NAMES_IN_MEMORY: Final = 50_000
MAX_SIBLINGS: Final = 1024
"""Most entries in one run of siblings, so that memory stays bounded in huge directories."""

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


Event = Siblings | Directory | Unreadable


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
    path: bytes
    fd: int
    blob: bytes
    device: int
    names: Iterator[tuple[bytes, os.stat_result]]


def walk(root: str | bytes, *, keep: Keep | None = None, one_file_system: bool = False) -> Iterator[Event]:
    """Walk the tree at ``root``; the root itself comes last, with the empty path.

    Raises OSError when the root cannot be opened.  Every other trouble is an :class:`Unreadable`.
    """
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(root_fd)
    stack = [_Level(b"", root_fd, pack_stat(status, b"") + b"\0", status.st_dev, iter(()))]
    try:
        stack[0].names = _listing(root_fd)
        while stack:
            yield from _advance(stack, keep, one_file_system)
    finally:
        for level in stack:
            os.close(level.fd)


def _advance(stack: list[_Level], keep: Keep | None, one_file_system: bool) -> Iterator[Event]:
    """Go on in the innermost directory until it ends or a child directory opens."""
    level = stack[-1]
    path, fd = level.path, level.fd
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
                yield from _enter(stack, name, blob, st, fd, one_file_system)
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
    os.close(fd)
    yield Directory(path, level.blob)


def _enter(
    stack: list[_Level],
    name: bytes,
    blob: bytes,
    status: os.stat_result,
    parent_fd: int,
    one_file_system: bool,
) -> Iterator[Event]:
    """Open a child directory as the new innermost level, or report it."""
    parent = stack[-1]
    path = parent.path + b"/" + name if parent.path else name
    if one_file_system and status.st_dev != parent.device:
        yield Directory(path, blob)  # the mount point stays as an empty directory
        return
    fd = -1
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        listing = _listing(fd)
    except FileNotFoundError:
        return  # gone since it was listed
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        yield Unreadable(path, error.strerror or str(error))
        yield Directory(path, blob)
        return
    stack.append(_Level(path, fd, blob, status.st_dev, listing))


def _listing(fd: int) -> Iterator[tuple[bytes, os.stat_result]]:
    """Return name and ``stat`` of everything in the directory ``fd``, in byte order of the names."""
    with os.scandir(fd) as entries:
        first: list[os.DirEntry[str]] = []
        for entry in entries:
            first.append(entry)
            if len(first) > MAX_NAMES_IN_MEMORY:
                return _spilled_listing(fd, first, entries)
    try:
        named = [(entry.name.encode(), entry) for entry in first]
    except UnicodeEncodeError:
        named = [(os.fsencode(entry.name), entry) for entry in first]
    named.sort(key=_name_of)
    return _stats(named)


def _name_of(item: tuple[bytes, os.DirEntry[str]]) -> bytes:
    return item[0]


def _stats(named: list[tuple[bytes, os.DirEntry[str]]]) -> Iterator[tuple[bytes, os.stat_result]]:
    for name, entry in named:
        try:
            yield name, entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # gone since it was listed


def _spilled_listing(
    fd: int, first: list[os.DirEntry[str]], rest: Iterable[os.DirEntry[str]]
) -> Iterator[tuple[bytes, os.stat_result]]:
    spool = tempfile.mkdtemp(prefix="mirrorkeep-names-")
    names = SpilledSort(spool)
    for entry in first:
        names.add(os.fsencode(entry.name))
    first.clear()
    for entry in rest:
        names.add(os.fsencode(entry.name))
    return _stat_sorted(fd, names, spool)


def _stat_sorted(fd: int, names: SpilledSort, spool: str) -> Iterator[tuple[bytes, os.stat_result]]:
    try:
        for name in names:
            try:
                yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
    finally:
        names.close()
        os.rmdir(spool)
