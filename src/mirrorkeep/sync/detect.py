"""Change detection: the walk of a native tree against the manifest of last time.

Nothing here touches the network or opens a file: an entry whose ``stat`` blob equals last time's is
unchanged, everything else is handed to a :class:`Sink` (CHG-03, CHG-16).  A *patch* (what validation
found, or what a cut-off run may have left behind) overrides the manifest: its paths are looked at
whatever their ``stat`` says.

Memory: the current run of siblings and one flag a directory level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.peek import kind_of
from mirrorkeep.manifest.record import Record, format_record
from mirrorkeep.sync.index import Head, OldSide
from mirrorkeep.sync.journal import Stretch
from mirrorkeep.tree.walk import Directory, Event, Siblings, Unmounted, Unreadable

LOOK_AGAIN: Final = b"look_again"
"""Field of a patch record: the mirror may not be as the record says, which looking and stamping will show."""
RETRY_RUN: int = 32
"""After a difference, siblings are compared in runs of this many."""


class Sink(Protocol):
    """Where differences go."""

    def unchanged(self, stretch: Stretch) -> None:
        """Records that stay as they are."""

    def changed(self, path: bytes, blob: bytes, head: Head, *, forced: bool, doubted: bool) -> None:
        """An entry of both sides that may differ.

        ``forced``: what the mirror holds is not known; ``doubted``: it may not be what the record says.
        """

    def new(self, path: bytes, blob: bytes, *, forced: bool) -> None:
        """An entry that the manifest does not have."""

    def removed(self, path: bytes, line: bytes) -> None:
        """An entry that the tree no longer has; ``line`` is its record (only the type when it is known
        from the patch alone, or the mirror does not hold what the record says)."""

    def unreadable(self, path: bytes, detail: str) -> None:
        """An entry that cannot be looked at; its records stay."""

    def unmounted(self, path: bytes, detail: str) -> None:
        """A directory whose file system is not mounted; its records stay, its own too."""

    def undecided(self, record: Record) -> None:
        """An entry of the patch below what cannot be looked at: nothing may be concluded about it now."""


class Detector:
    """Compares one walk with one old side."""

    def __init__(self, old: OldSide, sink: Sink, patch: Iterable[Record] = ()) -> None:
        self._old = old
        self._sink = sink
        self._patch = iter(patch)
        self._next_patch: tuple[bytes, Record] | None = None
        self._touched: set[bytes] = set()
        self._run_first = 0
        self._run_blob = old.blob_offset
        self._run_text = -1
        self.entries = 0
        self.unchanged_entries = 0
        self.first_difference = True
        self._advance_patch()

    def run(self, events: Iterator[Event]) -> None:
        """Compare everything; returns when the walk has ended."""
        match = self._old.match
        for event in events:
            if isinstance(event, Siblings):
                count = len(event.names)
                self.entries += count
                joined = b"".join(event.blobs)
                if (self._next_patch is None or self._patch_after(event)) and match(joined, count):
                    self.unchanged_entries += count
                else:
                    self._siblings(event)
            elif isinstance(event, Directory):
                self.entries += 1
                self._directory(event)
            elif isinstance(event, Unmounted):
                self._unmounted(event)
            else:
                self._unreadable(event)
        while (head := self._old.head()) is not None:
            self._remove(head)
        self._patch_before(None)
        if self._old.position > self._run_first and not (self.first_difference and self._run_first == 0):
            self._close_run()

    @property
    def nothing_differs(self) -> bool:
        """After the run: the old manifest describes the tree as it is."""
        return self.first_difference and self._old.entries > 0

    # --- runs of unchanged records --------------------------------------------------------------

    def _close_run(self) -> None:
        """Hand over the unchanged records up to the cursor, before something different follows."""
        old = self._old
        self.first_difference = False
        if old.position > self._run_first:
            start = self._run_text if self._run_text >= 0 else old.first_text_offset()
            end = old.text_offset()
            self._sink.unchanged(
                Stretch(start, end, self._run_blob, old.blob_offset, old.position - self._run_first)
            )
            self._run_text = end
            self._run_first, self._run_blob = old.position, old.blob_offset
        elif self._run_text < 0:
            self._run_text = old.first_text_offset()

    def _pass(self, head: Head) -> None:
        """Pass over the record at the cursor, which is not part of a run."""
        old = self._old
        self._run_text = old.text_offset() + len(head.line) + 1
        old.advance()
        self._run_first, self._run_blob = old.position, old.blob_offset

    # --- entries --------------------------------------------------------------------------------

    def _siblings(self, event: Siblings) -> None:
        prefix = event.parent + b"/" if event.parent else b""
        names, blobs = event.names, event.blobs
        for start in range(0, len(names), RETRY_RUN):
            end = start + RETRY_RUN
            part = Siblings(event.parent, names[start:end], blobs[start:end])
            if self._next_patch is None or self._patch_after(part):
                self._halve(part, prefix)
            else:
                self._one_by_one(part, prefix)

    def _halve(self, part: Siblings, prefix: bytes) -> None:
        """Find what differs among a few siblings: half of what does not match is looked at again."""
        names, blobs = part.names, part.blobs
        if self._old.match(b"".join(blobs), len(names)):
            self.unchanged_entries += len(names)
        elif len(names) == 1 or self._is_before_old(prefix + names[-1]):
            self._one_by_one(part, prefix)
        else:
            middle = len(names) // 2
            self._halve(Siblings(part.parent, names[:middle], blobs[:middle]), prefix)
            self._halve(Siblings(part.parent, names[middle:], blobs[middle:]), prefix)

    def _is_before_old(self, path: bytes) -> bool:
        """Whether everything up to ``path`` is new: the old manifest goes on behind it, or has ended."""
        head = self._old.head()
        return head is None or head.key > order_key(path)

    def _one_by_one(self, part: Siblings, prefix: bytes) -> None:
        for name, blob in zip(part.names, part.blobs, strict=True):
            self._sibling(part.parent, prefix + name, blob)

    def _sibling(self, parent: bytes, path: bytes, blob: bytes) -> None:
        if self._entry(path, blob):
            self._touched.add(parent)

    def _directory(self, event: Directory) -> None:
        free = self._next_patch is None and event.path not in self._touched
        if free and self._old.match(event.blob, 1):
            self.unchanged_entries += 1
        else:
            self._entry(event.path, event.blob)

    def _entry(self, path: bytes, blob: bytes) -> bool:
        """Settle one entry of the walk; returns whether it made a difference."""
        key = order_key(path)
        old = self._old
        while (head := old.head()) is not None and head.key < key:
            self._remove(head)
        self._patch_before(key)
        forced = doubted = False
        patched = self._next_patch
        if patched is not None and patched[0] == key:
            doubted = LOOK_AGAIN in patched[1].fields
            forced = not doubted
            self._advance_patch()
        touched = path in self._touched  # only now: its last entries may just have been removed
        self._touched.discard(path)
        if head is None or head.key != key:
            self._close_run()
            self._sink.new(path, blob, forced=forced)
            return True
        if head.blob == blob and not forced and not touched and not doubted:
            old.advance()
            self.unchanged_entries += 1
            return False
        self._close_run()
        self._sink.changed(path, blob, head, forced=forced, doubted=doubted)
        self._pass(head)
        return True

    def _remove(self, head: Head) -> None:
        self._patch_before(head.key)
        forced = False
        if self._next_patch is not None and self._next_patch[0] == head.key:
            forced = LOOK_AGAIN not in self._next_patch[1].fields
            self._advance_patch()
        self._drop(head, forced=forced)

    def _unreadable(self, event: Unreadable) -> None:
        self._sink.unreadable(event.path, event.detail)
        self._keep_inside(event)

    def _unmounted(self, event: Unmounted) -> None:
        self._sink.unmounted(event.path, event.detail)
        self._keep_inside(event)
        key = order_key(event.path)
        self.entries += 1
        if self._next_patch is not None and self._next_patch[0] == key:
            self._sink.undecided(self._next_patch[1])
            self._advance_patch()
        if (head := self._old.head()) is not None and head.key == key:
            self._old.advance()
            self.unchanged_entries += 1

    def _keep_inside(self, event: Unreadable | Unmounted) -> None:
        """Keep the records of what is inside a directory, and settle everything else before it."""
        inside = event.path + b"/" if event.path else b""
        old = self._old
        key = order_key(event.path)
        while (head := old.head()) is not None and head.key < key:
            if head.path.startswith(inside):
                old.advance()  # stays as it is, part of the run
            else:
                self._remove(head)
        while self._next_patch is not None and self._next_patch[0] < key:
            if self._next_patch[1].path.startswith(inside):
                self._sink.undecided(self._next_patch[1])
                self._advance_patch()
            else:
                self._patch_before(self._next_patch[0] + b"\0")

    # --- the patch ------------------------------------------------------------------------------

    def _advance_patch(self) -> None:
        record = next(self._patch, None)
        self._next_patch = None if record is None else (order_key(record.path), record)

    def _patch_after(self, event: Siblings) -> bool:
        """Whether the next patched path lies behind all of these siblings."""
        assert self._next_patch is not None
        last = event.parent + b"/" + event.names[-1] if event.parent else event.names[-1]
        return self._next_patch[0] > order_key(last)

    def _patch_before(self, key: bytes | None) -> None:
        """Settle patched paths before ``key`` (None: all) that the walk does not have.

        A path that the manifest has is removed with its record; one that neither has is extra on the
        mirror and is removed by its patch record.
        """
        while self._next_patch is not None and (key is None or self._next_patch[0] < key):
            patched, record = self._next_patch
            while (head := self._old.head()) is not None and head.key < patched:
                self._drop(head)
            if head is not None and head.key == patched:
                return
            self._advance_patch()
            self._touched.discard(record.path)
            if record.kind != keys.ABSENT:
                self._close_run()
                self._sink.removed(record.path, format_record(record.path, {keys.TYPE: record.kind}))
                self._touched.add(record.path.rpartition(b"/")[0])

    def _drop(self, head: Head, *, forced: bool = False) -> None:
        self._close_run()
        self._sink.removed(head.path, kind_only(head.path, head.line) if forced else head.line)
        self._pass(head)
        self._touched.discard(head.path)  # it was a directory: nobody asks any more
        self._touched.add(head.path.rpartition(b"/")[0])


def kind_only(path: bytes, line: bytes) -> bytes:
    """Return a record that says what an entry is, and nothing of content that could be used again."""
    return format_record(path, {keys.TYPE: kind_of(line)})
