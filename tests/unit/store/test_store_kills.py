"""Killed between any two lines: what a begin, a commit, a close, a new volume and a new part leave behind.

A child process runs the operation and ends itself (``os._exit``, as SIGKILL would) before the N-th line of
the store's code; then the parent looks with fresh objects.  By default N takes a sample of all lines;
``scripts/soak``, and ``MIRRORKEEP_KILLS=1000``, try every one, or every other of more than two thousand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mirrorkeep.errors import StoreRestarted
from mirrorkeep.store import recovery, runs
from mirrorkeep.store import validation as _validation  # noqa: F401  imported before the children fork
from mirrorkeep.store.pool import Store
from mirrorkeep.store.volume import Part
from tests.unit.store.part_at_work import close, digest_of, make_store, manifest_of

pytestmark = pytest.mark.soak
SMALL = manifest_of([b"a", b"b/c"])
STORE = os.path.dirname(recovery.__file__)
DIED = 77
OPENED: list[Store] = []


@pytest.fixture(params=["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data", request.param)
    made.create_volume("laptop")
    yield made
    while OPENED:
        OPENED.pop().close()
    made.close(detach=True)


def dies_at(line: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a child that dies before its ``line``-th line of store code; False: it lived."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(STORE):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os._exit(DIED)
            return trace

        try:
            sys.settrace(trace)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED), f"the child failed (status {status})"
    return status == DIED


def lines_to_die_at(kill_count: int, total: int) -> range:
    return range(1, total + 1, max(1, total // kill_count))


def count_lines(action: Callable[[], object]) -> int:
    """Return a number of lines that ``action`` does not reach."""
    total = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal total
        if not frame.f_code.co_filename.startswith(STORE):
            return None
        total += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return total + 1


def fresh(store: Store, path: bytes) -> Part:
    """The part as another process sees it."""
    return reopened(store).volume("laptop").part(path)


def reopened(store: Store) -> Store:
    """The store as another process sees it; closed when the next one is opened, or the test ends."""
    while OPENED:
        OPENED.pop().close()
    OPENED.append(Store.open(store.data, clock=store.clock))
    return OPENED[-1]


def open_run(store: Store, path: bytes) -> tuple[Part, runs.RunInfo, int]:
    """A part with an older snapshot and an open run that has committed."""
    part = store.volume("laptop").part(path, create=True)
    close(part, runs.begin_run(part, "", {}), manifest_of([b"old"]))
    run = runs.begin_run(part, "", {})
    Path(part.root, "file").write_text("content")
    return part, run, runs.commit_run(part, run.run, run.epoch, run.incarnation, 1)


def check_closed(part: Part, run: str) -> None:
    """Exactly one snapshot of the run, whole, and a clean part."""
    infos = part.snapshots()
    assert [info.sequence for info in infos] == [1, 2]
    assert infos[1].run == run
    root = Path(part.snapshot_root("latest"))
    assert (root / "file").read_text() == "content"
    assert (root / ".mirrorkeep" / ".mirrorkeep.manifest").read_bytes() == SMALL
    state = part.state()
    assert (state.run, state.closing, state.dirty, state.sequence) == (None, None, False, 2)
    assert state.manifest_digest == digest_of(SMALL)
    trees = [name for name in os.listdir(part.volume.snapshots) if os.path.lexists(part.place_of(name))]
    assert sorted(trees) == sorted(info.name for info in infos)
    staging = Path(part.root, ".mirrorkeep", ".mirrorkeep.staging")
    assert not any(name.startswith("manifest-") for name in os.listdir(staging))


def test_a_close_killed_anywhere_is_finished_by_its_repetition(store: Store, kill_count: int) -> None:
    part, run, _ = open_run(store, b"count")
    total = count_lines(lambda: close(part, run, SMALL))
    for line in lines_to_die_at(kill_count, total):
        path = b"part%d" % line
        part, run, _ = open_run(store, path)
        died = dies_at(line, lambda part=part, run=run: close(part, run, SMALL))
        after = fresh(store, path)
        first = close(after, run, SMALL)
        assert close(after, run, SMALL) == first
        after.tree().empty_staging()
        check_closed(after, run.run)
        assert died or line > total - 20


def test_a_close_killed_with_the_service_is_finished_or_undone(store: Store, kill_count: int) -> None:
    part, run, _ = open_run(store, b"count")
    total = count_lines(lambda: close(part, run, SMALL))
    finished = undone = 0
    for line in lines_to_die_at(kill_count, total):
        path = b"part%d" % line
        part, run, commit = open_run(store, path)
        dies_at(line, lambda part=part, run=run: close(part, run, SMALL))
        after = fresh(store, path)
        after.volume.store.start_incarnation()
        recovery._recover_part(after)
        assert after.state().closing is None
        try:
            close(after, run, SMALL)
            finished += 1
        except StoreRestarted:
            undone += 1
            assert len(after.snapshots()) == 1
            run = runs.begin_run(after, "", {"run": run.run, "commit": commit})
            assert run.resume
            close(after, run, SMALL)
        check_closed(after, run.run)
    assert finished
    assert undone


def test_a_begin_killed_anywhere_leaves_the_part_ready_for_the_next(store: Store, kill_count: int) -> None:
    part, run, commit = open_run(store, b"p")
    known = {"run": run.run, "commit": commit}
    total = count_lines(lambda: runs.begin_run(part, "", known))
    epoch = 0
    for line in lines_to_die_at(kill_count, total):
        dies_at(line, lambda: runs.begin_run(part, "", known))
        new = runs.begin_run(fresh(store, b"p"), "", known)
        assert new.epoch > epoch
        assert new.resume
        assert new.dirty
        epoch = new.epoch


def test_a_commit_killed_anywhere_is_done_or_not(store: Store, kill_count: int) -> None:
    part, run, number = open_run(store, b"p")
    total = count_lines(lambda: runs.commit_run(part, run.run, run.epoch, run.incarnation, "x"))
    for line in lines_to_die_at(kill_count, total):
        before = fresh(store, b"p").state().commits[-1]
        dies_at(
            line, lambda line=line: runs.commit_run(part, run.run, run.epoch, run.incarnation, f"at {line}")
        )
        after = fresh(store, b"p").state().commits[-1]
        assert after["commit"] - before["commit"] in (0, 1)
        again = runs.commit_run(part, run.run, run.epoch, run.incarnation, f"at {line}")
        assert again == before["commit"] + 1
    assert again > number


def test_a_part_killed_in_the_making_is_made_by_the_next_begin(store: Store, kill_count: int) -> None:
    volume = store.volume("laptop")
    total = count_lines(lambda: volume.part(b"count/deep", create=True))
    for line in lines_to_die_at(kill_count, total):
        path = b"folder%d/deep" % line
        content = Path(os.fsdecode(os.path.join(os.fsencode(volume.tip), path)))
        if line % 2:  # a plain folder that somebody filled
            content.mkdir(parents=True)
            (content / "file").write_text("content")
        dies_at(line, lambda path=path: volume.part(path, create=True))
        opened = reopened(store).volume("laptop")
        part = opened.part(path, create=True)
        assert runs.begin_run(part, "", {}).dirty == bool(line % 2)
        assert [p.name for p in content.iterdir() if p.name != ".mirrorkeep"] == ["file"] * (line % 2)
        assert not list(content.parent.glob(".mirrorkeep.making*"))


def test_a_volume_killed_in_the_making_or_the_unmaking_can_be_made_again(
    store: Store, kill_count: int
) -> None:
    total = count_lines(lambda: store.create_volume("count"))
    for line in lines_to_die_at(kill_count, total):
        dies_at(line, lambda line=line: store.create_volume(f"v{line}"))
        after = reopened(store)
        if not after.registry.has_volume(f"v{line}"):
            after.create_volume(f"v{line}")
        assert os.listdir(after.volume(f"v{line}").tip) == []
    for line in lines_to_die_at(kill_count, total):
        dies_at(line, lambda line=line: store.delete_volume(f"v{line}"))
        after = reopened(store)
        after.recover()
        if after.registry.has_volume(f"v{line}"):
            after.delete_volume(f"v{line}")
        assert os.listdir(os.path.join(store.pool, "deleted")) == []
        after.create_volume(f"v{line}")


def test_a_volume_with_history_killed_in_the_unmaking_goes_with_the_next_start_or_namesake(
    store: Store, kill_count: int
) -> None:
    def make(name: str) -> None:
        part = store.create_volume(name).part(b"home", create=True)
        close(part, runs.begin_run(part, "", {}), SMALL)

    make("count")
    total = count_lines(lambda: store.delete_volume("count"))
    gone = 0
    for line in lines_to_die_at(kill_count, total):
        name = f"v{line}"
        make(name)
        dies_at(line, lambda name=name: store.delete_volume(name))
        after = reopened(store)
        if after.registry.has_volume(name):
            assert len(after.volume(name).part(b"home").snapshots()) == 1
        else:
            gone += 1
            if gone % 2:
                after.recover()
                assert not os.path.exists(os.path.join(store.pool, "volumes", name))
                assert os.listdir(os.path.join(store.pool, "deleted")) == []
            assert after.create_volume(name).parts() == []
        after.delete_volume(name)  # else the next deletion has more to look through
    assert gone > 2
