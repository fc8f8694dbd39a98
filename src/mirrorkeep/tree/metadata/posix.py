"""What a POSIX entry carries besides content: captured as record fields, stamped back from them.

``capture`` turns one entry into every field of its record but ``hash``; ``stamp`` makes an entry agree
with a record, in the one order that works: owner (which clears set-id bits and capabilities), extra
attributes away, mode, access lists and attributes, times, and flags last (an immutable file takes no
time stamp).  Entries that must not or cannot be opened (links, FIFOs, sockets, devices, unreadable
files) are reached through an ``O_PATH`` descriptor, so no link is ever followed.

Not here: content, publishing, directories to open (``native``).  A crash inside ``stamp`` leaves an
entry with some of its metadata; stamping again completes it.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat as st
import sys
from collections.abc import Collection, Mapping
from typing import Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_time_ns, parse_time_ns
from mirrorkeep.tree.metadata import macos
from mirrorkeep.tree.metadata.acl import ACCESS_XATTR, DEFAULT_XATTR, acl_from_text, acl_to_text
from mirrorkeep.tree.metadata.flags import PROTECTING, clear_protection, read_flags, write_flags
from mirrorkeep.tree.metadata.sparse import find_data, ranges_to_text
from mirrorkeep.tree.metadata.statx import HAS_BIRTH_TIME, Facts, StatReader, facts_of

KIND_OF_FORMAT: Final = {
    st.S_IFREG: keys.FILE,
    st.S_IFDIR: keys.DIRECTORY,
    st.S_IFLNK: keys.LINK,
    st.S_IFIFO: keys.FIFO,
    st.S_IFSOCK: keys.SOCKET,
    st.S_IFCHR: keys.CHAR_DEVICE,
    st.S_IFBLK: keys.BLOCK_DEVICE,
}
FORMAT_OF_KIND: Final = {kind: fmt for fmt, kind in KIND_OF_FORMAT.items()}
_OPENABLE: Final = {keys.FILE, keys.DIRECTORY}

_ACL_KEYS: Final = {ACCESS_XATTR: keys.ACL_ACCESS, DEFAULT_XATTR: keys.ACL_DEFAULT}
_ACL_XATTRS: Final = {key: name for name, key in _ACL_KEYS.items()}
_ACL_TWICE: Final = frozenset(("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"))
"""How XFS lists access lists once more, to root alone: no attributes, and no other file system's."""
_REMOVABLE: Final = ("user.", "trusted.", "system.posix_acl_", "security.capability")
_FOREIGN: Final = (keys.SDDL, keys.WINDOWS_ATTRIBUTES)
_FOREIGN_TO_LINUX: Final = (*_FOREIGN, keys.MAC_FLAGS, keys.MAC_ACL)
_NS: Final = 1_000_000_000
_PLAIN_TIME: Final = range(0, 2**31 * _NS)
_ROOM_FOR_AN_ATTRIBUTE: Final = 1 << 20
_F_GETPATH: Final = 50
_mac: macos.Library | None = macos.system_library() if sys.platform == "darwin" else None


def capture(fd: int | None, dir_fd: int, name: bytes, stat: os.stat_result) -> dict[bytes, bytes]:
    """Return every field of the entry's record but ``hash``; OSError when it vanished.

    ``fd`` is the opened entry, or None where it must not be opened (links, nodes) or may not be.  What
    cannot be read (an attribute of somebody else's) is left out.
    """
    reader = StatReader()
    fresh = reader.by_fd(fd) if fd is not None else reader.by_name(dir_fd, name)
    birth = (fresh[10], fresh[11]) if fresh[0] & HAS_BIRTH_TIME else None
    return capture_facts(fd, dir_fd, name, facts_of(stat, birth))


def capture_facts(fd: int | None, dir_fd: int, name: bytes, facts: Facts) -> dict[bytes, bytes]:
    """Return the record's fields for an entry whose facts are already known (see :func:`capture`)."""
    mask, nlink, uid, gid, mode, ino, size, blocks, a_s, a_ns, b_s, b_ns, c_s, c_ns, m_s, m_ns = facts[:16]
    kind = KIND_OF_FORMAT[st.S_IFMT(mode)]
    fields = {
        keys.TYPE: kind,
        keys.MODE: b"%o" % mode,
        keys.UID: b"%d" % uid,
        keys.GID: b"%d" % gid,
        keys.MTIME: format_time_ns(m_s * _NS + m_ns),
        keys.ATIME: format_time_ns(a_s * _NS + a_ns),
        keys.INODE_CTIME: format_time_ns(c_s * _NS + c_ns),
        keys.INODE: b"%d" % ino,
        keys.LINKS: b"%d" % nlink,
    }
    if mask & HAS_BIRTH_TIME:
        fields[keys.BIRTH_TIME] = format_time_ns(b_s * _NS + b_ns)
    if owner := user_name(uid):
        fields[keys.OWNER_NAME] = owner
    if group := group_name(gid):
        fields[keys.GROUP_NAME] = group
    if kind in (keys.FILE, keys.DIRECTORY):
        fields[keys.SIZE] = b"%d" % size
    if kind == keys.FILE:
        if blocks * 512 < size and fd is not None and (ranges := find_data(fd, size)) is not None:
            fields[keys.SPARSE] = ranges_to_text(ranges)
    elif kind == keys.LINK:
        fields[keys.LINK_TARGET] = os.readlink(name, dir_fd=dir_fd)
    elif kind in (keys.CHAR_DEVICE, keys.BLOCK_DEVICE):
        fields[keys.DEVICE] = b"%d:%d" % (facts[16], facts[17])
    if _mac is not None:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        fields.update(macos.capture(_mac_path(fd, dir_fd, name), found, _mac))
    elif fd is not None:
        if flags := read_flags(fd):
            fields[keys.FLAGS] = b"%x" % flags
        fields.update(read_attributes(fd))
    else:
        with _Reach(dir_fd, name) as reach:
            fields.update(read_attributes(reach.where))
    return fields


def read_attributes(where: int | bytes) -> dict[bytes, bytes]:
    """Return access lists and extended attributes as record fields; unreadable ones are left out."""
    fields: dict[bytes, bytes] = {}
    try:
        names = _names(where)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENOSYS):
            return fields
        raise
    for name in names:
        try:
            value = os.getxattr(where, name)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
                continue
            raise
        if name in _ACL_KEYS:
            try:
                fields[_ACL_KEYS[name]] = acl_to_text(value)
                continue
            except ValueError:
                pass  # a version to come: kept raw, like any other attribute
        fields[keys.XATTR_PREFIX + os.fsencode(name)] = value
    return fields


def stamp(
    dir_fd: int,
    name: bytes,
    fields: Mapping[bytes, bytes],
    *,
    owner: bool,
    fd: int | None = None,
    protect: bool = True,
) -> list[bytes]:
    """Make the entry's metadata agree with ``fields``; return the keys that could not be restored.

    ``owner`` says whether to set user and group.  ``fd`` is the opened entry where the caller has it (a
    file without a name yet); else it is found by name.  With ``protect=False`` the flags *immutable* and
    *append-only* are left for a second call of :func:`stamp_flags`, after the entry has its name.  Raises
    OSError when the entry cannot be reached, or refuses mode or times.
    """
    kind = fields.get(keys.TYPE, keys.FILE)
    if _mac is not None:
        return _stamp_mac(fd, dir_fd, name, fields, kind, owner, protect)
    if fd is not None:
        return _stamp_at(fd, fd, fields, kind, owner, protect)
    with _Reach(dir_fd, name, openable=kind in _OPENABLE) as reach:
        return _stamp_at(reach.where, reach.fd, fields, kind, owner, protect)


def has_attributes(fd: int, fields: Mapping[bytes, bytes], refused: Collection[bytes] = ()) -> bool:
    """Say whether an open entry has the access lists and attributes of ``fields`` and no others.

    ``refused`` are keys that are not there because the file system did not take them.  What no record could
    take away (labels of the system) is not looked at.
    """
    wanted = {
        key: value
        for key, value in fields.items()
        if (key in _ACL_XATTRS or key.startswith(keys.XATTR_PREFIX)) and key not in refused
    }
    names = _list_attributes(fd)
    if not wanted and not any(name.startswith(_REMOVABLE) for name in names):
        return True
    looked_at = {_key_of(name) for name in names if name.startswith(_REMOVABLE)} | wanted.keys()
    return {key: value for key, value in read_attributes(fd).items() if key in looked_at} == wanted


def has_flags(fd: int, fields: Mapping[bytes, bytes]) -> bool:
    """Say whether an open entry has the flags of ``fields``, those that protect aside."""
    return not (read_flags(fd) ^ int(fields.get(keys.FLAGS, b"0"), 16)) & ~PROTECTING


def stamp_flags(fd: int, fields: Mapping[bytes, bytes], *, protect: bool = True) -> bool:
    """Set the flags of ``fields`` (those that protect only when asked); return whether all were taken."""
    if _mac is not None:
        return macos.stamp_flags(_mac_path(fd, -1, b""), fields, _mac, protect=protect)
    wanted = int(fields.get(keys.FLAGS, b"0"), 16)
    return not write_flags(fd, wanted if protect else wanted & ~PROTECTING)


def _stamp_mac(
    fd: int | None,
    dir_fd: int,
    name: bytes,
    fields: Mapping[bytes, bytes],
    kind: bytes,
    owner: bool,
    protect: bool,
) -> list[bytes]:
    """The same order on macOS, where entries are reached by path and links by calls of their own."""
    assert _mac is not None
    path, missed = _mac_path(fd, dir_fd, name), []
    uid, gid = int(fields.get(keys.UID, b"-1")), int(fields.get(keys.GID, b"-1"))
    missed += macos.stamp(path, fields, _mac)
    if owner and (uid >= 0 or gid >= 0):
        os.chown(path, uid, gid, follow_symlinks=False)
    if kind != keys.LINK and keys.MODE in fields:
        mode = int(fields[keys.MODE], 8) & 0o7777
        os.chmod(path, mode if owner else _without_foreign_set_id(path, mode, uid, gid, missed))
    if keys.MTIME in fields:
        mtime_ns = parse_time_ns(fields[keys.MTIME])
        atime_ns = parse_time_ns(fields.get(keys.ATIME, fields[keys.MTIME]))
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    if not macos.stamp_flags(path, fields, _mac, protect=protect):
        missed.append(keys.MAC_FLAGS)
    return missed + [key for key in (*_FOREIGN, keys.FLAGS) if key in fields]


def _mac_path(fd: int | None, dir_fd: int, name: bytes) -> bytes:
    """Return the present path of a descriptor, or of ``name`` in a directory (macOS: ``F_GETPATH``)."""
    path = fcntl.fcntl(dir_fd if fd is None else fd, _F_GETPATH, bytes(1024)).rstrip(b"\0")
    return path if fd is not None else path + b"/" + name


def _stamp_at(
    where: int | bytes,
    fd: int | None,
    fields: Mapping[bytes, bytes],
    kind: bytes,
    owner: bool,
    protect: bool,
) -> list[bytes]:
    missed: list[bytes] = [key for key in _FOREIGN_TO_LINUX if key in fields]
    if fd is not None:
        clear_protection(fd)
    uid, gid = int(fields.get(keys.UID, b"-1")), int(fields.get(keys.GID, b"-1"))
    owned = uid < 0
    if owner and (uid >= 0 or gid >= 0):
        os.chown(where, uid, gid)
        owned = True
    existing = _list_attributes(where)
    for attribute in existing:
        if attribute.startswith(_REMOVABLE) and _key_of(attribute) not in fields:
            _remove_attribute(where, attribute)
    if kind != keys.LINK and keys.MODE in fields:
        mode = int(fields[keys.MODE], 8) & 0o7777
        if not owned:
            mode = _without_foreign_set_id(where, mode, uid, gid, missed)
        os.chmod(where, mode)
    if unusual := fields.keys() - _PLAIN_KEYS:
        missed += _set_attributes(where, {key: fields[key] for key in unusual})
    missed += _set_times(where, fields)
    if fd is not None:
        if not stamp_flags(fd, fields, protect=protect):
            missed.append(keys.FLAGS)
    elif keys.FLAGS in fields:
        missed.append(keys.FLAGS)
    return missed


_PLAIN_KEYS: Final = frozenset(
    value for name, value in vars(keys).items() if name.isupper() and isinstance(value, bytes)
) - {keys.ACL_ACCESS, keys.ACL_DEFAULT}
"""Keys that hold no access list or attribute; nearly every record has only these."""


_ONLY_STAT_KEYS: Final = _PLAIN_KEYS - {keys.FLAGS, *_FOREIGN_TO_LINUX}
"""Keys that ask for nothing but owner, mode and times."""


def is_plain(fields: Mapping[bytes, bytes], *, owner: bool) -> bool:
    """Return whether :func:`stamp_new` is enough for a new file with these fields."""
    return fields.keys() <= _ONLY_STAT_KEYS and _mac is None and (owner or keys.UID not in fields)


def stamp_new(
    fd: int, fields: Mapping[bytes, bytes], *, owner: bool, status: os.stat_result | None = None
) -> list[bytes]:
    """Give a file that was made a moment ago owner, times and mode, in as few calls as it takes; mode last.

    For fields that are plain, in a directory that hands nothing down: there is nothing to take away.
    ``status`` is that of the new file, where the caller has it.
    Returns the keys that could not be restored; raises OSError when owner, mode or times are refused.
    """
    now = os.fstat(fd) if status is None else status
    uid, gid = int(fields.get(keys.UID, b"-1")), int(fields.get(keys.GID, b"-1"))
    if owner and (uid not in (-1, now.st_uid) or gid not in (-1, now.st_gid)):
        os.chown(fd, uid, gid)
    missed = _set_times(fd, fields)
    if keys.MODE in fields and (mode := int(fields[keys.MODE], 8) & 0o7777) != now.st_mode & 0o7777:
        os.chmod(fd, mode)
    return missed


def _set_times(where: int | bytes, fields: Mapping[bytes, bytes]) -> list[bytes]:
    text = fields.get(keys.MTIME)
    if text is None:
        return []
    mtime_ns = parse_time_ns(text)
    atime_ns = parse_time_ns(fields[keys.ATIME]) if keys.ATIME in fields else mtime_ns
    os.utime(where, ns=(atime_ns, mtime_ns))
    if mtime_ns not in _PLAIN_TIME and os.stat(where).st_mtime_ns != mtime_ns:
        return [keys.MTIME]  # the file system cannot hold this year and kept the nearest
    return []


def _without_foreign_set_id(where: int | bytes, mode: int, uid: int, gid: int, missed: list[bytes]) -> int:
    """Drop set-id bits that would now speak for somebody else than in the record."""
    stat = os.stat(where)
    if uid >= 0 and stat.st_uid != uid:
        missed.append(keys.UID)
        mode &= ~st.S_ISUID
    if gid >= 0 and stat.st_gid != gid:
        missed.append(keys.GID)
        mode &= ~st.S_ISGID if not st.S_ISDIR(stat.st_mode) else mode
    return mode


def _list_attributes(where: int | bytes) -> list[str]:
    try:
        return _names(where)
    except OSError:
        return []


def _names(where: int | bytes) -> list[str]:
    return [name for name in os.listxattr(where) if name not in _ACL_TWICE]


def _key_of(attribute: str) -> bytes:
    return _ACL_KEYS.get(attribute) or keys.XATTR_PREFIX + os.fsencode(attribute)


def _remove_attribute(where: int | bytes, attribute: str) -> None:
    try:
        os.removexattr(where, attribute)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
            raise


def _set_attributes(where: int | bytes, fields: Mapping[bytes, bytes]) -> list[bytes]:
    missed = []
    for key, value in fields.items():
        if key in _ACL_XATTRS:
            name, value = _ACL_XATTRS[key], acl_from_text(value)
        elif key.startswith(keys.XATTR_PREFIX):
            name = os.fsdecode(key[len(keys.XATTR_PREFIX) :])
        else:
            if key.startswith(keys.STREAM_PREFIX):
                missed.append(key)
            continue
        if name in _ACL_TWICE:  # of a record that has the list under its own key too
            continue
        try:
            os.setxattr(where, name, value)
        except OSError as error:
            full = error.errno == errno.ENOSPC and _is_full(where)
            if full or error.errno in (errno.EDQUOT, errno.EIO):
                raise
            if not _already(where, name, value):
                missed.append(key)
    return missed


def _is_full(where: int | bytes) -> bool:
    """Whether there is no room, and not only none for an attribute of this size: both are ENOSPC."""
    room = os.statvfs(where)
    return room.f_bavail * room.f_frsize < _ROOM_FOR_AN_ATTRIBUTE


def _already(where: int | bytes, name: str, value: bytes) -> bool:
    try:
        return os.getxattr(where, name) == value
    except OSError:
        return False


class _Reach:
    """An entry by name, opened if it may be, else as ``O_PATH``; links are never followed."""

    __slots__ = ("_descriptor", "fd", "where")

    def __init__(self, dir_fd: int, name: bytes, *, openable: bool = False) -> None:
        self.fd: int | None = None
        self.where: int | bytes
        if openable:
            try:
                self.fd = os.open(name, OPEN_ENTRY, dir_fd=dir_fd)
            except PermissionError:
                pass
        if self.fd is not None:
            self._descriptor, self.where = self.fd, self.fd
            if st.S_IFMT(os.fstat(self.fd).st_mode) not in (st.S_IFREG, st.S_IFDIR):
                os.close(self.fd)  # swapped for a node after the caller looked
                raise OSError(errno.ESTALE, "the entry changed its type", name)
            return
        self._descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        self.where = b"/proc/self/fd/%d" % self._descriptor

    def __enter__(self) -> _Reach:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


OPEN_ENTRY: Final = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
)


@functools.lru_cache(maxsize=4096)
def user_name(uid: int) -> bytes:
    """Return the name of a user, empty when this machine knows none."""
    import pwd

    try:
        return os.fsencode(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return b""


@functools.lru_cache(maxsize=4096)
def group_name(gid: int) -> bytes:
    """Return the name of a group, empty when this machine knows none."""
    import grp

    try:
        return os.fsencode(grp.getgrgid(gid).gr_name)
    except (KeyError, OverflowError):
        return b""
