"""What a worker of a restore does: fetch what it is told to, and write it to the destination.

Small files come in bundles, large ones by themselves (``restore_large``), and so does a small one that came
with wrong content.  Nothing has its place before it hashes to what its record says.

Not here: deciding what is fetched (``restore``).  A crash leaves files of before and of after, and at worst
one in the making that says so (``tree.native_publish``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirrorkeep.errors import DigestMismatch, LengthMismatch, MirrorkeepError
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.sync.orders import ABORTING
from mirrorkeep.sync.restore_large import Fetched, LargeFetch, note, settle_present
from mirrorkeep.sync.restore_links import There, has_further_names
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Master
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

_WRONG_CONTENT: Final = (DigestMismatch.code, LengthMismatch.code)


@dataclass(slots=True)
class Fetch:
    """Order: bring these entries (path on the store, record for the destination) over."""

    wanted: list[tuple[bytes, bytes]]
    there: list[There]
    overwrite: bool


@dataclass(slots=True)
class Place:
    """Order: carry out these frames in the destination."""

    frames: list[Frame]
    overwrite: bool


class RestoreWorker:
    """Fetches and writes; one a worker thread."""

    def __init__(
        self, master: Master, slave: NativeTree, seed: NativeTree | None = None, threads: int = 1
    ) -> None:
        """``threads`` is how many transfers may be under way; a large file takes a few of them."""
        self._master = master
        self._slave = slave
        self._large = LargeFetch(master, slave, seed, threads)

    def __call__(self, order: Fetch | Place) -> Fetched:
        """Carry out one order."""
        done = Fetched()
        if isinstance(order, Place):
            failures = self._slave.apply(order.frames, keep_newer=not order.overwrite)
            note(failures, order.frames, done)
        else:
            self._fetch(order, done)
        done.not_set = self._slave.shortfalls.copy()
        self._slave.shortfalls.clear()
        return done

    def _fetch(self, order: Fetch, done: Fetched) -> None:
        small: list[tuple[bytes, Record]] = []
        leaders: list[Record] = []
        for (path, line), there in zip(order.wanted, order.there, strict=True):
            record = parse_record(line, check=False)
            if has_further_names(record):
                leaders.append(record)
            if record.size > SMALL_FILE_BYTES:
                self._large.bring(path, record, line, done, there=there, overwrite=order.overwrite)
            elif not there or not settle_present(
                self._slave, record, line, done, shared=there == There.SHARED, overwrite=order.overwrite
            ):
                small.append((path, record))
        if small:
            self._fetch_small(small, done)
        if leaders:
            failed = {path for path, _, _ in done.failures}
            done.settled = [(record.path, record.hash) for record in leaders if record.path not in failed]

    def _fetch_small(self, wanted: list[tuple[bytes, Record]], done: Fetched) -> None:
        """Fetch a bundle; one entry that the store refuses does not take the others with it."""
        try:
            self._fetch_bundle(wanted, done)
        except MirrorkeepError as error:
            if error.code in ABORTING:
                raise
            if len(wanted) == 1:
                done.failures.append((wanted[0][1].path, error.code, str(error)))
                return
            middle = len(wanted) // 2
            self._fetch_small(wanted[:middle], done)
            self._fetch_small(wanted[middle:], done)

    def _fetch_bundle(self, wanted: list[tuple[bytes, Record]], done: Fetched) -> None:
        received = self._master.contents([path for path, _ in wanted])
        files: list[tuple[Record, bytes]] = []
        paths: list[bytes] = []
        for (path, record), content in zip(wanted, received, strict=True):
            if isinstance(content, Failure):
                done.failures.append((record.path, content.code, content.detail))
            else:
                done.read_bytes += len(content)
                files.append((record, content))
                paths.append(path)
        done.written += len(files)
        for failure in self._slave.put(files):
            if failure.code in _WRONG_CONTENT:
                # A bundle may be read in the tip, which may have changed in a way that nothing showed
                # (docs/adr/0015); a range is read in the snapshot itself.
                done.written -= 1
                path, record = paths[failure.index], files[failure.index][0]
                line = format_record(record.path, record.fields)
                self._large.bring(path, record, line, done, there=There.NOTHING, overwrite=True)
            else:
                done.failures.append((failure.path, failure.code, failure.detail))
