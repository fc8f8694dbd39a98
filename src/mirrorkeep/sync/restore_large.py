"""Bringing one large file into a restore's destination, and looking at what is there already.

What the destination has is settled first: the same content is only stamped, a newer file is kept, and
anything else is replaced by a verified file.  A large file is brought in a transaction of its own, so
nothing is replaced before all of it is there and hashes to what the record says; a crash leaves an
unfinished transaction beside the old file, which the next run clears away.

Not here: bundles of small files, links and directories (``restore.py``).

Memory: a segment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from mirrorkeep.delta.segments import plan_segments
from mirrorkeep.errors import DigestMismatch, MirrorkeepError
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.sync.large import hash_content
from mirrorkeep.sync.orders import ABORTING
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Master, Op, Segment


@dataclass(slots=True)
class Fetched:
    """A worker's answer."""

    failures: list[tuple[bytes, str, str]] = field(default_factory=list)
    same: int = 0
    read_bytes: int = 0
    written: int = 0


def note(failures: list[Failure], frames: list[Frame], done: Fetched) -> None:
    """Add what the destination refused of these frames to the answer."""
    for failure in failures:
        path = failure.path or parse_record(frames[failure.index].line, check=False).path
        done.failures.append((path, failure.code, failure.detail))


def settle_present(slave: NativeTree, record: Record, line: bytes, done: Fetched, *, overwrite: bool) -> bool:
    """Look at what the destination has: the same (stamp it), newer (keep it), or to be replaced (False)."""
    try:
        fd = slave.open_content(record.path)
    except MirrorkeepError:
        return False
    try:
        status = os.fstat(fd)
        if status.st_size == record.size:
            name = "blake3" if record.fields.get(keys.HASH_NAME) == b"blake3" else _digest_name(record.hash)
            if hash_content(fd, record.size, name) == record.hash:
                done.same += 1
                frames = [Frame(Op.STAMP, line)]
                note(slave.apply(frames), frames, done)
                return True
        if status.st_mtime_ns > record.mtime_ns and not overwrite:
            detail = "the file there is newer and was kept (--overwrite-newer replaces it)"
            done.failures.append((record.path, "newer_kept", detail))
            return True
    finally:
        os.close(fd)
    return False


class LargeFetch:
    """Brings large files over; one a worker thread."""

    def __init__(self, master: Master, slave: NativeTree) -> None:
        self._master = master
        self._slave = slave

    def bring(
        self, path: bytes, record: Record, line: bytes, done: Fetched, *, present: bool, overwrite: bool
    ) -> None:
        """Make the destination hold the file at ``path`` of the source; notes what came of it."""
        if not (present and settle_present(self._slave, record, line, done, overwrite=overwrite)):
            self._fetch(path, record, line, done)

    def _fetch(self, path: bytes, record: Record, line: bytes, done: Fetched) -> None:
        transaction = self._slave.begin(line, on_base=False)
        try:
            segments: list[Segment] = []
            for start, end in _data_segments(record):
                body = self._master.read_range(path, start, end)
                if len(body) != end - start:
                    raise DigestMismatch(
                        path=path, expected=f"{end - start} bytes", actual=f"{len(body)} bytes"
                    )
                segment = Segment(start, end)
                transaction.write(segment, body, delta=False, digest=blake3(body).digest())
                segments.append(segment)
                done.read_bytes += len(body)
            transaction.finish(line, segments)
            done.written += 1
        except MirrorkeepError as error:
            transaction.abandon()
            if error.code in ABORTING:
                raise
            done.failures.append((record.path, error.code, str(error)))


def _data_segments(record: Record) -> Iterator[tuple[int, int]]:
    """Yield the segments of a file that hold data; holes are not fetched."""
    sparse = record.fields.get(keys.SPARSE)
    if sparse is None:
        yield from plan_segments(record.size)
        return
    for piece in sparse.split(b";"):
        if piece:
            offset, _, length = piece.partition(b"+")
            for start, end in plan_segments(int(length)):
                yield int(offset) + start, int(offset) + end


def _digest_name(digest: bytes) -> str:
    return "sha1" if len(digest) == 40 else "sha256"
