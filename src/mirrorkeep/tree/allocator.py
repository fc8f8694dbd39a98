"""The C library's allocator, told to keep what one batch frees for the next.

Workers handle batches of a few MiB, one after the other.  By default glibc hands such memory back to the
system and asks for it again each time, and every page of it is cleared and mapped anew: a tenth of a
worker's time.  Peak memory does not change; what stays is at most ``KEPT_BYTES``.

Not here: how large a batch may be (``wire``).  Nothing to do, and nothing done, where there is no glibc.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

KEPT_BYTES: Final = 32 * 1024 * 1024
LARGE_BYTES: Final = 16 * 1024 * 1024
"""What is at least this large still comes from the system and goes straight back."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """Have this process keep up to ``KEPT_BYTES`` of what it frees; may be repeated."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and needs none
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
