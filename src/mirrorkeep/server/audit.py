"""The access log: one JSON object a line for every request, failures and refusals included (SEC-11).

Each worker appends to a file of its own (``DATA/log/access-N.jsonl``; N is the first slot whose file no
other live worker has locked), from one thread that writes whole batches, so a request never waits for
the log.  A killed worker loses at most the last quarter of a second; lines are whole or, after a power
cut, torn only at the end.  A file over 64 MiB is renamed with its closing time; nothing is ever deleted.

Not here: what to do with the log.  Secrets are never among the fields: queries and headers stay out,
but for the run.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
import time
from typing import Any, Final

log = logging.getLogger("mirrorkeep.server")

BATCH_S: Final = 0.25
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_SLOTS: Final = 1024


class AccessLog:
    """The access log of one worker.  :meth:`add` is safe from any thread and never blocks."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._path, self._fd = self._claim()
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """The file that lines go to now."""
        return self._path

    def add(self, row: dict[str, Any]) -> None:
        """Put one request into the log; it is on its way to the disk within a quarter of a second."""
        self._rows.put(row)

    def close(self) -> None:
        """Write what is waiting and end the thread."""
        self._closing.set()
        self._rows.put(None)
        self._thread.join(timeout=5)
        os.close(self._fd)

    def _claim(self) -> tuple[str, int]:
        for slot in range(1, MAX_SLOTS):
            path = os.path.join(self._folder, f"access-{slot}.jsonl")
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            return path, fd
        raise OSError(f"no free slot for an access log in {self._folder}")

    def _write_batches(self) -> None:
        ended = False
        while not ended:
            rows = [self._rows.get()]
            if rows[0] is not None:
                self._closing.wait(BATCH_S)
            while not self._rows.empty():
                rows.append(self._rows.get())
            ended = None in rows
            lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows if row is not None]
            try:
                self._append("".join(lines).encode("ascii"))
            except OSError as error:  # a full disk must not end serving; the gap is told to the log
                log.critical("the access log lost %d lines: %s", len(lines), error)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if os.fstat(self._fd).st_size >= MAX_FILE_BYTES:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            os.rename(self._path, f"{self._path.removesuffix('.jsonl')}-{stamp}.jsonl")
            os.close(self._fd)
            self._path, self._fd = self._claim()
