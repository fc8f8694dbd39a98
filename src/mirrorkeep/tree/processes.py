"""Other processes of this machine: whether they are still there.

Not here: locks, which the kernel gives back by itself (``store.locks``).  Nothing is stored.
"""

from __future__ import annotations

import os


def is_alive(pid: int) -> bool:
    """Return whether ``pid`` is a process that has not ended; one that nobody waited for yet has."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return True  # another system: whoever answers to the number is alive
