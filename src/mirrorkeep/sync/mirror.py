"""A mirror run: a native tree becomes a part of a store.

The run goes through phases, and the order of the phases is what keeps the mirror whole:

1. **walk**: unchanged entries cost nothing; entries that changed in place are sent as they are met.
   On the first run everything is new and is sent at once.  Otherwise new entries wait.
2. **hold**: files that only changed their name are kept on the store under a key.
3. **delete**: what the source no longer has, once the walk is complete and the guard agrees.
4. **late**: renamed, new and type-changed entries, then the further names of hard-linked files.
5. **stamp**: metadata of directories that anything was done in, once all that is missing was made.
6. **close**: the manifest is handed over, the store commits, snapshots and queues the validation.

A run that is cut off anywhere is superseded by the next, which starts from the last commit; every
operation may be repeated.

Not here: what changed (``detect``), the work itself (``transfer``), files of the state (``state``).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, Any, Final

from mirrorkeep.errors import NoSpace, SourceUnmounted
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import inode_of, kind_of
from mirrorkeep.manifest.record import Record
from mirrorkeep.sync.close import Closing
from mirrorkeep.sync.detect import Detector, kind_only
from mirrorkeep.sync.dispatch import Dispatcher
from mirrorkeep.sync.index import Head, OldSide, is_unsettled, seal_index, settled_blob, unsettled_blob
from mirrorkeep.sync.input import Input
from mirrorkeep.sync.journal import Item, Journal, Stretch
from mirrorkeep.sync.late import LatePhases
from mirrorkeep.sync.leaders import Leaders
from mirrorkeep.sync.options import RunOptions, RunResult
from mirrorkeep.sync.orders import Action, Outcome, Wanted
from mirrorkeep.sync.progress import Reporter
from mirrorkeep.sync.session import Closed, RunSession
from mirrorkeep.sync.state import OpenRun, State, boot_id
from mirrorkeep.sync.undecided import Undecided
from mirrorkeep.sync.workers import Handler
from mirrorkeep.tree.walk import STAT, Event, walk
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

MAX_REMEMBERED_FAILURES: Final = 100
MAX_UNSIGNED: Final = 10_000
"""Large files of one run whose signatures are made behind it; those of others are fetched when needed."""


def kind_of_blob(blob: bytes) -> bytes:
    """Return the ``type`` of the entry that a walk saw."""
    return _KINDS.get(stat.S_IFMT(STAT.unpack_from(blob)[0]), b"")


_KINDS: Final = {
    stat.S_IFREG: keys.FILE,
    stat.S_IFDIR: keys.DIRECTORY,
    stat.S_IFLNK: keys.LINK,
    stat.S_IFIFO: keys.FIFO,
    stat.S_IFSOCK: keys.SOCKET,
    stat.S_IFCHR: keys.CHAR_DEVICE,
    stat.S_IFBLK: keys.BLOCK_DEVICE,
}


class LinksMoved(Exception):
    """The run has to be made again, from its commit: records would name hard links that moved away.

    The next run resumes, and then looks at every file with several names.
    """


class MirrorRun:
    """One execution of mirroring ``source`` to the session's part."""

    def __init__(
        self, source: str, session: RunSession, state: State, options: RunOptions, reporter: Reporter
    ) -> None:
        self.source = os.fsencode(source)
        self.session = session
        self.state = state
        self.options = options
        self.reporter = reporter
        self.result = RunResult()
        self._input = Input(session, state, options.digest)
        self._mounts = options.mounts(self.source, state.mounts())
        self._undecided = Undecided(state.folder)
        self._dispatch: Dispatcher
        self._journal: Journal
        self._late: LatePhases
        self.leaders: Leaders
        self._detector: Detector
        self._first_run = True
        self._expected = 0
        self._intents: IO[bytes]
        self._open_run = OpenRun("")
        self._next_commit_s = 0.0
        self._committing = False
        self._unsigned: list[bytes] = []
        self._committed = RunResult()

    def execute(self) -> RunResult:
        """Run; raises what ends a run, and leaves the store and the state ready for the next one."""
        started = time.monotonic()
        info = self._input.begin(os.fsdecode(self.source))
        with ExitStack() as cleanup:
            old, patch = self._input.open(self._undecided.handed_on())
            cleanup.callback(old.close)
            cleanup.callback(self._undecided.close)
            self._prepare(old, cleanup)
            self._detector = Detector(old, self, patch)
            self.reporter.phase("walk")
            try:
                self._detector.run(self._walk())
                self.result.entries = self._detector.entries
                self.result.unchanged = self._detector.unchanged_entries
                self._finish(old, started)
            except NoSpace:
                self.state.note_run(replace(self._open_run, room_first=True))
                raise
        result = self.result
        result.run = info.mark.run
        result.bytes_read, result.bytes_sent = self._dispatch.read_bytes, self._dispatch.sent_bytes
        result.status = "partial" if result.failed else "complete"
        result.seconds = time.monotonic() - started
        return result

    def _walk(self) -> Iterator[Event]:
        options = self.options
        return walk(
            self.source, keep=options.keep, one_file_system=options.one_file_system, mounts=self._mounts
        )

    def progress(self) -> RunResult:
        """Return what stays of a run that was cut off: the counts of what is committed, and the bytes."""
        dispatch = getattr(self, "_dispatch", None)
        if dispatch is None:
            return RunResult()
        read_bytes, sent_bytes = dispatch.read_bytes, dispatch.sent_bytes
        return replace(self._committed, bytes_read=read_bytes, bytes_sent=sent_bytes)

    def distrust(self) -> None:
        """Have the next run ask the store, for what the client remembers is damaged."""
        self.state.forget()

    def settle_signatures(self) -> None:
        """Have the signatures of what was uploaded made behind the scenes; returns at once."""
        if self._unsigned:
            from mirrorkeep.sync.signing import make_signatures_behind
            from mirrorkeep.tree.native import NativeTree

            tree = NativeTree(self.source, digest=self.options.digest)
            make_signatures_behind(tree, self.state.signatures, self._unsigned)
            self._unsigned = []

    def _prepare(self, old: OldSide, cleanup: ExitStack) -> None:
        options, state = self.options, self.state
        mark = self.session.mark
        left = state.open_run()
        self._open_run = OpenRun(
            mark.run,
            own_input=self._input.is_own,
            boot=boot_id(),
            room_first=left is not None and left.room_first,
        )
        # Noted before the files of an earlier run go: a note must never promise files that are not there.
        state.note_run(self._open_run)
        work = state.fresh_work()
        self._intents = cleanup.enter_context(open(os.path.join(work, "intents"), "wb", buffering=1 << 16))
        self._first_run = old.entries <= 1  # nothing, or the bare root
        self._expected = 0 if self._first_run else old.entries
        processes = max(1, min(options.threads, 2 * (os.cpu_count() or 1)))
        self._dispatch = Dispatcher(
            self._start_worker,
            modules=("mirrorkeep.sync.transfer",),
            processes=processes,
            threads=options.threads,
            settle=self._settle,
            before_send=self._intents.flush,
            under_way=self._report,
        )
        cleanup.callback(self._dispatch.close)
        self._late = LatePhases(self, self._dispatch, work)
        cleanup.callback(self._late.discard)
        self.leaders = Leaders(self.source, work)
        cleanup.callback(self.leaders.close)
        self._journal = Journal(
            os.path.join(work, "walk"),
            self._input.header(),
            options.digest,
            old_manifest_fd=old.manifest_fd,
            old_index_fd=old.index_fd,
            on_written=self._written,
        )
        cleanup.callback(self._journal.close)
        self._next_commit_s = time.monotonic() + options.commit_interval_s

    def _start_worker(self) -> Handler:
        # Loaded on first use, just before the first fork: a run that finds nothing changed needs none of it.
        from mirrorkeep.delta.cache import SignatureCache
        from mirrorkeep.sync.transfer import Transfer
        from mirrorkeep.tree.native import NativeTree

        master = NativeTree(self.source, digest=self.options.digest)
        slave = self.session.slave(self.options.compress)
        signatures = SignatureCache(self.state.signatures)
        return Transfer(
            master, slave, signatures=signatures, call=self._call_session, threads=self.options.threads
        )

    def _call_session(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self.session, method)(*arguments)

    # --- what the detector finds -----------------------------------------------------------------

    def unchanged(self, stretch: Stretch) -> None:
        """Keep records as they are."""
        self._journal.stretch(stretch)

    def changed(self, path: bytes, blob: bytes, head: Head, *, forced: bool, doubted: bool) -> None:
        """Look at an entry that may differ."""
        kind, old_kind = kind_of_blob(blob), kind_of(head.line)
        item = Item(path, blob, head.line, forced=forced, directory=kind == keys.DIRECTORY)
        if kind != old_kind:
            self._late.remove(path, kind_only(path, head.line) if forced else head.line)
            item.old_line = b""
            if kind == keys.DIRECTORY:
                self._send(item)
                return
            if kind == keys.FILE:
                self.leaders.is_further(item)
            self._defer(item)
        elif kind == keys.FILE and self.leaders.is_further(item):
            self._defer(item)
        elif kind == keys.FILE and not forced and _inode(blob) != inode_of(head.line):
            self._late.replaced(head.line)
            self._defer(item)
        elif kind == keys.FILE and STAT.unpack_from(blob)[3] > 1 and (forced or is_unsettled(head.blob)):
            self._defer(item)  # until all its names are met: one that did not change may lead
        elif (doubted or self._open_run.room_first) and kind != keys.DIRECTORY:
            self._defer(item)  # what stands in its way, or takes its room, goes first
        else:
            self._send(item)

    def new(self, path: bytes, blob: bytes, *, forced: bool) -> None:
        """Bring over an entry that the manifest does not have."""
        kind = kind_of_blob(blob)
        item = Item(path, blob, forced=forced, directory=kind == keys.DIRECTORY)
        if item.directory:
            self._send(item)
        elif (
            (kind == keys.FILE and self.leaders.is_further(item))
            or forced  # what a run that was cut off has left in its way goes first
            or not self._first_run
            or self._late.repeats.should_wait(item)
        ):
            self._defer(item)
        else:
            self._send(item)

    def removed(self, path: bytes, line: bytes) -> None:
        """Note an entry that is to go."""
        self.leaders.lose(line)
        self._late.remove(path, line)
        self._go_on()

    def unreadable(self, path: bytes, detail: str) -> None:
        """Report an entry that could not be looked at."""
        self.fail(path, "source_unreadable", detail)

    def unmounted(self, path: bytes, detail: str) -> None:
        """Report a file system that is not mounted."""
        self.fail(path, SourceUnmounted.code, detail)

    def undecided(self, record: Record) -> None:
        """Have the next run look at an entry that is in doubt and cannot be looked at now."""
        self._undecided.add(record)

    def fail(self, path: bytes, code: str, detail: str) -> None:
        """Report an entry that was not brought over."""
        self.result.failed += 1
        if len(self.result.failures) < MAX_REMEMBERED_FAILURES:
            self.result.failures.append((path, code, detail))
        self.reporter.failure(path, code, detail)

    # --- items -----------------------------------------------------------------------------------

    def _send(self, item: Item) -> None:
        self._journal.add(item)
        self._intend(item)
        self._dispatch.send(item, Wanted(item.path, item.old_line, item.forced))
        self._go_on()

    def _defer(self, item: Item) -> None:
        item.late = True
        self._late.repeats.note_waiting(item)
        self._journal.add(item)
        self._intend(item)
        self._go_on()

    def _intend(self, item: Item) -> None:
        if item.old_line:
            self.doubt(item.path)
        else:
            self._intents.write(item.path + b"\0")

    def has_folder(self, path: bytes) -> bool:
        """Return whether the source has a folder at ``path``."""
        try:
            return stat.S_ISDIR(os.lstat(os.path.join(self.source, path)).st_mode)
        except OSError:
            return False

    def doubt(self, path: bytes) -> None:
        """Note that the mirror may soon hold something else at ``path`` than its record says."""
        self._intents.write(b"/" + path + b"\0")

    def _go_on(self) -> None:
        """Write what is ready; wait when too much is in memory; commit when it is time."""
        journal, dispatch = self._journal, self._dispatch
        if len(journal) > 1024:
            journal.drain()
            while len(journal) > self.options.max_entries_in_core:
                dispatch.flush()
                dispatch.collect(None)
                journal.drain()
        self.tick()

    def tick(self) -> None:
        """Commit when it is time."""
        now = time.monotonic()
        if now >= self._next_commit_s:
            self._next_commit_s = now + self.options.commit_interval_s
            self.commit()

    def settle_line(self, item: Item, outcome: Outcome, read_started_ns: int) -> None:
        """Give an item the record that follows from its outcome."""
        if outcome.action in (Action.FAILED, Action.VANISHED):
            if outcome.action == Action.FAILED:
                self.fail(item.path, outcome.code, outcome.detail)
            self.leaders.give_up_own(item)
            item.line = item.old_line  # the mirror keeps what it had, and it is looked at again
            item.blob = unsettled_blob(item.blob)
            return
        self.leaders.note(item, outcome.line)
        item.line = outcome.line
        item.blob = unsettled_blob(item.blob) if item.again else settled_blob(item.blob, read_started_ns)
        if outcome.action == Action.PLACED:
            self.result.moved += 1
        elif outcome.action == Action.COPIED:
            self.result.new += 1
            self.result.copied += 1
        elif item.old_line:
            self.result.changed += 1
        else:
            self.result.new += 1
        size_bytes = STAT.unpack_from(item.blob)[4]
        if size_bytes > SMALL_FILE_BYTES and outcome.action != Action.STAMPED and not item.directory:
            self._sign_later(outcome.line)

    def _sign_later(self, line: bytes) -> None:
        if len(self._unsigned) < MAX_UNSIGNED and kind_of(line) == keys.FILE:
            self._unsigned.append(line)

    def _settle(self, item: Item, outcome: Outcome, read_started_ns: int) -> None:
        if item.late:
            self._late.settle(item, outcome, read_started_ns)
        else:
            self.settle_line(item, outcome, read_started_ns)
            item.done = True
        self._report(item.path)

    def _report(self, current: bytes) -> None:
        dispatch = self._dispatch
        self.reporter.advance(
            entries=self._detector.entries,
            read_bytes=dispatch.read_bytes,
            sent_bytes=dispatch.sent_bytes,
            current=current,
            share=self._late.share or (self._detector.entries / self._expected if self._expected else 0.0),
        )

    def _written(self, item: Item) -> None:
        """An item's record went into the manifest: directories are stamped at the end."""
        if item.directory:
            # What a run that was cut off recorded, it need not have made: that comes at its end as well.
            is_there = bool(item.old_line) and not item.forced and self._input.is_own
            self._late.stamp(item, may_be_missing=not is_there)

    # --- commits ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Ask for a commit of everything that has come back so far, beside the transfers."""
        if self._committing:
            return
        self.state.note_mounts(self._mounts.all())  # before the target is known to hold files of them
        self._journal.drain()
        mark = self._journal.mark()
        late_bytes = self._late.mark()
        noted = replace(
            self._open_run,
            commit=self._open_run.commit + 1,
            walk_bytes=mark.text_bytes,
            late_bytes=late_bytes,
        )
        self._committing = True
        result = replace(self.result)

        def done(_: Any) -> None:
            self._committing = False
            self._committed = result
            self._journal.make_durable()
            self._late.make_durable()
            self._open_run = noted
            self.state.note_run(noted)

        self._dispatch.call("commit", (noted.commit,), done)

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self, old: OldSide, started: float) -> None:
        journal, dispatch, late = self._journal, self._dispatch, self._late
        self.state.note_mounts(self._mounts.all())
        self._undecided.hold()
        closing = Closing(self.session, self.state, self._input, self.options.snapshot, dispatch.wait)
        if self._detector.nothing_differs and not late.pending:
            self.reporter.phase("close")
            self._note_closed(closing.close_unchanged())
            return
        dispatch.wait()
        journal.drain()
        if self._input.is_own and self.leaders.strayed(journal):
            self.commit()
            dispatch.wait()
            raise LinksMoved
        header, digest = self._input.header(), self.options.digest
        walk_summary = journal.finish()
        late.run(journal, old_entries=old.entries)
        # The store brings the run's writes to its disk while the manifest is finished here.
        self.commit()
        manifest, blobs, summary = late.assemble(journal, walk_summary, header, digest)
        self.result.removed = late.removed
        not_done = os.path.join(self.state.work, "not_done")
        all_done = not late.write_not_done(not_done)
        if not all_done:
            self.state.note_not_done(not_done)
        index = os.path.join(self.state.work, "index")
        seal_index(blobs, index, summary.digest, summary.entries)
        self.state.flush_early(manifest)
        self.reporter.phase("close")
        closed = closing.close(manifest, summary.digest, summary.size_bytes)
        self.state.keep(manifest, index, summary.digest)
        self._note_closed(closed, all_done=all_done)

    def _note_closed(self, closed: Closed, *, all_done: bool = True) -> None:
        self._undecided.settle()
        if all_done:
            self.state.forget_not_done()
        self.state.note_mounts(self._mounts.remaining())
        self.result.snapshot = closed.snapshot
        self.result.sequence = closed.sequence
        self.result.verdict = "pending" if closed.snapshot else None


def _inode(blob: bytes) -> int:
    inode: int = STAT.unpack_from(blob)[7]
    return inode
