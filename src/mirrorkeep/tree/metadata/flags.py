"""File flags (``chattr``): immutable, append-only, no-copy-on-write and their like, by ioctl.

Only flags that a person can set are recorded; the rest (extents, indexed, encrypted ...) describe how
one file system happens to store an entry.  Each setting is one ioctl: a crash leaves the old flags or
the new ones.  Not here: the order of stamping (``posix``), flags of macOS (``macos``).
"""

from __future__ import annotations

import errno
import sys
from typing import Final

if sys.platform != "win32":
    import fcntl

_WORD: Final = 8 if sys.maxsize > 2**32 else 4
GET_FLAGS: Final = (2 << 30) | (_WORD << 16) | (ord("f") << 8) | 1
SET_FLAGS: Final = (1 << 30) | (_WORD << 16) | (ord("f") << 8) | 2

IMMUTABLE: Final = 0x10
APPEND: Final = 0x20
PROTECTING: Final = IMMUTABLE | APPEND
"""Flags that forbid renaming, linking and stamping: set after all else, cleared before anything."""

LETTERS: Final = {
    "s": 0x1, "u": 0x2, "c": 0x4, "S": 0x8, "i": IMMUTABLE, "a": APPEND, "d": 0x40, "A": 0x80,
    "m": 0x400, "j": 0x4000, "t": 0x8000, "D": 0x10000, "T": 0x20000, "C": 0x800000, "x": 0x2000000,
    "P": 0x20000000, "F": 0x40000000,
}  # fmt: skip
SETTABLE: Final = sum(LETTERS.values())
BEFORE_CONTENT: Final = LETTERS["C"] | LETTERS["c"] | LETTERS["m"]
"""Flags that only take effect on data written after them."""

_UNSUPPORTED: Final = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EPERM}


def read_flags(fd: int) -> int:
    """Return the settable flags of an open file or directory; 0 where the file system has none."""
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, GET_FLAGS, buffer)
    except OSError as error:
        if error.errno in _UNSUPPORTED or error.errno == errno.EACCES:
            return 0
        raise
    return int.from_bytes(buffer[:4], sys.byteorder) & SETTABLE


def write_flags(fd: int, flags: int) -> int:
    """Make the settable flags equal ``flags``, one by one where the file system refuses the whole.

    Returns the flags that could not be brought to the wanted state, 0 when all is well; never raises
    for a flag that is not supported.
    """
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, GET_FLAGS, buffer)
    except OSError:
        return flags
    current = int.from_bytes(buffer[:4], sys.byteorder)
    if current & SETTABLE == flags:
        return 0
    if not _set(fd, (current & ~SETTABLE) | flags):
        for bit in LETTERS.values():
            if (current ^ flags) & bit and _set(fd, current ^ bit):
                current ^= bit
    return (read_flags(fd) ^ flags) & SETTABLE


def clear_protection(fd: int) -> bool:
    """Clear immutable and append-only; return whether either was set and is now gone."""
    flags = read_flags(fd)
    return bool(flags & PROTECTING) and not write_flags(fd, flags & ~PROTECTING) & PROTECTING


def _set(fd: int, word: int) -> bool:
    try:
        fcntl.ioctl(fd, SET_FLAGS, word.to_bytes(4, sys.byteorder) + bytes(4))
    except OSError:
        return False
    return True
