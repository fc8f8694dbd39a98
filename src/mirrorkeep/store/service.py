"""The service that runs on a store, seen from outside: whether there is one, and how it is ended.

Not here: serving and the locks that the service holds (``server.serve``).  Nothing is kept.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress

from mirrorkeep.errors import StorageFailure
from mirrorkeep.store.records import read_record


def running_service(data: str) -> int | None:
    """Return the process id of the service on ``data``, None when there is none."""
    run = os.path.join(data, "run")
    try:
        fd = os.open(os.path.join(run, "supervisor.lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        record = read_record(os.path.join(run, "listen"))
        return int(record["pid"]) if record and "pid" in record else None
    finally:
        os.close(fd)


def end_service(data: str, wait_s: float) -> int | None:
    """End the service on ``data`` politely and wait for it; returns its process id, None without one.

    Raises StorageFailure when it does not end within ``wait_s`` seconds.
    """
    pid = running_service(data)
    if pid is None:
        return None
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + wait_s
    while running_service(data) is not None:
        if time.monotonic() > deadline:
            raise StorageFailure(detail=f"the service {pid} does not end; see its log")
        time.sleep(0.05)
    return pid
