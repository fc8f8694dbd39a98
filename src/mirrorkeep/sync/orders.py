"""What the coordinator and its workers tell each other: orders, and what became of them.

Only data: the coordinator of a run that finds nothing changed never loads what workers need.
Everything here is pickled over the pipe between the two.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass, field
from typing import Any, Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import digest_of
from mirrorkeep.manifest.record import Record, parse_time_ns
from mirrorkeep.tree.protocol import Failure, Frame

_UNTIMED: Final = re.compile(rb",(?:st_atime|_internal_record_crc)=[^,]*")
_OF_CONTENT: Final = re.compile(rb",(?:hard_link|segments)=[^,]*")
"""What differs with the content, or because a name that was a link brings the content itself now."""


class Action(enum.IntEnum):
    """What was done for an entry."""

    FAILED = 0
    SENT = 1
    STAMPED = 2
    PLACED = 3
    DESCRIBED = 4
    COPIED = 5
    """Made on the mirror from content that it had under another name."""
    VANISHED = 6
    """Not brought over, for the source has it no more."""
    UNLINKED = 7
    """Not made another name of its leader: that is not, or no longer, the file that the source has here."""


@dataclass(slots=True)
class Outcome:
    """What became of one entry: its new record, or why there is none."""

    action: Action
    line: bytes = b""
    code: str = ""
    detail: str = ""


@dataclass(slots=True)
class Wanted:
    """One entry to bring over."""

    path: bytes
    old_line: bytes = b""
    forced: bool = False
    key: bytes = b""
    """Staging key under which the mirror holds the same inode's content (a rename)."""
    source_line: bytes = b""
    """The record of the entry it was renamed from."""
    link_to: bytes = b""
    """The leader of its hard-link group; the entry becomes another name of it."""
    digest: bytes = b""
    """Digest (hex) of the leader's content."""
    version: bytes = b""
    """What the file was when the leader's content was read (:func:`version_of`)."""
    contents: tuple[str, ...] = ()
    """Texts of records in whose indexes the content may be found (``contents.ContentIndex``)."""


@dataclass(slots=True)
class Send:
    """Order: bring these small entries over, in one bundle."""

    wanted: list[Wanted]


@dataclass(slots=True)
class SendLarge:
    """Order: bring this large file over."""

    wanted: Wanted


@dataclass(slots=True)
class Apply:
    """Order: carry out these frames."""

    frames: list[Frame]


@dataclass(slots=True)
class Call:
    """Order: call a method of the session (a commit) beside the transfers."""

    method: str
    arguments: tuple[Any, ...] = ()


Order = Send | SendLarge | Apply | Call


@dataclass(slots=True)
class Report:
    """A worker's answer to an order."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    read_started_ns: int = 0
    read_bytes: int = 0
    sent_bytes: int = 0
    value: Any = None


def version_of(record: Record) -> bytes:
    """Return what tells, without reading it, whether a file is still as it was when its record was made.

    Nothing for a record that does not say enough.
    """
    fields = record.fields
    try:
        inode_ctime_ns = parse_time_ns(fields[keys.INODE_CTIME])
        return _version(int(fields[keys.INODE]), record.size, record.mtime_ns, inode_ctime_ns)
    except (KeyError, ValueError):
        return b""


def version_now(found: os.stat_result) -> bytes:
    """Return the same of a file that was just looked at."""
    return _version(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _version(*numbers: int) -> bytes:
    return b"%d %d %d %d" % numbers


def same_facts(one: bytes, other: bytes) -> bool:
    """Return whether two records differ in nothing but access time."""
    return _UNTIMED.sub(b"", one) == _UNTIMED.sub(b"", other)


def is_altered(old: bytes, new: bytes) -> bool:
    """Notice content that changed while nothing else did: rot or tampering at the source (trap 7)."""
    before, now = digest_of(old), digest_of(new)
    if not before or not now or before == now or len(before) != len(now):
        return False
    old, new = old.replace(before, b""), new.replace(now, b"")
    return same_facts(_OF_CONTENT.sub(b"", old), _OF_CONTENT.sub(b"", new))


ABORTING: Final = frozenset(
    (
        "no_space",
        "run_superseded",
        "store_restarted",
        "store_unreachable",
        "not_authenticated",
        "not_authorised",
    )
)
"""Errors that end the run rather than one entry."""
