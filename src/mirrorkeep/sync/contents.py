"""Content that the mirror has already, under another name: it is copied there, not sent (DEL-11).

Once the walk is over its manifest names everything that is on the store.  From it an *index* is made, rows
of size, digest and place sorted on disk, in which workers look up what they are about to send.  New files
of a size that nothing else has are sent as ever; the others are hashed first.  Files of one run that may
be equal go one after the other: the first is sent, and the index of what came back finds it for the rest.

Only files of ``LEAST_BYTES`` and more are looked up, and the index is made only when those that wait are
worth the reading of the manifest for it (docs/adr/0011).

Not here: the copy itself, which the store makes, and only of what its sidecar vouches for (``Op.COPY``);
files that only changed their name (``late``).

Memory: a few bytes for each of at most ``MAX_SIZES`` sizes; indexes are mapped.  A crash leaves files of
the run's work folder, which nobody reads again.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import Final

from mirrorkeep.manifest.peek import digest_of
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.manifest.spill import SpilledList, SpilledSort
from mirrorkeep.sync.journal import Item
from mirrorkeep.sync.orders import Wanted
from mirrorkeep.tree.walk import STAT
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

LEAST_BYTES: Final = 64 * 1024
"""Smaller files are sent: they weigh little, and their rows would be most of the index."""
MOST_BYTES: Final = 4 * 1024 * 1024 * 1024
"""Larger ones too: where blocks cannot be shared, a copy must be made within the time of one request."""
MAX_SIZES: Final = 65_536
READ_FOR_ONE_SENT: Final = 16
"""Bytes of a manifest that may be read to save one that would be sent: a second is enough for 300 MB."""

_ROW: Final = struct.Struct(">Q16sQ")
_SIZE: Final = struct.Struct(">Q")
_BLOCK_BYTES: Final = 1 << 20
_FIELD: Final = re.compile(rb",st_size=(\d{5,}),")
_HASH: Final = b",hash="
_DIGEST_DIGITS: Final = 32
"""Hex digits of a digest that the index holds; the record has the rest."""


def may_repeat(blob: bytes) -> bool:
    """Return whether an entry that a walk saw is one of those that are looked up."""
    mode, _, _, links, size_bytes, *_ = STAT.unpack_from(blob)
    return stat.S_ISREG(mode) and links == 1 and LEAST_BYTES <= size_bytes <= MOST_BYTES


def write_index(text_path: str, work: str) -> None:
    """Make the index of a text of records, ``TEXT.contents``; raises OSError."""
    with SpilledSort(work) as rows, open(text_path + ".contents", "wb", buffering=_BLOCK_BYTES) as out:
        for size_bytes, digest, offset in _records(text_path):
            rows.add(_ROW.pack(size_bytes, digest, offset))
        for row in rows:
            out.write(row)


def _records(text_path: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield size, the first half of the digest, and offset of each record that can be found again."""
    with open(text_path, "rb", buffering=0) as stream:
        offset, rest = 0, b""
        while block := stream.read(_BLOCK_BYTES):
            text = rest + block
            whole = text.rfind(b"\n") + 1
            for found in _FIELD.finditer(text, 0, whole):
                size_bytes = int(found[1])
                if LEAST_BYTES <= size_bytes <= MOST_BYTES:
                    start = text.rfind(b"\n", 0, found.start()) + 1
                    at = text.find(_HASH, start, found.start())
                    if at >= 0:
                        at += len(_HASH)
                        yield size_bytes, _key(text[at : at + _DIGEST_DIGITS]), offset + start
            offset, rest = offset + whole, text[whole:]


def _key(digits: bytes) -> bytes:
    return bytes.fromhex(digits.decode("ascii"))


class ContentIndex:
    """What a text of records holds, by size and digest; opened by the coordinator and each worker."""

    def __init__(self, text_path: str) -> None:
        """Open an index that :func:`write_index` made; raises OSError."""
        self.text_path = text_path
        self._text_fd = os.open(text_path, os.O_RDONLY | os.O_CLOEXEC)
        fd = os.open(text_path + ".contents", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._count = os.fstat(fd).st_size // _ROW.size
            self._rows = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if self._count else None
        finally:
            os.close(fd)

    def has_size(self, size_bytes: int) -> bool:
        """Return whether anything has this size."""
        key = _SIZE.pack(size_bytes)
        return self._row(self._first(key)).startswith(key)

    def find(self, digest: bytes, size_bytes: int) -> bytes:
        """Return the path of a file with this content (digest in hex); nothing when there is none."""
        key = _SIZE.pack(size_bytes) + _key(digest[:_DIGEST_DIGITS])
        number = self._first(key)
        while (row := self._row(number)).startswith(key):
            line = self._line(_ROW.unpack(row)[2])
            if digest_of(line) == digest:
                return parse_record(line, check=False).path
            number += 1
        return b""

    def close(self) -> None:
        """Let go of the files."""
        if self._rows is not None:
            self._rows.close()
        os.close(self._text_fd)

    def _first(self, key: bytes) -> int:
        """Return the number of the first row that is not before ``key``."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._row(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low

    def _row(self, number: int) -> bytes:
        if self._rows is None or number >= self._count:
            return b""
        return self._rows[number * _ROW.size : (number + 1) * _ROW.size]

    def _line(self, offset: int) -> bytes:
        length = 4096
        while True:
            data = os.pread(self._text_fd, length, offset)
            end = data.find(b"\n")
            if end >= 0 or len(data) < length:
                return data[:end] if end >= 0 else data
            length *= 4


class Known:
    """A worker's view of the indexes that orders name; each is opened once."""

    def __init__(self) -> None:
        self._open: dict[str, ContentIndex] = {}

    def find(self, wanted: Wanted, digest: bytes, size_bytes: int) -> bytes:
        """Return where the mirror has this content already; nothing when that is not known."""
        for text_path in wanted.contents:
            try:
                if text_path not in self._open:
                    self._open[text_path] = ContentIndex(text_path)
                if source := self._open[text_path].find(digest, size_bytes):
                    return source
            except OSError:
                continue
        return b""


class Repeats:
    """The coordinator's side: which entries are looked up, in which index, and which wait for another."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._indexes: list[ContentIndex] = []
        self._met: set[int] = set()
        self._waiting_bytes = 0
        self.again = SpilledList(work)
        """Items that may equal one that is under way."""

    # --- during the walk -------------------------------------------------------------------------

    def note_waiting(self, item: Item) -> None:
        """Note an entry that waits for the end of the walk."""
        if not item.old_line and may_repeat(item.blob):
            self._waiting_bytes += int(STAT.unpack_from(item.blob)[4])

    def should_wait(self, item: Item) -> bool:
        """Return whether an entry of a first run, where nothing waits, may equal one that was met before."""
        size_bytes = STAT.unpack_from(item.blob)[4]
        return size_bytes > SMALL_FILE_BYTES and self._meet(item)

    # --- after the walk --------------------------------------------------------------------------

    def begin(self, manifest_path: str) -> None:
        """Begin to bring over what waited; makes the index of the walk's manifest if it is worth it."""
        self._met.clear()
        if self._waiting_bytes * READ_FOR_ONE_SENT > os.path.getsize(manifest_path):
            self._add_index(manifest_path)

    def choose(self, item: Item, wanted: Wanted) -> bool:
        """Tell the worker where to look; returns True for an entry that was put aside instead.

        Such an entry may equal one that is under way; it comes again when that has come back.
        """
        if item.old_line or item.forced or wanted.key or not may_repeat(item.blob):
            return False
        if self._meet(item):
            self.again.append(item.pack())
            return True
        self._name_indexes(item, wanted)
        return False

    def second_round(self, records_path: str) -> Iterator[tuple[Item, Wanted]]:
        """Yield what was put aside, to be looked up also in the records of what came back meanwhile."""
        if len(self.again):
            self._add_index(records_path)
        for row in self.again:
            item = Item.unpack(row)
            wanted = Wanted(item.path)
            self._name_indexes(item, wanted)
            yield item, wanted

    def close(self) -> None:
        """Let go of the files."""
        for index in self._indexes:
            index.close()
        self._indexes = []
        self.again.close()

    def _meet(self, item: Item) -> bool:
        """Return whether an entry of this size was met before, and note that it was now."""
        if not may_repeat(item.blob):
            return False
        size_bytes = STAT.unpack_from(item.blob)[4]
        if size_bytes in self._met:
            return True
        if len(self._met) < MAX_SIZES:
            self._met.add(size_bytes)
        return False

    def _add_index(self, text_path: str) -> None:
        write_index(text_path, self._work)
        self._indexes.append(ContentIndex(text_path))

    def _name_indexes(self, item: Item, wanted: Wanted) -> None:
        size_bytes = STAT.unpack_from(item.blob)[4]
        wanted.contents = tuple(index.text_path for index in self._indexes if index.has_size(size_bytes))
