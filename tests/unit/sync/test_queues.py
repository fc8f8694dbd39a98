"""What waits where in a run, in which order it leaves, and what goes on at the same time as what.

Whole runs to a directory: the same coordinator, queues and workers as for a store, in this process and its
forks, so that a test can hold one of them until another has got somewhere.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.sync.dispatch import FIRST_BUNDLE_ENTRIES, MAX_BUNDLE_ENTRIES, Dispatcher
from mirrorkeep.sync.journal import Journal
from mirrorkeep.sync.local import LocalTree
from mirrorkeep.sync.orders import Apply, Order, Report, Send, SendLarge
from mirrorkeep.sync.progress import Silent
from mirrorkeep.sync.state import OpenRun, State
from mirrorkeep.sync.transfer import Transfer
from mirrorkeep.sync.workers import Handler, WorkerPool
from mirrorkeep.tree import walk
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Frame
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.compare import Comparer
from tests.property.sync.loop import Cut, Loop, without

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 60.0
"""So long one side waits for the other before the test fails; what is right never takes it."""


def differences(loop: Loop) -> list[str]:
    return [
        str(one) for one in Comparer(str(loop.source), str(loop.copy), skip=(b".mirrorkeep",)).differences()
    ]


def write(place: Path, content: bytes = b"content") -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


def paths_of(order: Order) -> list[bytes]:
    if isinstance(order, Send):
        return [one.path for one in order.wanted]
    return [order.wanted.path] if isinstance(order, SendLarge) else []


class Trace:
    """Lines that any process of a run may add to, read back in the order in which they were added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def note(self, *words: object) -> None:
        os.write(self._fd, b" ".join(str(word).encode() for word in words) + b"\n")

    def rows(self) -> list[list[str]]:
        return [line.split(" ") for line in self._path.read_text().splitlines()]

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    made = Trace(tmp_path / "trace")
    yield made
    made.close()


@pytest.fixture
def limited() -> Iterator[None]:
    """A run that waits for itself would wait for ever."""
    signal.alarm(100)
    yield
    signal.alarm(0)


# --- which queue (WQ-01), in which order (WQ-03, WQ-04) -------------------------------------------------


def test_each_kind_of_difference_waits_in_the_queue_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue is told by what leaves it: in which phase, alone or in a bundle, and to what end."""
    loop = Loop(tmp_path)
    for name in ("small", "gone", "old name", "stays", "folder/stays", "going/file", "type"):
        write(loop.source / name, name.encode())
    write(loop.source / "large", os.urandom(SMALL_FILE_BYTES + 1))
    loop.sync()
    write(loop.source / "small", b"edited")
    write(loop.source / "large", os.urandom(SMALL_FILE_BYTES + 2))
    (loop.source / "gone").unlink()
    (loop.source / "old name").rename(loop.source / "new name")
    (loop.source / "folder").chmod(0o700)
    for name in ("going/file", "type"):
        (loop.source / name).unlink()
    (loop.source / "going").rmdir()
    (loop.source / "type").symlink_to("stays")
    write(loop.source / "added", b"a file that was not there")
    write(loop.source / "added large", os.urandom(SMALL_FILE_BYTES + 3))
    (loop.source / "added folder").mkdir()
    os.link(loop.source / "added", loop.source / "linked")

    left: dict[tuple[str, str, str], set[str]] = {}
    phases = ["begin"]
    submit = Dispatcher._submit

    def watch(dispatcher: Dispatcher, order: Order, items: list[Any]) -> None:
        if isinstance(order, Apply):
            for frame in order.frames:
                left.setdefault((phases[-1], "apply", frame.op.name), set()).add(path_of(frame))
        for path in paths_of(order):
            left.setdefault((phases[-1], type(order).__name__.lower(), ""), set()).add(path.decode())
        submit(dispatcher, order, items)

    monkeypatch.setattr(Dispatcher, "_submit", watch)
    monkeypatch.setattr(Silent, "phase", lambda reporter, name: phases.append(name))
    assert loop.sync().status == "complete"
    assert phases == ["begin", "walk", "delete", "late", "stamp", "close"]
    assert left == {
        ("walk", "send", ""): {"small", "folder", "added folder", ""},
        ("walk", "sendlarge", ""): {"large"},
        ("delete", "apply", "HOLD"): {"old name"},
        ("delete", "apply", "DELETE"): {"gone", "old name", "going/file", "going", "type"},
        ("late", "send", ""): {"added", "linked", "new name", "type"},
        ("late", "sendlarge", ""): {"added large"},
        ("stamp", "apply", "DIRECTORY"): {"added folder"},
        ("stamp", "apply", "STAMP"): {"added folder", "folder", ""},
    }
    assert differences(loop) == []


def path_of(frame: Frame) -> str:
    return frame.line[1 : frame.line.index(b",")].decode()


def make_bushy(source: Path, files: int, seed: int) -> None:
    """Make files in folders whose names sort one way as paths and another way as strings."""
    rng = random.Random(seed)
    for number in range(files):
        parts = [rng.choice(("a", "a!", "a~", "b", "ab")) for _ in range(rng.randrange(4))]
        write(source.joinpath(*parts, f"{rng.choice('fxz')}{number}"), b"%d" % number)


def test_work_leaves_in_the_order_of_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path)
    make_bushy(loop.source, 2500, seed=3)
    left: list[bytes] = []
    submit = Dispatcher._submit

    def watch(dispatcher: Dispatcher, order: Order, items: list[Any]) -> None:
        left.extend(paths_of(order))
        submit(dispatcher, order, items)

    monkeypatch.setattr(Dispatcher, "_submit", watch)
    loop.sync()
    assert len(left) > 4 * MAX_BUNDLE_ENTRIES
    assert left == sorted(left, key=order_key)
    assert left == list(loop.manifest())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_in_any_order_goes_out_in_order(seed: int) -> None:
    rng = random.Random(seed)
    numbers = rng.sample(range(10_000), 300)
    go = FORK.Event()

    def start() -> Handler:
        return lambda task: go.wait(PATIENCE_S)

    with WorkerPool(start, processes=1) as pool:
        for number in numbers:
            pool.submit(number, None)
        go.set()
        ended = [done.sequence for done in all_of(pool)]
    assert ended[:2] == numbers[:2]  # these were at the worker before there was a choice
    assert ended[2:] == sorted(numbers[2:])


def all_of(pool: WorkerPool) -> Iterator[Any]:
    while pool.outstanding:
        yield from pool.completed(PATIENCE_S)


@functools.total_ordering
class Counted(int):
    """A number that counts how often it is asked which of two comes first."""

    asked = 0

    def __lt__(self, other: int) -> bool:
        Counted.asked += 1
        return int(self) < int(other)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def comparisons(tasks: int) -> tuple[int, int]:
    """Return what a queue compares to take in so many tasks in order, and to give them out."""
    go = FORK.Event()
    Counted.asked = 0
    with WorkerPool(lambda: lambda task: go.wait(PATIENCE_S), processes=1) as pool:
        for number in range(tasks):
            pool.submit(Counted(number), None)
        taken_in = Counted.asked
        go.set()
        assert len(list(all_of(pool))) == tasks
    return taken_in, Counted.asked - taken_in


def test_work_that_comes_in_order_is_queued_at_a_cost_that_grows_with_the_work_alone() -> None:
    """A list that is searched for each place compares 125,000 times for 500, 8,000,000 times for 4,000."""
    for tasks in (500, 4000):
        taken_in, given_out = comparisons(tasks)
        assert tasks // 2 < taken_in < 2 * tasks
        assert given_out < 2 * tasks * tasks.bit_length()


# --- limits (WQ-06, WQ-10) ------------------------------------------------------------------------------


def test_with_room_for_one_entry_a_deep_tree_is_finished(tmp_path: Path, limited: None) -> None:
    """Folders are read when they are next, whatever waits: their entries are what the limit waits for."""
    loop = Loop(tmp_path)
    place = loop.source
    for level in range(150):
        place = place / f"d{level % 10}"
        for number in range(12):
            write(place / f"{'az'[number % 2]}{number}", b"%d" % level)
    options = replace(loop.options, max_entries_in_core=1, threads=1)
    result = loop.sync(options)
    assert (result.status, result.new) == ("complete", 150 * 13 + 1)
    assert differences(loop) == []
    for path in loop.source.rglob("a*"):
        path.write_bytes(b"changed!")
    assert loop.sync(options).changed >= 150 * 6
    assert differences(loop) == []


def test_one_thread_does_everything_and_many_make_the_same_of_it(tmp_path: Path, trace: Trace) -> None:
    """Reading, hashing, sending, stamping, removing, committing: whoever is free does what is next."""
    made: list[dict[bytes, dict[bytes, bytes]]] = []
    roles: dict[int, dict[str, set[str]]] = {}
    one, many = Loop(tmp_path), Loop(tmp_path / "many")
    many.source = one.source
    loops = {1: one, 8: many}
    make_bushy(one.source, 1200, seed=8)
    write(one.source / "large", os.urandom(30 << 20))
    with pytest.MonkeyPatch.context() as patch:
        watch_roles(patch, trace)
        for threads, loop in loops.items():
            trace.note("threads", threads)
            loop.sync(replace(loop.options, threads=threads, commit_interval_s=0.0))
    (one.source / "large").write_bytes((one.source / "large").read_bytes()[::-1])
    for number, path in enumerate(sorted(path for path in one.source.rglob("f*") if path.is_file())):
        (path.unlink if number % 3 else functools.partial(path.rename, path.with_name(f"r{number}")))()
    for threads, loop in loops.items():
        result = loop.sync(replace(loop.options, threads=threads))
        assert result.status == "complete"
        assert result.moved and result.removed
        assert differences(loop) == []
        made.append(without(loop.manifest()))
    assert made[0] == made[1]
    threads = 0
    for row in trace.rows():
        if row[0] == "threads":
            threads = int(row[1])
        else:
            roles.setdefault(threads, {}).setdefault(row[0], set()).add(row[1])
    (worker,) = roles[1]
    assert roles[1][worker] == {"send", "sendlarge", "apply", "call"}
    assert len(roles[8]) > 1


def watch_roles(patch: pytest.MonkeyPatch, trace: Trace) -> None:
    carry_out = Transfer.__call__

    def watch(transfer: Transfer, order: Order) -> Report:
        trace.note(f"{os.getpid()}:{id(transfer)}", type(order).__name__.lower())
        return carry_out(transfer, order)

    patch.setattr(Transfer, "__call__", watch)


# --- at the same time (WQ-08, WQ-13, GEN-18, PERF-12) ----------------------------------------------------


def test_what_is_ready_first_is_written_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    """The first folder's entries are held until those of the last folder are done."""
    loop = Loop(tmp_path)
    for folder in ("a", "m", "z"):
        for number in range(2 * MAX_BUNDLE_ENTRIES):
            write(loop.source / folder / f"f{number}", b"%d" % number)
    last_is_done = FORK.Event()
    carry_out = Transfer.__call__

    def hold_the_first(transfer: Transfer, order: Order) -> Report:
        paths = paths_of(order)
        if b"a/f0" in paths:
            assert last_is_done.wait(PATIENCE_S)
        report = carry_out(transfer, order)
        if paths:
            trace.note(paths[0].decode())
        if b"z" in paths:
            last_is_done.set()
        return report

    monkeypatch.setattr(Transfer, "__call__", hold_the_first)
    assert loop.sync(replace(loop.options, threads=2)).status == "complete"
    done = [row[0] for row in trace.rows()]
    assert done.index("a/f0") > max(place for place, path in enumerate(done) if path.startswith("z/"))
    with loop.manifest_path().open("rb") as stream:
        paths = [record.path for record in ManifestReader(stream)]
    assert len(paths) == 6 * MAX_BUNDLE_ENTRIES + 4
    assert paths == sorted(paths, key=order_key)
    monkeypatch.undo()
    loop.check_unchanged()


@pytest.mark.parametrize("size_bytes", [100, SMALL_FILE_BYTES + 1], ids=["small", "large"])
def test_files_are_worked_on_in_parallel_with_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    """Each of the first two orders is carried out only once the other one has been begun."""
    loop = Loop(tmp_path)
    for number in range(4 if size_bytes > SMALL_FILE_BYTES else 2 * MAX_BUNDLE_ENTRIES):
        write(
            loop.source / f"f{number}", bytes(size_bytes + number)
        )  # sizes differ: no copies of one another
    meeting = FORK.Barrier(2)
    met = FORK.Value("i", 0)
    carry_out = Transfer.__call__

    def meet(transfer: Transfer, order: Order) -> Report:
        if paths_of(order) and b"" not in paths_of(order) and not met.value:
            meeting.wait(PATIENCE_S)
            with met:
                met.value += 1
        return carry_out(transfer, order)

    monkeypatch.setattr(Transfer, "__call__", meet)
    assert loop.sync(replace(loop.options, threads=2)).status == "complete"
    assert met.value >= 2
    assert differences(loop) == []


def test_hashing_uses_several_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    """Two processes are in the middle of hashing a file at one instant."""
    loop = Loop(tmp_path)
    for number in range(2 * MAX_BUNDLE_ENTRIES):
        write(loop.source / f"f{number:04}", b"%d" % number)
    meeting = FORK.Barrier(2)
    make = NativeTree.__init__

    def make_meeting(tree: NativeTree, *arguments: Any, **named: Any) -> None:
        make(tree, *arguments, **named)
        hash_content = tree._hash

        def hash_together(data: bytes) -> Any:
            if data in (b"0", b"%d" % FIRST_BUNDLE_ENTRIES):  # the first file of each of two bundles
                trace.note(os.getpid())
                meeting.wait(PATIENCE_S)
            return hash_content(data)

        tree._hash = hash_together  # type: ignore[assignment, method-assign]

    monkeypatch.setattr(NativeTree, "__init__", make_meeting)
    assert loop.sync(replace(loop.options, threads=2)).status == "complete"
    assert len({row[0] for row in trace.rows()}) == 2
    assert differences(loop) == []


def test_walking_reading_and_sending_go_on_beside_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one bundle is being sent another is read, and the walk goes on: else the first never arrives."""
    loop = Loop(tmp_path)
    for number in range(4 * MAX_BUNDLE_ENTRIES):
        write(loop.source / f"d{number % 4}" / f"f{number}", b"%d" % number)
    reading, walked = FORK.Event(), FORK.Event()
    apply, frames, add = LocalTree.apply, NativeTree.frames, Journal.add
    state = {"sending": FORK.Event()}
    waited = FORK.Value("i", 0)

    def send(tree: LocalTree, listed: Any) -> Any:
        if not state["sending"].is_set():
            state["sending"].set()
            assert reading.wait(PATIENCE_S) and walked.wait(PATIENCE_S)
            waited.value = 1
        return apply(tree, listed)

    def read(tree: NativeTree, paths: Any) -> Iterator[Any]:
        for frame in frames(tree, paths):
            if state["sending"].is_set():
                reading.set()
            yield frame

    def walk_on(journal: Journal, item: Any) -> None:
        add(journal, item)
        if item.path == b"d3/f%d" % 3:  # the last folder has come, with the first bundle still on its way
            assert state["sending"].wait(PATIENCE_S)
            walked.set()

    monkeypatch.setattr(LocalTree, "apply", send)
    monkeypatch.setattr(NativeTree, "frames", read)
    monkeypatch.setattr(Journal, "add", walk_on)
    assert loop.sync(replace(loop.options, threads=2)).status == "complete"
    assert waited.value == 1
    assert differences(loop) == []


# --- resuming (MAN-44) -----------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", [1, 2])
def test_a_resumed_run_reads_nothing_of_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: Trace, commits: int
) -> None:
    loop = Loop(tmp_path)
    count = 10 * MAX_BUNDLE_ENTRIES
    for number in range(count):
        write(loop.source / f"d{number * 7 // count}" / f"f{number}", b"%d" % number)
    eager = replace(loop.options, commit_interval_s=0.0, threads=1)
    with pytest.raises(Cut), CutAfterCommits(commits):
        loop.sync(eager)
    carry_out = Transfer.__call__

    def watch(transfer: Transfer, order: Order) -> Report:
        for path in paths_of(order):
            trace.note(path.decode())
        return carry_out(transfer, order)

    folder = next((tmp_path / "state").iterdir())
    committed = committed_paths(folder)
    assert 0 < len(committed) < count
    monkeypatch.setattr(Transfer, "__call__", watch)
    result = loop.sync(replace(loop.options, threads=1))
    read = [row[0].encode() for row in trace.rows()]
    files = {path for path in read if b"/" in path}
    assert files.isdisjoint(committed)
    assert len(files) + len([path for path in committed if b"/" in path]) == count
    assert min(map(order_key, files)) > max(map(order_key, committed))
    assert (result.status, differences(loop)) == ("complete", [])


class CutAfterCommits:
    """Ends the run at the next order after so many commits that covered something (a context manager)."""

    def __init__(self, commits: int) -> None:
        self._left = commits
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        note, submit = State.note_run, Dispatcher._submit

        def count(state: State, run: OpenRun) -> None:
            note(state, run)
            self._left -= run.walk_bytes > 0

        def cut(dispatcher: Dispatcher, *arguments: Any) -> None:
            if self._left <= 0:
                raise Cut(detail="cut")
            submit(dispatcher, *arguments)

        self._patch.setattr(State, "note_run", count)
        self._patch.setattr(Dispatcher, "_submit", cut)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def committed_paths(folder: Path) -> set[bytes]:
    """Return what the manifest of an interrupted run holds up to its last commit."""
    known = json.loads((folder / "run.json").read_text())
    text = (folder / "work" / "walk.manifest").read_bytes()[: known["walk_bytes"]]
    return {line[1 : line.index(b",")] for line in text.splitlines()[1:] if b",type=" in line}


# --- huge folders (MAN-39) -------------------------------------------------------------------------------


def test_a_folder_of_more_names_than_memory_should_hold_is_sorted_in_spilled_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path)
    names = random.Random(4).sample(range(10**6), 2500)
    for number in names:
        write(loop.source / "huge" / str(number), b"%d" % number)
    (loop.source / "huge" / "folder").mkdir()
    spilled: list[int] = []
    listing = walk._sorted_names

    def watch(sort: Any, spool: str) -> Iterator[Any]:
        spilled.append(len(os.listdir(spool)))
        yield from listing(sort, spool)
        assert not os.path.exists(spool)

    class SmallSort(walk.SpilledSort):
        def __init__(self, directory: str) -> None:
            super().__init__(directory, max_rows_in_memory=200, max_open_runs=4)

    monkeypatch.setattr(walk, "MAX_NAMES_IN_MEMORY", 300)
    monkeypatch.setattr(walk, "_sorted_names", watch)
    monkeypatch.setattr(walk, "SpilledSort", SmallSort)
    assert loop.sync().status == "complete"
    assert spilled == [12]
    assert list(loop.manifest()) == [
        *sorted(b"huge/%d" % number for number in names),
        b"huge/folder",
        b"huge",
        b"",
    ]
    loop.check_unchanged()
    assert differences(loop) == []
