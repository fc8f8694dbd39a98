"""The barrier of a part: publishing holds it shared, committing and snapshotting exclusive (design 10.3).

Answers for: ``flock`` across threads and processes, given back by the kernel when the holder dies.  A gate
in front keeps a steady stream of publishers from starving whoever wants the lock for itself: publishers
pass the gate one by one, a waiting exclusive taker closes it.

Not here: what is done under the lock.  A crash leaves two empty files and no lock.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType
from typing import Final

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Held:
    """A lock that is taken on entry and given back on exit; made anew for each use (about 8 us)."""

    __slots__ = ("_fd", "_mode", "_path")

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._fd = -1

    def __enter__(self) -> None:
        gate = os.open(self._path + ".gate", _FLAGS, 0o600)
        try:
            fcntl.flock(gate, self._mode)
            fd = os.open(self._path, _FLAGS, 0o600)
            try:
                fcntl.flock(fd, self._mode)
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
        finally:
            os.close(gate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def shared(path: str) -> Held:
    """Hold the barrier at ``path`` together with other publishers."""
    return Held(path, fcntl.LOCK_SH)


def exclusive(path: str) -> Held:
    """Hold the barrier at ``path`` alone: on entry everything published before is complete."""
    return Held(path, fcntl.LOCK_EX)
