"""How a large file is cut into segments: the unit that is compared, sent, retried and digested.

Segments are of one length, so that workers on both sides agree on borders without talking, and a
multiple of every block length up to 512 KiB.  Deltas may copy from anywhere in the base, so the
borders cost a shifted or moved stretch only its instructions.

The record of a file of several segments carries their digests (MAN-38), so that a range of the file can be
checked without the rest: ``UNIT:`` and 32 hex digits for each ``UNIT`` bytes.  The unit is the segment,
doubled until there are at most 128 digests, so that a record stays short whatever the file's size.  A
segment's digest is the first half of its BLAKE3, a larger unit's that of its segments' digests in a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from blake3 import blake3

SEGMENT_BYTES: Final = 152 * 65536
"""9.5 MiB: at most 10 MB in either reading (TX-04)."""


def plan_segments(size_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ``(start, end)`` of each segment of a file of ``size_bytes``, in order; none when it is empty."""
    if segment_bytes <= 0:
        raise ValueError("a segment has at least one byte")
    for start in range(0, size_bytes, segment_bytes):
        yield start, min(start + segment_bytes, size_bytes)


# --- digests ------------------------------------------------------------------------------------

DIGEST_BYTES: Final = 16
MOST_DIGESTS: Final = 128
_READ_BYTES: Final = 1 << 20

Span = tuple[int, int]


def digest_unit(size_bytes: int) -> int:
    """Return how many bytes of a file of ``size_bytes`` one digest of its record covers."""
    unit = SEGMENT_BYTES
    while -(-size_bytes // unit) > MOST_DIGESTS:
        unit *= 2
    return unit


def segment_digest(data: bytes | memoryview) -> bytes:
    """Return the digest of one segment's bytes, as records carry it."""
    return blake3(data).digest(DIGEST_BYTES)


def pack_digests(size_bytes: int, digests: Mapping[Span, bytes]) -> bytes:
    """Return the value of a record's key ``segments``; nothing for a file of one segment.

    ``digests`` has that of every segment of :func:`plan_segments`; raises KeyError when one is missing.
    """
    if size_bytes <= SEGMENT_BYTES:
        return b""
    unit = digest_unit(size_bytes)
    packed = []
    for start, end in plan_segments(size_bytes, unit):
        inner = [digests[start + first, start + last] for first, last in plan_segments(end - start)]
        packed.append(_join(inner, unit).hex())
    return f"{unit}:{''.join(packed)}".encode("ascii")


def unpack_digests(value: bytes, size_bytes: int) -> dict[Span, bytes]:
    """Return the digest of each range of a file from the value of its record's key ``segments``.

    Raises ValueError when it is not the value for a file of this size.
    """
    unit_text, _, digits = value.partition(b":")
    unit = int(unit_text)
    if unit < SEGMENT_BYTES or unit % SEGMENT_BYTES:
        raise ValueError(f"{unit} bytes are no unit of digests")
    digests = bytes.fromhex(digits.decode("ascii"))
    spans = list(plan_segments(size_bytes, unit))
    if len(digests) != len(spans) * DIGEST_BYTES:
        raise ValueError("the digests are not those of a file of this size")
    return {
        span: digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        for number, span in enumerate(spans)
    }


def digest_range(fd: int, span: Span, unit: int = SEGMENT_BYTES) -> bytes:
    """Return the digest of a range of an open file that one digest of a record covers; raises OSError."""
    start, end = span
    inner = []
    for first, last in plan_segments(end - start):
        hasher, position = blake3(), start + first
        while position < start + last and (
            part := os.pread(fd, min(_READ_BYTES, start + last - position), position)
        ):
            hasher.update(part)
            position += len(part)
        inner.append(hasher.digest(DIGEST_BYTES))
    return _join(inner, unit)


def digest_segments(fd: int, size_bytes: int) -> dict[Span, bytes]:
    """Return the digest of every segment of an open file; raises OSError."""
    return {span: digest_range(fd, span) for span in plan_segments(size_bytes)}


def _join(digests: list[bytes], unit: int) -> bytes:
    return digests[0] if unit == SEGMENT_BYTES else blake3(b"".join(digests)).digest(DIGEST_BYTES)
