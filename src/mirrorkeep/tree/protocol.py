"""What a tree is: the two small protocols that the engine moves data between.

A *master* is read (native source, snapshot, stored copy), a *slave* is written (stored tip, remote
part, native restore target).  Both speak in :class:`Frame`: an operation, the manifest record of the
entry it concerns, and bytes.  The same frames travel in a bundle over the wire (``wire.py``), so a
local slave and a remote one take exactly the same calls.

Not here: comparing (``sync``), HTTP (``remote``, ``server``), how a tree is laid out (``stored``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class Op(enum.IntEnum):
    """What a frame asks for.  Every operation may be repeated: the second time changes nothing."""

    PUT = 1
    """Make the regular file with this content; verified against the record's ``hash`` first."""
    STAMP = 2
    """Set metadata of an entry whose content is already there (files, directories); never content."""
    DIRECTORY = 3
    """Make the directory if it is missing (no metadata yet: a later STAMP sets it)."""
    LINK = 4
    """Make the symbolic link ``link_target``."""
    NODE = 5
    """Record a FIFO, socket or device (in its sidecar on a server, natively on a restore)."""
    HARD_LINK = 6
    """Make the entry another name of ``hard_link``."""
    HOLD = 7
    """First phase of a move: keep the committed file at ``source`` in staging under ``key``."""
    PLACE = 8
    """Second phase: publish what HOLD kept under ``key`` at the record's path."""
    COPY = 9
    """Publish a copy (reflink where possible) of the file at ``source`` at the record's path."""
    DELETE = 10
    """Remove the entry (a directory must be empty; hidden folders do not count)."""


Data = bytes | memoryview
"""Content, or a view of where it came in."""


@dataclass(slots=True)
class Frame:
    """One operation of a bundle.

    ``line`` is the manifest record (bytes, without newline) and goes into the sidecar verbatim.
    ``data`` is the content for PUT; for HOLD the key (ASCII, 1-64 of ``[0-9a-f]``); for PLACE the key;
    for COPY the source path; else empty.  HOLD's record is that of the *source* entry.
    A store's PUT has a view of the request's body: it lasts as long as somebody holds it.
    """

    op: Op
    line: bytes
    data: Data = b""


@dataclass(slots=True)
class Failure:
    """An operation of a bundle that was not done: which frame, and the error's code and message."""

    index: int
    path: bytes
    code: str
    detail: str


@dataclass(slots=True, frozen=True)
class Segment:
    """A range of the new file in a transaction: bytes ``start`` up to, not including, ``end``."""

    start: int
    end: int


class Transaction(Protocol):
    """A large file in the making, beside the old one; nothing is visible before :meth:`finish`.

    Segments may be written by several workers at once, in any order, each any number of times.
    """

    def write(self, segment: Segment, body: bytes, *, delta: bool, digest: bytes) -> None:
        """Write one segment: ``body`` is its bytes or, with ``delta``, a librsync delta over the base.

        ``digest`` is the raw SHA-256 or BLAKE3 of the segment's result, see ``wire.SEGMENT_DIGEST``.
        A segment that is unchanged in place is not written at all: the base is already cloned.
        Raises DigestMismatch, MalformedDelta, NoSpace, StorageFailure: the segment counts as unwritten.
        """

    def finish(self, line: bytes, segments: Sequence[Segment]) -> None:
        """Check that ``segments`` (all that had to be written) are there, truncate to the record's size,
        stamp and publish by compare-and-set on the base's generation.  Raises GenerationConflict."""

    def abandon(self) -> None:
        """Forget the transaction; the old file was never touched."""


class Slave(Protocol):
    """A tree that is written.  Writes are acknowledged, and durable only after the run's commit."""

    def apply(self, frames: Iterable[Frame]) -> list[Failure]:
        """Carry out frames in order; a failed frame stops nothing and leaves the old entry."""

    def begin(self, line: bytes, *, on_base: bool) -> Transaction:
        """Open a transaction for the file of record ``line``, on a clone of what is there or on nothing."""


class Master(Protocol):
    """A tree that is read."""

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        """Yield, in the order asked for, what would make each entry anew, or why it cannot be read.

        Regular files come as PUT with content (at most ``wire.SMALL_FILE_BYTES``; a larger one is a
        Failure ``too_large``), directories as STAMP, links as LINK, other nodes as NODE.  The record is
        complete: metadata and, for files, the digest of exactly the bytes in the frame.
        """

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        """Yield, in the order asked for, the content of each regular file, or why it cannot be read.

        For a reader that has the records already: nothing but the bytes travels, at most
        ``wire.SMALL_FILE_BYTES`` of each file, and whether they are the right ones is for the reader to
        check.
        """

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive) of the file at ``path``; fewer only at its end."""
