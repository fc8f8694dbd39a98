"""A large native file in the making: segments written side by side, published at once.

The new file lies nameless beside the old one, as a clone of it or empty.  Every segment is checked
against its digest when it is written; a file that took anything from its base is read whole once more
before it is published, because a native base may have been changed by others.

A crash, or :meth:`abandon`, leaves the old file untouched and nothing (where nameless files cannot be:
one ``.mirrorkeep-part-`` name) behind.  Nothing is made durable here.
"""

from __future__ import annotations

import bisect
import os
import stat as st
import threading
from collections import Counter
from collections.abc import Sequence

from mirrorkeep.delta.patch import apply_delta
from mirrorkeep.errors import (
    DigestMismatch,
    GenerationConflict,
    LengthMismatch,
    PatchTargetMissing,
    PathRefused,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.tree import wire
from mirrorkeep.tree.content import check_file, clone, punch_holes, write_all
from mirrorkeep.tree.metadata.flags import BEFORE_CONTENT, write_flags
from mirrorkeep.tree.metadata.posix import OPEN_ENTRY, stamp, stamp_flags
from mirrorkeep.tree.metadata.sparse import holes, ranges_from_text
from mirrorkeep.tree.native_case import CaseGuard
from mirrorkeep.tree.native_line import digest_maker
from mirrorkeep.tree.native_parents import Parents
from mirrorkeep.tree.native_publish import NewFile
from mirrorkeep.tree.protocol import Segment


class NativeTransaction:
    """One large file; segments may come from several threads, each any number of times."""

    def __init__(
        self,
        root: bytes,
        line: bytes,
        *,
        on_base: bool,
        set_owner: bool,
        case: CaseGuard,
        shortfalls: Counter[bytes],
    ) -> None:
        record = parse_record(line)
        self._path = record.path
        self._owner = set_owner
        self._shortfalls = shortfalls
        self._lock = threading.Lock()
        self._written: set[tuple[int, int]] = set()
        self._parents = Parents(root)
        self._base_fd: int | None = None
        self._new: NewFile | None = None
        self._sparse = None if on_base else record.fields.get(keys.SPARSE)
        self._gaps = (
            [] if self._sparse is None else holes(ranges_from_text(self._sparse, record.size), record.size)
        )
        try:
            if not record.path:
                raise PathRefused(path=record.path, detail="the root of a tree is a directory")
            self._dir_fd, self._name = self._parents.locate(record.path, create=not on_base)
            case.check(self._dir_fd, self._name, record.path)
            self._before = self._look()
            self._new = self._start(record, on_base)
        except BaseException:
            self.abandon()
            raise

    def write(self, segment: Segment, body: bytes, *, delta: bool, digest: bytes) -> None:
        """Write one segment; see :class:`mirrorkeep.tree.protocol.Transaction`.

        Raises DigestMismatch, LengthMismatch, MalformedDelta, PatchTargetMissing (a delta without a
        base), OSError: the segment then counts as unwritten.
        """
        fd, length = self._file().fd, segment.end - segment.start
        key = (segment.start, segment.end)
        with self._lock:
            self._written.discard(key)
        if delta:
            if self._base_fd is None:
                raise PatchTargetMissing(path=self._path, detail="a delta needs a base")
            apply_delta(body, self._base_fd, fd, segment.start, expected_bytes=length)
            self._check(_read_back(fd, segment.start, segment.end), digest)
        else:
            if len(body) != length:
                raise LengthMismatch(path=self._path, actual=len(body), expected=length)
            self._check(body, digest)
            self._write_around_holes(fd, body, segment.start)
        with self._lock:
            self._written.add(key)

    def finish(self, line: bytes, segments: Sequence[Segment]) -> None:
        """Check that all ``segments`` are written, truncate, stamp and publish.

        Raises GenerationConflict when the old file changed since :meth:`begin`, PatchTargetMissing for a
        segment that is missing, DigestMismatch, LengthMismatch: the old file stays and the transaction
        stays open.
        """
        new, record = self._file(), parse_record(line)
        if record.path != self._path:
            raise PathRefused(path=record.path, detail="the record belongs to another file")
        missing = {(s.start, s.end) for s in segments} - self._written
        if missing:
            raise PatchTargetMissing(path=self._path, detail=f"segment {min(missing)} was not written")
        os.ftruncate(new.fd, record.size)
        sparse = record.fields.get(keys.SPARSE)
        punched = sparse is not None and (self._base_fd is not None or sparse != self._sparse)
        if punched:
            punch_holes(new.fd, sparse or b"", record.size)
        if punched or self._base_fd is not None or not self._covered(record.size):
            check_file(self._path, record.fields, new.fd)
        self._shortfalls.update(
            stamp(self._dir_fd, self._name, record.fields, owner=self._owner, fd=new.fd, protect=False)
        )
        if self._look() != self._before:
            raise GenerationConflict(path=self._path)
        new.publish(self._name)
        if keys.FLAGS in record.fields:
            stamp_flags(new.fd, record.fields)
        self.abandon()

    def abandon(self) -> None:
        """Forget the transaction; the old file was never touched.  May be called again."""
        new, self._new = self._new, None
        if new is not None:
            new.close()
        base, self._base_fd = self._base_fd, None
        if base is not None:
            os.close(base)
        self._parents.close()

    def _write_around_holes(self, fd: int, body: bytes, offset: int) -> None:
        """Write ``body``, skipping what the record calls a hole and is zeros (the file has none yet)."""
        view, done, end = memoryview(body), offset, offset + len(body)
        first = bisect.bisect_right(self._gaps, (offset, offset)) - 1
        for start, stop in self._gaps[max(first, 0) :]:
            if start >= end:
                break
            start, stop = max(start, done), min(stop, end)
            if start < stop and body.count(0, start - offset, stop - offset) == stop - start:
                write_all(fd, view[done - offset : start - offset], done)
                done = stop
        write_all(fd, view[done - offset :], done)

    def _start(self, record: Record, on_base: bool) -> NewFile:
        if on_base:
            if self._before is None:
                raise PatchTargetMissing(path=self._path, detail="there is no file to change")
            self._base_fd = os.open(self._name, OPEN_ENTRY, dir_fd=self._dir_fd)
        new = NewFile(self._dir_fd)
        try:
            if keys.FLAGS in record.fields:
                write_flags(new.fd, int(record.fields[keys.FLAGS], 16) & BEFORE_CONTENT)
            if self._base_fd is not None:
                clone(self._base_fd, new.fd)
        except BaseException:
            new.close()
            raise
        return new

    def _file(self) -> NewFile:
        if self._new is None:
            raise PatchTargetMissing(path=self._path, detail="the transaction is over")
        return self._new

    def _look(self) -> tuple[int, int, int, int] | None:
        """Return what tells the old file's states apart; None when there is none."""
        try:
            found = os.stat(self._name, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not st.S_ISREG(found.st_mode):
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _check(self, data: bytes, expected: bytes) -> None:
        actual = digest_maker(wire.SEGMENT_DIGEST)(data).digest()
        if actual != expected:
            raise DigestMismatch(path=self._path, expected=expected.hex(), actual=actual.hex())

    def _covered(self, size_bytes: int) -> bool:
        position = 0
        for start, end in sorted(self._written):
            if start > position:
                return False
            position = max(position, end)
        return position >= size_bytes


def _read_back(fd: int, start: int, end: int) -> bytes:
    chunks = []
    while start < end and (chunk := os.pread(fd, end - start, start)):
        chunks.append(chunk)
        start += len(chunk)
    return b"".join(chunks)
