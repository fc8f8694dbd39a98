"""The new manifest in the making: written in order, from stretches of the old one and new records.

The comparison hands over, in manifest order, stretches of unchanged records (copied, never formatted
again) and items that workers still have in hand; the journal holds items until everything before them
is done.  Entries that can only be settled after the walk (new files that may be renames, hard links)
leave a *hole*; :func:`assemble` fills the holes from the late records when the run closes.

As long as nothing differs, nothing is written: the manifest of an unchanged tree *is* the old one.

A crash leaves a partial manifest; only what a commit recorded of it is used again (``state``).
"""

from __future__ import annotations

import marshal
import os
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from mirrorkeep.manifest.record import parse_record
from mirrorkeep.manifest.spill import SpilledList
from mirrorkeep.manifest.writer import ManifestSummary, ManifestWriter
from mirrorkeep.sync.index import IndexWriter

_PLACE: Final = struct.Struct("<QQQ")
_LINKED: Final = re.compile(rb",st_ino=(\d+),.*?,st_nlink=(\d+),.*,type=file,")


@dataclass(slots=True)
class Item:
    """One entry that is being worked on."""

    path: bytes
    blob: bytes
    old_line: bytes = b""
    """The record of last time, where there was one."""
    line: bytes = b""
    """The new record, once a worker made it; empty: the entry is left out of the manifest."""
    done: bool = False
    late: bool = False
    """Settled after the walk; leaves a hole."""
    directory: bool = False
    forced: bool = False
    """What the mirror holds is not known, or known to be damaged: content is sent in any case."""
    link_to: bytes = b""
    """The leader of its hard-link group."""
    again: bool = False
    """Another name of a file that did not become a link at once: the next run looks at it again."""
    number: int = 0
    """Position among the late entries."""

    def pack(self) -> bytes:
        """Return the item for a spill file (this run's own; never read by another version)."""
        return marshal.dumps(
            (self.path, self.blob, self.old_line, self.line, self.forced, self.link_to, self.number)
        )

    @classmethod
    def unpack(cls, row: bytes) -> Item:
        """Return a late item from a spill file."""
        path, blob, old_line, line, forced, link_to, number = marshal.loads(row)
        return cls(path, blob, old_line, line, late=True, forced=forced, link_to=link_to, number=number)


@dataclass(slots=True)
class Stretch:
    """Unchanged records: byte ranges of the old manifest and of its index."""

    text_start: int
    text_end: int
    blob_start: int
    blob_end: int
    records: int


@dataclass(slots=True)
class Late:
    """An entry that waits for the end of the walk, and where it belongs in the walk's manifest."""

    item: Item
    text_offset: int
    record: int
    blob_offset: int


@dataclass(slots=True)
class Mark:
    """How far the journal's files had come at one instant (for a commit)."""

    text_bytes: int
    records: int


class Journal:
    """Writes a manifest and its index, in order, from stretches of an old pair and from items."""

    def __init__(
        self,
        stem: str,
        header: dict[bytes, bytes],
        digest: str,
        *,
        old_manifest_fd: int = -1,
        old_index_fd: int = -1,
        on_written: Callable[[Item], None] | None = None,
    ) -> None:
        self.text_path, self.blob_path = stem + ".manifest", stem + ".blobs"
        self._header, self._digest = header, digest
        self._old_manifest_fd, self._old_index_fd = old_manifest_fd, old_index_fd
        self._on_written = on_written
        self._slots: deque[Item | Stretch] = deque()
        self._stream: BinaryIO | None = None
        self._writer: ManifestWriter | None = None
        self._index: IndexWriter | None = None
        self._late = SpilledList(os.path.dirname(stem))
        self.late_count = 0
        self._total = self._records_end = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def untouched(self) -> bool:
        """Whether nothing was handed over so far."""
        return self._writer is None and not self._slots

    def stretch(self, stretch: Stretch) -> None:
        """Take over unchanged records of the old manifest."""
        self._slots.append(stretch)

    def add(self, item: Item) -> None:
        """Give an entry its place; it is written once it is done."""
        self._slots.append(item)

    def drain(self) -> None:
        """Write everything up to the first item that is not done yet."""
        slots = self._slots
        if not slots or _is_open(slots[0]):
            return  # asked for with every entry while many are under way
        lines: list[bytes] = []
        blobs: list[bytes] = []
        while slots:
            slot = slots[0]
            if isinstance(slot, Stretch):
                self._write(lines, blobs)
                self._copy(slot)
            elif _is_open(slot):
                break
            elif slot.late:
                self._write(lines, blobs)
                self._leave_hole(slot)
            elif slot.line:
                lines.append(slot.line)
                blobs.append(slot.blob)
                if self._on_written is not None:
                    self._on_written(slot)
            slots.popleft()
        self._write(lines, blobs)

    def mark(self) -> Mark:
        """Flush and return how far the manifest has come."""
        if self._writer is None or self._stream is None:
            return Mark(0, 0)
        if self._stream.closed:
            return Mark(self._records_end, self._total)
        self._writer.flush()
        self._stream.flush()
        return Mark(self._writer.offset, self._writer.entries)

    def make_durable(self) -> None:
        """Bring what was written so far to the disk."""
        if self._stream is not None and not self._stream.closed:
            os.fdatasync(self._stream.fileno())

    def late_items(self) -> Iterator[Late]:
        """Yield what waits for the end of the walk, in order."""
        for row in self._late:
            text_offset, record, blob_offset = _PLACE.unpack_from(row)
            yield Late(Item.unpack(row[_PLACE.size :]), text_offset, record, blob_offset)

    def linked_files(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield path, inode and record of each file with several names in what is written so far."""
        with open(self.text_path, "rb") as stream:
            for line in stream:
                if (found := _LINKED.search(line)) and found[2] != b"1":
                    record = parse_record(line.rstrip(b"\n"), check=False)
                    yield record.path, int(found[1]), line

    def finish(self) -> ManifestSummary:
        """Write the trailer; everything must be drained."""
        writer, index = self._open()
        self._total = writer.entries
        writer.flush()
        self._records_end = writer.offset
        summary = writer.finish()
        index.close()
        assert self._stream is not None
        self._stream.close()
        return summary

    def totals(self) -> tuple[int, int]:
        """Return the number of records of the finished manifest and the offset where they end."""
        return self._total, self._records_end

    def close(self) -> None:
        """Let go of the files; they stay on disk."""
        if self._index is not None and self._stream is not None:
            self._index.close()
            self._stream.close()
        self._late.close()

    # --- writing -------------------------------------------------------------------------------

    def _open(self) -> tuple[ManifestWriter, IndexWriter]:
        if self._writer is None or self._index is None:
            self._stream = open(self.text_path, "wb", buffering=1 << 20)
            self._writer = ManifestWriter(self._stream, self._header, digest=self._digest)
            self._index = IndexWriter(self.blob_path)
        return self._writer, self._index

    def _write(self, lines: list[bytes], blobs: list[bytes]) -> None:
        if lines:
            writer, index = self._open()
            writer.add_many(lines)
            index.add(b"".join(blobs))
            lines.clear()
            blobs.clear()

    def _copy(self, stretch: Stretch) -> None:
        writer, index = self._open()
        writer.copy(self._old_manifest_fd, stretch.text_start, stretch.text_end, stretch.records)
        index.copy(self._old_index_fd, stretch.blob_start, stretch.blob_end)

    def _leave_hole(self, item: Item) -> None:
        writer, index = self._open()
        self._late.append(_PLACE.pack(writer.offset, writer.entries, index.offset) + item.pack())
        self.late_count += 1


def assemble(
    stem: str, walk: Journal, settled: Iterator[tuple[Late, Item]], header: dict[bytes, bytes], digest: str
) -> tuple[Journal, ManifestSummary]:
    """Fill the holes of a finished walk's manifest: yields the whole manifest under ``stem``.

    ``settled`` gives, in order, each late entry with its outcome (an item without a line stays out).
    """
    with open(walk.text_path, "rb") as text, open(walk.blob_path, "rb") as blobs:
        whole = Journal(stem, header, digest, old_manifest_fd=text.fileno(), old_index_fd=blobs.fileno())
        start = text_start = _records_start(text)
        blob_start = record = 0
        for late, item in settled:
            if late.record > record:
                whole.stretch(
                    Stretch(text_start, late.text_offset, blob_start, late.blob_offset, late.record - record)
                )
                text_start, blob_start, record = late.text_offset, late.blob_offset, late.record
            if item.line:
                item.done, item.late = True, False
                whole.add(item)
            whole.drain()
        total, end = walk.totals()
        if total > record:
            whole.stretch(
                Stretch(
                    max(text_start, start), end, blob_start, os.fstat(blobs.fileno()).st_size, total - record
                )
            )
        whole.drain()
        summary = whole.finish()
    return whole, summary


def _records_start(text: BinaryIO) -> int:
    head = text.readline()
    return len(head)


def _is_open(slot: Item | Stretch) -> bool:
    """Whether an entry is still under way, and what follows it has to wait."""
    return isinstance(slot, Item) and not slot.done and not slot.late
