"""A large stored file in the making: segments written into a staged clone by any number of processes.

Everything a worker needs to go on lies in the staging folder, under the transaction's id, so that any
process of the server can take the next request:

    t.ID        the new file: a clone of the base that shares its blocks, or empty
    t.ID.base   the base as it was at the beginning (another name of its inode), for copies out of deltas
    t.ID.begin  a sidecar: generation of the base, the opening record, what is known of the base; its lock
                is shared by those who write a segment, and held alone by who publishes
    t.ID.log    a row for each segment before and after it is written: start, end, state

A segment counts as written when the last row for its range says so.  Blocks that nobody writes stay
shared with the base, and so with the snapshots (SNP-08, SNP-09).  ``t.ID`` is never another file than the
one in the making: it goes before the file is published (``Staging.swap_in``), and whoever writes has it
open while it is there only.

Not here: which segments there are (``delta.segments``), the barrier against snapshots (``store``).
A crash leaves the old file, or the new one with the old one's sidecar, which counts as unverified, and
staged files that expire.  A transaction whose worker was killed while it published is over: a repeated
``finish`` succeeds where the pair is complete, and otherwise the sender begins again.  Nothing is durable
before the run's commit unless ``finish`` is asked to make it so.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import stat as stat_module
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from mirrorkeep.delta.patch import patch_pieces
from mirrorkeep.errors import (
    DigestMismatch,
    LengthMismatch,
    MalformedRequest,
    NotFound,
    PatchTargetMissing,
    PathRefused,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.tree import wire
from mirrorkeep.tree.digest import Hasher, hash_open_file
from mirrorkeep.tree.durability import start_writing
from mirrorkeep.tree.layout import split_path, storage_errors
from mirrorkeep.tree.metadata.sparse import holes, ranges_from_text
from mirrorkeep.tree.placement import READ_FILE, Placement
from mirrorkeep.tree.protocol import Data, Segment
from mirrorkeep.tree.sidecar import RECORD, RECORDED_ONLY, Sidecar, decode_sidecar, encode_sidecar
from mirrorkeep.tree.staging import TRANSACTION, write_all
from mirrorkeep.tree.transaction_base import BASE_BYTES, VOUCHED, stage_base

_ID: Final = re.compile(r"[0-9a-f]{24}")
_ROW: Final = struct.Struct(">QQB")
_BEGUN, _VERIFIED, _UNVERIFIED = 0, 1, 2
_DONE: Final = b"done"
_PIECES_AT_ONCE: Final = 1024
"""IOV_MAX of Linux."""
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class StoredTransaction:
    """One transaction, as seen by one worker; see ``protocol.Transaction``."""

    def __init__(self, placement: Placement, transaction_id: str) -> None:
        """Take up the transaction; raises NotFound when it is over or was never begun."""
        if not _ID.fullmatch(transaction_id):
            raise MalformedRequest(detail="this is no transaction")
        self.id = transaction_id
        self._placement = placement
        self._staging = placement.staging
        self._data = TRANSACTION + transaction_id.encode()
        state = self._read_begin()
        self._generation = state.generation
        self._entries = state.entries
        self.path = parse_record(state.line, check=False).path

    @property
    def on_base(self) -> bool:
        """Whether the file began as a clone of the one that is there."""
        return BASE_BYTES in self._entries

    def write(self, segment: Segment, body: bytes, *, delta: bool, digest: bytes | None) -> None:
        """Write one segment; see ``protocol.Transaction``.

        ``digest=None``: nobody vouches for the segment, and a record with a hash has the whole file read
        at the end.  Raises DigestMismatch, LengthMismatch, MalformedDelta, PatchTargetMissing, NoSpace,
        StorageFailure: the segment counts as unwritten and may be sent again.
        """
        if not delta:
            self.write_pieces(segment, [body], digest=digest)
            return
        self._check_segment(segment)
        with storage_errors(self.path):
            touched = any(start < segment.end and segment.start < end for start, end, _ in self._rows())
            with self._writing(segment, digest) as fd:
                self._write_delta(fd, segment, body, digest, clean=not touched)

    def write_pieces(self, segment: Segment, pieces: Sequence[Data], *, digest: bytes | None) -> None:
        """Write one segment from the pieces that it came in; as :meth:`write` without ``delta``."""
        self._check_segment(segment)
        length, actual = segment.end - segment.start, sum(map(len, pieces))
        if actual != length:
            raise LengthMismatch(path=self.path, expected=length, actual=actual)
        self._verify(pieces, digest)
        with storage_errors(self.path), self._writing(segment, digest) as fd:
            _write_at(fd, pieces, segment.start)
            start_writing(fd, segment.start, length)

    def finish(self, line: bytes, segments: Sequence[Segment], *, durable: bool = False) -> None:
        """Publish the file under its record ``line``; see ``protocol.Transaction``.

        Where neither the sender nor the sidecar vouches for the base (see :func:`begin_transaction`), the
        whole file is read and must hash to the record's digest.  Repeating a finish that succeeded does
        nothing.  Raises GenerationConflict, PatchTargetMissing, DigestMismatch, NoSpace, StorageFailure:
        the old file stays, the transaction stays open (unless it was the storage that failed).
        """
        record = parse_record(line)
        if record.path != self.path:
            raise PathRefused(path=record.path, detail="the record belongs to another file")
        if record.kind != keys.FILE:
            raise MalformedRequest(detail="the record is that of no regular file")
        with storage_errors(self.path), self._locked(fcntl.LOCK_EX):
            self._entries = self._read_begin().entries
            if self._entries.get(_DONE) == line:
                return
            self._check_open()
            try:
                fd = self._open_data()
            except PatchTargetMissing:
                if not self._was_published(record, line):
                    raise
            else:
                try:
                    notes = self._complete(fd, record, segments)
                    if durable:
                        os.fsync(fd)
                finally:
                    os.close(fd)
                self._publish(line, notes, durable)
            self._end(line)

    def abandon(self) -> None:
        """Forget the transaction; the old file was never touched.  May be called again."""
        for suffix in (b".begin", b".log", b".base", b""):
            self._staging.discard(self._data + suffix)

    # --- writing -----------------------------------------------------------------------------

    def _read_begin(self) -> Sidecar:
        begin = _read_staged(self._placement, self._data + b".begin")
        if begin is None:
            raise NotFound(what=f"transaction {self.id}")
        return decode_sidecar(begin)

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        """Hold the transaction across threads and processes; raises NotFound when it is over."""
        try:
            fd = os.open(self._data + b".begin", _OPEN, dir_fd=self._staging.fd)
        except FileNotFoundError:
            raise NotFound(what=f"transaction {self.id}") from None
        try:
            fcntl.flock(fd, operation)
            yield
        finally:
            os.close(fd)

    def _check_open(self) -> None:
        self._placement.check_writable(self.path)
        if _DONE in self._entries:
            raise PatchTargetMissing(path=self.path, detail="the transaction is over")

    def _check_segment(self, segment: Segment) -> None:
        self._check_open()
        if segment.end < segment.start or segment.start < 0:
            raise MalformedRequest(detail="a segment ends before it starts")

    @contextmanager
    def _writing(self, segment: Segment, digest: bytes | None) -> Iterator[int]:
        """Yield the file to write a segment to, with a note in the log before and after.

        It is not published meanwhile: a request that came twice writes before it is, or not at all.
        """
        with self._locked(fcntl.LOCK_SH):
            fd = self._open_data()
            try:
                self._note(segment, _BEGUN)
                yield fd
                self._note(segment, _UNVERIFIED if digest is None else _VERIFIED)
            finally:
                os.close(fd)

    def _open_data(self) -> int:
        """Open the file in the making, under the lock; raises PatchTargetMissing when there is none now."""
        try:
            return os.open(self._data, _OPEN, dir_fd=self._staging.fd)
        except FileNotFoundError:
            raise PatchTargetMissing(path=self.path, detail="the transaction is over") from None

    def _write_delta(
        self, fd: int, segment: Segment, delta: bytes, digest: bytes | None, *, clean: bool
    ) -> None:
        """Make the segment in memory, verify it, and write what does not stay where it was.

        The base's inode is the one that was read and written before, so it is the one that is cached: the
        clone's own pages would have to come from the disk.
        """
        if not self.on_base:
            raise PatchTargetMissing(path=self.path, detail="a delta needs a base")
        base = os.open(self._data + b".base", READ_FILE, dir_fd=self._staging.fd)
        try:
            length = segment.end - segment.start
            pieces = patch_pieces(delta, base, segment.start, expected_bytes=length)
        finally:
            os.close(base)
        self._verify([piece.data for piece in pieces], digest)
        offset = segment.start
        # What was written over in this range before is no clone of the base any more.
        for stays, group in itertools.groupby(pieces, key=lambda piece: piece.stays and clean):
            together = [piece.data for piece in group]
            if not stays:
                _write_at(fd, together, offset)
            offset += sum(map(len, together))
        start_writing(fd, segment.start, length)

    def _verify(self, pieces: Sequence[Data], digest: bytes | None) -> None:
        if digest is None:
            return
        actual = segment_digest(*pieces)
        if actual != digest:
            raise DigestMismatch(path=self.path, expected=digest.hex(), actual=actual.hex())

    def _verify_whole(self, fd: int, record: Record) -> None:
        actual = hash_open_file(fd, record.fields)
        if actual != record.hash:
            raise DigestMismatch(path=self.path, expected=record.hash, actual=actual)

    # --- the log -----------------------------------------------------------------------------

    def _note(self, segment: Segment, state: int) -> None:
        fd = os.open(self._data + b".log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=self._staging.fd)
        try:
            write_all(fd, _ROW.pack(segment.start, segment.end, state))
        finally:
            os.close(fd)

    def _rows(self) -> list[tuple[int, int, int]]:
        log = _read_staged(self._placement, self._data + b".log") or b""
        whole = len(log) - len(log) % _ROW.size
        return list(_ROW.iter_unpack(log[:whole]))

    def _check_written(self, record: Record, segments: Sequence[Segment]) -> bool:
        """Raise PatchTargetMissing unless all is there; say whether a segment came without a digest."""
        last = {(start, end): state for start, end, state in self._rows()}
        for segment in segments:
            if last.get((segment.start, segment.end), _BEGUN) == _BEGUN:
                detail = f"segment {segment.start}-{segment.end} was not written"
                raise PatchTargetMissing(path=self.path, detail=detail)
        if broken := [span for span, state in last.items() if state == _BEGUN]:
            detail = f"segment {broken[0][0]}-{broken[0][1]} was begun and not written"
            raise PatchTargetMissing(path=self.path, detail=detail)
        self._check_covered(record, sorted(last))
        return _UNVERIFIED in last.values()

    def _check_covered(self, record: Record, written: list[tuple[int, int]]) -> None:
        """Raise PatchTargetMissing when bytes come neither from a segment, nor the base, nor a hole."""
        base_bytes = int(self._entries.get(BASE_BYTES, b"0"))
        known = [(0, base_bytes), *written, *_holes(record)]
        position = 0
        for start, end in sorted(known):
            if start > position:
                break
            position = max(position, end)
        if position < record.size:
            raise PatchTargetMissing(path=self.path, detail=f"nothing was written at byte {position}")

    # --- publishing --------------------------------------------------------------------------

    def _complete(self, fd: int, record: Record, segments: Sequence[Segment]) -> bytes:
        """Check and stamp what was written; returns what the file system refused, for the sidecar."""
        unverified = self._check_written(record, segments)
        os.ftruncate(fd, record.size)
        self._punch(fd, record)
        if record.hash and (unverified or (self.on_base and VOUCHED not in self._entries)):
            self._verify_whole(fd, record)
        return self._placement.stamp(fd, record.fields, keys.FILE, -1, -1)

    def _punch(self, fd: int, record: Record) -> None:
        if keys.SPARSE in record.fields:
            from mirrorkeep.tree.content import punch_zeros

            punch_zeros(fd, record.fields[keys.SPARSE], record.size)

    def _publish(self, line: bytes, notes: bytes, durable: bool) -> None:
        placement = self._placement
        entries = {RECORD: line, RECORDED_ONLY: notes} if notes else {RECORD: line}
        parent, name = split_path(self.path)
        with placement.directories() as directories:
            directory = directories.get(parent, make=True)
            with placement.locked(directory):
                placement.publish(
                    directory,
                    name,
                    self._data,
                    entries,
                    path=self.path,
                    expected=self._generation,
                    durable=durable,
                )

    def _was_published(self, record: Record, line: bytes) -> bool:
        """Say whether data and sidecar are in place, though whoever put them there could not note it."""
        placement = self._placement
        parent, name = split_path(self.path)
        with placement.directories() as directories:
            try:
                directory = directories.get(parent)
                status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                return False
            sidecar = placement.read_replaced(directory, name)
        return (
            sidecar.line == line
            and sidecar.generation != self._generation
            and stat_module.S_ISREG(status.st_mode)
            and (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
        )

    def _end(self, line: bytes) -> None:
        """Note that the file was published; without the note a repeated finish looks at what is there."""
        self._entries[_DONE] = line
        with suppress(OSError):
            noted = self._staging.write(encode_sidecar(self._generation, self._entries))
            fd = self._staging.fd
            os.rename(noted, self._data + b".begin", src_dir_fd=fd, dst_dir_fd=fd)
        self._staging.discard(self._data + b".log")
        self._staging.discard_behind(self._data + b".base")


def begin_transaction(placement: Placement, line: bytes, *, on_base: bool) -> StoredTransaction:
    """Open a transaction for the file of record ``line``; see ``protocol.Slave.begin``.

    With ``on_base`` the opening record's ``hash`` and size, where given, are those that the sender
    believes the *base* to have: when the base's sidecar and native state agree with them, the base is
    vouched for, and what is not sent need not be read again at the end.
    Raises PatchTargetMissing (no base), PathRefused, NoSpace, StorageFailure.
    """
    placement.check_writable()
    record = parse_record(line)
    if not record.path:
        raise PathRefused(path=b"/", detail="the root of a tree is a directory")
    transaction_id = os.urandom(12).hex()
    data = TRANSACTION + transaction_id.encode()
    staging = placement.staging
    with storage_errors(record.path):
        try:
            generation, entries = stage_base(placement, record, data, on_base)
            staging.write(b"", data + b".log")
            staging.write(encode_sidecar(generation, {**entries, RECORD: line}), data + b".begin")
        except BaseException:
            for suffix in (b"", b".base", b".log"):
                staging.discard(data + suffix)
            raise
    return StoredTransaction(placement, transaction_id)


def segment_digest(*pieces: Data) -> bytes:
    """Return the raw transport digest of one segment (``wire.SEGMENT_DIGEST``), given in any pieces."""
    if wire.SEGMENT_DIGEST == "blake3":
        from blake3 import blake3

        hasher: Hasher = blake3()
    else:
        import hashlib

        hasher = hashlib.new(wire.SEGMENT_DIGEST)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def _holes(record: Record) -> list[tuple[int, int]]:
    """Return what the record calls holes; raises MalformedRequest."""
    if keys.SPARSE not in record.fields:
        return []
    try:
        return holes(ranges_from_text(record.fields[keys.SPARSE], record.size), record.size)
    except ValueError as error:
        raise MalformedRequest(detail=f"a record's field cannot be used: {error}") from None


def _read_staged(placement: Placement, name: bytes) -> bytes | None:
    with storage_errors(name):
        if not placement.staging.exists():
            return None
        try:
            fd = os.open(name, READ_FILE, dir_fd=placement.staging.fd)
        except FileNotFoundError:
            return None
        try:
            parts = []
            while part := os.read(fd, 1 << 20):
                parts.append(part)
        finally:
            os.close(fd)
    return b"".join(parts)


def _write_at(fd: int, pieces: Sequence[Data], offset: int) -> None:
    """Write all of ``pieces``, one behind the other; raises OSError."""
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        left = [memoryview(piece) for piece in pieces[start : start + _PIECES_AT_ONCE]]
        while left:
            written = os.pwritev(fd, left, offset)
            offset += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
