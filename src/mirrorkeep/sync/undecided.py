"""Entries that are to be looked at whatever their ``stat`` says, and lie where a run cannot look.

What a cut-off run left in doubt, or validation found, counts for the run that comes next.  Where that cannot
read a folder it can conclude nothing about what is in there, and its close ends what the doubts came from:
so they go on to the run after it, in a file of the state, until one looks.

A crash leaves the doubts of before, with those of the run that was about to close, if it came so far: too
many cost a second look.  Not here: what is in doubt (``input``), what is read of it (``detect``).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import BinaryIO

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.record import Record, format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.input import merge_unknown, records_of


class Undecided:
    """The doubts that one run takes over, and those that it hands on."""

    def __init__(self, folder: str) -> None:
        """``folder`` is that of the state."""
        self._path = os.path.join(folder, "undecided")
        self._fresh_path = self._path + ".new"
        self._had = os.path.exists(self._path)
        self._stream: BinaryIO | None = None
        self._writer: ManifestWriter | None = None

    def handed_on(self) -> list[str]:
        """Return the patch that earlier runs handed on, if there is one; a damaged one is dropped."""
        if not self._had:
            return []
        try:
            for _ in records_of(self._path):
                pass
        except MalformedManifest:
            return []
        return [self._path]

    def add(self, record: Record) -> None:
        """Take an entry, in manifest order, that this run could not look at."""
        if self._writer is None:
            self._stream = open(self._fresh_path, "wb")
            self._writer = ManifestWriter(self._stream, {})
        self._writer.add(format_record(record.path, record.fields))

    def hold(self) -> None:
        """Keep what was taken, beside what was handed on, before the run closes; durable."""
        if self._writer is None or self._stream is None:
            return
        self._writer.finish()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        both = self._path + ".both"
        paths = [self._fresh_path, *self.handed_on()]
        with open(both, "wb") as stream:
            writer = ManifestWriter(stream, {})
            for record in merge_unknown([records_of(path) for path in paths]):
                writer.add(format_record(record.path, record.fields))
            writer.finish()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(both, self._path)

    def settle(self) -> None:
        """The run has closed: only what it took itself is handed on."""
        if self._writer is not None:
            os.replace(self._fresh_path, self._path)
        elif self._had:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
