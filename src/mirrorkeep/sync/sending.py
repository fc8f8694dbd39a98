"""One large file on its way to a mirror: its segments in parallel, its digest in order.

Each thread takes the next segment, reads it, compares it with the signature of what the mirror has, adds
it to the hash of the whole when its turn has come, and sends it where it differs: what is hashed is what
is compared and sent, read once.  Nothing is visible on the mirror before the whole file was read and every
segment is there.

Not here: what is known of the file and what it becomes (``large``).  Memory: a few segments.  A crash leaves
an unfinished transaction, which expires on the server.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final

from blake3 import blake3

from mirrorkeep.delta.difference import ChangeKind, Difference, SegmentChange
from mirrorkeep.delta.segments import (
    DIGEST_BYTES,
    SEGMENT_BYTES,
    Span,
    pack_digests,
    plan_segments,
    segment_digest,
    unpack_digests,
)
from mirrorkeep.delta.signature import Signature
from mirrorkeep.errors import (
    EngineMissing,
    MalformedDelta,
    MalformedSignature,
    MirrorkeepError,
    NotFound,
    PatchTargetMissing,
    SourceChanged,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync.digests import new_hasher, segments_of
from mirrorkeep.sync.gaps import pieces_to_send
from mirrorkeep.sync.session import WritableTree
from mirrorkeep.tree.metadata.sparse import Ranges
from mirrorkeep.tree.protocol import Segment, Transaction

SEGMENT_THREADS: Final = 3
"""Segments of one file under way at once, at most: each has a connection of its own."""
TELL_S: Final = 0.5

Tell = Callable[[int], None]
"""Called a few times a second with the bytes of the file that are done."""


class Sending:
    """One file under way."""

    def __init__(
        self,
        slave: WritableTree,
        path: bytes,
        fd: int,
        size_bytes: int,
        signature: Signature | None,
        base: dict[bytes, bytes],
        threads: int,
    ) -> None:
        self._base = base
        self._threads = threads
        self._slave = slave
        self._path = path
        self._fd = fd
        self._size_bytes = size_bytes
        self._difference = Difference(signature, fd, size_bytes) if signature is not None else None
        self._transaction: Transaction | None = None
        self._opening = threading.Lock()
        self._written: list[Segment] = []
        self._digests: dict[Span, bytes] = {}
        self._known: dict[Span, bytes] = {}
        self._ranges: Ranges | None = None
        self._base_bytes = 0
        self._whole: DigestInTurn | None = None
        self._stop = False
        self._read_bytes = 0

    def know(self, base_line: bytes) -> None:
        """Take from the base's record the digests of what turns out not to have changed."""
        value = segments_of(base_line).get(keys.SEGMENTS, b"")
        if value.startswith(b"%d:" % SEGMENT_BYTES):
            with contextlib.suppress(ValueError):
                self._known = unpack_digests(value, parse_record(base_line, check=False).size)

    def skip_holes(self, ranges: Ranges, base_bytes: int) -> None:
        """Leave out the holes between ``ranges``, the data of the record, behind the end of the base."""
        self._ranges, self._base_bytes = ranges, base_bytes

    def digests(self) -> bytes:
        """Return the digests of the segments, as the record names them; for after :meth:`run`."""
        return pack_digests(self._size_bytes, self._digests)

    def run(self, digest_name: str, known: bytes = b"", tell: Tell | None = None) -> bytes:
        """Send every segment that differs; returns the digest (hex) of the whole, made unless ``known``."""
        if not known:
            self._whole = DigestInTurn(digest_name)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="segment") as pool:
            segments = plan_segments(self._size_bytes)
            lock = threading.Lock()
            workers = [pool.submit(self._take, segments, lock) for _ in range(self._threads)]
            try:
                while tell is not None and wait(workers, TELL_S, FIRST_EXCEPTION).not_done:
                    if any(worker.done() and worker.exception() for worker in workers):
                        break
                    tell(self._read_bytes)
                for worker in workers:
                    worker.result()
            except BaseException:
                self._end()
                raise
        return self._whole.hexdigest() if self._whole is not None else known

    def finish(self, line: bytes) -> None:
        """Publish what was sent under the new record."""
        transaction = self._open()
        with _still_known(self._path):
            transaction.finish(line, sorted(self._written, key=lambda one: one.start))

    def abandon(self) -> None:
        """Drop what was sent."""
        self._end()
        if self._transaction is not None:
            self._transaction.abandon()

    def _end(self) -> None:
        self._stop = True
        if self._whole is not None:
            self._whole.give_up()

    def _take(self, segments: Iterator[tuple[int, int]], lock: threading.Lock) -> None:
        try:
            while not self._stop:
                with lock:
                    span = next(segments, None)
                if span is None:
                    return
                self._send(Segment(*span))
                with lock:
                    self._read_bytes += span[1] - span[0]
        except BaseException:
            self._end()  # the others wait for this segment's turn
            raise

    def _send(self, segment: Segment) -> None:
        change = self._change(segment)
        span = segment.start, segment.end
        data = change.data if change is not None else read_segment(self._fd, segment)
        if self._whole is not None and not self._whole.add(segment.start, data):
            return  # given up: whoever failed says why
        if change is not None and change.kind is ChangeKind.UNCHANGED:
            self._digests[span] = self._known.get(span) or segment_digest(change.data)
            return
        digest = blake3(data).digest()
        self._digests[span] = digest[:DIGEST_BYTES]
        if self._ranges is not None and segment.start >= self._base_bytes:
            pieces = pieces_to_send(segment, data, self._ranges)
            if pieces != [segment]:
                self._send_pieces(segment, data, pieces)
                return
        try:
            is_delta = change is not None and change.kind is ChangeKind.DELTA
            body = change.body if change is not None else bytes(data)
            self._write(segment, body, delta=is_delta, digest=digest)
        except MirrorkeepError as error:
            if change is None or error.code not in ("digest_mismatch", MalformedDelta.code):
                raise
            # the mirror's base is not what the signature says: the bytes themselves are always right
            self._write(segment, bytes(data), delta=False, digest=digest)

    def _send_pieces(self, segment: Segment, data: bytes | memoryview, pieces: list[Segment]) -> None:
        """Send what is in a segment beside its holes."""
        for piece in pieces:
            body = bytes(data[piece.start - segment.start : piece.end - segment.start])
            self._write(piece, body, delta=False, digest=blake3(body).digest())

    def _change(self, segment: Segment) -> SegmentChange | None:
        """Return what changed in a segment; None where that cannot be told."""
        if self._difference is None:
            return None
        try:
            return self._difference.segment(segment.start, segment.end)
        except (EngineMissing, MalformedSignature):
            return None

    def _write(self, segment: Segment, body: bytes, *, delta: bool, digest: bytes) -> None:
        transaction = self._open()
        with _still_known(self._path):
            transaction.write(segment, body, delta=delta, digest=digest)
        self._written.append(segment)

    def _open(self) -> Transaction:
        with self._opening:
            if self._transaction is None:
                opening = format_record(
                    self._path,
                    {keys.TYPE: keys.FILE, keys.SIZE: b"%d" % self._size_bytes, **self._base},
                )
                self._transaction = self._slave.begin(opening, on_base=self._difference is not None)
            return self._transaction


class DigestInTurn:
    """The digest of a whole file from its segments, which any number of threads bring in any order."""

    def __init__(self, digest_name: str) -> None:
        self._hasher = new_hasher(digest_name)
        self._position = 0
        self._turn = threading.Condition()
        self._given_up = False

    def add(self, start: int, data: bytes | memoryview) -> bool:
        """Wait for the turn of the segment at ``start`` and hash it; False when there will be no turn.

        Whoever takes segments in order and brings each before the next waits for nobody who waits for it.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._position == start or self._given_up)
            if self._given_up:
                return False
        self._hasher.update(data)  # the turn is the lock, and lets others read and send meanwhile
        with self._turn:
            self._position = start + len(data)
            self._turn.notify_all()
        return True

    def give_up(self) -> None:
        """Let everybody go who waits; may be repeated."""
        with self._turn:
            self._given_up = True
            self._turn.notify_all()

    def hexdigest(self) -> bytes:
        """Return the digest (hex) of what was added."""
        return str(self._hasher.hexdigest()).encode()


@contextlib.contextmanager
def _still_known(path: bytes) -> Iterator[None]:
    """A transaction that the mirror knows no more is no file that is missing at the source."""
    try:
        yield
    except NotFound as error:
        raise PatchTargetMissing(path=path, detail="the mirror lost the file in the making") from error


def read_segment(fd: int, segment: Segment) -> bytes:
    parts: list[bytes] = []
    position = segment.start
    while position < segment.end:
        part = os.pread(fd, segment.end - position, position)
        if not part:
            raise SourceChanged(path=b"")
        parts.append(part)
        position += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
