"""What happens after the walk: renames, deletions, new entries, hard links, directories.

Everything that waits is spilled to files of the run, so that memory does not grow with the number of
changes.  Deletions only ever happen here, after a complete walk and past the guard (trap 6).  Renames
are recognised by inode, size and time, and confirmed by digest before anything is placed (trap 5).

A crash leaves files in the run's work folder, of which only ``late.records`` up to the last commit is
used again; every operation may be repeated on the store.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from mirrorkeep.errors import AlreadyExists, DeletionGuard, MalformedManifest
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import payload_of, row_in_order
from mirrorkeep.manifest.peek import inode_of
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.manifest.spill import SpilledList, SpilledSort
from mirrorkeep.manifest.writer import ManifestSummary, ManifestWriter
from mirrorkeep.sync.contents import Repeats
from mirrorkeep.sync.dispatch import Dispatcher, FrameQueue
from mirrorkeep.sync.journal import Item, Journal, Late, assemble
from mirrorkeep.sync.orders import Action, Outcome, Wanted
from mirrorkeep.tree.protocol import Failure, Frame, Op
from mirrorkeep.tree.walk import blob_stat

if TYPE_CHECKING:
    from mirrorkeep.sync.mirror import MirrorRun
    from mirrorkeep.sync.options import RunOptions

_NUMBER: Final = struct.Struct(">Q")
_SOURCE, _TARGET, _FURTHER_TARGET = b"\0", b"\1", b"\2"
"""A record that may have been renamed, and what it may be now: a file, or a further name of one."""
_GONE, _TAKEN = b"-", b"+"
"""What became of the name that a file may have been renamed from: it is gone, or another file has it."""
STAMPS_AT_ONCE: Final = 256
"""Directories that one worker stamps while others stamp theirs."""
LINK_ROUNDS: Final = 4
"""In the last of these rounds further names that no leader was found for carry the content themselves."""
FEW_DELETIONS: Final = 20
"""So many entries may always go, unless they are all there is."""


class LatePhases:
    """Collects during the walk what is to be done after it, and does it."""

    def __init__(self, run: MirrorRun, dispatch: Dispatcher, work: str) -> None:
        self._run = run
        self._dispatch = dispatch
        self._work = work
        self._files = SpilledList(work)
        self._others = SpilledList(work)
        self._stamps = SpilledList(work)
        self._unlinked = SpilledList(work)
        self._sources = SpilledSort(_folder(work, "sources"))
        self._outcomes = SpilledSort(_folder(work, "outcomes"))
        self._records: BinaryIO = open(os.path.join(work, "late.records"), "wb", buffering=1 << 18)
        self.repeats = Repeats(work)
        self._removals = 0
        self._source_count = 0
        self._stamp_count = 0
        self._not_done: SpilledSort | None = None
        self._moved = 0
        """Removals that are renames: only these take nothing away from the mirror."""
        self.removed = 0
        self._settled_count = self._late_count = 0

    @property
    def share(self) -> float:
        """How much of the late entries is settled; 0 before their turn."""
        return self._settled_count / max(1, self._late_count)

    @property
    def pending(self) -> bool:
        """Whether anything waits for the end of the walk."""
        return bool(self._removals or self._stamp_count)

    # --- during the walk -------------------------------------------------------------------------

    def remove(self, path: bytes, line: bytes) -> None:
        """An entry is to go, unless it turns out to have been renamed."""
        self._removals += 1
        self._run.doubt(path)
        kind = parse_record(line, check=False).kind
        (self._others if kind in (keys.DIRECTORY, keys.UNKNOWN) else self._files).append(line)
        if kind == keys.FILE:
            self._may_have_moved(line, _GONE)

    def replaced(self, line: bytes) -> None:
        """Another file is at the path of this record's file, which may have been renamed."""
        self._may_have_moved(line, _TAKEN)

    def _may_have_moved(self, line: bytes, name: bytes) -> None:
        record = parse_record(line, check=False)
        inode = record.fields.get(keys.INODE, b"")
        if inode.isdigit() and record.size > 0 and record.hash:
            self._source_count += 1
            self._sources.add(_NUMBER.pack(int(inode)) + _SOURCE + name + line)

    def stamp(self, item: Item, *, may_be_missing: bool) -> None:
        """A directory's metadata are to be set at the end."""
        self._stamp_count += 1
        self._stamps.append((b"n" if may_be_missing else b"o") + item.line)

    # --- after the walk --------------------------------------------------------------------------

    def run(self, journal: Journal, *, old_entries: int) -> None:
        """Do everything that waited, in the one order that keeps the mirror whole."""
        self._run.leaders.adopt(journal)
        self._run.reporter.phase("delete")
        matches = self._match_renames(journal)
        self._hold(matches)
        self._delete(old_entries)
        self._run.reporter.phase("late")
        self._late_count = journal.late_count
        links = self._bring_over(journal, matches)
        self._link(links)
        self._run.reporter.phase("stamp")
        self._stamp_directories()

    def settle(self, item: Item, outcome: Outcome, read_started_ns: int) -> None:
        """Take the outcome of a late entry."""
        if outcome.action == Action.UNLINKED:
            self._unlinked.append(item.pack())
            return
        self._settled_count += 1
        self._run.settle_line(item, outcome, read_started_ns)
        self._outcomes.add(_NUMBER.pack(item.number) + item.pack())
        if item.line:
            self._records.write(item.line + b"\n")

    def assemble(
        self, journal: Journal, walk: ManifestSummary, header: dict[bytes, bytes], digest: str
    ) -> tuple[str, str, ManifestSummary]:
        """Return the whole manifest's file, its blobs' file and its summary."""
        if not journal.late_count:
            return journal.text_path, journal.blob_path, walk
        stem = os.path.join(self._work, "whole")
        whole, summary = assemble(stem, journal, self._settled(journal), header, digest)
        return whole.text_path, whole.blob_path, summary

    def write_not_done(self, target: str) -> bool:
        """Write what could not be deleted or stamped, as a patch; returns whether there is anything.

        Nothing else tells of it: the new manifest says what the mirror should hold.
        """
        if self._not_done is None:
            return False
        with open(target, "wb") as stream:
            writer = ManifestWriter(stream, {})
            for path, _ in itertools.groupby(map(payload_of, self._not_done)):
                writer.add(format_record(path, {keys.TYPE: keys.UNKNOWN}))
            writer.finish()
        return True

    def mark(self) -> int:
        """Flush and return how many bytes of late records there are (for a commit)."""
        self._records.flush()
        return self._records.tell()

    def make_durable(self) -> None:
        """Bring the late records to the disk."""
        os.fdatasync(self._records.fileno())

    def discard(self) -> None:
        """Close and remove what was spilled."""
        for spilled in (
            self._files,
            self._others,
            self._stamps,
            self._unlinked,
            self._sources,
            self._outcomes,
        ):
            spilled.close()
        if self._not_done is not None:
            self._not_done.close()
        self._records.close()
        self.repeats.close()

    # --- renames ---------------------------------------------------------------------------------

    def _match_renames(self, journal: Journal) -> SpilledSort:
        """Return rows of (number of the late entry, record it was renamed from), in order.

        Afterwards nobody asks where a file may have been renamed from, and the rows go.
        """
        matches = SpilledSort(_folder(self._work, "matches"))
        if self._source_count and journal.late_count:
            self._pair_by_inode(journal, matches)
        self._sources.close()
        return matches

    def _pair_by_inode(self, journal: Journal, matches: SpilledSort) -> None:
        leaders = self._run.leaders
        for number, late in enumerate(journal.late_items()):
            item, facts = late.item, blob_stat(late.item.blob)
            if facts.size_bytes > 0 and facts.inode != inode_of(item.old_line):
                tag = _FURTHER_TARGET if item.link_to or leaders.leader_of(item) else _TARGET
                self._sources.add(_NUMBER.pack(facts.inode) + tag + _NUMBER.pack(number) + item.blob)
        for _, rows in itertools.groupby(self._sources, key=lambda row: row[: _NUMBER.size]):
            source, gone, met = b"", 0, 0
            for row in rows:
                tag, rest = row[8:9], row[9:]
                if tag == _SOURCE:
                    source, gone = rest[1:], gone + (rest[:1] == _GONE)
                elif source and _same_content(source, rest[8:]):
                    met += 1
                    if tag == _TARGET:
                        matches.add(rest[:8] + source)
            self._moved += min(gone, met)  # what is gone counts once, however many it is taken for

    def _hold(self, matches: SpilledSort) -> None:
        queue = FrameQueue(self._dispatch, lambda frame, failure: None)
        for row in matches:
            queue.add(Frame(Op.HOLD, row[8:], self._key(_NUMBER.unpack(row[:8])[0])))
        queue.finish()

    def _key(self, number: int) -> bytes:
        """Return the key under which the store holds the content of a renamed file."""
        return hashlib.sha256(f"{self._run.session.mark.run}:{number}".encode()).hexdigest()[:32].encode()

    # --- deletions -------------------------------------------------------------------------------

    def _delete(self, old_entries: int) -> None:
        self._guard(old_entries)
        for spilled, refuse in ((self._files, self._refused_file), (self._others, self._refused)):
            queue = FrameQueue(self._dispatch, refuse, in_order=spilled is self._others)
            for line in spilled:
                queue.add(Frame(Op.DELETE, line))
            queue.finish()
        self.removed = max(0, self._removals - self._moved)

    def _guard(self, old_entries: int) -> None:
        going, left = self._removals - self._moved, self._run.result.entries
        stop = guard_deletions(self._run.options, going=going, total=old_entries, left=left)
        if stop is not None:
            self._run.commit()
            self._dispatch.wait()
            raise stop

    def _refused(self, frame: Frame, failure: Failure) -> None:
        path = parse_record(frame.line, check=False).path
        self._run.fail(failure.path or path, failure.code, failure.detail)
        if self._not_done is None:
            self._not_done = SpilledSort(_folder(self._work, "not done"))
        self._not_done.add(row_in_order(path, path))

    def _refused_file(self, frame: Frame, failure: Failure) -> None:
        """Where a run that was cut off has put a folder already, the file is gone and the folder may stay."""
        path = parse_record(frame.line, check=False).path
        if failure.code != AlreadyExists.code:
            self._refused(frame, failure)
        elif not self._run.has_folder(path):
            self._others.append(format_record(path, {keys.TYPE: keys.UNKNOWN}))

    # --- new entries and links -------------------------------------------------------------------

    def _bring_over(self, journal: Journal, matches: SpilledSort) -> SpilledList:
        links = SpilledList(self._work)
        self.repeats.begin(journal.text_path)
        sources = iter(matches)
        source = next(sources, b"")
        for number, late in enumerate(journal.late_items()):
            item = late.item
            item.number = number
            wanted = Wanted(item.path, item.old_line, item.forced)
            while source and source[:8] < _NUMBER.pack(number):
                source = next(sources, b"")
            if source and source[:8] == _NUMBER.pack(number):
                wanted.key, wanted.source_line = self._key(number), source[8:]
            item.link_to = self._run.leaders.leader_of(item)
            if item.link_to:
                links.append(item.pack())
            elif not self.repeats.choose(item, wanted):
                self._dispatch.send(item, wanted)
                self._run.tick()
        self._dispatch.wait()
        matches.close()
        self._records.flush()
        for item, wanted in self.repeats.second_round(self._records.name):
            self._dispatch.send(item, wanted)
            self._run.tick()
        self._dispatch.wait()
        return links

    def _link(self, links: SpilledList) -> None:
        """Make further names links to their leaders.

        Where a leader was not brought over, has changed since, or is not on the mirror, the first of the
        others carries the content and leads the rest, in the next round.  What is not settled in the first
        is looked at again by the next run, when the old leader may lead again.
        """
        leaders = self._run.leaders
        for rounds_left in reversed(range(LINK_ROUNDS)):
            waiting = SpilledList(self._work)
            for row in links:
                item = Item.unpack(row)
                wanted = Wanted(item.path, item.old_line, item.forced)
                item.again = rounds_left < LINK_ROUNDS - 1
                if not rounds_left or leaders.lead(item, wanted) or leaders.take_lead(item):
                    self._dispatch.send(item, wanted)
                    self._run.tick()
                else:
                    waiting.append(row)
            self._dispatch.wait()
            for row in self._unlinked:
                leaders.give_up(Item.unpack(row))
                waiting.append(row)
            self._unlinked.close()
            links.close()
            links = waiting

    def _settled(self, journal: Journal) -> Iterator[tuple[Late, Item]]:
        outcomes = iter(self._outcomes)
        for number, late in enumerate(journal.late_items()):
            row = next(outcomes, b"")
            if row[:8] != _NUMBER.pack(number):
                raise MalformedManifest(offset=0, detail=f"late entry {number} was never settled")
            yield late, Item.unpack(row[8:])

    # --- directories -----------------------------------------------------------------------------

    def _stamp_directories(self) -> None:
        """Make what is missing first: after that no stamp changes another directory's times."""
        in_order = self._run.session.stamps_in_order
        for op, tags in ((Op.DIRECTORY, b"n"), (Op.STAMP, b"no")):
            queue = FrameQueue(self._dispatch, self._refused, in_order=in_order, most_frames=STAMPS_AT_ONCE)
            for row in self._stamps:
                if row[:1] in tags:
                    queue.add(Frame(op, row[1:]))
            queue.finish()


def guard_deletions(options: RunOptions, *, going: int, total: int, left: int) -> DeletionGuard | None:
    """Return what stops a run that would delete ``going`` of ``total`` entries and leave ``left``."""
    limit = int(options.delete_limit * total)
    nothing_left = going > 0 and left <= 1
    if options.allow_deletes or not (nothing_left or going > max(limit, FEW_DELETIONS)):
        return None
    return DeletionGuard(removed=going, total=total, limit=limit)


def _same_content(source_line: bytes, blob: bytes) -> bool:
    record, facts = parse_record(source_line, check=False), blob_stat(blob)
    return record.size == facts.size_bytes and record.mtime_ns == facts.mtime_ns


def _folder(work: str, name: str) -> str:
    path = os.path.join(work, name)
    os.makedirs(path, exist_ok=True)
    return path
