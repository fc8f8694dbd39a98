"""Everything ``statx(2)`` knows of an entry, birth time included, in one call and one plain tuple.

The hot path looks at each file twice (before and after reading), so a reader keeps one prepared buffer
and returns a tuple of ints, :data:`Facts`, without building objects.  Where ``statx`` is missing (other
systems, very old C libraries) the same tuple is made from ``os.stat``.

Not here: what a record says about these facts (``posix``).  Nothing here changes anything on disk.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, TypeAlias

Facts: TypeAlias = tuple[
    int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int
]
"""mask, nlink, uid, gid, mode, ino, size, 512-byte blocks, then seconds and nanoseconds of access, birth,
inode change and modification, then major and minor of the node, major and minor of the file system."""

HAS_BIRTH_TIME: Final = 0x800
"""Bit of ``mask``: the birth time is known."""

_LAYOUT: Final = struct.Struct("=I12xIIIH2xQQQ8xqI4xqI4xqI4xqI4xIIII")
_BUFFER_BYTES: Final = 256
_WANTED: Final = 0x7FF | HAS_BIRTH_TIME
_AT_FDCWD: Final = -100
_NOFOLLOW: Final = 0x100
_EMPTY_PATH: Final = 0x1000
_NS: Final = 1_000_000_000


def _load_statx() -> ctypes._NamedFuncPointer | None:
    try:
        function = ctypes.PyDLL(None, use_errno=True)["statx"]
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function


_statx: Final = _load_statx()


class StatReader:
    """Reads facts through one prepared buffer; one reader belongs to one thread at a time."""

    __slots__ = ("_address", "_buffer")

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        self._address = ctypes.addressof(self._buffer)

    def by_name(self, dir_fd: int, name: bytes) -> Facts:
        """Return the facts of ``name`` in ``dir_fd`` (the link itself, never its target); OSError."""
        if _statx is None:
            return facts_of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        if _statx(dir_fd, name, _NOFOLLOW, _WANTED, self._address):
            raise _os_error(name)
        return _LAYOUT.unpack_from(self._buffer)

    def by_fd(self, fd: int) -> Facts:
        """Return the facts of an open descriptor; OSError."""
        if _statx is None:
            return facts_of(os.fstat(fd))
        if _statx(fd, b"", _EMPTY_PATH, _WANTED, self._address):
            raise _os_error(b"")
        return _LAYOUT.unpack_from(self._buffer)


def facts_of(stat: os.stat_result, birth: tuple[int, int] | None = None) -> Facts:
    """Return the facts that ``stat`` holds; ``birth`` adds the birth time (seconds, nanoseconds)."""
    if birth is None:
        seconds = getattr(stat, "st_birthtime", None)  # macOS, BSD; a float, so microseconds at best
        birth = None if seconds is None else divmod(round(seconds * 1_000_000) * 1000, _NS)
    rdev = getattr(stat, "st_rdev", 0)
    return (
        0x7FF | (HAS_BIRTH_TIME if birth else 0),
        stat.st_nlink,
        stat.st_uid,
        stat.st_gid,
        stat.st_mode,
        stat.st_ino,
        stat.st_size,
        getattr(stat, "st_blocks", -(-stat.st_size // 512)),
        *divmod(stat.st_atime_ns, _NS),
        *(birth or (0, 0)),
        *divmod(stat.st_ctime_ns, _NS),
        *divmod(stat.st_mtime_ns, _NS),
        os.major(rdev),
        os.minor(rdev),
        os.major(stat.st_dev),
        os.minor(stat.st_dev),
    )


def _os_error(name: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)
