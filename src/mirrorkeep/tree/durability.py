"""Bringing what was written to the disk, with the errors of earlier writes seen.

Answers for: a flush of a whole file system, and of one directory.  Not here: when that is asked for.
A crash before either returns may lose what was written since the last.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE: Final = 2


def flush_file_system(fd: int) -> None:
    """``syncfs``: write everything of the descriptor's file system to the disk.

    Raises OSError when that fails, or when any write-back has failed since ``fd`` was opened or last
    flushed: a descriptor that was open before the writes sees every error of theirs (Linux 5.8).
    """
    if _LIBC.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def start_writing(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a range out, without waiting: a later flush finds less to do.

    A hint: nothing is promised, and errors are left for the flush to find.
    """
    with contextlib.suppress(AttributeError):  # only Linux has the call
        _LIBC.sync_file_range(
            fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
        )


def flush_directory(path: str | bytes) -> None:
    """``fsync`` of a directory: its names are durable when this returns.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
