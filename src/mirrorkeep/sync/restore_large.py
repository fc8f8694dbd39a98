"""Bringing one large file into a restore's destination, and looking at what is there already.

What the destination has is settled first: the same content is only stamped, a newer file is kept, and
anything else is replaced by a verified file.  A large file is brought in a transaction of its own, so
nothing is replaced before all of it is there and hashes to what the record says.  What the destination
or another local tree has of it serves as a seed, and only the rest travels (LOC-03).

Not here: bundles of small files, links and directories (``restore.py``); searching a seed (``seed.py``).

A crash leaves the old file, and at worst an unfinished one beside it, which the next run clears away.
Memory: a few segments.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.delta.segments import digest_unit, plan_segments, unpack_digests
from mirrorkeep.delta.signature import Signature, choose_block_bytes
from mirrorkeep.errors import (
    DigestMismatch,
    EngineMissing,
    LengthMismatch,
    MalformedDelta,
    MalformedSignature,
    MirrorkeepError,
    NewerKept,
    PatchTargetMissing,
    SourceChanged,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.sync.digests import hash_content, new_hasher
from mirrorkeep.sync.orders import ABORTING
from mirrorkeep.sync.restore_links import There
from mirrorkeep.sync.seed import WORTH, Seed, Signer, Stretch, find_gaps, find_pieces, find_unchanged
from mirrorkeep.tree.metadata.sparse import ranges_from_text
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.native_publish import is_newer, is_shared
from mirrorkeep.tree.native_write import failure_of
from mirrorkeep.tree.protocol import Failure, Frame, Master, Op, Segment

RANGES_IN_FLIGHT: Final = 3
_ZEROS: Final = bytes(1 << 20)


@dataclass(slots=True)
class Fetched:
    """A worker's answer."""

    failures: list[tuple[bytes, str, str]] = field(default_factory=list)
    settled: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Path and digest of the files with further names that are in the destination as their records say."""
    not_set: Counter[bytes] = field(default_factory=Counter)
    """What the destination could not take of records, by key."""
    same: int = 0
    read_bytes: int = 0
    written: int = 0


def note(failures: list[Failure], frames: list[Frame], done: Fetched) -> None:
    """Add what the destination refused of these frames to the answer."""
    for failure in failures:
        path = failure.path or parse_record(frames[failure.index].line, check=False).path
        done.failures.append((path, failure.code, failure.detail))


def settle_present(
    slave: NativeTree, record: Record, line: bytes, done: Fetched, *, shared: bool, overwrite: bool
) -> bool:
    """Look at what the destination has: the same (stamp it), newer (keep it), or to be replaced (False).

    What names share that are not one file in the snapshot is set apart: stamping would change them all.
    """
    try:
        fd = slave.open_content(record.path)
    except MirrorkeepError:  # a link, a node, or a file that may not be read
        found = slave.look(record.path)
        if found is None or stat.S_ISDIR(found.st_mode):
            return False
        return not overwrite and _kept(found, record, done)
    try:
        status = os.fstat(fd)
        same_size = status.st_size == record.size
        if same_size and hash_content(fd, record.size, _digest_of(record)) == record.hash:
            shared = shared or is_shared(status, record.fields)
            _settle_same(slave, record, line, done, shared=shared)
            return True
        return not overwrite and _kept(status, record, done)
    finally:
        os.close(fd)


def _kept(found: os.stat_result, record: Record, done: Fetched) -> bool:
    """Say whether what is there is newer than the record, and note that it was kept."""
    if not is_newer(found, record.mtime_ns):
        return False
    error = NewerKept(path=record.path)
    done.failures.append((record.path, error.code, str(error)))
    return True


def _settle_same(slave: NativeTree, record: Record, line: bytes, done: Fetched, *, shared: bool) -> None:
    """Stamp a file whose content is right; of one that other names share, first make a file of its own."""
    frame = Frame(Op.COPY, line, record.path) if shared else Frame(Op.STAMP, line)
    done.same += 1
    note(slave.apply([frame]), [frame], done)


class LargeFetch:
    """Brings large files over; one a worker thread.

    From a store, the next segments are under way while one is hashed and written, and a local file that
    has part of the content already is used as a seed: ``seed`` is a tree laid out like the destination.
    """

    def __init__(
        self,
        master: Master,
        slave: NativeTree,
        seed: NativeTree | None = None,
        threads: int = RANGES_IN_FLIGHT,
    ) -> None:
        self._in_flight = min(threads, RANGES_IN_FLIGHT)
        self._master = master
        self._slave = slave
        self._seed = seed
        self._signer = master if isinstance(master, Signer) else None
        self._fetching: ThreadPoolExecutor | None = None
        if self._signer is not None:
            self._fetching = ThreadPoolExecutor(self._in_flight, thread_name_prefix="fetch")

    def bring(
        self, path: bytes, record: Record, line: bytes, done: Fetched, *, there: There, overwrite: bool
    ) -> None:
        """Make the destination hold the file at ``path`` of the source; notes what came of it."""
        shared = there == There.SHARED
        if there and settle_present(self._slave, record, line, done, shared=shared, overwrite=overwrite):
            return
        try:
            with contextlib.ExitStack() as stack:
                seed = self._find_seed(path, record, done, stack)
                if seed is None or not self._bring_with(seed, path, record, line, done):
                    self._fetch(path, record, line, done, None)
            done.written += 1
        except MirrorkeepError as error:
            if error.code in ABORTING:
                raise
            done.failures.append((record.path, error.code, str(error)))
        except OSError as error:  # of this file alone: what else is in the order is brought all the same
            refused = failure_of(0, record.path, error)
            done.failures.append((record.path, refused.code, refused.detail))

    # --- seeds -----------------------------------------------------------------------------------

    def _find_seed(
        self, path: bytes, record: Record, done: Fetched, stack: contextlib.ExitStack
    ) -> Seed | None:
        """Return the local file that serves as seed, open until the stack ends; None when there is none."""
        for tree in (self._slave, self._seed):
            if tree is None:
                continue
            try:
                fd = tree.open_content(record.path)
            except MirrorkeepError:
                continue
            stack.callback(os.close, fd)
            pieces = self._pieces(path, record, fd, done, known_to_differ=tree is self._slave)
            if pieces:
                return Seed(fd, pieces, in_destination=tree is self._slave)
        return None

    def _pieces(
        self, path: bytes, record: Record, fd: int, done: Fetched, *, known_to_differ: bool
    ) -> list[Stretch]:
        size_bytes = os.fstat(fd).st_size
        if size_bytes * WORTH < record.size:
            return []
        same_size = size_bytes == record.size and not known_to_differ
        if same_size and hash_content(fd, size_bytes, _digest_of(record)) == record.hash:
            return [Stretch(0, size_bytes, 0)]
        pieces = _by_digests(record, fd, size_bytes)
        if self._signer is None:
            return pieces  # what is near is read as fast as it is searched
        for start, end in find_gaps(pieces, record.size):
            local_end = size_bytes if end == record.size else min(end, size_bytes)
            pieces += self._search(self._signer, path, fd, Segment(start, end), local_end, done)
        return sorted(pieces, key=lambda piece: piece.start)

    def _search(
        self, signer: Signer, path: bytes, fd: int, wanted: Segment, local_end: int, done: Fetched
    ) -> list[Stretch]:
        """Return what the seed has, up to ``local_end``, of a range of the file that is on the store."""
        start, wanted_bytes = wanted.start, wanted.end - wanted.start
        if local_end <= start:
            return []
        try:
            data = signer.signature_of_range(path, start, wanted.end)
            done.read_bytes += len(data)
            signature = Signature.load(data, base_bytes=wanted_bytes)
            return find_pieces(signature, fd, local_end - start, wanted_bytes, origin=start)
        except (MalformedSignature, EngineMissing, SourceChanged):
            return []
        except MirrorkeepError as error:
            if error.code in ABORTING:
                raise
            return []

    def _bring_with(self, seed: Seed, path: bytes, record: Record, line: bytes, done: Fetched) -> bool:
        """Rebuild the file from a seed; returns False when that did not make what the record says."""
        try:
            self._fetch(path, record, line, done, seed)
        except (DigestMismatch, SourceChanged, MalformedDelta, PatchTargetMissing):
            return False
        return True

    # --- fetching --------------------------------------------------------------------------------

    def _fetch(self, path: bytes, record: Record, line: bytes, done: Fetched, seed: Seed | None) -> None:
        """Make the file in a transaction; raises DigestMismatch when it is not what the record says."""
        on_base = seed is not None and seed.in_destination
        transaction = self._slave.begin(line, on_base=on_base)
        try:
            check = _WholeDigest(record)
            segments: list[Segment] = []
            for made in self._made(path, record, seed):
                done.read_bytes += made.fetched_bytes
                if not made.in_place:
                    segments.append(made.segment)
                    digest = blake3(made.data).digest()
                    transaction.write(made.segment, made.body(), delta=made.is_delta, digest=digest)
                if not on_base:
                    check.add(made.segment.start, made.data)
            if not on_base:  # a transaction on a base reads the whole file itself
                check.finish()
            transaction.finish(line, segments)
        except BaseException:
            transaction.abandon()
            raise

    def _made(self, path: bytes, record: Record, seed: Seed | None) -> Iterator[_Made]:
        """Yield the segments in order, the next ones under way meanwhile."""
        spans = _data_segments(record)
        if self._fetching is None:
            for span in spans:
                yield self._make(path, span, seed)
            return
        waiting: deque[Future[_Made]] = deque()
        try:
            for span in spans:
                waiting.append(self._fetching.submit(self._make, path, span, seed))
                if len(waiting) == self._in_flight:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)  # a seed's descriptor is closed only when nobody reads it any more

    def _make(self, path: bytes, span: tuple[int, int], seed: Seed | None) -> _Made:
        stretches = seed.stretches(*span) if seed is not None else [Stretch(*span)]
        parts: list[bytes] = []
        for stretch in stretches:
            parts.append(
                self._read_range(path, stretch) if seed is None or stretch.is_missing else seed.read(stretch)
            )
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return _Made(Segment(*span), data, stretches, seed is not None and seed.in_destination)

    def _read_range(self, path: bytes, stretch: Stretch) -> bytes:
        length = stretch.end - stretch.start
        body = self._master.read_range(path, stretch.start, stretch.end)
        if len(body) != length:
            raise LengthMismatch(path=path, expected=length, actual=len(body))
        return body


@dataclass(slots=True)
class _Made:
    """One segment of the file in the making."""

    segment: Segment
    data: bytes
    stretches: list[Stretch]
    on_base: bool

    @property
    def fetched_bytes(self) -> int:
        return sum(one.end - one.start for one in self.stretches if one.is_missing)

    @property
    def in_place(self) -> bool:
        """Whether the clone of the base has the segment already."""
        return self.on_base and all(one.is_in_place for one in self.stretches)

    @property
    def is_delta(self) -> bool:
        return self.on_base and not all(one.is_missing for one in self.stretches)

    def body(self) -> bytes:
        """Return what is written: a delta over the base keeps what did not change shared with it."""
        if not self.is_delta:
            return self.data
        view, start = memoryview(self.data), self.segment.start
        return build_delta(
            Literal(view[one.start - start : one.end - start])
            if one.is_missing
            else Copy(one.seed_start, one.end - one.start)
            for one in self.stretches
        )


class _WholeDigest:
    """The digest of the whole file, from segments in order; what lies between them is zeros."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._hasher = new_hasher(_digest_of(record))
        self._position = 0

    def add(self, start: int, data: bytes) -> None:
        self._zeros(start)
        self._hasher.update(data)
        self._position = start + len(data)

    def finish(self) -> None:
        """Raise DigestMismatch unless it is the record's."""
        self._zeros(self._record.size)
        actual = str(self._hasher.hexdigest()).encode()
        if self._record.hash and actual != self._record.hash:
            raise DigestMismatch(path=self._record.path, expected=self._record.hash, actual=actual)

    def _zeros(self, end: int) -> None:
        while self._position < end:
            length = min(end - self._position, len(_ZEROS))
            self._hasher.update(_ZEROS[:length])
            self._position += length


def _by_digests(record: Record, fd: int, size_bytes: int) -> list[Stretch]:
    """Return the ranges that the seed has in their places, by the digests in the record, if it has any."""
    try:
        digests = unpack_digests(record.fields[keys.SEGMENTS], record.size)
    except (KeyError, ValueError):
        return []
    unit = digest_unit(record.size)
    if next(iter(digests)) != (0, unit) or unit % choose_block_bytes(record.size):
        return []  # made by other rules: every range would have to be signed as a whole
    return find_unchanged(fd, size_bytes, digests, unit)


def _data_segments(record: Record) -> Iterator[tuple[int, int]]:
    """Yield the segments of a file that hold data; holes are not fetched."""
    sparse = record.fields.get(keys.SPARSE)
    if sparse is None:
        yield from plan_segments(record.size)
        return
    for first, last in ranges_from_text(sparse, record.size):
        for start, end in plan_segments(last - first):
            yield first + start, first + end


def _digest_of(record: Record) -> str:
    """Return the name of the digest that a record's ``hash`` is."""
    if record.fields.get(keys.HASH_NAME) == b"blake3":
        return "blake3"
    return "sha1" if len(record.hash) == 40 else "sha256"
