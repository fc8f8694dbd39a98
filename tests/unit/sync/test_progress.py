"""What a run and a restore tell while they are under way: totals, the entry at hand, how much is done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from mirrorkeep.cli.report import ConsoleReporter
from mirrorkeep.delta.segments import SEGMENT_BYTES
from mirrorkeep.sync import sending
from mirrorkeep.sync.local import LocalSession, LocalSource
from mirrorkeep.sync.mirror import MirrorRun
from mirrorkeep.sync.options import RunOptions
from mirrorkeep.sync.progress import Silent
from mirrorkeep.sync.restore import Restore
from mirrorkeep.sync.state import State
from mirrorkeep.tree.protocol import Segment


class Noting(Silent):
    """Keeps what it is told: (phase, entries, bytes read, bytes sent, current, share)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int, int, bytes, float]] = []
        self._phase = ""

    def phase(self, name: str) -> None:
        self._phase = name

    def advance(
        self, *, entries: int, read_bytes: int, sent_bytes: int, current: bytes = b"", share: float = 0.0
    ) -> None:
        self.told.append((self._phase, entries, read_bytes, sent_bytes, current, share))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    return source


def sync(source: Path, options: RunOptions | None = None) -> Noting:
    noting = Noting()
    copy = os.fspath(source.parent / "copy")
    session = LocalSession(copy, source=os.fspath(source))
    try:
        with State(os.fspath(source.parent / "state"), os.fspath(source), copy) as state:
            MirrorRun(os.fspath(source), session, state, options or RunOptions(), noting).execute()
    finally:
        session.release()
    return noting


def write_files(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05}").write_bytes(b"%d" % number)


def test_a_large_file_shows_what_is_done_of_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = 6 * SEGMENT_BYTES
    with (source / "image").open("wb") as image:
        image.truncate(size_bytes - 1)
        image.seek(0, os.SEEK_END)
        image.write(b"x")
    read = sending.read_segment

    def slowly(fd: int, segment: Segment) -> bytes:
        time.sleep(0.6)
        return read(fd, segment)

    monkeypatch.setattr(sending, "read_segment", slowly)
    told = sync(source).told
    between = [read_bytes for _, _, read_bytes, _, current, _ in told if current == b"image"]
    assert between == sorted(between)
    assert any(0 < read_bytes < size_bytes for read_bytes in between)
    assert told[-1][2] == size_bytes


def test_new_entries_of_a_later_run_are_named_and_counted_up(source: Path) -> None:
    write_files(source / "old", 50)
    first = sync(source).told
    assert {share for *_, share in first} == {0.0}  # nobody knows how many there are
    write_files(source / "new", 3000)
    for number in range(10):
        (source / "old" / f"{number:05}").write_bytes(b"changed")
    told = sync(source).told
    late = [(current, share) for phase, *_, current, share in told if phase == "late"]
    shares = [share for _, share in late]
    assert shares == sorted(shares) and len(set(shares)) > 100 and shares[-1] == 1.0
    assert all(current.startswith(b"new/") for current, _ in late)


def test_the_walk_is_measured_by_what_was_there_last_time(source: Path) -> None:
    write_files(source / "old", 2000)
    sync(source)
    for number in range(0, 2000, 2):
        (source / "old" / f"{number:05}").write_bytes(b"changed")
    told = sync(source, RunOptions(max_entries_in_core=100)).told
    shares = [share for phase, *_, share in told if phase == "walk"]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1


def test_a_restore_tells_where_it_is(source: Path, tmp_path: Path) -> None:
    write_files(source / "old", 3000)
    sync(source)
    noting = Noting()
    Restore(LocalSource(os.fspath(tmp_path / "copy")), os.fspath(tmp_path / "back"), noting).execute()
    files = [(current, share) for phase, *_, current, share in noting.told if phase == "files"]
    assert all(current.startswith(b"old/") for current, _ in files)
    assert files[-1][1] == pytest.approx(1.0, abs=0.02) and 0 < files[0][1] < 0.5


def test_the_time_that_is_left_follows_from_the_share(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter(as_json=True)
    reporter.phase("late")
    time.sleep(0.3)
    reporter.advance(entries=10, read_bytes=1000, sent_bytes=500, current=b"a\xff", share=0.25)
    event = json.loads(capsys.readouterr().out)
    assert 0.9 <= event.pop("eta_s") <= 3
    assert event.pop("entries_per_s") > 1 and event.pop("bytes_per_s") > 100
    assert event == {
        "event": "progress",
        "phase": "late",
        "entries": 10,
        "bytes_read": 1000,
        "bytes_sent": 500,
        "current": "a\udcff",
    }
