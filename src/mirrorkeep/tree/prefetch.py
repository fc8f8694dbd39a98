"""Small files that are about to be read, brought into memory while others are read.

A snapshot that nobody looked at yet is in no cache.  One reader asks the disk for one thing at a time: the
folder, the inode, the content, the sidecar; the disk could do many at once.  Where reading turns out to wait
for the disk, a few threads open what comes next and have its content read.  Where everything is in memory,
nothing is done: it would cost more than it brings.

Not here: reading itself.  Hints only: what cannot be opened is passed over, and whoever reads it finds out.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.tree.layout import split_path
from mirrorkeep.tree.placement import READ_FILE, Placement

THREADS: Final = 6
_SECTORS_PER_FILE: Final = 1.0
"""So much has to have come from the disk, on average, before anything is read ahead (512 bytes each)."""


def sectors_read() -> int:
    """Return what this process had to have read from disks so far, in sectors of 512 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


class Prefetch:
    """Reads ahead in one stored tree, for one reader at a time."""

    def __init__(self, placement: Placement, sectors: Callable[[], int] = sectors_read) -> None:
        self._placement = placement
        self._sectors = sectors
        self._seen = sectors()
        self._asked = 0
        self._threads: ThreadPoolExecutor | None = None
        self._call = 0

    def expect(self, paths: Sequence[bytes]) -> bool:
        """Say which files are read next, in this order; returns whether they are read ahead.

        They are when those of the last call did not lie in memory.  What is still being read ahead of an
        earlier call is given up: it was read by now, or never will be.
        """
        now = self._sectors()
        cold = self._asked and (now - self._seen) >= self._asked * _SECTORS_PER_FILE
        self._seen, self._asked = now, len(paths)
        self._call += 1
        if not cold:
            return False
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="prefetch")
        for first in range(THREADS):
            self._threads.submit(self._bring, self._call, paths[first::THREADS])
        return True

    def _bring(self, call: int, paths: Sequence[bytes]) -> None:
        with self._placement.directories() as directories:
            for path in paths:
                if call != self._call:
                    return
                with suppress(MirrorkeepError, OSError):
                    parent, name = split_path(path)
                    directory = directories.get(parent)
                    fd = os.open(name, READ_FILE, dir_fd=directory.fd)
                    try:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                    finally:
                        os.close(fd)
                    # Its content lies beside its inode, which opening brings in.
                    os.close(os.open(name, READ_FILE, dir_fd=directory.open_hidden(make=False)))
                directories.trim()
