"""Memory that is used again and again: the C library's allocator and the collector of cycles, tuned for it.

Workers handle batches of a few MiB, one after the other.  By default glibc hands such memory back to the
system and asks for it again each time, and every page of it is cleared and mapped anew: a tenth of a
worker's time.  What stays is at most ``KEPT_BYTES``, in one heap that all threads of the process share.

Python's collector looks for cycles after every 700 new containers, and a run makes thousands for each batch
and no cycles: another tenth.

Not here: how large a batch may be (``wire``).  Nothing to do, and nothing done, where there is no glibc.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

KEPT_BYTES: Final = 64 * 1024 * 1024
LARGE_BYTES: Final = 16 * 1024 * 1024
"""What is at least this large still comes from the system and goes straight back."""
CONTAINERS_BETWEEN_COLLECTIONS: Final = 50_000
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def collect_rarely() -> None:
    """Have this process look for cycles seldom; what has no cycles is freed at once, as ever."""
    gc.set_threshold(CONTAINERS_BETWEEN_COLLECTIONS, 10, 10)


def keep_freed_memory() -> None:
    """Have this process keep up to ``KEPT_BYTES`` of what it frees; may be repeated."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # costs a command that needs no workers two milliseconds

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and needs none
        # One heap for all threads: each with its own would keep as much of its own, whatever the others free.
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
