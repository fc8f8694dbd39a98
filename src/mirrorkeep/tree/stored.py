"""The stored tree: native files with a sidecar beside each, as a server (or a local backup) keeps them.

``StoredTree`` is Master and Slave of ``protocol.py``, the tree that validation walks and checks, and
what the WebDAV side opens, stages, moves and deletes in.  This module is the front; each family of
operations has a module of its own: ``stored_apply`` and ``stored_kept`` (bundles), ``transaction``
(large files), ``stored_read`` (entries, frames, the walk), ``stored_check`` (one entry against one line),
``stored_plain`` and ``stored_move`` (WebDAV's operations), all of them standing on ``placement``.

Not here: snapshots, the barrier between publishing and snapshotting, commits (``store``); HTTP.
Safe for several threads and processes; what a crash leaves behind is told in ``placement``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

from mirrorkeep.tree import stored_move, stored_plain
from mirrorkeep.tree.placement import Placement
from mirrorkeep.tree.protocol import Failure, Frame
from mirrorkeep.tree.sidecar import Sidecar
from mirrorkeep.tree.stored_apply import Application, Turn
from mirrorkeep.tree.stored_check import Finding, check_entry
from mirrorkeep.tree.stored_contents import read_contents
from mirrorkeep.tree.stored_plain import StagedFile
from mirrorkeep.tree.stored_read import (
    StoredEntry,
    actual_records,
    read_frames,
    read_range,
    walk_tree,
)
from mirrorkeep.tree.stored_twin import Twin
from mirrorkeep.tree.transaction import StoredTransaction, begin_transaction

__all__ = ["Finding", "StagedFile", "StoredEntry", "StoredTransaction", "StoredTree"]


class StoredTree:
    """One stored tree, open at its root."""

    def __init__(
        self,
        root: str | bytes,
        *,
        read_only: bool = False,
        set_owner: bool | None = None,
        twin: StoredTree | None = None,
        taken_ns: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Open the tree at ``root``; raises NotFound.

        ``read_only`` refuses writes and keeps directories open between calls (nothing moves in a
        snapshot).  ``set_owner=None`` sets owners as root only.  ``twin`` is the tree that this one is a
        snapshot of, inode by inode, and ``taken_ns`` says since when, which is asked only where it counts:
        see :meth:`contents`.
        """
        self.placement = Placement(root, read_only=read_only, set_owner=set_owner)
        self._twin = Twin(twin.placement, taken_ns) if twin is not None else None

    def close(self) -> None:
        """Close the tree's descriptors; it cannot be used afterwards."""
        self.placement.close()

    def __enter__(self) -> StoredTree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- slave -------------------------------------------------------------------------------

    def apply(self, frames: Iterable[Frame], turn: Turn | None = None) -> list[Failure]:
        """Carry out ``frames``; see ``protocol.Slave``.  Not durable before the run's commit.

        ``turn`` is held while the tree is written, not while the frames are checked.
        """
        self.placement.check_writable()
        with self.placement.directories() as directories:
            return Application(self.placement, directories).apply(frames, turn or nullcontext())

    def begin(self, line: bytes, *, on_base: bool) -> StoredTransaction:
        """Open a transaction for a large file; see ``protocol.Slave`` and ``transaction``."""
        return begin_transaction(self.placement, line, on_base=on_base)

    def resume(self, transaction_id: str) -> StoredTransaction:
        """Take up a transaction that any process began; raises NotFound."""
        self.placement.staging.renew()
        return StoredTransaction(self.placement, transaction_id)

    # --- master ------------------------------------------------------------------------------

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        """Yield what would make each entry anew; see ``protocol.Master``.

        Content is not hashed here: the line names its digest, and every slave checks it before it
        publishes.
        """
        return read_frames(self.placement, paths)

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        """Yield the content of each small file; see ``protocol.Master``."""
        return read_contents(self.placement, paths, self._twin)

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` of a file; raises NotFound, StorageFailure."""
        return read_range(self.placement, path, start, end)

    # --- validation --------------------------------------------------------------------------

    def walk(self, top: bytes = b"") -> Iterator[StoredEntry]:
        """Yield every entry below and at ``top`` in manifest order, strays and lost data included.

        Lost data: ``native`` is None though the record is no node's.  Stray: ``sidecar`` is None though
        it is no directory.
        """
        return walk_tree(self.placement, top)

    def actual_records(self, doubted: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[bytes, bytes]]:
        """Yield (path, line) of what is really stored, in manifest order; see ``stored_read``."""
        return actual_records(self.placement, doubted)

    def check(self, path: bytes, line: bytes, *, content: bool) -> list[Finding]:
        """Compare the stored entry at ``path`` with the manifest line; see ``stored_check``."""
        with self.placement.directories() as directories:
            findings = check_entry(self.placement, directories, path, line, content=content)
            directories.trim()
            return findings

    # --- single entries, for WebDAV: durable before they return unless ``durable=False`` ------

    def stat(self, path: bytes) -> StoredEntry:
        """Return the entry at ``path``; raises NotFound, PathRefused."""
        return stored_plain.stat_entry(self.placement, path)

    def list(self, path: bytes) -> Iterator[StoredEntry]:
        """Yield what exists in the directory at ``path``, by name; raises NotFound."""
        return stored_plain.list_directory(self.placement, path)

    def open_read(self, path: bytes) -> tuple[int, StoredEntry]:
        """Return a descriptor (the caller closes it) and the entry that describes exactly its bytes."""
        return stored_plain.open_read(self.placement, path)

    def stage(self, path: bytes) -> StagedFile:
        """Begin to write a file; raises NotFound (no parent), AlreadyExists (a directory), ReadOnly."""
        return StagedFile(self.placement, path)

    def make_directory(self, path: bytes, *, durable: bool = True) -> StoredEntry:
        """Make a directory; raises AlreadyExists, NotFound (no parent)."""
        return stored_plain.make_directory(self.placement, path, durable=durable)

    def delete(self, path: bytes, *, if_generation: int | None = None, durable: bool = True) -> None:
        """Remove an entry with all below it; raises NotFound, GenerationConflict."""
        stored_plain.delete(self.placement, path, if_generation=if_generation, durable=durable)

    def move(self, source: bytes, target: bytes, overwrite: bool, *, durable: bool = True) -> bool:
        """Move an entry; returns True when nothing was at ``target``; see ``stored_move.move``."""
        return stored_move.move(self.placement, source, target, overwrite=overwrite, durable=durable)

    def copy(
        self,
        source: bytes,
        target: bytes,
        overwrite: bool,
        depth: int | str | None = None,
        *,
        durable: bool = True,
    ) -> bool:
        """Copy an entry, with ``depth`` 0 without what is in it; see ``stored_move.copy``."""
        return stored_move.copy(
            self.placement, source, target, overwrite=overwrite, depth=depth, durable=durable
        )

    def read_sidecar(self, path: bytes) -> Sidecar:
        """Return the sidecar of an entry; empty where a directory has none; raises NotFound."""
        return stored_plain.read_sidecar(self.placement, path)

    def update_sidecar(
        self,
        path: bytes,
        change: Callable[[dict[bytes, bytes]], None],
        *,
        if_generation: int | None = None,
        durable: bool = True,
    ) -> int:
        """Let ``change`` edit a sidecar's entries by compare-and-set; returns the generation."""
        return stored_plain.update_sidecar(
            self.placement, path, change, if_generation=if_generation, durable=durable
        )

    # --- start-up ----------------------------------------------------------------------------

    def recover(self) -> int:
        """Finish logged moves; returns how many.  Before anything is served."""
        self.placement.check_writable()
        self.placement.staging.renew()
        return stored_move.recover(self.placement)

    def empty_staging(self, older_than_s: float = 0.0) -> int:
        """Remove staged files nobody touched for so long (0: all); returns how many.

        Logged moves stay for :meth:`recover`.  Transactions of this age are thereby expired.
        """
        self.placement.check_writable()
        self.placement.staging.renew()
        return self.placement.staging.empty(older_than_s)
