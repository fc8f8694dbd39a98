"""From items to orders: bundles, large files, calls, refusals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mirrorkeep.errors import RunSuperseded
from mirrorkeep.manifest.record import format_record
from mirrorkeep.sync.dispatch import FIRST_BUNDLE_ENTRIES, MAX_BUNDLE_ENTRIES, Dispatcher, FrameQueue
from mirrorkeep.sync.journal import Item
from mirrorkeep.sync.orders import Action, Apply, Call, Outcome, Report, Send, SendLarge, Wanted
from mirrorkeep.tree.protocol import Failure, Frame, Op
from mirrorkeep.tree.walk import STAT
from mirrorkeep.tree.wire import BUNDLE_TARGET_BYTES, SMALL_FILE_BYTES


def item(path: bytes, size_bytes: int = 10, mode: int = 0o100644) -> Item:
    return Item(path, STAT.pack(mode, 0, 0, 1, size_bytes, 0, 0, 7, 0) + path + b"\0")


def handle(order: Any) -> Report:
    """Answer an order with what it was: the number of entries of its bundle, and the worker's pid."""
    report = Report(read_started_ns=5, read_bytes=1, sent_bytes=2)
    if isinstance(order, Send):
        if any(one.path == b"kill" for one in order.wanted):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(one.path == b"superseded" for one in order.wanted):
            raise RunSuperseded(run="r")
        if any(one.path == b"bug" for one in order.wanted):
            raise ValueError("a bug")
        report.outcomes = [Outcome(Action.SENT, b"small %d" % len(order.wanted)) for _ in order.wanted]
    elif isinstance(order, SendLarge):
        report.outcomes = [Outcome(Action.SENT, b"large")]
    elif isinstance(order, Apply):
        report.failures = [Failure(0, b"p", "refused", "because")]
    elif isinstance(order, Call):
        report.value = (order.method, *order.arguments)
    return report


class Home:
    """Where outcomes come home to."""

    def __init__(self) -> None:
        self.settled: dict[bytes, Outcome] = {}
        self.dispatch = Dispatcher(lambda: handle, processes=1, threads=1, settle=self.settle)

    def settle(self, one: Item, outcome: Outcome, read_started_ns: int) -> None:
        assert one.path not in self.settled
        self.settled[one.path] = outcome

    def send(self, one: Item) -> None:
        self.dispatch.send(one, Wanted(one.path))


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.dispatch.close()


@pytest.fixture
def busy(home: Home) -> Home:
    """One whose worker has something to do already."""
    home.dispatch.call("commit", (1,), lambda value: None)
    return home


def test_a_worker_that_has_nothing_to_do_gets_a_small_bundle(home: Home) -> None:
    for number in range(FIRST_BUNDLE_ENTRIES + 3):
        home.send(item(b"f%d" % number))
    home.dispatch.wait()
    lines = [outcome.line for outcome in home.settled.values()]
    assert lines.count(b"small %d" % FIRST_BUNDLE_ENTRIES) == FIRST_BUNDLE_ENTRIES
    assert lines.count(b"small 3") == 3


def test_small_entries_travel_together_and_large_ones_alone(busy: Home) -> None:
    home = busy
    for number in range(MAX_BUNDLE_ENTRIES + 3):
        home.send(item(b"f%d" % number))
    home.send(item(b"large", SMALL_FILE_BYTES + 1))
    home.send(item(b"folder", SMALL_FILE_BYTES + 1, mode=0o040755))
    home.dispatch.wait()
    lines = [outcome.line for outcome in home.settled.values()]
    assert lines.count(b"small %d" % MAX_BUNDLE_ENTRIES) == MAX_BUNDLE_ENTRIES
    assert (lines.count(b"small 4"), lines.count(b"large")) == (4, 1)
    assert (home.dispatch.read_bytes, home.dispatch.sent_bytes) == (4, 8)


def test_a_bundle_is_full_by_bytes_too(busy: Home) -> None:
    home = busy
    each = BUNDLE_TARGET_BYTES // 3 + 1
    for number in range(3):
        home.send(item(b"f%d" % number, each))
    home.send(item(b"next"))  # only what is full has left
    home.dispatch.wait()
    assert [outcome.line for outcome in home.settled.values()] == [b"small 3"] * 3 + [b"small 1"]


def test_long_paths_fill_a_bundle_as_content_does(busy: Home) -> None:
    """Else what the store takes at once is exceeded, and everything in the bundle is refused."""
    home = busy
    folder = b"d/" * (BUNDLE_TARGET_BYTES // 6)
    for number in range(4):
        home.send(item(folder + b"%d" % number, 0))
    home.dispatch.wait()
    assert [outcome.line for outcome in home.settled.values()] == [b"small 3"] * 3 + [b"small 1"]


def test_a_bundle_that_kills_two_workers_fails_by_name_and_the_others_finish(home: Home) -> None:
    home.send(item(b"kill"))
    home.dispatch.flush()
    for number in range(5):
        home.send(item(b"f%d" % number))
        home.dispatch.flush()
    home.dispatch.wait()
    assert (home.settled[b"kill"].action, home.settled[b"kill"].code) == (Action.FAILED, "worker_lost")
    assert [home.settled[b"f%d" % n].action for n in range(5)] == [Action.SENT] * 5


def test_a_bug_fails_its_entries_and_a_superseded_run_ends(home: Home) -> None:
    home.send(item(b"bug"))
    home.dispatch.wait()
    assert (home.settled[b"bug"].action, home.settled[b"bug"].detail) == (Action.FAILED, "a bug")
    home.send(item(b"superseded"))
    with pytest.raises(RunSuperseded):
        home.dispatch.wait()


def test_calls_are_answered_and_refused_frames_named(home: Home) -> None:
    answers: list[Any] = []
    refused: list[tuple[Frame, Failure]] = []
    home.dispatch.call("commit", (4,), answers.append)
    queue = FrameQueue(home.dispatch, lambda frame, failure: refused.append((frame, failure)))
    frames = [Frame(Op.DELETE, format_record(b"p%d" % n, {b"type": b"file"})) for n in range(3)]
    for frame in frames:
        queue.add(frame)
    queue.finish()
    assert answers == [("commit", 4)]
    assert [(frame, failure.code) for frame, failure in refused] == [(frames[0], "refused")]
