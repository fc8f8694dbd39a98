"""Reading a manifest: forward in large blocks with its hashes checked, or its last record from the end.

Two ways through the same file.  ``for record in reader`` parses every entry and checks its CRC and its
place in the order.  ``reader.lines()`` hands out the lines as they stand and leaves CRCs and order to
the hashes of the file, several times faster: that is the way of a run that mostly copies.  Both check
checkpoints *before* they hand out the entries in front of them, and the trailer at the end; a caller
that must not act on a damaged manifest reads it to the end first.

Memory: one block, or the longest line.  Not here: the lines' format (``record``, ``envelope``), the
binary form (``binary``).  Reading leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import accumulate, count
from operator import add
from typing import Final, Protocol

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import envelope
from mirrorkeep.manifest.envelope import SPECIAL_TAG
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import Record, parse_record

BLOCK_BYTES: Final = 256 * 1024
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest line that is read (a sparse map of two million ranges fits); a hostile file ends here."""
_TAIL_BLOCK_BYTES: Final = 64 * 1024


class Readable(Protocol):
    """What a manifest is read from: any binary stream, seekable or not."""

    def read(self, size_bytes: int, /) -> bytes: ...


class ManifestReader:
    """A manifest in its text form, read once from a binary stream.

    ``header`` and ``digest_name`` are known at once; ``trailer`` and ``file_digest`` (the SHA-256 of the
    file as stored) after the last entry, empty for a partial manifest.  ``entries`` counts what was read
    so far, ``offset`` is the byte behind it, ``checked_to`` the byte up to which header and checkpoints
    vouch for the file, ``hashes`` are those of the bytes before ``offset``.

    With ``partial`` a missing trailer or a torn last line ends the entries quietly: what was read is the
    beginning of a manifest.  ``check_hash=False`` accepts a trailer whose hash of the whole file is wrong
    (for looking into a damaged file); everything else is checked all the same.  ``on_checkpoint`` is told
    of each checkpoint (entries before it, fields) before those entries are handed out.

    Raises MalformedManifest with the byte offset of the fault, OSError from the stream.
    """

    def __init__(
        self,
        stream: Readable,
        *,
        partial: bool = False,
        check_hash: bool = True,
        on_checkpoint: Callable[[int, dict[bytes, bytes]], None] | None = None,
    ) -> None:
        self._stream = stream
        self._partial = partial
        self._check_hash = check_hash
        self._on_checkpoint = on_checkpoint
        self.header: dict[bytes, bytes] = {}
        self.trailer: dict[bytes, bytes] = {}
        self.entries = 0
        self.offset = 0
        self.checked_to = 0
        self.file_digest = ""
        self.digest_name = envelope.DEFAULT_DIGEST
        self._rest = b""
        self._ended = False
        self._read_header()
        self.hashes = envelope.FileHash(self.digest_name)
        self.hashes.update(self._header_line)

    # --- entries ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """Yield the entries in order, each with its CRC and its place checked."""
        previous = b""
        for offset, lines in self.batches():
            for line in lines:
                record = parse_record(line, offset)
                key = order_key(record.path)
                if key <= previous:
                    raise MalformedManifest(offset=offset, detail=f"{record.path!r} is out of order")
                previous = key
                offset += len(line) + 1
                yield record

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, line without newline) of every entry, checked in bulk by the file's hashes."""
        for start, lines in self.batches():
            yield from zip(map(add, accumulate(map(len, lines), initial=start), count()), lines)  # noqa: B905

    def batches(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield (offset of the first, lines) of entries that stand together; never empty; as ``lines``."""
        data = self._rest
        self._rest = b""
        while not self._ended:
            cut = data.rfind(b"\n") + 1
            if cut:
                block, data = data[:cut], data[cut:]
                yield from self._entries_of(block)
            elif len(data) > MAX_LINE_BYTES:
                raise MalformedManifest(offset=self.offset, detail="a line is too long")
            more = self._stream.read(BLOCK_BYTES)
            if not more:
                self._end_without_more(data)
                return
            data = data + more if data else more

    # --- blocks -------------------------------------------------------------------------------

    def _read_header(self) -> None:
        data = b""
        while b"\n" not in data:
            block = self._stream.read(BLOCK_BYTES)
            if not block or len(data) > MAX_LINE_BYTES:
                if self._partial and not block and _could_begin_header(data):
                    self._header_line, self._ended = b"", True
                    return
                raise MalformedManifest(offset=0, detail="there is no header line")
            data += block
        line, _, self._rest = data.partition(b"\n")
        record = parse_record(line)
        self.digest_name = envelope.check_header(record)
        self.header = record.fields
        self._header_line = line + b"\n"
        self.offset = self.checked_to = len(self._header_line)

    def _end_without_more(self, torn: bytes) -> None:
        self._ended = True
        if self.trailer:
            if torn:
                raise MalformedManifest(offset=self.offset, detail="bytes behind the trailer")
        elif not self._partial:
            detail = "the last line is torn" if torn else "the trailer is missing"
            raise MalformedManifest(offset=self.offset + len(torn), detail=detail)

    def _entries_of(self, block: bytes) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the entries in a block of whole lines; a special line behind them is checked first."""
        position = 0
        while position < len(block):
            if self.trailer:
                raise MalformedManifest(offset=self.offset, detail="bytes behind the trailer")
            tag = block.find(SPECIAL_TAG, position)
            end = len(block) if tag < 0 else block.rfind(b"\n", position, tag) + 1 or position
            stretch, first = block[position:end], self.offset
            lines = stretch.split(b"\n")
            lines.pop()  # the empty rest behind the last newline
            self.hashes.update(stretch)
            self.entries += len(lines)
            self.offset += len(stretch)
            position = end
            if tag >= 0:
                position = block.index(b"\n", tag) + 1
                self._take_special(block[end : position - 1])
            if lines:
                yield first, lines

    def _take_special(self, line: bytes) -> None:
        record = parse_record(line, self.offset)
        kind = envelope.internal_type(record)
        if kind == record.path == envelope.CHECKPOINT:
            running = self.hashes.running()
            envelope.check_checkpoint(record, self.digest_name, running, self.entries, self.offset)
            self.hashes.update(line + b"\n")
            if self._on_checkpoint is not None:
                self._on_checkpoint(self.entries, record.fields)
        elif kind == record.path == envelope.TRAILER:
            self._take_trailer(record, line)
        else:
            raise MalformedManifest(offset=self.offset, detail=f"a line of unknown type {kind[:20]!r}")
        self.offset += len(line) + 1
        self.checked_to = self.offset

    def _take_trailer(self, record: Record, line: bytes) -> None:
        envelope.check_entries(record, self.entries, self.offset)
        blank = envelope.blank_trailer(line, self.digest_name, self.offset)
        whole = self.hashes.seal(blank + b"\n")
        if self._check_hash and record.fields[envelope.file_hash_key(self.digest_name)] != whole.encode():
            raise MalformedManifest(offset=self.offset, detail="the file does not match its hash")
        self.file_digest = self.hashes.finish(line + b"\n")
        self.trailer = record.fields


def _could_begin_header(data: bytes) -> bool:
    start = b"=" + envelope.HEADER + b","
    return data[: len(start)] == start[: len(data)]


# --- from the end -----------------------------------------------------------------------------


def find_last_record(path: str | bytes) -> tuple[Record, int] | None:
    """Return the last whole entry of the manifest at ``path`` and the byte offset behind its newline.

    Reads backwards from the end of the file, a block at a time, and stops at the first line that is whole
    and whose CRC is right; header, checkpoints and a trailer are passed over.  None: there is no entry.
    """
    with open(path, "rb", buffering=0) as file:
        start = os.fstat(file.fileno()).st_size
        data = b""
        end: int | None = None  # of the lines not yet tried, in ``data``: behind a newline
        while start > 0:
            block_bytes = min(max(_TAIL_BLOCK_BYTES, len(data)), start)  # doubling: a long line costs twice
            start -= block_bytes
            data = os.pread(file.fileno(), block_bytes, start) + (data if end is None else data[:end])
            end = data.rfind(b"\n") + 1
            while end:
                line_start = data.rfind(b"\n", 0, end - 1) + 1
                if not line_start and start:
                    break  # the line begins in the block before
                record = _entry_or_none(data[line_start : end - 1])
                if record is not None:
                    return record, start + end
                end = line_start
            if not end:
                data, end = b"", None
    return None


def _entry_or_none(line: bytes) -> Record | None:
    try:
        record = parse_record(line)
    except MalformedManifest:
        return None
    return None if envelope.internal_type(record) else record
