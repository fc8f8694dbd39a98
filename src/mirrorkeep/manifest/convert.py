"""Opening a manifest in whichever form it has, and converting one form into the other without loss.

Everything is read with all its checks, and each form's hashes are computed anew over its own bytes, so
that text -> binary -> text gives the same bytes again.  Converting a partial manifest gives a partial
one.  Memory: a block.

A crash leaves an unfinished target, which is recognised by its missing trailer.
"""

from __future__ import annotations

from collections import deque
from typing import BinaryIO

from mirrorkeep.manifest.binary import MAGIC, BinaryReader, BinaryWriter
from mirrorkeep.manifest.reader import ManifestReader, Readable
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter

_Checkpoints = deque[tuple[int, dict[bytes, bytes]]]


def open_manifest(
    stream: Readable, *, partial: bool = False, checkpoints: _Checkpoints | None = None
) -> ManifestReader | BinaryReader:
    """Return a reader for the form that ``stream`` has; raises MalformedManifest when it has neither.

    Each checkpoint (entries before it, fields) is appended to ``checkpoints`` before those entries come.
    """
    start = stream.read(len(MAGIC))
    whole = _Pushed(start, stream)

    def told(entries: int, fields: dict[bytes, bytes]) -> None:
        if checkpoints is not None:
            checkpoints.append((entries, fields))

    if start[:1] == MAGIC[:1]:
        return BinaryReader(whole, partial=partial, on_checkpoint=told)
    return ManifestReader(whole, partial=partial, on_checkpoint=told)


def convert_manifest(
    source: Readable, target: BinaryIO, *, binary: bool | None = None, partial: bool = False
) -> int:
    """Write the manifest ``source`` to ``target`` in the form asked for (None: the other one).

    Returns the number of its entries.  Raises MalformedManifest, with the offset in ``source``; what is in
    ``target`` is then not to be used.
    """
    checkpoints: _Checkpoints = deque()
    reader = open_manifest(source, partial=partial, checkpoints=checkpoints)
    if not reader.header:  # cut off before the first newline
        return 0
    if binary or (binary is None and isinstance(reader, ManifestReader)):
        writer: BinaryWriter | ManifestWriter = BinaryWriter(target, reader.header, digest=reader.digest_name)
    else:
        writer = ManifestWriter(target, reader.header, digest=reader.digest_name, checkpoint_every=0)
    count = 0
    for record in reader:
        while checkpoints and checkpoints[0][0] == count:
            writer.checkpoint(checkpoints.popleft()[1])
        if isinstance(writer, BinaryWriter):
            writer.add(record)
        else:
            writer.add(format_record(record.path, record.fields))
        count += 1
    for _, fields in checkpoints:
        writer.checkpoint(fields)
    if reader.trailer:
        writer.finish(reader.trailer, count_entries=False)
    writer.flush()
    return count


class _Pushed:
    """A stream whose first bytes were read already."""

    def __init__(self, start: bytes, stream: Readable) -> None:
        self._start = start
        self._stream = stream

    def read(self, size_bytes: int, /) -> bytes:
        if not self._start:
            return self._stream.read(size_bytes)
        data, self._start = self._start[:size_bytes], self._start[size_bytes:]
        return data
