"""What a run may be told, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from mirrorkeep.tree.mounts import Mounts
from mirrorkeep.tree.walk import Keep


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run goes about its work."""

    digest: str = "sha256"
    threads: int = 4
    """Connections to the store at one time (CLI-24)."""
    snapshot: bool = True
    dry_run: bool = False
    allow_deletes: bool = False
    delete_limit: float = 0.5
    """The share of the mirror's entries that a run may delete without being told to."""
    one_file_system: bool = False
    keep: Keep | None = None
    compress: Literal["auto", "always", "never"] = "auto"
    commit_interval_s: float = 20.0
    max_entries_in_core: int = 16_384

    def mounts(self, source: bytes, before: Iterable[bytes]) -> Mounts:
        """Return what a walk of ``source`` is to know of the mount points of last time.

        With ``one_file_system`` nothing mounted below the source is taken; the source may be a mount itself.
        """
        known = (path for path in before if not (path and self.one_file_system))
        return Mounts(source, known, may_be_gone=self.allow_deletes)


@dataclass(slots=True)
class RunResult:
    """What a run did; the keys of the command's last line."""

    run: str = ""
    status: str = "complete"
    """``complete``, or ``partial`` when entries could not be read or written."""
    entries: int = 0
    new: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    moved: int = 0
    copied: int = 0
    """New files that the mirror made from content it had already; they are counted in ``new`` too."""
    failed: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    snapshot: str | None = None
    sequence: int | None = None
    verdict: str | None = None
    failures: list[tuple[bytes, str, str]] = field(default_factory=list)
    """The first failures, for the summary; every one was reported as it happened."""
