"""The binary form of a manifest (claim 7): the same records and checks in about half the space.

A file is :data:`MAGIC` and then frames: length of the body (LEB128), the body, CRC-32 of the body
(little-endian).  A body is 0 and an entry (``frame``), or 1 and a header, checkpoint or trailer, which is
encoded on its own.  Those are records as in the text form, with the running hash and the file hash
computed over *these* bytes; in the trailer's frame the hash and the CRC count as zeros.  So each form
can be checked on its own, and converting either way loses nothing (``convert``).

A crash while writing leaves a file without trailer, which is read with ``partial``.  Not here: adding
to such a file (runs write the text form).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final
from zlib import crc32

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest import envelope
from mirrorkeep.manifest.frame import RecordCodec, encode_integer
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.reader import MAX_LINE_BYTES, Readable
from mirrorkeep.manifest.record import Record

MAGIC: Final = b"\x89MKM\r\n\x1a\n"
_CRC_BYTES: Final = 4
_ENTRY: Final = b"\x00"
_SPECIAL: Final = b"\x01"
_NO_CRC: Final = bytes(_CRC_BYTES)


class BinaryWriter:
    """A binary manifest in the making on ``stream``, which is not closed here."""

    def __init__(self, stream: BinaryIO, header: Mapping[bytes, bytes], *, digest: str) -> None:
        self._stream = stream
        self._digest_name = digest
        self._hashes = envelope.FileHash(digest)
        self._codec = RecordCodec()
        self._entries = 0
        self._write(MAGIC)
        self._write(_special_frame(envelope.HEADER, envelope.header_fields(header, digest)))

    def add(self, record: Record) -> None:
        """Append one entry, which comes next in the order."""
        self._write(_frame(_ENTRY + self._codec.encode(record.path, record.fields)))
        self._entries += 1

    def checkpoint(self, fields: Mapping[bytes, bytes]) -> None:
        """Append a checkpoint with ``fields``."""
        running = self._hashes.running()
        named = envelope.checkpoint_fields(self._digest_name, running, fields)
        self._write(_special_frame(envelope.CHECKPOINT, named))

    def flush(self) -> None:
        """Hand everything to the operating system; not durable yet."""
        self._stream.flush()

    def finish(self, trailer: Mapping[bytes, bytes], *, count_entries: bool = True) -> None:
        """Append the trailer and flush; nothing may be added afterwards."""
        fields = {**trailer, envelope.INTERNAL_TYPE: envelope.TRAILER}
        if count_entries:
            fields[envelope.ENTRIES] = b"%d" % self._entries
        whole = self._hashes.seal(_blank_trailer(fields, self._digest_name))
        fields[envelope.file_hash_key(self._digest_name)] = whole.encode()
        self._stream.write(_special_frame(envelope.TRAILER, fields))
        self._stream.flush()

    def _write(self, data: bytes) -> None:
        self._hashes.update(data)
        self._stream.write(data)


class BinaryReader:
    """A manifest in its binary form, read once from a binary stream; the twin of ``ManifestReader``.

    ``header``, ``digest_name``, ``entries``, ``trailer``, ``partial`` and ``on_checkpoint`` are as there.
    Raises MalformedManifest with the byte offset of the frame at fault, OSError from the stream.
    """

    def __init__(
        self,
        stream: Readable,
        *,
        partial: bool = False,
        on_checkpoint: Callable[[int, dict[bytes, bytes]], None] | None = None,
    ) -> None:
        self._stream = stream
        self._partial = partial
        self._on_checkpoint = on_checkpoint
        self._codec = RecordCodec()
        self.header: dict[bytes, bytes] = {}
        self.trailer: dict[bytes, bytes] = {}
        self.entries = 0
        self.offset = 0
        self.digest_name = envelope.DEFAULT_DIGEST
        self._ended = False
        self._read_header()

    def __iter__(self) -> Iterator[Record]:
        """Yield the entries in order, each with its CRC and its place checked."""
        previous = b""
        while not self._ended:
            frame = self._next_frame()
            if frame is None:
                self._ended = True
                if not self._partial and not self.trailer:
                    raise MalformedManifest(offset=self.offset, detail="the trailer is missing")
                return
            data, body = frame
            if self.trailer:
                raise MalformedManifest(offset=self.offset, detail="bytes behind the trailer")
            if body[:1] == _ENTRY:
                record = self._codec.decode(body[1:], self.offset)
                key = order_key(record.path)
                if key <= previous or envelope.INTERNAL_TYPE in record.fields:
                    raise MalformedManifest(offset=self.offset, detail=f"{record.path!r} is out of place")
                previous = key
                self._take(data)
                self.entries += 1
                yield record
            else:
                self._take_special(_decode_special(body, self.offset), data)

    def _read_header(self) -> None:
        magic = self._read(len(MAGIC))
        if magic != MAGIC:
            if not self._partial or not MAGIC.startswith(magic):
                raise MalformedManifest(offset=0, detail="this is not a binary manifest")
            self._ended = True
            return
        self.offset = len(magic)
        frame = self._next_frame()
        if frame is None:
            if not self._partial:
                raise MalformedManifest(offset=self.offset, detail="there is no header")
            self._ended = True
            return
        data, body = frame
        record = _decode_special(body, self.offset)
        self.digest_name = envelope.check_header(record)
        self.header = record.fields
        self._hashes = envelope.FileHash(self.digest_name)
        self._hashes.update(magic)
        self._take(data)

    def _take(self, data: bytes) -> None:
        self._hashes.update(data)
        self.offset += len(data)

    def _take_special(self, record: Record, data: bytes) -> None:
        kind = envelope.internal_type(record)
        if kind == record.path == envelope.CHECKPOINT:
            running = self._hashes.running()
            envelope.check_checkpoint(record, self.digest_name, running, self.entries, self.offset)
            if self._on_checkpoint is not None:
                self._on_checkpoint(self.entries, record.fields)
        elif kind == record.path == envelope.TRAILER:
            envelope.check_entries(record, self.entries, self.offset)
            whole = self._hashes.seal(_blank_trailer(record.fields, self.digest_name)).encode()
            if record.fields.get(envelope.file_hash_key(self.digest_name)) != whole:
                raise MalformedManifest(offset=self.offset, detail="the file does not match its hash")
            self.trailer = record.fields
            self.offset += len(data)
            return
        else:
            raise MalformedManifest(offset=self.offset, detail=f"a record of unknown type {kind[:20]!r}")
        self._take(data)

    def _next_frame(self) -> tuple[bytes, bytes] | None:
        """Return (frame, body) of the next whole frame; None at the end, or (partial) at a torn one."""
        head, size_bytes, shift = b"", 0, 0
        while True:
            byte = self._stream.read(1)
            if not byte:
                self._refuse_torn(head)
                return None
            head += byte
            size_bytes |= (byte[0] & 0x7F) << shift
            shift += 7
            if size_bytes > MAX_LINE_BYTES or shift > 35:
                raise MalformedManifest(offset=self.offset, detail="a frame is too long")
            if byte[0] < 0x80:
                break
        rest = self._read(size_bytes + _CRC_BYTES)
        if len(rest) < size_bytes + _CRC_BYTES:
            self._refuse_torn(head)
            return None
        body = rest[:size_bytes]
        if head + rest != _frame(body):
            raise MalformedManifest(offset=self.offset, detail="the frame's CRC does not match")
        return head + rest, body

    def _refuse_torn(self, head: bytes) -> None:
        if head and (self.trailer or not self._partial):
            raise MalformedManifest(offset=self.offset, detail="the last frame is torn")

    def _read(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes and (more := self._stream.read(size_bytes - len(data))):
            data += more
        return data


# --- frames -----------------------------------------------------------------------------------


def _frame(body: bytes) -> bytes:
    return encode_integer(len(body)) + body + crc32(body).to_bytes(_CRC_BYTES, "little")


def _special_frame(path: bytes, fields: Mapping[bytes, bytes]) -> bytes:
    return _frame(_SPECIAL + RecordCodec().encode(path, fields))


def _blank_trailer(fields: Mapping[bytes, bytes], digest: str) -> bytes:
    """Return the trailer's frame with zeros for the file's hash and for the frame's CRC."""
    blank = {**fields, envelope.file_hash_key(digest): b"0" * envelope.DIGEST_HEX_DIGITS[digest]}
    return _special_frame(envelope.TRAILER, blank)[:-_CRC_BYTES] + _NO_CRC


def _decode_special(body: bytes, offset: int) -> Record:
    if body[:1] != _SPECIAL:
        raise MalformedManifest(offset=offset, detail="a frame of unknown kind")
    return RecordCodec().decode(body[1:], offset)
