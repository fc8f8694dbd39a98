"""Connections move from a worker that is busy to one that is not.

The kernel deals new connections to the workers by a hash, and a client keeps the few that it has: with two
workers, half of all clients would have one of them do everything.  So each worker notes its load where the
others see it, and one that has much more to do than another ends a connection after an answer, which HTTP
lets it do at any time; the client opens a new one, and the hash is asked again.

Not here: how connections are dealt and closed (the HTTP layer below).
The notes are hints: a crash leaves stale ones, which count as those of an idle worker while their process
lives, and as none after that.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from mirrorkeep.tree.processes import is_alive

WINDOW_S: Final = 0.4
BUSY: Final = 0.5
"""Processors that a worker uses before it gives anything away."""
MUCH_LESS: Final = 0.5
"""The share of a worker's own load below which another one is worth the client's new handshake."""
_SLOT: Final = struct.Struct("<Ifd")  # process, load in processors, time of the note
_SLOTS: Final = 64
_FRESH_S: Final = 2 * WINDOW_S


class Balance:
    """The load of this worker among the others; for one thread."""

    def __init__(
        self,
        path: str,
        *,
        pid: int = 0,
        clock: Callable[[], float] = time.monotonic,
        used_s: Callable[[], float] = time.process_time,
    ) -> None:
        """Take a place in the notes at ``path``, which all workers of a store share.  Raises OSError."""
        self._pid = pid or os.getpid()
        self._clock, self._used_s = clock, used_s
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, _SLOT.size * _SLOTS)
            self._notes = mmap.mmap(fd, _SLOT.size * _SLOTS)
            self._slot = self._free_slot()
            self._began, self._used = clock(), used_s()
            self._note(0.0)
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing would not do: the mapping holds the file open
        finally:
            os.close(fd)
        self._clients: set[object] = set()

    def give_away(self, client: object) -> bool:
        """Count an answer to ``client`` (its address and port); says whether to end its connection with it.

        True at most once in a window, and never for the only client of one: moving that would move the load.
        """
        self._clients.add(client)
        now = self._clock()
        passed_s = now - self._began
        if passed_s < WINDOW_S:
            return False
        used = self._used_s()
        load = (used - self._used) / passed_s
        several = len(self._clients) > 1
        self._began, self._used = now, used
        self._clients.clear()
        self._note(load)
        # After a quiet time the load is a mean over it, and small.
        return several and load > BUSY and self._least_other(now) < load * MUCH_LESS

    def _note(self, load: float) -> None:
        place = self._slot * _SLOT.size
        self._notes[place : place + _SLOT.size] = _SLOT.pack(self._pid, load, self._began)

    def _least_other(self, now: float) -> float:
        least = float("inf")
        for slot in range(_SLOTS):
            pid, load, noted = _SLOT.unpack_from(self._notes, slot * _SLOT.size)
            if pid and slot != self._slot and load < least and is_alive(pid):
                least = min(least, load if now - noted < _FRESH_S else 0.0)
        return least

    def _free_slot(self) -> int:
        for slot in range(_SLOTS):
            pid = _SLOT.unpack_from(self._notes, slot * _SLOT.size)[0]
            if pid in (0, self._pid) or not is_alive(pid):
                return slot
        return self._pid % _SLOTS  # two workers share a place: what they note are hints
