"""What changed between two manifests, as a librsync delta (trap 16).

Both are sorted by the same order, so no rolling search is needed: equal stretches are found by comparing
memory, and where lines differ the order tells which side to pass over.  The cost follows the changes, and
memory does not grow: the delta is written to a file as it is found.

Not here: applying it (``delta/stream``), when it is sent (``mirror``).  A crash leaves the file cut off,
among the files of a run that its owner throws away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from mirrorkeep.delta.patch import Copy, Literal, delta_pieces
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.peek import path_of

_STRIDE_BYTES: Final = 1 << 16
_WINDOW_BYTES: Final = 1 << 20
_LITERAL_BYTES: Final = 1 << 18
"""Lines that differ are gathered up to so many bytes."""


class _Text:
    """A file read by position through one window: memory does not grow with the manifest."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size
        self._start = 0
        self._window = b""

    def read(self, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end``; fewer at the end of the file."""
        if start < self._start or end > self._start + len(self._window):
            self._start = start
            self._window = os.pread(self._fd, max(_WINDOW_BYTES, end - start), start)
        return self._window[start - self._start : end - self._start]

    def line(self, start: int) -> bytes:
        """Return the line that begins at ``start``, newline included (missing on a torn last line)."""
        length = 4096
        while True:
            block = self.read(start, start + length)
            cut = block.find(b"\n") + 1
            if cut or len(block) < length:
                return block[:cut] if cut else block
            length *= 4


def write_manifest_delta(old_path: str, new_path: str, delta_path: str) -> int:
    """Write the delta that makes the manifest at ``new_path`` from the one at ``old_path``; return its bytes.

    Raises OSError from the files.  Not durable: it is only needed while the run closes.
    """
    with open(old_path, "rb") as old, open(new_path, "rb") as new, open(delta_path, "wb") as out:
        for piece in delta_pieces(_operations(_Text(old.fileno()), _Text(new.fileno()))):
            out.write(piece)
        return out.tell()


def _operations(old: _Text, new: _Text) -> Iterator[Copy | Literal]:
    at_old = at_new = 0
    literal: list[bytes] = []
    literal_bytes = 0
    while at_new < new.size_bytes:
        equal = _equal_lines(old, at_old, new, at_new)
        if equal:
            if literal:
                yield Literal(b"".join(literal))
                literal, literal_bytes = [], 0
            yield Copy(at_old, equal)
            at_old += equal
            at_new += equal
            continue
        new_line = new.line(at_new)
        old_line = old.line(at_old) if at_old < old.size_bytes else b""
        new_key, old_key = _key(new_line), _key(old_line)
        if old_line and (old_key is None or (new_key is not None and old_key <= new_key)):
            at_old += len(old_line)
        if not old_line or new_key is None or (old_key is not None and new_key <= old_key):
            literal.append(new_line)
            at_new += len(new_line)
            literal_bytes += len(new_line)
            if literal_bytes >= _LITERAL_BYTES:
                yield Literal(b"".join(literal))
                literal, literal_bytes = [], 0
    if literal:
        yield Literal(b"".join(literal))


def _key(line: bytes) -> bytes | None:
    """Return the order of an entry's line, or None for header, checkpoints and trailer."""
    if not line or b",_internal_type=" in line:
        return None
    return order_key(path_of(line))


def _equal_lines(old: _Text, at_old: int, new: _Text, at_new: int) -> int:
    """Return how many bytes of whole lines are the same from both positions on."""
    equal = whole = 0
    while True:
        one = old.read(at_old + equal, at_old + equal + _STRIDE_BYTES)
        other = new.read(at_new + equal, at_new + equal + _STRIDE_BYTES)
        same = _common_prefix(one, other)
        cut = other.rfind(b"\n", 0, same) + 1
        if cut:
            whole = equal + cut
        equal += same
        if same < _STRIDE_BYTES:
            return whole


def _common_prefix(one: bytes, other: bytes) -> int:
    if one == other:
        return len(one)
    low, high = 0, min(len(one), len(other)) + 1  # the first ``low`` bytes are equal, ``high`` are not
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
