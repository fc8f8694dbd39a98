"""The engine with writing off: a manifest laid beside the stored tree that it should describe.

Answers for naming exactly the entries that differ.  :func:`mirrorkeep.sync.compare.pair` lays the manifest
beside the walk of the tree, which shows what is missing and what is extra; worker processes check what is
on both sides, content included where the choice says so.  Results are taken in manifest order, whatever
order they arrive in, so findings are ordered and a checkpoint is a place in the manifest.

A directory whose mtime was moved only because a child was damaged, lost or added is no finding of its own:
the time lies after the manifest's making and a direct child has a finding.  Its repair restores it.

Not here: what one entry's check compares (``tree/stored``), which content is read (``change``), what is
made of the findings (``validation``).  It writes nothing; a crash leaves nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from mirrorkeep.errors import ForeignManifest, MirrorkeepError
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.peek import kind_of, size_of
from mirrorkeep.manifest.record import format_record
from mirrorkeep.store.change import manifest_lines
from mirrorkeep.store.findings import unknown_record
from mirrorkeep.store.pacing import ByteRate, yield_to_others
from mirrorkeep.store.presence import list_paths
from mirrorkeep.sync.compare import pair
from mirrorkeep.sync.workers import Completed, WorkerPool
from mirrorkeep.tree.layout import HIDDEN, MANIFEST, ROOT_SIDECAR, split_path
from mirrorkeep.tree.prefetch import Prefetch
from mirrorkeep.tree.stored import StoredTree
from mirrorkeep.tree.stored_read import StoredEntry, look_at, native_fields
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

BATCH_ENTRIES: Final = 512
BATCH_BYTES: Final = 4 << 20
TICK_S: Final = 0.5
MAX_AHEAD: Final = 64
"""Most batches whose results wait for an earlier one that takes long: a large file's."""
_MAX_HURT: Final = 1000


Item = tuple[bytes, bytes | None, bool]
"""Path, the manifest's line (None: the entry is extra), whether its content is read."""
Found = tuple[bytes, str, str]
"""Path, kind, detail."""


class Choice(Protocol):
    """Says which files' content is read; asked once an entry, in manifest order."""

    def wants(self, path: bytes, size_bytes: int) -> bool:
        """Whether the content of the file at ``path`` is read."""


@dataclass(slots=True)
class Tally:
    """What was looked at so far."""

    entries: int = 0
    bytes: int = 0
    """Size of all files that the manifest names."""
    content_entries: int = 0
    content_bytes: int = 0

    def coverage(self, *, complete: bool) -> dict[str, Any]:
        """Return the tally as verdicts show it; ``complete``: all content that is there was read."""
        return {**asdict(self), "complete": complete}

    def add(self, other: Tally) -> None:
        """Count ``other`` in."""
        self.entries += other.entries
        self.bytes += other.bytes
        self.content_entries += other.content_entries
        self.content_bytes += other.content_bytes


@dataclass(slots=True)
class _Batch:
    items: list[Item] = field(default_factory=list)
    missing: list[bytes] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    last: bytes = b""


@dataclass(frozen=True, slots=True)
class Setting:
    """How an examination works: worker processes, what they give up for others, bytes a second."""

    processes: int = 2
    idle: bool = False
    polite: bool = True
    bytes_per_second: int | None = None
    leave: tuple[int, ...] = ()
    """Descriptors that workers close at once, so that a lease does not outlive its holder."""


Take = Callable[[list[Found], Tally, bytes], None]
"""Called in manifest order, a batch at a time: findings, what the batch looked at, its last path."""


class Examination:
    """One comparison of the tree at ``root`` with its manifest."""

    def __init__(self, root: str, choice: Choice, take: Take, setting: Setting | None = None) -> None:
        """``root``: the tree; ``choice``: whose content is read; ``take``: gets the findings.  OSError."""
        self.root = root
        self.manifest = manifest_path(root)
        self.tally = Tally()
        self._choice = choice
        self._take = take
        self._setting = setting or Setting()
        self._batches: dict[int, _Batch] = {}
        self._results: dict[int, list[Found]] = {}
        self._submitted = self._taken = 0
        self._after: bytes | None = None
        self._hurt: set[bytes] = set()
        """Directories with a finding in a direct child."""
        self._made_at_ns = os.stat(self.manifest).st_mtime_ns

    def resume(self, after: bytes, tally: Tally, found: Iterable[bytes]) -> None:
        """Go on behind the path ``after``; ``tally`` and the paths of findings are those up to there."""
        self._after = after
        self.tally.add(tally)
        for path in found:
            if path:
                self._hurt.add(path.rpartition(b"/")[0])
                self._forget_passed(path)

    def run(self, tick: Callable[[], None] = lambda: None) -> Tally:
        """Compare everything and return the tally.

        ``tick`` is called at least every half second and may raise to stop.  Raises MalformedManifest,
        MirrorkeepError when the tree as a whole cannot be read: then nothing may be concluded.
        """
        with StoredTree(self.root, read_only=True) as tree:
            self._tree = tree
            with WorkerPool(self._start_worker, processes=self._setting.processes) as pool:
                for batch in self._make_batches():
                    self._submit(pool, batch)
                    while pool.outstanding > pool.capacity or self._is_far_ahead:
                        self._collect(pool, TICK_S)
                        tick()
                    self._collect(pool, 0)
                    tick()
                while pool.outstanding:
                    self._collect(pool, TICK_S)
                    tick()
        return self.tally

    @property
    def _is_far_ahead(self) -> bool:
        return self._submitted - self._taken > MAX_AHEAD

    # --- the two sides --------------------------------------------------------------------------

    def _make_batches(self) -> Iterator[_Batch]:
        first = None if self._after is None else order_key(self._after)
        batch, weight = _Batch(), 0
        for path, line, actual in pair(manifest_lines(self.manifest), list_paths(self._tree.placement)):
            size = content_size(line) if line is not None else 0
            content = size is not None and self._choice.wants(path, size)
            if first is not None and order_key(path) <= first:
                continue
            batch.last = path
            if line is not None:
                batch.tally.entries += 1
                batch.tally.bytes += size or 0
            if actual is None:
                batch.missing.append(path)
            else:
                batch.items.append((path, line, content))
            if content and line is not None and actual is not None:
                batch.tally.content_entries += 1
                batch.tally.content_bytes += size or 0
                weight += size or 0
            if weight >= BATCH_BYTES or len(batch.items) + len(batch.missing) >= BATCH_ENTRIES:
                yield batch
                batch, weight = _Batch(), 0
        if batch.items or batch.missing:
            yield batch

    # --- workers --------------------------------------------------------------------------------

    def _start_worker(self) -> Callable[[list[Item]], list[Found]]:
        for fd in self._setting.leave:
            os.close(fd)
        if self._setting.polite:
            yield_to_others(idle=self._setting.idle)
        tree = StoredTree(self.root, read_only=True)
        rate = self._setting.bytes_per_second
        pace = ByteRate(rate / self._setting.processes if rate else None)
        prefetch = Prefetch(tree.placement)

        def check(items: list[Item]) -> list[Found]:
            found: list[Found] = []
            prefetch.expect([path for path, line, content in items if content and _is_small(line)])
            for path, line, content in items:
                if line is None:
                    found.append((path, "extra", "not in the manifest"))
                    continue
                found.extend(
                    (one.path, one.kind, one.detail) for one in tree.check(path, line, content=content)
                )
                if rate and content:
                    pace.spend(content_size(line) or 0)
            return found

        return check

    def _submit(self, pool: WorkerPool, batch: _Batch) -> None:
        self._batches[self._submitted] = batch
        if batch.items:
            pool.submit(self._submitted, batch.items)
        else:
            self._results[self._submitted] = []
        self._submitted += 1

    def _collect(self, pool: WorkerPool, timeout_s: float) -> None:
        for done in pool.completed(timeout_s):
            self._results[done.sequence] = self._check_alone(done) if done.error else done.result
        while self._taken in self._results:
            self._finish(self._batches.pop(self._taken), self._results.pop(self._taken))
            self._taken += 1

    def _check_alone(self, failed: Completed) -> list[Found]:
        """Check the entries of a batch that killed its worker one by one, so that only the culprit counts."""
        found: list[Found] = []
        with WorkerPool(self._start_worker, processes=1) as pool:
            for number, item in enumerate(failed.task):
                pool.submit(number, [item])
                for done in _all_completed(pool):
                    if done.error is None:
                        found.extend(done.result)
                    else:
                        detail = f"cannot be checked: {done.error}"
                        found.append((item[0], "unreadable", detail))
        return found

    # --- in order again -------------------------------------------------------------------------

    def _finish(self, batch: _Batch, found: list[Found]) -> None:
        if batch.missing:
            lost = ((path, "missing", "in the manifest, not in the mirror") for path in batch.missing)
            found = sorted([*found, *lost], key=_order)
        self.tally.add(batch.tally)
        self._take([one for one in found if self._counts(one)] if found else found, batch.tally, batch.last)
        self._forget_passed(batch.last)

    def _counts(self, one: Found) -> bool:
        """Whether a finding stands for itself; remembers the directories whose children have findings."""
        path, kind = one[0], one[1]
        if kind == "mtime" and path in self._hurt and self._touched_since(path):
            return False
        if path:
            self._hurt.add(path.rpartition(b"/")[0])
        return True

    def _forget_passed(self, last: bytes) -> None:
        """Forget directories that come no more: those left are above ``last``, which are few."""
        if len(self._hurt) > _MAX_HURT:
            key = order_key(last)
            self._hurt = {path for path in self._hurt if order_key(path) > key}

    def _touched_since(self, path: bytes) -> bool:
        entry = _look(self._tree, path)
        return entry is not None and entry.mtime_ns >= self._made_at_ns


def manifest_path(root: str) -> str:
    """Return where the manifest of the last closed run lies in the stored tree at ``root``."""
    return f"{root}/{os.fsdecode(HIDDEN)}/{os.fsdecode(MANIFEST)}"


def manifest_digest(root: str, snapshot: str) -> str:
    """Return the SHA-256 of the tree's manifest; ForeignManifest when there is none to read."""
    try:
        with open(manifest_path(root), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ForeignManifest(snapshot=snapshot, detail=f"it cannot be read: {error.strerror}") from error


def _all_completed(pool: WorkerPool) -> Iterable[Completed]:
    while pool.outstanding:
        yield from pool.completed(None)


def content_size(line: bytes) -> int | None:
    """Return the size of a regular file from its record's line; None for any other kind."""
    return size_of(line) if kind_of(line) == keys.FILE else None


def _is_small(line: bytes | None) -> bool:
    size_bytes = content_size(line) if line is not None else None
    return size_bytes is not None and size_bytes <= SMALL_FILE_BYTES


def _order(one: Found) -> bytes:
    return order_key(one[0])


def _look(tree: StoredTree, path: bytes) -> StoredEntry | None:
    """Return what is stored at ``path``, strays and lost data included; None when it cannot be seen."""
    placement = tree.placement
    parent, name = split_path(path)
    try:
        with placement.directories() as directories:
            sidecar_name = name or ROOT_SIDECAR
            return look_at(placement, directories.get(parent), name, path, sidecar_name)
    except (MirrorkeepError, OSError):
        return None


def extra_record(tree: StoredTree, path: bytes) -> bytes:
    """Return the record of an entry that should not be there, as far as it can be seen."""
    entry = _look(tree, path)
    if entry is None or not entry.kind:
        return unknown_record(path)
    if entry.native is not None:
        return format_record(path, native_fields(entry.native))
    return format_record(path, {keys.TYPE: entry.kind})
