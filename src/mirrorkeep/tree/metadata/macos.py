"""What an APFS or HFS+ entry carries: attributes, resource fork, flags, access list, birth time.

Written to the public interface of libSystem (``getxattr``, ``acl_get_link_np``, ``lchflags``,
``setattrlist``), handed in as a library, so that any system can test the calls against an imitation.
**Not run on real macOS systems yet.**  Links are never followed.

The resource fork is an attribute to the system and a stream to a record (``stream:com.apple.ResourceFork``).
Stamping goes attributes, access list, birth time, flags: an immutable file takes nothing else.  A crash in
between leaves an entry with some of its metadata; stamping again completes it.

Not here: owner, mode and times, which are the same everywhere (``posix``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_time_ns, parse_time_ns

RESOURCE_FORK: Final = b"com.apple.ResourceFork"
SETTABLE_FLAGS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x8000 | 0x10000 | 0x20000 | 0x40000
"""No dump, immutable, append-only, opaque (by users), hidden; archived, immutable, append-only (by root)."""
PROTECTING_FLAGS: Final = 0x2 | 0x4 | 0x20000 | 0x40000

_NOFOLLOW: Final = 0x1
_ACL_EXTENDED: Final = 0x100
_ATTRIBUTE_BIT_MAP_COUNT: Final = 5
_COMMON_CREATION_TIME: Final = 0x200
_ATTRIBUTES_NOFOLLOW: Final = 0x1
_ENOATTR: Final = 93
_ATTRIBUTE_LIST: Final = struct.Struct("=HHIIIII")
_TIME: Final = struct.Struct("=qq")
_NS: Final = 1_000_000_000


@dataclass(frozen=True)
class Library:
    """libSystem, and how it reports errors."""

    system: Any
    last_error: Callable[[], int]


def system_library() -> Library:
    """Return the real library with its functions declared; OSError on any other system than macOS."""
    if not hasattr(os, "lchflags"):
        raise OSError("this is not macOS")
    library = Library(ctypes.CDLL(None, use_errno=True), ctypes.get_errno)
    declare(library)
    return library


def declare(library: Library) -> None:
    """Declare result and argument types; without them pointers are cut to 32 bits."""
    pointer, text, size, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    word = ctypes.c_uint32
    table: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "listxattr": (ctypes.c_ssize_t, (text, pointer, size, number)),
        "getxattr": (ctypes.c_ssize_t, (text, text, pointer, size, word, number)),
        "setxattr": (number, (text, text, pointer, size, word, number)),
        "removexattr": (number, (text, text, number)),
        "lchflags": (number, (text, word)),
        "setattrlist": (number, (text, pointer, pointer, size, word)),
        "acl_get_link_np": (pointer, (text, number)),
        "acl_set_link_np": (number, (text, number, pointer)),
        "acl_to_text": (pointer, (pointer, pointer)),
        "acl_from_text": (pointer, (text,)),
        "acl_init": (pointer, (number,)),
        "acl_free": (number, (pointer,)),
    }
    for name, (result, arguments) in table.items():
        function = getattr(library.system, name)
        function.restype, function.argtypes = result, arguments


def capture(path: bytes, stat: os.stat_result, library: Library) -> dict[bytes, bytes]:
    """Return the fields that only macOS knows; OSError when the entry vanished."""
    fields: dict[bytes, bytes] = {}
    for name in _list_attributes(path, library):
        value = _read_attribute(path, name, library)
        if value is not None:
            fields[_key_of(name)] = value
    if flags := getattr(stat, "st_flags", 0) & SETTABLE_FLAGS:
        fields[keys.MAC_FLAGS] = b"%x" % flags
    if birth_s := getattr(stat, "st_birthtime", None):
        fields[keys.BIRTH_TIME] = format_time_ns(round(birth_s * 1_000_000) * 1000)
    if text := _read_acl(path, library):
        fields[keys.MAC_ACL] = text
    return fields


def stamp(path: bytes, fields: Mapping[bytes, bytes], library: Library) -> list[bytes]:
    """Make the entry agree with ``fields``; return the keys that could not be restored.

    Attributes that the record does not have are removed, and so is an access list.  Flags are cleared
    and stay so until :func:`stamp_flags`, which comes after times and names.
    """
    missed: list[bytes] = []
    system = library.system
    system.lchflags(path, 0)
    wanted = {key: value for key, value in fields.items() if _name_of(key) is not None}
    for name in _list_attributes(path, library):
        if _key_of(name) not in wanted:
            system.removexattr(path, name, _NOFOLLOW)
    for key, value in wanted.items():
        if system.setxattr(path, _name_of(key), value, len(value), 0, _NOFOLLOW):
            missed.append(key)
    if not _write_acl(path, fields.get(keys.MAC_ACL), library):
        missed.append(keys.MAC_ACL)
    if keys.BIRTH_TIME in fields and not _write_birth_time(path, fields[keys.BIRTH_TIME], library):
        missed.append(keys.BIRTH_TIME)
    return missed


def stamp_flags(
    path: bytes, fields: Mapping[bytes, bytes], library: Library, *, protect: bool = True
) -> bool:
    """Set the flags of ``fields`` (those that protect only when asked); return whether all were taken."""
    flags = int(fields.get(keys.MAC_FLAGS, b"0"), 16) & SETTABLE_FLAGS
    if not protect:
        flags &= ~PROTECTING_FLAGS
    return not library.system.lchflags(path, flags)


def _key_of(name: bytes) -> bytes:
    return (keys.STREAM_PREFIX if name == RESOURCE_FORK else keys.XATTR_PREFIX) + name


def _name_of(key: bytes) -> bytes | None:
    """Return the attribute that a key stands for; None for keys of other kinds or systems."""
    if key == keys.STREAM_PREFIX + RESOURCE_FORK:
        return RESOURCE_FORK
    return key[len(keys.XATTR_PREFIX) :] if key.startswith(keys.XATTR_PREFIX) else None


def _list_attributes(path: bytes, library: Library) -> list[bytes]:
    while True:
        size = library.system.listxattr(path, None, 0, _NOFOLLOW)
        if size < 0:
            if library.last_error() == errno.ENOTSUP:
                return []
            raise _failure(library, path)
        buffer = ctypes.create_string_buffer(max(size, 1))
        got = library.system.listxattr(path, buffer, size, _NOFOLLOW)
        if got >= 0:
            return [name for name in buffer.raw[:got].split(b"\0") if name]
        if library.last_error() != errno.ERANGE:  # it grew in between: ask again
            raise _failure(library, path)


def _read_attribute(path: bytes, name: bytes, library: Library) -> bytes | None:
    while True:
        size = library.system.getxattr(path, name, None, 0, 0, _NOFOLLOW)
        buffer = ctypes.create_string_buffer(max(size, 1))
        got = library.system.getxattr(path, name, buffer, size, 0, _NOFOLLOW) if size >= 0 else size
        if got >= 0:
            return buffer.raw[:got]
        if library.last_error() in (_ENOATTR, errno.EPERM, errno.EACCES):
            return None
        if library.last_error() != errno.ERANGE:
            raise _failure(library, path)


def _read_acl(path: bytes, library: Library) -> bytes:
    acl = library.system.acl_get_link_np(path, _ACL_EXTENDED)
    if not acl:
        return b""
    try:
        text = library.system.acl_to_text(acl, None)
        if not text:
            return b""
        value = ctypes.string_at(text)
        library.system.acl_free(text)
        return value
    finally:
        library.system.acl_free(acl)


def _write_acl(path: bytes, text: bytes | None, library: Library) -> bool:
    if text is None and not _read_acl(path, library):
        return True
    acl = library.system.acl_init(0) if text is None else library.system.acl_from_text(text)
    if not acl:
        return False
    try:
        return not library.system.acl_set_link_np(path, _ACL_EXTENDED, acl)
    finally:
        library.system.acl_free(acl)


def _write_birth_time(path: bytes, text: bytes, library: Library) -> bool:
    wanted = _ATTRIBUTE_LIST.pack(_ATTRIBUTE_BIT_MAP_COUNT, 0, _COMMON_CREATION_TIME, 0, 0, 0, 0)
    time = _TIME.pack(*divmod(parse_time_ns(text), _NS))
    return not library.system.setattrlist(path, wanted, time, len(time), _ATTRIBUTES_NOFOLLOW)


def _failure(library: Library, path: bytes) -> OSError:
    number = library.last_error()
    return OSError(number, os.strerror(number), path)
