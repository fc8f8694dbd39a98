"""The sidecar: the small database that shadows one stored entry and holds what the entry cannot.

A single-index key-value file (META-04, META-05): any number of entries, arbitrary bytes on both sides,
found by binary search without reading the rest.  With the dozen entries of an ordinary file it stays
far below one block of 4096 bytes (META-06).  All numbers are big-endian::

    0   4s   magic "MKs1"
    4   u32  CRC-32 of everything from byte 8 to the end of the index
    8   u64  generation of the data (META-13)
    16  u32  number of entries, n
    20  u32  size of the whole sidecar in bytes
    24  n times, in ascending order of key:
        u32  where the key begins   u32  where its value begins   u32  CRC-32 of key and value
    ..  key, value, key, value, ...  without gaps, in the order of the index

``record`` holds the manifest line verbatim, ``dav:`` keys dead properties, ``lock:`` keys WebDAV locks,
``hash_name`` the digest's name when the line does not tell it, ``native:`` keys what the server notes
about its own copy.  The generation counts the *data*: a new content gets a greater one, a new property
does not, so that an ETag made from it changes exactly when the bytes may have changed.

Not here: where sidecars lie (``layout``), when they are replaced (``placement``).  Nothing here writes;
a crash leaves nothing behind.  Format frozen by ``tests/golden/sidecar``, told in
``docs/reference/sidecar.md``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from mirrorkeep.errors import MalformedSidecar

MAGIC: Final = b"MKs1"
RECORD: Final = b"record"
DAV_PREFIX: Final = b"dav:"
LOCK_PREFIX: Final = b"lock:"
NATIVE_PREFIX: Final = b"native:"
RECORDED_ONLY: Final = b"native:recorded_only"
"""NUL-joined record keys that the server's file system refused to hold; the record alone has them."""

_HEAD: Final = struct.Struct(">4sIQII")
_INDEX: Final = struct.Struct(">III")
_GUARDED: Final = struct.Struct(">QII")
_SINGLE: Final = struct.Struct(">QIIIII")
HEAD_BYTES: Final = _HEAD.size
INDEX_BYTES: Final = _INDEX.size
MAX_SIDECAR_BYTES: Final = 0xFFFFFFFF
_SINGLE_KEY_AT: Final = HEAD_BYTES + INDEX_BYTES
_SINGLE_VALUE_AT: Final = _SINGLE_KEY_AT + len(RECORD)
_RECORD_CRC: Final = crc32(RECORD)


@dataclass(slots=True)
class Sidecar:
    """A decoded sidecar: the generation of the data and every entry."""

    generation: int
    entries: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def line(self) -> bytes:
        """The manifest line of the entry, b"" when there is none."""
        return self.entries.get(RECORD, b"")


def encode_record_sidecar(generation: int, line: bytes) -> bytes:
    """Return the sidecar that holds only the manifest line: what a new mirrored file gets.

    The same bytes as ``encode_sidecar(generation, {b"record": line})``, several times faster.
    """
    size = _SINGLE_VALUE_AT + len(line)
    guarded = _SINGLE.pack(generation, 1, size, _SINGLE_KEY_AT, _SINGLE_VALUE_AT, crc32(line, _RECORD_CRC))
    return b"%b%b%b%b%b" % (MAGIC, crc32(guarded).to_bytes(4, "big"), guarded, RECORD, line)


def encode_sidecar(generation: int, entries: Mapping[bytes, bytes]) -> bytes:
    """Return the bytes of a sidecar; raises MalformedSidecar when they would pass 4 GiB."""
    names = sorted(entries)
    position = HEAD_BYTES + INDEX_BYTES * len(names)
    index: list[bytes] = []
    heap: list[bytes] = []
    size = position + sum(len(name) + len(entries[name]) for name in names)
    if size > MAX_SIDECAR_BYTES:
        raise MalformedSidecar(detail=f"{size} bytes do not fit in one sidecar")
    for name in names:
        value = entries[name]
        value_at = position + len(name)
        index.append(_INDEX.pack(position, value_at, crc32(value, crc32(name))))
        heap += (name, value)
        position = value_at + len(value)
    guarded = _GUARDED.pack(generation, len(names), size) + b"".join(index)
    return b"".join((MAGIC, crc32(guarded).to_bytes(4, "big"), guarded, *heap))


def decode_sidecar(data: bytes) -> Sidecar:
    """Return the sidecar in ``data``; raises MalformedSidecar for anything but one whole, sound sidecar."""
    generation, count, index = _check_head(data, len(data), lambda start, end: data[start:end])
    entries: dict[bytes, bytes] = {}
    at, previous = HEAD_BYTES + INDEX_BYTES * count, None
    cells = list(_INDEX.iter_unpack(index))
    for number, (key_at, value_at, check) in enumerate(cells):
        end = cells[number + 1][0] if number + 1 < count else len(data)
        if not at == key_at <= value_at <= end:
            raise MalformedSidecar(detail=f"entry {number} is out of place")
        key = data[key_at:value_at]
        value = data[value_at:end]
        if crc32(value, crc32(key)) != check:
            raise MalformedSidecar(detail=f"entry {number} does not match its checksum")
        if previous is not None and key <= previous:
            raise MalformedSidecar(detail=f"entry {number} is out of order")
        entries[key] = value
        at, previous = end, key
    if at != len(data):
        raise MalformedSidecar(detail="bytes after the last entry")
    return Sidecar(generation, entries)


def _check_head(data: bytes, total: int, read: Callable[[int, int], bytes]) -> tuple[int, int, bytes]:
    """Return generation, number of entries and the index; ``data`` begins with the head."""
    if len(data) < HEAD_BYTES:
        raise MalformedSidecar(detail=f"{len(data)} bytes are too short")
    magic, check, generation, count, size = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise MalformedSidecar(detail="this is not a sidecar")
    if size != total:
        raise MalformedSidecar(detail=f"{size} bytes announced, {total} there")
    index_end = HEAD_BYTES + INDEX_BYTES * count
    if index_end > total:
        raise MalformedSidecar(detail="the index is cut off")
    index = read(HEAD_BYTES, index_end)
    if crc32(index, crc32(data[8:HEAD_BYTES])) != check:
        raise MalformedSidecar(detail="the index does not match its checksum")
    return generation, count, index


def look_up(fd: int, key: bytes) -> bytes | None:
    """Return the value under ``key`` in the open sidecar ``fd``, None when there is none.

    Reads the head, about log2(n) cells of the index, and the entry; checks the entry, not the whole.
    Raises MalformedSidecar, OSError.
    """
    head = os.pread(fd, HEAD_BYTES, 0)
    if len(head) < HEAD_BYTES:
        raise MalformedSidecar(detail=f"{len(head)} bytes are too short")
    magic, _, _, count, size = _HEAD.unpack(head)
    if magic != MAGIC or size != os.fstat(fd).st_size:
        raise MalformedSidecar(detail="this is not a whole sidecar")
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        name, value_at, end, check = _cell(fd, middle, count, size)
        if name == key:
            value = os.pread(fd, end - value_at, value_at)
            if crc32(value, crc32(key)) != check:
                raise MalformedSidecar(detail=f"entry {middle} does not match its checksum")
            return value
        if name < key:
            low = middle + 1
        else:
            high = middle
    return None


def _cell(fd: int, number: int, count: int, size: int) -> tuple[bytes, int, int, int]:
    """Return key, where its value begins and ends, and the checksum of entry ``number``."""
    cells = os.pread(fd, 2 * INDEX_BYTES, HEAD_BYTES + number * INDEX_BYTES)
    if len(cells) < (INDEX_BYTES if number + 1 == count else 2 * INDEX_BYTES):
        raise MalformedSidecar(detail="the index is cut off")
    key_at, value_at, check = _INDEX.unpack_from(cells)
    end = size if number + 1 == count else _INDEX.unpack_from(cells, INDEX_BYTES)[0]
    if not HEAD_BYTES <= key_at <= value_at <= end <= size:
        raise MalformedSidecar(detail=f"entry {number} is out of place")
    return os.pread(fd, value_at - key_at, key_at), value_at, end, check
