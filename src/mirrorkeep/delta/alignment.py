"""How one segment of the new file lines up with the base: the search behind ``difference.py``.

A *shift* is the distance from a byte's place in the base to its place in the new file.  At a known
shift, blocks are recognised by their strong sum alone, each byte hashed once and nothing rolled
(:meth:`Alignment._follow`).  Where that fails, :meth:`Alignment._resync` looks for the shift that
holds next: at the shifts that other segments found, and by librsync's rolling search in small windows
at growing distances; a hit is followed back to the gap's start, so that coarse probing stays exact.
Short gaps that remain are rolled through at last (:meth:`Alignment._sweep`), for pieces that moved.

Rolling through new data costs twelve times a hash, so every rolling search here is bounded.

Not here: reading the file, deciding between delta and plain, encoding (``difference.py``).

Pure computation: nothing is written.  A wrong hint makes a longer delta, never a wrong copy: every copy
was proven by a strong sum.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from blake3 import blake3

from mirrorkeep.delta.patch import Copy, delta_operations
from mirrorkeep.delta.signature import GROUP_BLOCKS, GROUP_SUM_BYTES, Signature

_MISSES: Final = 2
"""Blocks in a row that must miss before the shift counts as lost: one is an edit in place."""
_FIRST_WINDOW_BLOCKS: Final = 4
_PROBE_WINDOW_BLOCKS: Final = 2
"""Any run of two blocks of shifted data holds one whole block of the base."""
_MOST_WINDOW_BYTES: Final = 1024 * 1024
_PROBE_STRIDE_BLOCKS: Final = 64
_SHORT_RUN_BLOCKS: Final = 4
_REMEMBERED_RUN_BLOCKS: Final = 8
_SWEEP_BYTES: Final = 512 * 1024
"""New bytes that are rolled through in one segment's gaps before the sweep gives up (about 8 ms)."""


class Shifts:
    """The shifts that segments of one file found, the latest first; shared by their threads."""

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: tuple[int, ...] = ()

    def known(self) -> tuple[int, ...]:
        """Return the remembered shifts, the latest first."""
        return self._known

    def remember(self, shift: int) -> None:
        """Put ``shift`` first."""
        if self._known[:1] != (shift,):
            with self._lock:
                others = tuple(known for known in self._known if known != shift)
                self._known = (shift, *others)[: self._most]


class Alignment:
    """The search over one segment, used once by one thread.

    ``window`` holds bytes ``low`` up to ``high`` of the new file: the segment ``start`` to ``end`` and
    up to a block more on each side, so that blocks across its borders can be hashed.
    """

    def __init__(
        self,
        signature: Signature,
        shifts: Shifts,
        window: bytes,
        span: tuple[int, int, int],
    ) -> None:
        self._signature = signature
        self._shifts = shifts
        self._bytes = window
        self._window = memoryview(window)
        self._low, self._start, self._end = span
        self._high = self._low + len(window)
        self._block = signature.block_bytes
        self._copies: list[tuple[int, int, int]] = []  # (place in the new file, place in the base, bytes)
        self._first_window = _FIRST_WINDOW_BLOCKS * self._block

    def copies(self) -> list[tuple[int, int, int]]:
        """Return ``(new offset, base offset, bytes)`` of everything found, in order, without overlaps."""
        if self._signature.blocks:
            self._align()
            self._sweep()
        return self._copies

    # --- following a shift ----------------------------------------------------------------------

    def _align(self) -> None:
        position, shift = self._start, 0
        while position < self._end:
            reached = self._follow(position, shift)
            if reached - position >= _REMEMBERED_RUN_BLOCKS * self._block:
                self._shifts.remember(shift)
                self._first_window = _FIRST_WINDOW_BLOCKS * self._block
            if reached >= self._end:
                return
            found = self._resync(reached, shift)
            if found is None:
                return
            position, shift = found

    def _follow(self, position: int, shift: int) -> int:
        """Take matching blocks at ``shift`` from ``position`` on; return where the shift was lost.

        That is the end of the last match, or the segment's end when fewer than two blocks miss there.
        """
        size, end = self._block, self._end
        block = (position - shift) // size
        misses = 0
        while (place := block * size + shift) < end:
            run = self._run(block, shift)
            if run:
                self._take(position, place, shift, run)
                position = min(place + run, end)
                block += -(-run // size)
                misses = 0
            misses += 1  # what ended a run has missed already
            if misses == _MISSES and position < end:
                return position
            block += 1
        return end

    def _run(self, block: int, shift: int) -> int:
        """Return how many bytes match from the beginning of ``block`` on, block after block.

        A run ends before a block that misses, at the end of the base, or where nothing of the segment
        is left.
        """
        signature, window, size = self._signature, self._window, self._block
        first = block * size + shift - self._low
        last = signature.blocks - 1
        if first < 0 or not 0 <= block <= last:
            return 0
        sums, stride, strong = signature.data, signature.stride, signature.strong_bytes
        at, group_size, number, offset = signature.first_strong, GROUP_BLOCKS * size, block, first
        stop = min(self._end - self._low, len(window) - size + 1)
        while offset < stop and number < last:
            if not number % GROUP_BLOCKS and self._is_group(number // GROUP_BLOCKS, offset, group_size):
                number, offset = number + GROUP_BLOCKS, offset + group_size
                continue
            digest = blake2b(window[offset : offset + size], digest_size=32).digest()
            place = at + number * stride
            if digest[:strong] != sums[place : place + strong]:
                return offset - first
            number, offset = number + 1, offset + size
        if number == last and offset + self._low < self._end:
            offset += signature.find_tail(window[offset : offset + size])
        return offset - first

    def _is_group(self, group: int, offset: int, group_size: int) -> bool:
        """Say whether a whole group of blocks matches by the outline, at a sixth of the blocks' cost."""
        if group >= self._signature.groups or offset + group_size > len(self._window):
            return False
        at = group * GROUP_SUM_BYTES
        wanted = self._signature.outline[at : at + GROUP_SUM_BYTES]
        return bool(blake3(self._window[offset : offset + group_size]).digest(GROUP_SUM_BYTES) == wanted)

    def _take(self, position: int, place: int, shift: int, length: int) -> None:
        """Note a copy of what lies at ``place``, less what is before ``position`` or behind the segment."""
        begin, end = max(position, place), min(place + length, self._end)
        if begin >= end:
            return
        if self._copies:
            last_place, last_base, last_length = self._copies[-1]
            if last_place + last_length == begin and last_base + last_length == begin - shift:
                self._copies[-1] = (last_place, last_base, last_length + end - begin)
                return
        self._copies.append((begin, begin - shift, end - begin))

    # --- finding a lost shift again ---------------------------------------------------------------

    def _resync(self, gap: int, lost: int) -> tuple[int, int] | None:
        """Find where, behind ``gap``, the base goes on; take what leads there from the gap on.

        Returns the place and shift to follow, or None when no probe up to the segment's end hit.
        """
        block = self._block
        candidates = dict.fromkeys((lost, 0, *self._shifts.known()))
        for at in self._probes(gap):
            for shift in candidates:
                if shift == lost and at == gap:
                    continue
                first = -((shift - at) // block)  # the first block that begins at or behind `at`
                for number in (first, first + 1):
                    if number * block + shift < self._end and self._is_match(number, shift):
                        return self._take_back(gap, number, shift), shift
            window = self._first_window if at == gap else _PROBE_WINDOW_BLOCKS * block
            found = self._roll(gap, at, window)
            if found is not None:
                return found
        return None

    def _probes(self, gap: int) -> Iterator[int]:
        """Yield the places to probe: at growing distances, and last what leads into the next segment."""
        yield gap
        distance = _FIRST_WINDOW_BLOCKS * self._block
        last = self._end - self._block
        while gap + distance < last:
            yield gap + distance
            distance += min(distance, _PROBE_STRIDE_BLOCKS * self._block)
        if last > gap:
            yield last

    def _is_match(self, number: int, shift: int) -> bool:
        signature, begin = self._signature, number * self._block + shift - self._low
        if not 0 <= number < signature.blocks - 1 or begin < 0 or begin + self._block > len(self._window):
            return False
        digest = blake2b(self._window[begin : begin + self._block], digest_size=32).digest()
        return digest[: signature.strong_bytes] == signature.strong(number)

    def _roll(self, gap: int, at: int, window_bytes: int) -> tuple[int, int] | None:
        """Search the window at ``at`` by rolling; take all that it finds, and what leads there."""
        found = list(self._search(at, min(at + window_bytes, self._high)))
        if not found:
            return None
        place, base, _ = found[0]
        if place > gap:
            shift = place - base
            self._take_back(gap, base // self._block, shift)
        position = place
        for place, base, length in found:
            self._take(place, place, place - base, length)
            position, shift = place + length, place - base
        # Repeated blocks match at once and lead nowhere: let librsync walk through them in bigger steps.
        if at == gap and position - gap <= window_bytes + _SHORT_RUN_BLOCKS * self._block:
            self._first_window = min(2 * self._first_window, _MOST_WINDOW_BYTES)
        return position, shift

    def _search(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the copies that librsync finds for bytes ``begin`` to ``end`` of the new file."""
        delta = self._signature.sums().search(self._bytes, begin - self._low, end - self._low)
        place = begin
        for operation in delta_operations(delta):
            if isinstance(operation, Copy):
                yield place, operation.offset, operation.length
                place += operation.length
            else:
                place += len(operation.data)

    def _take_back(self, gap: int, number: int, shift: int) -> int:
        """Follow ``shift`` backwards from the beginning of block ``number``, which matches, to ``gap``.

        Takes what matches and returns the beginning of block ``number`` in the new file.
        """
        first = number
        while (first - 1) * self._block + shift + self._block > gap and self._is_match(first - 1, shift):
            first -= 1
        place = number * self._block + shift
        begin = first * self._block + shift
        self._take(gap, begin, shift, place - begin)
        return place

    # --- the rest ---------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Roll through the gaps of two blocks and more, until too many bytes turn out to be new."""
        if not self._copies:
            return
        found: list[tuple[int, int, int]] = []
        missed, position = 0, self._start
        for place, _, length in [*self._copies, (self._end, 0, 0)]:
            while place - position >= 2 * self._block and missed < _SWEEP_BYTES:
                window_end = min(position + _SWEEP_BYTES // 2, place)
                hits = list(self._search(position, window_end))
                found += hits
                missed += window_end - position - sum(hit[2] for hit in hits)
                position = window_end
            position = place + length
        if found:
            self._copies = sorted(self._copies + found)
