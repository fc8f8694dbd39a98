"""PATCH-APPLY outside of a transaction: one delta, one range, on the file as it stands (TX-11..20).

The request is a transaction of one: the file is cloned, the range written, the clone published by
compare-and-set; blocks outside of the range stay shared with the snapshots.

Not here: reading the request (``extensions``).  A crash leaves the old file, and a clone that expires.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorkeep.errors import MirrorkeepError, PatchTargetMissing
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, format_time_ns
from mirrorkeep.server.place import Place
from mirrorkeep.tree.protocol import Segment
from mirrorkeep.tree.stored import StoredEntry


@dataclass(frozen=True, slots=True)
class Change:
    """What one PATCH-APPLY does: the range from ``start`` to ``end``, exclusive, of a file."""

    start: int
    end: int
    body: bytes
    delta: bool
    truncate: bool
    digest: bytes | None


def patch_file(place: Place, change: Change, line: bytes, now_ns: int, *, durable: bool) -> StoredEntry:
    """Apply a change; ``line`` is the record of the result, b"" to make one without a digest.

    Raises PatchTargetMissing (no file, or the range begins behind its end), MalformedDelta,
    DigestMismatch, GenerationConflict, NoSpace, StorageFailure: the old file stays.
    """
    entry = place.look()
    if entry is None or entry.kind != keys.FILE:
        raise PatchTargetMissing(path=place.path, detail="there is no such file")
    if not line:
        size = change.end if change.truncate else max(entry.size, change.end)
        fields = dict(entry.record.fields) if entry.record is not None else {keys.TYPE: keys.FILE}
        for stale in (keys.HASH, keys.HASH_NAME, keys.SPARSE, keys.SEGMENTS, keys.HARD_LINK):
            fields.pop(stale, None)
        fields |= {keys.SIZE: b"%d" % size, keys.MTIME: format_time_ns(now_ns)}
        line = format_record(place.path, fields)
    transaction = place.tree.begin(line, on_base=True)
    try:
        segment = Segment(change.start, change.end)
        transaction.write(segment, change.body, delta=change.delta, digest=change.digest)
        transaction.finish(line, [segment], durable=durable)
    except (MirrorkeepError, OSError):
        transaction.abandon()
        raise
    transaction.abandon()  # published: only its notes are left
    done = place.look()
    if done is None:
        raise PatchTargetMissing(path=place.path, detail="it was removed this moment")
    return done
