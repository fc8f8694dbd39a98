"""What a run would do: the same detection, told instead of done (``sync --dry-run``).

No run is begun and nothing is written, neither on the target nor in the client's state; a manifest that
has to be fetched lies in a temporary folder while it is read.  Where the state has a manifest no target is
needed at all, and what the plan says holds as long as nobody else wrote to the target.

A renamed entry shows as one new and one removed; which content could stay is only known when it is read.  For
the guard a file counts as renamed that is known by its inode, size and time, as a run knows it.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from mirrorkeep.errors import DeletionGuard, MalformedManifest, MirrorkeepError, NotFound, SourceUnmounted
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import kind_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.manifest.spill import SpilledSort
from mirrorkeep.sync.detect import Detector
from mirrorkeep.sync.digests import base_fields, hash_content
from mirrorkeep.sync.index import Head, OldSide, build_index, empty_old_side, open_index
from mirrorkeep.sync.journal import Stretch
from mirrorkeep.sync.late import guard_deletions
from mirrorkeep.sync.mirror import kind_of_blob
from mirrorkeep.sync.options import RunOptions, RunResult
from mirrorkeep.sync.orders import same_facts
from mirrorkeep.sync.progress import Reporter
from mirrorkeep.sync.session import RunSession
from mirrorkeep.sync.state import StateReader
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.walk import blob_stat, walk

NEW, CHANGED, REMOVED = "new", "changed", "removed"
_GONE, _MET = b"-", b"+"

Tell = Callable[[str, bytes], None]
"""``tell(action, path)`` for each entry that a run would touch."""


class Plan:
    """One dry run of ``source`` against what the target is known to hold."""

    def __init__(
        self,
        source: str,
        session: RunSession,
        state_folder: str,
        target: str,
        options: RunOptions,
        reporter: Reporter,
        tell: Tell,
    ) -> None:
        self._source = source
        self._session = session
        self._state = StateReader(state_folder, source, target)
        self._options = options
        self._reporter = reporter
        self._tell = tell
        self._tree = NativeTree(source, digest=options.digest)
        self.result = RunResult(status="planned")
        self.stop: DeletionGuard | None = None
        """What would stop the run before it deletes anything."""
        self._going = 0
        self._files: SpilledSort

    def execute(self) -> RunResult:
        """Compare and tell; raises what the source or the target raises."""
        started = time.monotonic()
        self._reporter.phase("walk")
        with ExitStack() as stack:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrorkeep-plan-"))
            self._files = stack.enter_context(SpilledSort(work))
            old = self._own(work) or self._fetched(work)
            stack.callback(old.close)
            detector = Detector(old, self)
            keep, one = self._options.keep, self._options.one_file_system
            source = os.fsencode(self._source)
            mounts = self._options.mounts(source, self._state.mounts())
            detector.run(walk(source, keep=keep, one_file_system=one, mounts=mounts))
            self.result.entries = detector.entries
            going = self._going - self._count_renamed()
            self.stop = guard_deletions(self._options, going=going, total=old.entries, left=detector.entries)
        result = self.result
        result.unchanged = result.entries - result.new - result.changed
        result.seconds = time.monotonic() - started
        return result

    # --- the old side ----------------------------------------------------------------------------

    def _own(self, work: str) -> OldSide | None:
        """Return the client's own manifest; None where it has none, or one that is damaged."""
        digest = self._state.manifest_digest()
        if not digest:
            return None
        try:
            # To its end before anything is told: a run begins anew, a plan cannot take back what it said.
            with open(self._state.manifest_path, "rb") as stream:
                for _ in ManifestReader(stream).lines():
                    pass
            return self._open(self._state.manifest_path, self._state.index_path, digest, work)
        except (MalformedManifest, FileNotFoundError):
            return None

    def _fetched(self, work: str) -> OldSide:
        path = os.path.join(work, "manifest")
        try:
            try:
                self._session.fetch_manifest("latest", path)
            except NotFound:
                self._session.fetch_manifest("actual", path)
        except NotFound:
            return empty_old_side()  # nothing was ever sent there
        with open(path, "rb") as stream:
            reader = ManifestReader(stream)
            for _ in reader.lines():
                pass
            if not reader.entries:
                return empty_old_side()
            digest = reader.file_digest
        old = self._open(path, path + ".none", digest, work)
        assert old is not None
        return old

    def _open(self, manifest: str, index: str, digest: str, work: str) -> OldSide | None:
        opened = open_index(index, digest)
        if opened is None:
            index = os.path.join(work, "index")
            build_index(manifest, index, digest)
            opened = open_index(index, digest)
        return OldSide(manifest, *opened) if opened is not None else None

    # --- what the detector finds -----------------------------------------------------------------

    def unchanged(self, stretch: Stretch) -> None:
        """Nothing to tell."""

    def changed(self, path: bytes, blob: bytes, head: Head, *, forced: bool, doubted: bool) -> None:
        """Look whether an entry that may differ does."""
        kind, old_kind = kind_of_blob(blob), kind_of(head.line)
        if kind != old_kind:
            self._going += 1
            self._note_gone(head.line)
        if kind != old_kind or _file_key(head.line) != _blob_key(blob):
            self._note_met(kind, blob)
        try:
            differs = kind != old_kind or self._differs(path, blob, head.line)
        except MirrorkeepError as error:
            self.unreadable(path, str(error))
            return
        if differs:
            self.result.changed += 1
            self._tell(CHANGED, path)

    def new(self, path: bytes, blob: bytes, *, forced: bool) -> None:
        """Tell of an entry that the target lacks."""
        self.result.new += 1
        self._note_met(kind_of_blob(blob), blob)
        self._tell(NEW, path)

    def removed(self, path: bytes, line: bytes) -> None:
        """Tell of an entry that the source no longer has."""
        self.result.removed += 1
        self._going += 1
        self._note_gone(line)
        self._tell(REMOVED, path)

    def unreadable(self, path: bytes, detail: str) -> None:
        """Tell of an entry that could not be looked at."""
        self.result.failed += 1
        self._reporter.failure(path, "source_unreadable", detail)

    def unmounted(self, path: bytes, detail: str) -> None:
        """Tell of a file system that is not mounted."""
        self.result.failed += 1
        self._reporter.failure(path, SourceUnmounted.code, detail)

    def undecided(self, record: Record) -> None:
        """Nothing to tell: a plan looks at no patch."""

    def _note_gone(self, line: bytes) -> None:
        """Note a file whose name is gone."""
        if key := _file_key(line):
            self._files.add(key + _GONE)

    def _note_met(self, kind: bytes, blob: bytes) -> None:
        """Note a file that was not there before."""
        if kind == keys.FILE and (key := _blob_key(blob)):
            self._files.add(key + _MET)

    def _count_renamed(self) -> int:
        """Return how many of the names that are gone are those of files met under other names."""
        renamed = 0
        for _, rows in itertools.groupby(self._files, key=lambda row: row[:-1]):
            counts = Counter(row[-1:] for row in rows)
            renamed += min(counts[_GONE], counts[_MET])
        return renamed

    def _differs(self, path: bytes, blob: bytes, line: bytes) -> bool:
        """Compare metadata, and the content of a file whose times may have been too young to tell."""
        fields, _ = self._tree.describe(path)
        old = parse_record(line, check=False)
        for key in (keys.HASH, keys.HASH_NAME, keys.HARD_LINK):
            if key in old.fields:
                fields[key] = old.fields[key]
        if not same_facts(format_record(path, fields), line):
            return True
        if old.kind != keys.FILE:
            return False
        fd = self._tree.open_content(path)
        try:
            digest = hash_content(fd, blob_stat(blob).size_bytes, self._options.digest)
        finally:
            os.close(fd)
        return base_fields(digest, self._options.digest)[keys.HASH] != old.hash


def _file_key(line: bytes) -> bytes:
    """Return what knows a file again under another name, nothing where its record does not say."""
    record = parse_record(line, check=False)
    inode = record.fields.get(keys.INODE, b"")
    known = record.kind == keys.FILE and inode.isdigit() and record.size > 0 and record.hash
    return b"%d %d %d" % (int(inode), record.size, record.mtime_ns) if known else b""


def _blob_key(blob: bytes) -> bytes:
    """Return the same of a file that the walk met, nothing where a run would not look for it."""
    facts = blob_stat(blob)
    return b"%d %d %d" % (facts.inode, facts.size_bytes, facts.mtime_ns) if facts.size_bytes > 0 else b""
