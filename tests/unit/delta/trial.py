"""One trial: an old and a new content, their difference, and what a receiver does with it."""

from __future__ import annotations

import os
from collections.abc import Callable

from mirrorkeep.delta.difference import DELTA, PLAIN, Difference, SegmentChange
from mirrorkeep.delta.patch import apply_delta
from mirrorkeep.delta.segments import SEGMENT_BYTES, plan_segments
from mirrorkeep.delta.signature import Signature, sign_file

OpenFile = Callable[[bytes], int]
"""Return the descriptor of a new file with this content."""


class Trial:
    """One base and one new content: compare by segments, patch a clone, and say what it cost."""

    def __init__(self, open_file: OpenFile, base: bytes, new: bytes) -> None:
        self.base, self.new = base, new
        self.base_fd, self.new_fd, self.out_fd = open_file(base), open_file(new), open_file(base)

    def sign(self, *, block_bytes: int | None = None, bare: bool = False) -> Signature:
        """Return the base's signature; ``bare``: as another program would know it."""
        signed = sign_file(self.base_fd, len(self.base), block_bytes=block_bytes)
        if bare:
            return Signature.load(signed.signature)
        return Signature.load(signed.signature, base_bytes=len(self.base), outline=signed.outline)

    def compare(self, segment_bytes: int = SEGMENT_BYTES, **options: bool | int) -> list[SegmentChange]:
        difference = Difference(self.sign(**options), self.new_fd, len(self.new))  # type: ignore[arg-type]
        return [difference.segment(*span) for span in plan_segments(len(self.new), segment_bytes)]

    def patch(self, changes: list[SegmentChange]) -> int:
        """Write the changes into the clone, check the result, return how many bytes were sent."""
        sent = 0
        for change in changes:
            if change.kind is PLAIN:
                os.pwrite(self.out_fd, change.body, change.start)
            elif change.kind is DELTA:
                expected = change.end - change.start
                apply_delta(change.body, self.base_fd, self.out_fd, change.start, expected_bytes=expected)
            sent += 0 if change.is_unchanged else len(change.body)
        os.ftruncate(self.out_fd, len(self.new))
        assert os.pread(self.out_fd, len(self.new) + 1, 0) == self.new
        return sent
