"""Writing a manifest: entries are added or copied in order, checkpoints and trailer come by themselves.

Where a checkpoint stands follows from the entries alone: behind an entry whose CRC ends in enough zero
bits, one in ``checkpoint_every`` on average (sixteen times as often at the beginning, so that a short
manifest has some).  So the manifest of an unchanged tree is the same bytes whether its lines were
added, copied, or written by a run that was resumed, and an insertion moves no other checkpoint.

Lines are buffered here, hashed and written in blocks; :meth:`ManifestWriter.flush` hands everything to
the operating system, durability (``fsync``) is the caller's.  A crash leaves a file without trailer and
perhaps with a torn last line: ``find_last_record`` tells how far it is good, ``resume`` goes on there.

Not here: the order of entries, which is the caller's (readers check it), and their format (``record``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import envelope
from mirrorkeep.manifest.envelope import SPECIAL_TAG
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import CRC_DIGITS, format_record, parse_record

CHECKPOINT_EVERY: Final = 4096
_PENDING_LINES: Final = 512
_COPY_BYTES: Final = 256 * 1024
_DENSER: Final = 16
"""How much closer checkpoints stand among the first ``_DENSER * checkpoint_every`` entries."""


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """A finished manifest: SHA-256 of the file as stored (lowercase hex), its entries, its length."""

    digest: str
    entries: int
    size_bytes: int


class CheckpointRule:
    """Says behind which entries a checkpoint stands; ``every`` counts as the power of two below it.

    ``every=0`` means never.
    """

    def __init__(self, every: int) -> None:
        self.every = 1 << every.bit_length() - 1 if every else 0
        dense = max(1, self.every // _DENSER)
        self._dense_mask, self._sparse_mask = dense - 1, self.every - 1
        self._dense_entries = _DENSER * self.every
        self._dense_digits, self._sparse_digits = _zero_digits(dense), _zero_digits(self.every)

    def positions(self, lines: list[bytes], entries: int) -> list[int]:
        """Return after how many of ``lines``, which follow ``entries`` others, checkpoints are due.

        Raises MalformedManifest when a line that would decide does not end with a CRC.
        """
        if not self.every:
            return []
        dense = entries < self._dense_entries
        digits = self._dense_digits if dense else self._sparse_digits
        return [
            index
            for index, line in enumerate(lines, 1)
            if line.endswith(digits) and self._is_due(line, entries + index)
        ]

    def _is_due(self, line: bytes, entries: int) -> bool:
        try:
            crc = int(line[-CRC_DIGITS:], 16)
        except ValueError:
            raise MalformedManifest(offset=0, detail="a record does not end with its CRC") from None
        mask = self._dense_mask if entries <= self._dense_entries else self._sparse_mask
        return not crc & mask


def _zero_digits(every: int) -> bytes:
    """Return the digits that end every CRC which is a multiple of ``every`` (and some others)."""
    return b"0" * ((every.bit_length() - 1) // 4)


class ManifestWriter:
    """A manifest in the making on ``stream``, which is written sequentially and not closed here.

    ``header`` holds the keys beside the internal ones (the same for every run over a tree, or its manifest
    would not stay the same); None with ``digest="sha1"`` is the plain header of the document.
    """

    def __init__(
        self,
        stream: BinaryIO,
        header: Mapping[bytes, bytes] | None,
        *,
        digest: str = "sha256",
        checkpoint_every: int = CHECKPOINT_EVERY,
    ) -> None:
        self._start(stream, digest, checkpoint_every)
        self._write(format_record(envelope.HEADER, envelope.header_fields(header or {}, digest)) + b"\n")

    def _start(self, stream: BinaryIO, digest: str, checkpoint_every: int) -> None:
        self._stream = stream
        self._digest_name = digest
        self._rule = CheckpointRule(checkpoint_every)
        self._hashes = envelope.FileHash(digest)
        self._pending: list[bytes] = []
        self._written_bytes = 0
        self._written_entries = 0

    # --- adding -------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """Entries so far."""
        return self._written_entries + len(self._pending)

    @property
    def offset(self) -> int:
        """Bytes of the file so far, checkpoints that are due included."""
        self._drain()
        return self._written_bytes

    def add(self, line: bytes) -> None:
        """Append one entry (its line with CRC, without newline), which comes next in the order."""
        self._pending.append(line)
        if len(self._pending) >= _PENDING_LINES:
            self._drain()

    def add_many(self, lines: Sequence[bytes]) -> None:
        """Append entries, as :meth:`add`."""
        self._pending.extend(lines)
        if len(self._pending) >= _PENDING_LINES:
            self._drain()

    def copy(self, source_fd: int, start: int, end: int, records: int) -> None:
        """Append the ``records`` entries that stand at bytes ``start`` to ``end`` of an older manifest.

        The range begins and ends at lines; checkpoints in it are dropped and written anew.  Raises
        MalformedManifest (offset in the source) when the range is not that many whole lines; what was
        written before the fault stays, so the caller gives the manifest up.
        """
        self._drain()
        expected = self._written_entries + records
        position, torn = start, b""
        while position < end:
            block = os.pread(source_fd, min(_COPY_BYTES, end - position), position)
            if not block:
                raise MalformedManifest(offset=position, detail="the manifest ends within a copied stretch")
            position += len(block)
            cut = block.rfind(b"\n") + 1
            if cut:
                self._emit_entries(torn + block[:cut] if torn else block[:cut])
                torn = block[cut:]
            else:
                torn += block
        if torn or self._written_entries != expected:
            raise MalformedManifest(offset=start, detail=f"a copied stretch is not {records} whole lines")

    def checkpoint(self, fields: Mapping[bytes, bytes]) -> None:
        """Write a checkpoint with ``fields`` here, wherever the rule would put one (for conversions)."""
        self._drain()
        running = self._hashes.running()
        named = envelope.checkpoint_fields(self._digest_name, running, fields)
        self._write(format_record(envelope.CHECKPOINT, named) + b"\n")

    # --- ending -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand everything added so far to the operating system; not durable yet."""
        self._drain()
        self._stream.flush()

    def finish(
        self, trailer: Mapping[bytes, bytes] | None = None, *, count_entries: bool = True
    ) -> ManifestSummary:
        """Write the trailer and flush; ``trailer`` adds keys.  Nothing may be added afterwards."""
        self._drain()
        fields = dict(trailer or {})
        if count_entries:
            fields[envelope.ENTRIES] = b"%d" % self._written_entries
        line = envelope.seal_trailer(self._digest_name, self._hashes, fields) + b"\n"
        self._stream.write(line)
        self._stream.flush()
        self._written_bytes += len(line)
        return ManifestSummary(self._hashes.finish(line), self._written_entries, self._written_bytes)

    # --- resuming -----------------------------------------------------------------------------

    @classmethod
    def resume(
        cls, path: str | bytes, offset: int, *, checkpoint_every: int = CHECKPOINT_EVERY
    ) -> ManifestWriter:
        """Reopen the partial manifest at ``path``, cut it at ``offset`` (behind a line) and go on there.

        The bytes before ``offset`` are read once, to bring the hashes up to date and to check them: by the
        checkpoints, and by their CRCs behind the last checkpoint.  MalformedManifest means that they are
        damaged, and the file is left as it is.  The caller closes the file with :meth:`close`.
        """
        file = open(path, "r+b")  # lives on in the writer
        try:
            writer = cls.__new__(cls)
            writer._take_up(file, offset, checkpoint_every)
        except BaseException:
            file.close()
            raise
        return writer

    def _take_up(self, file: BinaryIO, offset: int, checkpoint_every: int) -> None:
        reader = ManifestReader(_Front(file, offset), partial=True)
        last, behind = b"", 0
        for start, lines in reader.batches():
            last, behind = lines[-1], start + sum(map(len, lines)) + len(lines)
        if reader.offset != offset or reader.trailer or not reader.header:
            raise MalformedManifest(offset=reader.offset, detail="a manifest cannot be resumed here")
        _check_records(file, reader.checked_to, offset)
        self._start(file, reader.digest_name, checkpoint_every)
        self._hashes = reader.hashes
        self._written_bytes, self._written_entries = offset, reader.entries
        file.truncate(offset)
        file.seek(offset)
        if behind == offset and self._rule.positions([last], reader.entries - 1):
            self.checkpoint({envelope.ENTRIES: b"%d" % self._written_entries})

    def close(self) -> None:
        """Close the stream (what was added and not flushed is handed over first)."""
        self._drain()
        self._stream.close()

    # --- blocks -------------------------------------------------------------------------------

    def _drain(self) -> None:
        if not self._pending:
            return
        lines, self._pending = self._pending, []
        block = b"\n".join(lines) + b"\n"
        if block.count(b"\n") != len(lines):
            raise ValueError("a line holds a newline")
        self._emit(block, lines)

    def _emit_entries(self, block: bytes) -> None:
        """Emit a block of whole lines without its special ones."""
        position = 0
        while (tag := block.find(SPECIAL_TAG, position)) >= 0:
            start = block.rfind(b"\n", position, tag) + 1 or position
            self._emit_stretch(block[position:start])
            position = block.index(b"\n", tag) + 1
        self._emit_stretch(block[position:] if position else block)

    def _emit_stretch(self, block: bytes) -> None:
        lines = block.split(b"\n")
        lines.pop()  # the empty rest behind the last newline
        self._emit(block, lines)

    def _emit(self, block: bytes, lines: list[bytes]) -> None:
        """Hash and write ``lines``, which make up ``block``, and the checkpoints that are due in it."""
        position, first, before = 0, 0, self._written_entries
        for index in self._rule.positions(lines, before):
            end = position + sum(map(len, lines[first:index])) + index - first
            self._write(block[position:end])
            self._written_entries = before + index
            self.checkpoint({envelope.ENTRIES: b"%d" % self._written_entries})
            position, first = end, index
        self._write(block[position:] if position else block)
        self._written_entries = before + len(lines)

    def _write(self, data: bytes) -> None:
        self._hashes.update(data)
        self._stream.write(data)
        self._written_bytes += len(data)


def _check_records(file: BinaryIO, start: int, end: int) -> None:
    """Raise MalformedManifest unless bytes ``start`` to ``end`` are records with right CRCs."""
    file.seek(start)
    while start < end:
        line = file.readline()
        parse_record(line[:-1], start)
        start += len(line)


class _Front:
    """The first bytes of a file, for a reader that must not see the rest."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left_bytes = size_bytes

    def read(self, size_bytes: int, /) -> bytes:
        data = self._file.read(min(size_bytes, self._left_bytes))
        self._left_bytes -= len(data)
        return data
