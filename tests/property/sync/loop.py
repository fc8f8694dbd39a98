"""A source, a target, and what has to hold between them after every run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import path_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.sync import dispatch
from mirrorkeep.sync.describe import describe_tree
from mirrorkeep.sync.dispatch import Dispatcher
from mirrorkeep.sync.local import LocalSession, LocalSource
from mirrorkeep.sync.mirror import MirrorRun
from mirrorkeep.sync.options import RunOptions, RunResult
from mirrorkeep.sync.persist import execute_run
from mirrorkeep.sync.progress import Silent
from mirrorkeep.sync.restore import Restore, RestoreSource
from mirrorkeep.sync.session import RunSession
from mirrorkeep.sync.state import State
from mirrorkeep.tree.stored import StoredTree
from rig.compare import Comparer

SETTLED_S = 0.07
"""After this long an entry's times lie behind the clock's granularity."""
UNLIKE = (b"st_atime", b"hard_link")
"""Keys that a fresh reading of the source need not have like the manifest."""


class Cut(MirrorkeepError):
    """The run was cut off by the test."""

    code = "cut_by_test"


class Loop:
    """One source and one target, local or on a store."""

    def __init__(
        self,
        folder: Path,
        *,
        open_session: Callable[[], RunSession] | None = None,
        restore_source: Callable[[str | None], RestoreSource] | None = None,
        digest: str = "sha256",
    ) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.copy = folder / "copy"
        self.options = RunOptions(allow_deletes=True, threads=2, digest=digest)
        self.target = "target"
        self._open_session = open_session or (lambda: LocalSession(os.fspath(self.copy)))
        self._restore_source = restore_source or (lambda _: LocalSource(os.fspath(self.copy)))

    def sync(self, options: RunOptions | None = None) -> RunResult:
        """Run once, and let go of everything as the end of a process would."""
        time.sleep(SETTLED_S)
        session = self._open_session()
        try:
            with State(os.fspath(self.folder / "state"), os.fspath(self.source), self.target) as state:
                source, chosen = os.fspath(self.source), options or self.options
                return execute_run(lambda: MirrorRun(source, session, state, chosen, Silent()))[1]
        finally:
            if isinstance(session, LocalSession):
                session.release()

    def manifest_path(self) -> Path:
        """Return the client's manifest of the last closed run."""
        return next((self.folder / "state").glob("*/manifest"))

    def manifest(self) -> dict[bytes, dict[bytes, bytes]]:
        with self.manifest_path().open("rb") as stream:
            return {record.path: record.fields for record in ManifestReader(stream)}

    def listing(self) -> dict[bytes, dict[bytes, bytes]]:
        """Return what the manifest of the source as it is has to say."""
        failed: list[tuple[bytes, str]] = []
        lines = describe_tree(
            os.fspath(self.source), lambda *one: failed.append(one), digest=self.options.digest
        )
        found = {record.path: record.fields for record in map(parse_record, lines)}
        assert failed == []
        return found

    def check(self) -> None:
        """Assert that manifest and restored tree say what the source is."""
        expected, actual = without(self.listing()), without(self.manifest())
        for path, fields in expected.items():
            if keys.SEGMENTS in fields.keys() - actual.get(path, fields).keys():  # such a record is as good
                del fields[keys.SEGMENTS]
        assert actual == expected
        restored = self.folder / "restored"
        shutil.rmtree(restored, ignore_errors=True)
        result = self.restore(restored)
        assert (result.status, result.failed) == ("complete", 0)
        assert [str(one) for one in Comparer(str(self.source), str(restored)).differences()] == []

    def check_copy(self) -> None:
        """Assert that the files of a local copy are what the manifest says, attributes included."""
        with StoredTree(os.fspath(self.copy), read_only=True) as tree:
            with self.manifest_path().open("rb") as stream:
                lines = [line for _, line in ManifestReader(stream).lines()]
            found = [one for line in lines for one in tree.check(path_of(line), line, content=True)]
        assert found == []

    def restore(self, destination: Path) -> RunResult:
        return Restore(self._restore_source(None), os.fspath(destination), Silent(), threads=2).execute()

    def check_unchanged(self) -> None:
        """Assert that a further run changes nothing, and not a byte of the manifest."""
        before = self.manifest_path().read_bytes()
        result = self.sync()
        assert (result.new, result.changed, result.moved, result.removed, result.failed) == (0, 0, 0, 0, 0)
        assert result.unchanged == result.entries
        assert self.manifest_path().read_bytes() == before


def without(records: dict[bytes, dict[bytes, bytes]]) -> dict[bytes, dict[bytes, bytes]]:
    """Return records without what differs by nature."""
    return {
        path: {key: value for key, value in fields.items() if key not in UNLIKE}
        for path, fields in records.items()
    }


class CutAfter:
    """Ends the run when the coordinator has handed out so many orders (a context manager).

    ``orders=None`` only counts them, in ``handed_out``.  An order brings ``entries`` small entries at most:
    with one, a run may be cut off between any two of them.
    """

    def __init__(self, orders: int | None, entries: int = dispatch.MAX_BUNDLE_ENTRIES) -> None:
        self.handed_out = 0
        self._orders = orders
        self._entries = entries

    def __enter__(self) -> CutAfter:
        self._before = (Dispatcher._submit, dispatch.MAX_BUNDLE_ENTRIES)

        def submit(dispatcher: Dispatcher, *arguments: object) -> None:
            if self.handed_out == self._orders:
                raise Cut(detail="cut")
            self.handed_out += 1
            self._before[0](dispatcher, *arguments)  # type: ignore[arg-type]

        Dispatcher._submit = submit  # type: ignore[method-assign]
        dispatch.MAX_BUNDLE_ENTRIES = self._entries  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        Dispatcher._submit, dispatch.MAX_BUNDLE_ENTRIES = self._before  # type: ignore[method-assign, misc]
