"""Sorting and keeping more rows than memory should hold: runs on disk, merged as they are read.

:class:`SpilledSort` sorts rows of bytes: a full memory is sorted and spilled as a *run*; reading merges
the runs, and when there are more of them than may be open at once, the smallest are first merged into
larger ones (MAN-40).  :class:`SpilledList` keeps rows in the order they came.

A crash leaves files named ``sort-*`` or ``list-*`` in the directory, which nobody reads again: whoever
owns the directory empties it before the next run.  Not here: what the rows mean.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from types import TracebackType
from typing import Final, Self

_ROWS_BYTES: Final = 16 * 1024 * 1024
"""Most bytes that rows take in memory, whatever their number."""
_ROW_BYTES: Final = 48
"""What the interpreter adds to each row, in round figures."""
_BLOCK_BYTES: Final = 128 * 1024
_LENGTH_BYTES: Final = 4
_MAX_ROW_BYTES: Final = (1 << 32) - 1


class SpilledSort:
    """Rows of any bytes, added in any order and read in byte order; equal rows are all kept.

    Memory: ``max_rows_in_memory`` rows (and at most 16 MiB of them) while they are added, a block a run
    while they are read, if there were more; open files: ``max_open_runs`` and one.
    Raises OSError from the disk; the rows are then lost, the source of them is not.
    """

    def __init__(self, directory: str, *, max_rows_in_memory: int = 50_000, max_open_runs: int = 16) -> None:
        if max_open_runs < 2 or max_rows_in_memory < 1:
            raise ValueError("a merge needs two runs and a row")
        self._directory = directory
        self._max_rows = max_rows_in_memory
        self._max_open = max_open_runs
        self._rows: list[bytes] = []
        self._rows_bytes = 0
        self._runs: list[str] = []

    def add(self, row: bytes) -> None:
        """Add a row (below 4 GiB)."""
        self._rows.append(row)
        self._rows_bytes += len(row) + _ROW_BYTES
        if len(self._rows) >= self._max_rows or self._rows_bytes >= _ROWS_BYTES:
            self._spill()

    def __iter__(self) -> Iterator[bytes]:
        """Yield all rows in byte order; may be done again, and rows may be added in between.

        Rows that were spilled are read from the disk alone: what a sort still holds would otherwise lie in
        memory, up to a full one of it, for as long as whoever reads is busy with what it reads.
        """
        if not self._runs:
            self._rows.sort()
            return iter(self._rows)
        if self._rows:
            self._spill()
        while len(self._runs) > self._max_open:
            self._merge_smallest()
        return heapq.merge(*(_read_rows(run) for run in self._runs))

    def close(self) -> None:
        """Remove the files and forget the rows; may be called twice."""
        for run in self._runs:
            _remove(run)
        self._runs, self._rows, self._rows_bytes = [], [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spill(self) -> None:
        self._rows.sort()
        self._runs.append(_write_run(self._directory, self._rows))
        self._rows, self._rows_bytes = [], 0

    def _merge_smallest(self) -> None:
        """Merge just so many runs that the rest may be open together, or as many as may be open."""
        self._runs.sort(key=os.path.getsize)
        count = min(self._max_open, len(self._runs) - self._max_open + 1)
        group = self._runs[:count]
        merged = _write_run(self._directory, heapq.merge(*(_read_rows(run) for run in group)))
        self._runs[:count] = [merged]
        for run in group:
            _remove(run)


class SpilledList:
    """Rows of any bytes, read in the order they were appended; at most a block of them in memory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._file: str | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: bytes) -> None:
        """Append a row (below 4 GiB)."""
        self._pending += (_length(row), row)
        self._pending_bytes += len(row) + _LENGTH_BYTES
        self._count += 1
        if self._pending_bytes >= _BLOCK_BYTES:
            self._spill()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the rows appended so far; may be done again."""
        pending = self._pending[1::2]
        return iter(pending) if self._file is None else chain(_read_rows(self._file), pending)

    def close(self) -> None:
        """Remove the file and forget the rows; may be called twice."""
        if self._file is not None:
            _remove(self._file)
        self._file, self._pending, self._pending_bytes, self._count = None, [], 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spill(self) -> None:
        if self._file is None:
            descriptor, self._file = tempfile.mkstemp(prefix="list-", dir=self._directory)
        else:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with open(descriptor, "ab", buffering=0) as file:
            file.write(b"".join(self._pending))
        self._pending, self._pending_bytes = [], 0


# --- runs -------------------------------------------------------------------------------------


def _length(row: bytes) -> bytes:
    if len(row) > _MAX_ROW_BYTES:
        raise ValueError("a row is too long to be spilled")
    return len(row).to_bytes(_LENGTH_BYTES, "little")


def _write_run(directory: str, rows: Iterable[bytes]) -> str:
    """Write length-prefixed rows to a new file of ``directory`` and return its path."""
    descriptor, path = tempfile.mkstemp(prefix="sort-", dir=directory)
    try:
        with open(descriptor, "wb", buffering=_BLOCK_BYTES) as file:
            write = file.write
            for row in rows:
                write(_length(row))
                write(row)
    except BaseException:
        _remove(path)
        raise
    return path


def _read_rows(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=_BLOCK_BYTES) as file:
        read = file.read
        while length := read(_LENGTH_BYTES):
            yield read(int.from_bytes(length, "little"))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
