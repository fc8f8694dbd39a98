"""The old side of the comparison: the manifest of last time, and beside it an index of ``stat`` blobs.

The index holds, for every record of a manifest and in the same order, the blob that the walk made of
the entry (``tree/walk``).  A run of siblings that did not change is recognised by one comparison of
memory, without reading a line of the manifest; the manifest itself is read (and its hashes checked)
only up to the last change.  The index is a cache: it names the manifest it belongs to, carries a
checksum, and is made anew from the manifest when it is missing or does not fit.

A crash while an index is written leaves the old one, or none.  Memory: two windows of 1 MiB.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Final

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.peek import path_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import parse_record, parse_time_ns
from mirrorkeep.tree.walk import STAT, place_of, wrapped_ns

WINDOW_BYTES: Final = 1 << 20
_DAY_NS: Final = 86_400 * 1_000_000_000
_MAGIC: Final = b"mirrorkeep index 2\n"
_KIND_MODES: Final = {
    keys.FILE: stat.S_IFREG,
    keys.DIRECTORY: stat.S_IFDIR,
    keys.LINK: stat.S_IFLNK,
    keys.FIFO: stat.S_IFIFO,
    keys.SOCKET: stat.S_IFSOCK,
    keys.CHAR_DEVICE: stat.S_IFCHR,
    keys.BLOCK_DEVICE: stat.S_IFBLK,
}


def settled_blob(blob: bytes, read_started_ns: int) -> bytes:
    """Return ``blob``, or one that never matches when the entry may still change unseen (trap 7).

    An entry whose times lie within the clock's granularity of its reading could be written again
    without its times moving; it is looked at again next time.  A time of a day to come or later was set,
    not written: what is written to such a file moves its other time.
    """
    _, _, _, _, _, mtime_ns, ctime_ns, _, _ = STAT.unpack_from(blob)
    latest_ns = max(mtime_ns, ctime_ns) if mtime_ns < read_started_ns + _DAY_NS else ctime_ns
    margin_ns = 2_000_000_000 if mtime_ns % 1_000_000_000 == 0 == ctime_ns % 1_000_000_000 else 50_000_000
    return unsettled_blob(blob) if latest_ns > read_started_ns - margin_ns else blob


def unsettled_blob(blob: bytes) -> bytes:
    """Return a blob of the same entry that equals no walk's."""
    return bytes(STAT.size) + blob[STAT.size :]


def is_unsettled(blob: bytes) -> bool:
    """Return whether an old blob equals no walk's, so that its entry is looked at whatever it is now."""
    return blob.startswith(bytes(STAT.size))


def blob_of_line(line: bytes) -> bytes:
    """Return the blob that a walk would make of an entry that is as its record says.

    Directories never match: a run that was cut off may have recorded them without having stamped them.
    """
    record = parse_record(line, check=False)
    fields = record.fields
    parent, _, name = record.path.rpartition(b"/")
    kind = fields.get(keys.TYPE, b"")
    if kind == keys.DIRECTORY:
        return bytes(STAT.size) + name + b"\0"
    try:
        return (
            STAT.pack(
                stat.S_IMODE(int(fields[keys.MODE], 8)) | _KIND_MODES[kind],
                int(fields[keys.UID]),
                int(fields[keys.GID]),
                int(fields[keys.LINKS]),
                int(fields[keys.SIZE]) if kind == keys.FILE else len(fields.get(keys.LINK_TARGET, b"")),
                wrapped_ns(parse_time_ns(fields[keys.MTIME])),
                wrapped_ns(parse_time_ns(fields[keys.INODE_CTIME])),
                int(fields[keys.INODE]),
                place_of(parent),
            )
            + name
            + b"\0"
        )
    except (KeyError, ValueError, OverflowError):
        return bytes(STAT.size) + name + b"\0"  # an incomplete record: the entry is looked at


class IndexWriter:
    """Writes an index beside a manifest in the making."""

    def __init__(self, path: str, *, resume_bytes: int | None = None) -> None:
        self.path = path
        self._file: BinaryIO
        if resume_bytes is None:
            self._file = open(path, "wb", buffering=WINDOW_BYTES)
        else:
            self._file = open(path, "r+b", buffering=WINDOW_BYTES)
            self._file.truncate(resume_bytes)
            self._file.seek(resume_bytes)
        self.offset = resume_bytes or 0

    def add(self, blobs: bytes) -> None:
        """Append blobs (already joined)."""
        self._file.write(blobs)
        self.offset += len(blobs)

    def copy(self, source_fd: int, start: int, end: int) -> None:
        """Append the blobs of a stretch of an older index."""
        while start < end:
            block = os.pread(source_fd, min(WINDOW_BYTES, end - start), start)
            if not block:
                raise MalformedManifest(offset=start, detail="the index is shorter than its stretch")
            self._file.write(block)
            self.offset += len(block)
            start += len(block)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def seal_index(blobs_path: str, final_path: str, manifest_digest: str, entries: int) -> None:
    """Make ``blobs_path`` the index of a manifest: add the head, publish by rename."""
    checksum = 0
    temporary = final_path + ".new"
    size_bytes = os.path.getsize(blobs_path)
    with open(blobs_path, "rb") as blobs:
        while block := blobs.read(WINDOW_BYTES):
            checksum = zlib.crc32(block, checksum)
    head = json.dumps(
        {"manifest": manifest_digest, "entries": entries, "bytes": size_bytes, "crc": checksum}
    ).encode()
    with open(temporary, "wb") as target, open(blobs_path, "rb") as blobs:
        target.write(_MAGIC + head.ljust(255) + b"\n")
        while block := blobs.read(WINDOW_BYTES):
            target.write(block)
    os.replace(temporary, final_path)
    os.unlink(blobs_path)


def build_index(
    manifest_path: str, index_path: str, manifest_digest: str, *, trust_links: bool = True
) -> None:
    """Make the index of a manifest from its records; entries with incomplete records never match.

    Without ``trust_links`` neither do files with several names: when some names of a file may be on the
    mirror and others not, all of them have to be looked at together, or they would become two files.
    """
    blobs_path = index_path + ".blobs"
    writer = IndexWriter(blobs_path)
    entries = 0
    with open(manifest_path, "rb") as stream:
        reader = ManifestReader(stream)
        for _, line in reader.lines():
            blob = blob_of_line(line)
            alone = trust_links or STAT.unpack_from(blob)[3] < 2 or stat.S_ISDIR(STAT.unpack_from(blob)[0])
            writer.add(blob if alone else unsettled_blob(blob))
            entries += 1
    writer.close()
    seal_index(blobs_path, index_path, manifest_digest, entries)


HEAD_BYTES: Final = len(_MAGIC) + 256


def open_index(index_path: str, manifest_digest: str) -> tuple[BinaryIO, int] | None:
    """Open the index of a manifest; returns the file and the number of entries, or None when it does
    not belong to that manifest or is damaged."""
    try:
        stream = open(index_path, "rb")
    except FileNotFoundError:
        return None
    head = stream.read(HEAD_BYTES)
    try:
        if not head.startswith(_MAGIC):
            raise ValueError("another format")
        meta = json.loads(head[len(_MAGIC) :])
        if meta["manifest"] != manifest_digest:
            raise ValueError("another manifest")
        checksum = 0
        while block := stream.read(WINDOW_BYTES):
            checksum = zlib.crc32(block, checksum)
        if checksum != meta["crc"]:
            raise ValueError("damaged")
    except (ValueError, KeyError, TypeError):
        stream.close()
        return None
    return stream, int(meta["entries"])


@dataclass(slots=True)
class Head:
    """The entry of the old manifest that the comparison stands at."""

    path: bytes
    key: bytes
    line: bytes
    blob: bytes


class OldSide:
    """A cursor over the old manifest and its index; moves forward only."""

    def __init__(self, manifest_path: str, index: BinaryIO, entries: int) -> None:
        self._manifest = open(manifest_path, "rb", buffering=WINDOW_BYTES)
        self.index_fd = index.fileno()
        self.manifest_fd = self._manifest.fileno()
        self._index = index
        self.entries = entries
        self.position = 0
        """Number of the record the cursor stands at."""
        self.blob_offset = HEAD_BYTES
        self._window = b""
        self._window_start = 0
        self._index_read = HEAD_BYTES
        self._index_bytes = os.fstat(self.index_fd).st_size
        self._lines: Iterator[tuple[int, bytes]] | None = None
        self._line_number = -1
        self._line: tuple[int, bytes] = (0, b"")
        self._head: Head | None = None
        self._first_offset = 0

    def match(self, blobs: bytes, count: int) -> bool:
        """If the next ``count`` entries are exactly ``blobs``, pass over them."""
        start = self.blob_offset - self._window_start
        if len(self._window) - start < len(blobs):
            self._fill(len(blobs))
            start = self.blob_offset - self._window_start
        if not self._window.startswith(blobs, start):
            return False
        self.blob_offset += len(blobs)
        self.position += count
        self._head = None
        return True

    def head(self) -> Head | None:
        """Return the entry the cursor stands at, or None at the end."""
        if self.position >= self.entries:
            return None
        if self._head is None:
            line = self._line_at(self.position)
            path = path_of(line)
            self._head = Head(path, order_key(path), line, self._blob())
        return self._head

    def advance(self) -> None:
        """Pass over one entry."""
        head = self.head()
        if head is not None:
            self.blob_offset += len(head.blob)
            self.position += 1
            self._head = None

    def text_offset(self) -> int:
        """Return the manifest offset of the record the cursor stands at, or of the end of the records.

        Reads (and checks the hashes of) everything before it.
        """
        if self.position < self.entries:
            self._line_at(self.position)
            return self._line[0]
        if self.entries:
            self._line_at(self.entries - 1)
        return self._line[0] + len(self._line[1]) + 1

    def first_text_offset(self) -> int:
        """Return the manifest offset of the first record."""
        if self._line_number < 0 and self.entries:
            self._line_at(0)
        return self._first_offset

    def close(self) -> None:
        """Close both files."""
        self._manifest.close()
        self._index.close()

    def _line_at(self, record: int) -> bytes:
        if self._lines is None:
            self._lines = ManifestReader(self._manifest).lines()
            self._line, self._line_number = next(self._lines, (0, b"")), 0
            self._first_offset = self._line[0]
        steps = record - self._line_number
        if steps < 0:
            raise MalformedManifest(offset=self._line[0], detail="the cursor cannot go back")
        if steps:
            found = next(islice(self._lines, steps - 1, steps), None)
            if found is None:
                raise MalformedManifest(offset=self._line[0], detail="fewer records than the index says")
            self._line, self._line_number = found, record
        return self._line[1]

    def _blob(self) -> bytes:
        start = self.blob_offset - self._window_start
        if len(self._window) - start < STAT.size + 4096:
            self._fill(STAT.size + 4096)
            start = self.blob_offset - self._window_start
        end = self._window.index(b"\0", start + STAT.size) + 1
        return self._window[start:end]

    def _fill(self, size_bytes: int) -> None:
        self._window = self._window[self.blob_offset - self._window_start :]
        self._window_start = self.blob_offset
        unread = self._index_bytes - self._index_read
        if unread:  # behind the last old entry this is asked for every entry that is new
            missing = min(unread, max(WINDOW_BYTES, size_bytes - len(self._window)))
            block = os.pread(self.index_fd, missing, self._index_read)
            self._index_read += len(block)
            self._window += block


def empty_old_side() -> OldSide:
    """Return the old side of a first run: nothing."""
    return _Nothing()


class _Nothing(OldSide):
    """The old side when there is none."""

    def __init__(self) -> None:
        self.entries = self.position = 0
        self.blob_offset = 0
        self.index_fd = self.manifest_fd = -1

    def match(self, blobs: bytes, count: int) -> bool:
        return False

    def head(self) -> Head | None:
        return None

    def text_offset(self) -> int:
        return 0

    def first_text_offset(self) -> int:
        return 0

    def close(self) -> None:
        return
