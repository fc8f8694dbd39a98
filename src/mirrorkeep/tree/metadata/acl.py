"""POSIX access control lists: the kernel's extended attribute to and from a short text.

Text form, entries in the kernel's order, joined by ``;``: ``u::rw-;u:1000:r--;g::r--;m::r--;o::r--``.
Ids are numbers, never names, so that the text means the same on every machine.  The binary form is a
version word (2) and 8-byte entries (tag, permissions, id), little-endian on every processor.

Not here: reading and writing the attribute (``posix``); NTFS lists (``windows``).
"""

from __future__ import annotations

import struct
from typing import Final

ACCESS_XATTR: Final = "system.posix_acl_access"
DEFAULT_XATTR: Final = "system.posix_acl_default"

_VERSION: Final = 2
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF
_TAGS: Final = {0x01: b"u", 0x02: b"u", 0x04: b"g", 0x08: b"g", 0x10: b"m", 0x20: b"o"}
_WITH_ID: Final = {0x02, 0x08}
_PLAIN_TAG: Final = {b"u": 0x01, b"g": 0x04, b"m": 0x10, b"o": 0x20}
_ID_TAG: Final = {b"u": 0x02, b"g": 0x08}
_PERMISSIONS: Final = [bytes((b"-r"[bits >> 2], b"-w"[bits >> 1 & 1], b"-x"[bits & 1])) for bits in range(8)]


def acl_to_text(value: bytes) -> bytes:
    """Return the text of an attribute's value; ValueError when it is not a version 2 list."""
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size or int.from_bytes(value[:4], "little") != _VERSION:
        raise ValueError("not a POSIX access control list of version 2")
    entries = []
    for tag, permissions, ident in _ENTRY.iter_unpack(value[4:]):
        if tag not in _TAGS or permissions > 7:
            raise ValueError(f"unknown access control entry {tag:#x} {permissions:#x}")
        number = b"%d" % ident if tag in _WITH_ID else b""
        entries.append(b":".join((_TAGS[tag], number, _PERMISSIONS[permissions])))
    return b";".join(entries)


def acl_from_text(text: bytes) -> bytes:
    """Return the attribute's value for ``text``; ValueError when an entry cannot be read."""
    value = [_VERSION.to_bytes(4, "little")]
    for entry in text.split(b";") if text else ():
        tag, separator, rest = entry.partition(b":")
        number, separator, permissions = rest.partition(b":")
        tags = _ID_TAG if number else _PLAIN_TAG
        if not separator or tag not in tags or permissions not in _PERMISSIONS:
            raise ValueError(f"not an access control entry: {entry!r}")
        if number and not (number.isdigit() and int(number) <= _NO_ID):
            raise ValueError(f"not a user or group number: {number!r}")
        value.append(
            _ENTRY.pack(tags[tag], _PERMISSIONS.index(permissions), int(number) if number else _NO_ID)
        )
    return b"".join(value)


def with_owner(text: bytes, permissions: int) -> bytes:
    """Return the list of ``text`` with at least these permissions (bits as in a mode) for the owner."""
    entries = text.split(b";")
    for number, entry in enumerate(entries):
        if entry[:3] == b"u::" and entry[3:] in _PERMISSIONS:
            entries[number] = b"u::" + _PERMISSIONS[_PERMISSIONS.index(entry[3:]) | permissions]
    return b";".join(entries)
