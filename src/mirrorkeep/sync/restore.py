"""A restore: a snapshot becomes a native tree.  The mirror run with the roles swapped (REC-*, GEN-14).

The snapshot's manifest is the expected side, the destination's walk the actual one, and the same
comparer pairs them.  What is there already and hashes to what the record says is not fetched again, so
a restore that was cut off goes on where it stopped, and an old copy serves as a seed.  Every file is verified
against the manifest's digest before it is seen: what replaces something is written beside it and renamed;
small files that nothing stands in the way of take their place at once, marked until they are whole.

Nothing in the destination is deleted; what is newer there than in the snapshot is kept and named, whatever it
is, unless overwriting was asked for.

Memory: one batch a worker; links and directories are spilled.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Final, Protocol

from mirrorkeep.errors import MirrorkeepError, NotFound
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import has_one_name, is_hard_link, kind_of, path_of, size_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.manifest.spill import SpilledList
from mirrorkeep.manifest.subtree import lead_inside
from mirrorkeep.sync.compare import pair
from mirrorkeep.sync.links import OutsideLeaders
from mirrorkeep.sync.options import RunResult
from mirrorkeep.sync.orders import ABORTING
from mirrorkeep.sync.progress import Reporter
from mirrorkeep.sync.restore_large import Fetched
from mirrorkeep.sync.restore_links import FurtherNames, There, missing_leaders
from mirrorkeep.sync.restore_worker import Fetch, Place, RestoreWorker
from mirrorkeep.sync.workers import Completed, Handler, WorkerPool
from mirrorkeep.tree.client import StoreClient
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.native_publish import Protection
from mirrorkeep.tree.protocol import Frame, Master, Op
from mirrorkeep.tree.remote import RemoteTree
from mirrorkeep.tree.walk import Directory, Siblings, blob_stat, walk
from mirrorkeep.tree.wire import BUNDLE_TARGET_BYTES

MAX_BATCH: Final = 512
MAX_PLACED: Final = 256
"""Links or directories in one order: few enough that the last ones keep every worker busy."""
MAX_REPORTED: Final = 65_536
"""Entries that are kept in mind as reported: a directory that cannot be made cannot be stamped either."""
MAX_KEYS: Final = 1000
"""Keys of what could not be set that are counted one by one."""


class RestoreSource(Protocol):
    """Where a restore comes from: a snapshot on a store, or a local copy."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def fetch_manifest(self, path: str) -> None:
        """Write the manifest of what is to be restored to a file."""

    def master(self) -> Master:
        """Return the tree to read from; called once in each worker thread."""


class SnapshotSource:
    """A snapshot of a part on a store."""

    def __init__(self, client: StoreClient, snapshot: str) -> None:
        self._client = client
        self.name = snapshot

    def fetch_manifest(self, path: str) -> None:
        """Write the snapshot's manifest to a file."""
        self._client.save(
            self._client.api(f"volumes/{self._client.volume}/manifest", snapshot=self.name), path
        )

    def master(self) -> RemoteTree:
        """Return the snapshot's tree."""
        return RemoteTree(self._client, snapshot=self.name)


class Restore:
    """One execution of restoring a snapshot or a local copy, or a part of it, to a folder."""

    def __init__(
        self,
        source: RestoreSource,
        destination: str,
        reporter: Reporter,
        *,
        path: bytes = b"",
        threads: int = 4,
        overwrite_newer: bool = False,
        seed: str | None = None,
    ) -> None:
        self._source = source
        self._destination = os.fsencode(destination)
        self._reporter = reporter
        self._path = path.strip(b"/")
        self._threads = threads
        self._overwrite = overwrite_newer
        self._seed = seed
        self.result = RunResult(snapshot=source.name)
        self.not_set: Counter[bytes] = Counter()
        """What the destination, or this user, could not set of what came back: entries, by key."""
        self._batch: list[tuple[bytes, bytes]] = []
        self._there: list[There] = []
        self._batch_bytes = 0
        self._sequence = 0
        self._submitted_bytes = 0
        self._share_submitted = 0.0
        self._current = b""
        self._reported: set[bytes] = set()
        self._has_root = False

    def execute(self) -> RunResult:
        """Restore; raises what ends it.  May be repeated, and goes on where it was cut off."""
        started = time.monotonic()
        os.makedirs(self._destination, exist_ok=True)
        fresh = not any(os.scandir(self._destination))
        processes = max(1, min(self._threads, 2 * (os.cpu_count() or 1)))
        with (
            closing(Protection(self._destination)) as protection,
            tempfile.TemporaryDirectory(prefix="mirrorkeep-restore-") as work,
            WorkerPool(self._start_worker, processes=processes, threads=self._threads) as pool,
            SpilledList(work) as links,
            SpilledList(work) as further,
            SpilledList(work) as directories,
            closing(OutsideLeaders(tempfile.mkdtemp(dir=work))) as self._outside,
            closing(FurtherNames(work, self._destination, overwrite=self._overwrite)) as self._names,
        ):
            self._pool = pool
            manifest = os.path.join(work, "manifest")
            self._source.fetch_manifest(manifest)
            self._reporter.phase("files")
            actual = iter(()) if fresh else _walked(self._destination)
            found = False
            for one in pair(self._expected(manifest), actual):
                if one.expected is not None:
                    found = True
                    self._entry(one.expected, one.actual, links, further, directories)
            if not found:
                raise NotFound(what=f"{os.fsdecode(self._path)} in {self._source.name}")
            self._flush()
            self._wait()
            self._reporter.phase("links")
            self._place_all(iter(links), in_order=False)
            self._place_further(further)
            self._reporter.phase("directories")
            self._place_directories(directories)
            if self._has_root and b"" not in self._reported:
                protection.renounce()
        result = self.result
        result.status = "partial" if result.failed else "complete"
        result.seconds = time.monotonic() - started
        return result

    def _start_worker(self) -> Handler:
        seed = NativeTree(self._seed) if self._seed else None
        return RestoreWorker(self._source.master(), NativeTree(self._destination), seed, self._threads)

    # --- the expected side -----------------------------------------------------------------------

    def _expected(self, manifest: str) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
        """Yield (path in the destination, (path on the store, line for the destination)).

        The reader has the lines covered by the hashes of the file: their CRCs say nothing more, and who
        writes an entry parses its line.
        """
        with open(manifest, "rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            for _, lines in ManifestReader(stream).batches():
                self._share_submitted = stream.tell() / size_bytes
                for line in lines:
                    path = path_of(line)
                    if not self._path:
                        yield path, (path, line)
                    elif (inner := self._inside(path, line)) is not None:
                        yield inner, (path, self._moved(line, inner))

    def _inside(self, path: bytes, line: bytes) -> bytes | None:
        if path == self._path:
            return b"" if kind_of(line) == keys.DIRECTORY else self._path.rpartition(b"/")[2]
        if path.startswith(self._path + b"/"):
            return path[len(self._path) + 1 :]
        return None

    def _moved(self, line: bytes, inner: bytes) -> bytes:
        """Return the line for the path ``inner``; who is led from outside is led by a name inside."""
        record = parse_record(line, check=False)
        return format_record(inner, lead_inside(record, inner, self._path + b"/", self._outside.lead))

    # --- entries ---------------------------------------------------------------------------------

    def _entry(
        self,
        expected: tuple[bytes, bytes],
        actual: bytes | None,
        links: SpilledList,
        further: SpilledList,
        directories: SpilledList,
    ) -> None:
        path, line = expected
        self.result.entries += 1
        kind = kind_of(line)
        if kind == keys.DIRECTORY:
            directories.append(line)
            self._has_root = self._has_root or not path_of(line)
        elif kind == keys.FILE and is_hard_link(line):
            further.append(line)
        elif kind == keys.FILE:
            self._add(path, line, self._compare(line, actual))
        else:
            links.append(bytes([Op.LINK if kind == keys.LINK else Op.NODE]) + line)

    def _compare(self, line: bytes, actual: bytes | None) -> There:
        """Say what the walk found where a file is to go."""
        if actual is None:
            return There.NOTHING
        if has_one_name(line):
            return There.SOMETHING
        found = blob_stat(actual)
        return self._names.hold(path_of(line), found.links, found.inode)

    def _add(self, path: bytes, line: bytes, there: There) -> None:
        """Add a file to what is fetched next."""
        size_bytes = size_of(line)
        self._batch.append((path, line))
        self._there.append(there)
        self._batch_bytes += size_bytes
        self._submitted_bytes += size_bytes
        if self._batch_bytes >= BUNDLE_TARGET_BYTES or len(self._batch) >= MAX_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._submit(Fetch(self._batch, self._there, self._overwrite))
            self._batch, self._there, self._batch_bytes = [], [], 0

    def _without_stranded(
        self, task: Fetch | Place, failures: list[tuple[bytes, str, str]]
    ) -> list[tuple[bytes, str, str]]:
        """Put hard links without a leader aside; return the other failures."""
        stranded = set()
        for line in missing_leaders(task.frames, failures) if isinstance(task, Place) else ():
            self._names.strand(line)
            stranded.add(path_of(line))
        return [failure for failure in failures if failure[0] not in stranded]

    def _place_all(self, rows: Iterator[bytes], *, in_order: bool) -> None:
        frames: list[Frame] = []
        for row in rows:
            frames.append(Frame(Op(row[0]), row[1:]))
            if len(frames) >= MAX_PLACED:
                self._submit(Place(frames, self._overwrite))
                frames = []
                if in_order:
                    self._wait()
        if frames:
            self._submit(Place(frames, self._overwrite))
        self._wait()

    def _place_directories(self, directories: SpilledList) -> None:
        self._place_all((bytes([Op.DIRECTORY]) + line for line in directories), in_order=False)
        # What is below comes first; only root still gets to it when those above have their modes.
        self._place_all((bytes([Op.STAMP]) + line for line in directories), in_order=not _is_root())

    def _place_further(self, further: SpilledList) -> None:
        """Make further names links to what is settled; where nothing is, one of them gets the content."""
        names = self._names
        self._place_all((bytes([Op.HARD_LINK]) + line for line in names.linked(further)), in_order=False)
        while names.next_carriers(self._bring):
            self._flush()
            self._wait()
            rows = (bytes([Op.HARD_LINK]) + line for line in names.linked_to_carriers(self._bring))
            self._place_all(rows, in_order=False)
            self._flush()
            self._wait()

    def _bring(self, line: bytes) -> None:
        """Have the content of a name brought that was thought to lead to another."""
        path = path_of(line)
        source = self._path + b"/" + path if self._path else path  # of a single file the link was dropped
        self._add(source, line, self._names.look(path))

    def _submit(self, order: Fetch | Place) -> None:
        self._sequence += 1
        self._pool.submit(self._sequence, order)
        while self._pool.outstanding >= 2 * self._pool.capacity:
            self._collect(None)
        self._collect(0)

    def _wait(self) -> None:
        while self._pool.outstanding:
            self._collect(None)

    def _collect(self, timeout_s: float | None) -> None:
        for done in self._pool.completed(timeout_s):
            self._take(done)

    def _take(self, done: Completed) -> None:
        result = self.result
        if done.error is not None:
            if isinstance(done.error, MirrorkeepError) and done.error.code in ABORTING:
                raise done.error
            code = done.error.code if isinstance(done.error, MirrorkeepError) else "worker_lost"
            lines = [line for _, line in done.task.wanted] if isinstance(done.task, Fetch) else []
            lines = lines or [frame.line for frame in done.task.frames]
            failures = [(parse_record(line, check=False).path, code, str(done.error)) for line in lines]
        else:
            fetched: Fetched = done.result
            if isinstance(done.task, Fetch):
                self._current = done.task.wanted[-1][0]
            failures = self._without_stranded(done.task, fetched.failures)
            self._names.settle(fetched.settled)
            for key, count in fetched.not_set.items():
                self.not_set[key if len(self.not_set) < MAX_KEYS else b"others"] += count
            result.bytes_read += fetched.read_bytes
            result.unchanged += fetched.same
            result.new += fetched.written
        for path, code, detail in failures:
            if path in self._reported:
                continue
            if len(self._reported) < MAX_REPORTED:
                self._reported.add(path)
            result.failed += 1
            self._reporter.failure(path, code, detail)
        self._reporter.advance(
            entries=result.entries,
            read_bytes=result.bytes_read,
            sent_bytes=0,
            current=self._current,
            share=self._share(),
        )

    def _share(self) -> float:
        """How much of the files is done: what is not yet asked for is taken to be like what was."""
        if not self._submitted_bytes:
            return 0.0
        return self.result.bytes_read / self._submitted_bytes * self._share_submitted


def _walked(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, blob) of everything in the destination, in manifest order."""
    for event in walk(root):
        if isinstance(event, Siblings):
            prefix = event.parent + b"/" if event.parent else b""
            for name, blob in zip(event.names, event.blobs, strict=True):
                yield prefix + name, blob
        elif isinstance(event, Directory):
            yield event.path, event.blob


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
