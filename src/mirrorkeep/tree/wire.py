"""The wire: verbs, header names, limits and the framing of bundles.  Client and server share this file.

A bundle is a sequence of frames, each a fixed head (``>BIQ``: operation, length of the record line,
length of the data), the record line without newline, and the data; after the last frame comes a head
of zeros, so that a truncated bundle is never taken for a whole one.  Bundles travel in the body of
``BUNDLE-APPLY`` (client to server) and in the answer to ``BUNDLE-READ``.  ``BUNDLE-READ ?content=1`` is for
a reader that has the records: the line of each frame is then the place of its path among those asked for,
in decimal, and the operation always PUT.

Source: requirements TX-01..26, design section 5.  Frozen by ``tests/golden/bundle``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from mirrorkeep.errors import MalformedBundle
from mirrorkeep.tree.protocol import Data, Frame, Op

PROTOCOL_VERSION: Final = 1

PATCH_APPLY: Final = "PATCH-APPLY"
BUNDLE_APPLY: Final = "BUNDLE-APPLY"
BUNDLE_READ: Final = "BUNDLE-READ"

RUN_HEADER: Final = "Mirrorkeep-Run"
"""``RUN-ID;epoch=N;incarnation=ID`` on every write inside a run."""
RECORD_HEADER: Final = "Mirrorkeep-Record"
"""A manifest record line, percent-encoded, on PUT and on the finish of a transaction."""
DIGEST_HEADER: Final = "Mirrorkeep-Digest"
"""``sha256=HEX`` or ``blake3=HEX`` of the unpacked body's result (a file or a segment)."""
TRANSACTION_HEADER: Final = "Mirrorkeep-Transaction"
"""Transaction id that ``begin`` returned, on PATCH-APPLY of one segment of several."""
PLAIN_SEGMENT_HEADER: Final = "Mirrorkeep-Plain"
"""``true`` on PATCH-APPLY: the body is the segment's bytes, not a delta."""

MAX_BUNDLE_BYTES: Final = 8 * 1024 * 1024
"""Most bytes of one unpacked bundle that a server accepts."""
BUNDLE_TARGET_BYTES: Final = 2 * 1024 * 1024
MAX_BUNDLE_FRAMES: Final = 4096
SMALL_FILE_BYTES: Final = 1024 * 1024
"""Files up to this size travel in bundles, larger ones in transactions of segments."""
SEGMENT_BYTES: Final = 152 * 65536
"""9.5 MiB: at most 10 MB (TX-04) in either reading, and a multiple of every block length."""

SIGNED_AT_ONCE_BYTES: Final = 512 * 1024 * 1024
"""A multiple of every block length; of a larger file the signature is asked for in pieces of so much."""
SIGNATURE_HEAD_BYTES: Final = 12
"""What every piece of a signature begins with, and a whole one once."""

SEGMENT_DIGEST: Final = "blake3"
"""Algorithm of a segment's transport digest (five times as fast as SHA-256; the file keeps its own)."""

_HEAD: Final = struct.Struct(">BIQ")
HEAD_BYTES: Final = _HEAD.size
END: Final = bytes(HEAD_BYTES)


def pack_head(op: Op, line: bytes, data_bytes: int) -> bytes:
    """Return the fixed head of one frame."""
    return _HEAD.pack(op, len(line), data_bytes)


def unpack_head(data: bytes, position: int = 0) -> tuple[int, int, int]:
    """Return operation (0: end mark), record length and data length of the head at ``position``."""
    code, line_bytes, data_bytes = _HEAD.unpack_from(data, position)
    return code, line_bytes, data_bytes


def pack_bundle(frames: Iterable[Frame]) -> bytes:
    """Return the whole bundle, end mark included."""
    parts: list[Data] = []
    for frame in frames:
        parts += (_HEAD.pack(frame.op, len(frame.line), len(frame.data)), frame.line, frame.data)
    parts.append(END)
    return b"".join(parts)


def unpack_bundle(body: bytes) -> Iterator[Frame]:
    """Yield the frames of a whole bundle; raises MalformedBundle with the byte offset.

    The framing of the *whole* bundle is checked before the first frame is yielded, so a damaged or
    truncated body changes nothing.
    """
    view = memoryview(body)
    for op, line_start, data_start, end in _scan(body):
        # The content of files, which is nearly everything, is not copied once more.
        data = view[data_start:end] if op is Op.PUT else body[data_start:end]
        yield Frame(op, body[line_start:data_start], data)


def _scan(body: bytes) -> list[tuple[Op, int, int, int]]:
    frames: list[tuple[Op, int, int, int]] = []
    position, total = 0, len(body)
    while True:
        if position + HEAD_BYTES > total:
            raise MalformedBundle(offset=position, detail="the end mark is missing")
        code, line_bytes, data_bytes = _HEAD.unpack_from(body, position)
        line_start = position + HEAD_BYTES
        if code == 0:
            if line_bytes or data_bytes or line_start != total:
                raise MalformedBundle(offset=position, detail="bytes after the end mark")
            return frames
        data_start = line_start + line_bytes
        position = data_start + data_bytes
        if position > total:
            raise MalformedBundle(offset=line_start, detail="a frame is longer than the bundle")
        if code not in Op._value2member_map_:
            raise MalformedBundle(offset=line_start - HEAD_BYTES, detail=f"unknown operation {code}")
        frames.append((Op(code), line_start, data_start, position))
