"""How long ago every byte of a part was read: the rolling cycle of incremental validation.

Answers for the age that a verdict shows.  Entries are read in manifest order, a share at a time, so what is
known is a list of *marks*: up to this place, everything was last read at that time or later.  The oldest
mark is the age of the oldest read, a lower bound of the truth (entries that change are read at once).

State lies in ``cycle.json`` of the part; losing it costs one full validation, never a wrong claim.

Not here: reading, deciding what changed (``examine``, ``change``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from mirrorkeep.errors import DamagedRecord
from mirrorkeep.manifest.order import order_key
from mirrorkeep.store.records import read_record, write_record

START: Final = b""
END: Final = order_key(b"")
"""The root is the last entry of every manifest."""

MAX_MARKS: Final = 256
MIN_SHARE_BYTES: Final = 4 << 20


@dataclass(slots=True)
class Cycle:
    """What a part's validations have read, and when (seconds since the epoch)."""

    base: str = ""
    """The newest snapshot whose content was validated; empty: none, so the next validation is full."""
    base_sequence: int = 0
    position: bytes = START
    """Order key of the last entry that the rolling read took."""
    rolled_at: float = 0.0
    marks: list[tuple[bytes, float]] = field(default_factory=list)
    """Ascending ``(order key, time)``: entries after the mark before and up to this key."""

    @property
    def oldest_read(self) -> float | None:
        """When the byte that was not read for the longest time was last read; None: never."""
        return min(time for _, time in self.marks) if self.marks else None

    def read_all(self, time: float) -> None:
        """Note that everything was read from ``time`` on."""
        self.marks = [(END, time)]
        self.position, self.rolled_at = START, time

    def read_stretch(self, end: bytes, time: float) -> None:
        """Note that everything after ``position`` up to ``end`` was read from ``time`` on."""
        start = self.position
        if end <= start:
            return
        before = [mark for mark in self.marks if mark[0] <= start]
        after = [mark for mark in self.marks if mark[0] > end]
        cut = next((mark for mark in self.marks if mark[0] > start), None)
        if cut is not None and start > START and (not before or before[-1][0] < start):
            before.append((start, cut[1]))
        self.marks = _bounded([*before, (end, time), *after])
        self.position = START if end >= END else end
        self.rolled_at = time

    def share_bytes(self, total_bytes: int, now: float, cycle_s: float) -> int:
        """Return how many bytes the rolling read should take now to come round within ``cycle_s``."""
        elapsed_s = max(0.0, now - self.rolled_at)
        return max(MIN_SHARE_BYTES, int(1.25 * total_bytes * min(1.0, elapsed_s / cycle_s)))


def _bounded(marks: list[tuple[bytes, float]]) -> list[tuple[bytes, float]]:
    """Join neighbours of one time, and, beyond the limit, neighbours at the price of the older time."""
    joined = [mark for mark, following in pairwise([*marks, (b"", -1.0)]) if mark[1] != following[1]]
    while len(joined) > MAX_MARKS:
        joined = [
            (pair[-1][0], min(time for _, time in pair))
            for pair in (joined[i : i + 2] for i in range(0, len(joined), 2))
        ]
    return joined


def load_cycle(directory: str) -> Cycle:
    """Return the state of the part in ``directory``; a fresh one when there is none or it is damaged."""
    try:
        record: Mapping[str, Any] = read_record(_path(directory)) or {}
        return Cycle(
            str(record.get("base", "")),
            int(record.get("base_sequence", 0)),
            bytes.fromhex(record.get("position", "")),
            float(record.get("rolled_at", 0.0)),
            [(bytes.fromhex(key), float(time)) for key, time in record.get("marks", [])],
        )
    except (DamagedRecord, ValueError, TypeError):
        return Cycle()


def save_cycle(directory: str, cycle: Cycle) -> None:
    """Keep the state; atomic, durable."""
    record = {
        "base": cycle.base,
        "base_sequence": cycle.base_sequence,
        "position": cycle.position.hex(),
        "rolled_at": cycle.rolled_at,
        "marks": [[key.hex(), time] for key, time in cycle.marks],
    }
    write_record(_path(directory), record)


def _path(directory: str) -> str:
    return f"{directory}/cycle.json"
