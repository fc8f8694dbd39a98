"""What a run starts from: the manifest of what the mirror holds, wherever the best one is.

In order of preference: the client's own manifest, when the store says that the tip is as that manifest
describes; the same merged with what an interrupted run of this client had committed (MAN-41..45), if that
run started from it and this machine has not restarted since; the store's manifest; the store's listing of
what it actually has (CHG-02, MAN-49).  What validation found,
and what a cut-off run may have left behind, come as a *patch*: paths that are looked at again.

Not here: comparing (``detect``).  Nothing here changes the mirror.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from mirrorkeep.errors import MalformedManifest, NotFound
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.groups import other_names
from mirrorkeep.manifest.merge import merge_records
from mirrorkeep.manifest.order import order_key, payload_of, row_in_order
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.manifest.spill import SpilledSort
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.compare import pair
from mirrorkeep.sync.detect import LOOK_AGAIN
from mirrorkeep.sync.index import OldSide, build_index, empty_old_side, open_index
from mirrorkeep.sync.session import RunInfo, RunSession
from mirrorkeep.sync.state import OpenRun, State


class Input:
    """The old side of a mirror run."""

    def __init__(self, session: RunSession, state: State, digest: str) -> None:
        self._session = session
        self._state = state
        self._digest = digest
        self.info: RunInfo
        self.server_manifest: str | None = None
        """The manifest that the store holds, for sending the next one as a difference."""
        self.manifest_digest = ""
        self.manifest_path = state.manifest_path
        self.index_path = state.index_path
        self.needs_keeping = False
        """The input is not the state's own manifest yet."""
        self.is_own = False
        """The input is the state's own manifest, or nothing where neither side has one."""
        self._compared = ""
        """The manifest of the old side, once that has entries."""
        self._left: OpenRun | None = None

    def header(self) -> dict[bytes, bytes]:
        """Return the manifest's header: the same from run to run (docs/adr/0006)."""
        return {b"part": self._session.part, b"source": os.fsencode(self._state.source)}

    def begin(self, source: str) -> RunInfo:
        """Begin the run on the store."""
        left = self._state.open_run()
        self._left = left if left is not None and left.is_resumable() else None
        state: dict[str, Any] = {
            "manifest": self._state.manifest_digest(),
            "run": self._left.run if self._left else None,
            "commit": self._left.commit if self._left else None,
        }
        self.info = self._session.begin(source, state)
        self.server_manifest = self.info.manifest
        return self.info

    def open(self, handed_on: list[str]) -> tuple[OldSide, Iterator[Record]]:
        """Return the old side and the patch, in manifest order; of the latter, earlier runs left some."""
        info = self.info
        own = self._state.manifest_digest()
        if own is not None and own == info.manifest and not info.dirty:
            self.is_own = True
            return self._own(own), self._patch(handed_on)
        if (
            info.dirty
            and self._left is not None
            and info.resume
            and own == info.manifest
            and self._has_work()
        ):
            return self._resumed(own, handed_on)
        if info.manifest is None and info.empty:
            self.is_own = own is None
            return empty_old_side(), iter(())
        return self._listed(actual=info.dirty or info.manifest is None), self._patch(handed_on)

    def _own(self, digest: str) -> OldSide:
        self.manifest_digest, self._compared = digest, self.manifest_path
        opened = open_index(self.index_path, digest)
        if opened is None:
            build_index(self.manifest_path, self.index_path, digest)
            opened = open_index(self.index_path, digest)
        if opened is None:
            raise MalformedManifest(offset=0, detail=f"{self.manifest_path}: its index cannot be made")
        index, entries = opened
        return OldSide(self.manifest_path, index, entries)

    def _listed(self, *, actual: bool) -> OldSide:
        """Ask the store what it has."""
        path = os.path.join(self._state.folder, "listed")
        try:
            self._session.fetch_manifest("actual" if actual else "latest", path)
            old = self._adopt(path)
        except (MalformedManifest, NotFound):
            if actual:
                raise
            return self._listed(actual=True)  # damaged there, or gone
        if not actual and self.manifest_digest != self.info.manifest:
            old.close()  # the last run made no snapshot: only the tip itself tells what it holds
            return self._listed(actual=True)
        self.is_own = old.entries <= 1 and self._state.manifest_digest() is None  # nothing, or the bare root
        return old

    def _adopt(self, path: str) -> OldSide:
        with open(path, "rb") as stream:
            reader = ManifestReader(stream)
            for _ in reader.lines():
                pass
            digest, entries = reader.file_digest, reader.entries
        if not entries:
            return empty_old_side()
        self.manifest_path, self.index_path = path, path + ".index"
        self.manifest_digest = digest
        self.needs_keeping = True
        build_index(path, self.index_path, digest, trust_links=False)
        return self._own(digest)

    # --- resuming --------------------------------------------------------------------------------

    def _has_work(self) -> bool:
        """Return whether the files that the interrupted run noted are there."""
        assert self._left is not None
        return all(
            not size_bytes or os.path.exists(os.path.join(self._state.work, name))
            for name, size_bytes in (
                ("walk.manifest", self._left.walk_bytes),
                ("late.records", self._left.late_bytes),
            )
        )

    def _resumed(self, own: str | None, handed_on: list[str]) -> tuple[OldSide, Iterator[Record]]:
        """Merge the last manifest with what the interrupted run had committed."""
        assert self._left is not None
        work = self._state.work
        walked = os.path.join(work, "walk.manifest")
        path = os.path.join(self._state.folder, "resumed")
        streams: list[Iterator[Record]] = []
        if own is not None:
            streams.append(records_of(self._state.manifest_path))
        if self._left.walk_bytes:
            streams.append(_partial(walked, self._left.walk_bytes))
        late = os.path.join(work, "late.records")
        if self._left.late_bytes:
            streams.append(_sorted_records(late, self._left.late_bytes, self._state.folder))
        with open(path, "wb") as stream:
            writer = ManifestWriter(stream, self.header(), digest=self._digest)
            for record in merge_records(*streams):
                writer.add(format_record(record.path, record.fields))
            writer.finish()
        patch_path = os.path.join(self._state.folder, "intended")
        before = self._state.manifest_path if own is not None else None
        _write_patch(_intended(os.path.join(work, "intents")), before, path, patch_path, self._state.folder)
        return self._adopt(path), self._patch([patch_path, *handed_on])

    # --- the patch -------------------------------------------------------------------------------

    def _patch(self, paths: list[str]) -> Iterator[Record]:
        if os.path.exists(self._state.not_done_path):
            paths = [*paths, self._state.not_done_path]
        if self.info.patch:
            path = os.path.join(self._state.folder, "patch")
            if self._session.fetch_patch(path):
                paths = [*paths, path]
        if paths and self._compared:
            others = os.path.join(self._state.folder, "others")
            _write_other_names(paths, self._compared, others, self._state.folder)
            paths = [*paths, others]
        return merge_unknown([records_of(path) for path in paths]) if paths else iter(())


def merge_unknown(streams: list[Iterator[Record]]) -> Iterator[Record]:
    """Merge patches: every path of any of them once, in manifest order, absence included."""
    previous = None
    for record in heapq.merge(*streams, key=lambda one: (order_key(one.path), LOOK_AGAIN in one.fields)):
        if record.path != previous:
            yield record
        previous = record.path


def _write_other_names(patches: list[str], manifest: str, target: str, folder: str) -> None:
    """Write as a patch the other names, in the manifest, of the files of which patches name one.

    They share one content, and whoever found it damaged need not have read it under every name.
    """
    patched = merge_unknown([records_of(path) for path in patches])
    named = (order_key(record.path) for record in patched if LOOK_AGAIN not in record.fields)
    with open(manifest, "rb") as source, open(target, "wb") as stream:
        lines = (line for _, line in ManifestReader(source).lines())
        writer = ManifestWriter(stream, {})
        for path in other_names(lines, named, folder):
            writer.add(format_record(path, {keys.TYPE: keys.UNKNOWN}))
        writer.finish()


def records_of(path: str) -> Iterator[Record]:
    """Yield the records of a manifest.  Raises MalformedManifest."""
    with open(path, "rb") as stream:
        yield from ManifestReader(stream)


def _partial(path: str, size_bytes: int) -> Iterator[Record]:
    os.truncate(path, size_bytes)
    with open(path, "rb") as stream:
        yield from ManifestReader(stream, partial=True)


def _sorted_records(path: str, size_bytes: int, folder: str) -> Iterator[Record]:
    with SpilledSort(folder) as rows, open(path, "rb") as stream:
        read = 0
        for line in stream:
            read += len(line)
            if read > size_bytes or not line.endswith(b"\n"):
                break
            record = parse_record(line[:-1])
            rows.add(row_in_order(record.path, line[:-1]))
        previous = b""
        for line in map(payload_of, rows):
            record = parse_record(line, check=False)
            if record.path != previous or not previous:
                yield record
            previous = record.path


def _intended(path: str) -> Iterator[bytes]:
    """Yield the paths that an interrupted run may have written or removed without having committed that.

    Those that had a record before begin with a slash.
    """
    try:
        stream = open(path, "rb")
    except FileNotFoundError:
        return
    with stream:
        rest = b""
        while block := stream.read(1 << 20):
            *whole, rest = (rest + block).split(b"\0")
            yield from whole


def _write_patch(entries: Iterator[bytes], before: str | None, known: str, target: str, folder: str) -> None:
    """Write as a patch what the manifest ``known`` lacks of these paths, and what is to be looked at again.

    The latter had a record in the manifest ``before`` and have it still: whatever the interrupted run made
    of them on the mirror is not committed, and the source may have gone back since to what the record says.
    """
    with SpilledSort(folder) as rows, open(target, "wb") as stream:
        doubts = False
        for entry in entries:
            doubts = doubts or entry.startswith(b"/")
            rows.add(row_in_order(entry.removeprefix(b"/"), entry))
        writer = ManifestWriter(stream, {})
        for one in pair(_intents(rows), _known(known, before if doubts else None)):
            if one.expected is None:
                continue
            if one.actual is None:
                writer.add(format_record(one.path, {keys.TYPE: keys.UNKNOWN}))
            elif one.expected and one.actual:
                writer.add(format_record(one.path, {keys.TYPE: keys.UNKNOWN, LOOK_AGAIN: b"1"}))
        writer.finish()


def _intents(rows: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each path once, and whether it had a record."""
    for path, same in itertools.groupby(map(payload_of, rows), key=lambda entry: entry.removeprefix(b"/")):
        yield path, any(entry.startswith(b"/") for entry in same)


def _known(known: str, before: str | None) -> Iterator[tuple[bytes, bool]]:
    """Yield each path of a manifest, and whether its record is the one that it had ``before``."""
    old = ((record.path, record.fields) for record in records_of(before)) if before else iter(())
    for one in pair(old, ((record.path, record.fields) for record in records_of(known))):
        if one.actual is not None:
            yield one.path, one.actual == one.expected
