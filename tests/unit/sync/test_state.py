"""What a client remembers, and what a run starts from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import Record, format_record
from mirrorkeep.sync import input as input_module
from mirrorkeep.sync.input import merge_unknown
from mirrorkeep.sync.local import LocalSession
from mirrorkeep.sync.mirror import MirrorRun
from mirrorkeep.sync.state import OpenRun, State, StateBusy, StateReader, boot_id
from tests.property.sync.loop import Cut, Loop


def make(folder: Path, target: str = "https://host/volumes/v") -> State:
    return State(str(folder), "/home", target)


def test_the_workers_of_a_killed_run_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, held_ours = os.pipe()
    left, left_ours = os.pipe()
    killed = os.fork()
    if not killed:
        make(tmp_path)
        os.write(held_ours, b"!")
        if os.fork():
            os._exit(9)
        os.close(left_ours)
        os.read(left, 1)  # a worker, which holds the lock until it is told
        os._exit(0)
    assert os.read(held, 1) == b"!"
    os.waitpid(killed, 0)
    naps: list[float] = []
    monkeypatch.setattr(
        "mirrorkeep.sync.state.time.sleep", lambda s: (naps.append(s), naps[1:] or os.close(left_ours))
    )
    with make(tmp_path):
        lock = next(tmp_path.glob("*/lock"))
        assert lock.read_text() == f"{os.getpid()}\n"
    assert naps
    for fd in (held, held_ours, left):
        os.close(fd)


def test_a_lock_is_given_back_for_processes_that_were_left_behind(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with make(tmp_path):
        child = os.fork()
        if not child:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
    make(tmp_path).close()
    os.close(theirs)
    os.waitpid(child, 0)
    os.close(ours)


def files(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [str(folder / name) for name in names]


def test_two_targets_of_one_source_have_states_of_their_own(tmp_path: Path) -> None:
    with make(tmp_path) as one, make(tmp_path, "https://host/volumes/w") as other:
        one.keep(*files(tmp_path, "manifest", "index"), "abc")
        assert (one.manifest_digest(), other.manifest_digest()) == ("abc", None)
    assert StateReader(str(tmp_path), "/home", "https://host/volumes/v").manifest_digest() == "abc"


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    with make(tmp_path), pytest.raises(StateBusy, match=str(os.getpid())):
        make(tmp_path)
    make(tmp_path).close()


def test_a_manifest_replaced_halfway_is_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path) as state:
        state.keep(*files(tmp_path, "manifest", "index"), "abc")
        new = files(tmp_path, "manifest2", "index2")
        replaced = os.replace

        def die(source: str, target: str) -> None:
            if target == state.index_path:
                raise OSError("cut")
            replaced(source, target)

        monkeypatch.setattr(os, "replace", die)
        with pytest.raises(OSError, match="cut"):
            state.keep(*new, "def")
        monkeypatch.undo()
        assert state.manifest_digest() is None


def test_an_open_run_is_remembered_until_it_is_closed(tmp_path: Path) -> None:
    run = OpenRun("run-1", commit=3, walk_bytes=100, late_bytes=5, own_input=True, boot=boot_id())
    with make(tmp_path) as state:
        assert state.open_run() is None
        state.fresh_work()
        state.note_run(run)
        assert state.open_run() == run
        assert run.is_resumable()
        assert not replace(run, boot="another").is_resumable()
        assert not replace(run, own_input=False).is_resumable()
        state.keep(*files(tmp_path, "manifest", "index"), "abc")
        assert state.open_run() is None
        assert not os.path.exists(state.work)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"unheard": 1}'])
def test_a_damaged_note_of_a_run_is_no_note(tmp_path: Path, text: bytes) -> None:
    with make(tmp_path) as state:
        Path(state.folder, "run.json").write_bytes(text)
        assert state.open_run() is None


def test_patches_are_merged_each_path_once() -> None:
    def stream(*paths: bytes) -> list[Record]:
        return [Record(path, {keys.TYPE: keys.UNKNOWN}) for path in sorted(paths, key=order_key)]

    merged = merge_unknown([iter(stream(b"a", b"d/x", b"d")), iter(stream(b"d/x", b"b", b""))])
    assert [one.path for one in merged] == [b"a", b"b", b"d/x", b"d", b""]


def test_late_records_are_sorted_and_cut_at_the_commit(tmp_path: Path) -> None:
    lines = [
        format_record(path, {keys.TYPE: keys.FILE}) for path in (b"z", b"\x00\x01\x02"[1:], b"d/f", b"d")
    ]
    path = tmp_path / "late"
    path.write_bytes(b"\n".join(lines) + b"\n")
    committed = len(b"\n".join(lines[:3])) + 1
    found = list(input_module._sorted_records(str(path), committed, str(tmp_path)))
    assert [one.path for one in found] == [b"\x01\x02", b"d/f", b"z"]


# --- whole runs ---------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    for number in range(1600):
        place = loop.source / f"d{number % 4}" / f"f{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number)
    return loop


def test_a_resumed_run_does_not_send_what_was_committed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(run: MirrorRun, *_: object) -> None:
        # Commits travel beside the transfers: only one that was waited for surely holds something.
        run._dispatch.wait()
        run.commit()
        run._dispatch.wait()
        raise Cut(detail="behind the walk")

    monkeypatch.setattr(MirrorRun, "_finish", cut)
    with pytest.raises(Cut):
        loop.sync(replace(loop.options, commit_interval_s=0.0, max_entries_in_core=200))
    monkeypatch.undo()
    result = loop.sync()
    assert result.status == "complete"
    assert result.new < 1600
    loop.check()
    loop.check_unchanged()


def test_a_resumed_run_cut_off_before_it_began_leaves_a_state_to_start_from(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(run: MirrorRun, *_: object) -> None:
        run._dispatch.wait()
        run.commit()
        run._dispatch.wait()
        raise Cut(detail="behind the walk")

    make_work = State.fresh_work

    def cut_behind(state: State) -> str:
        make_work(state)
        raise Cut(detail="the files of the earlier run are gone")

    with monkeypatch.context() as patch:
        patch.setattr(MirrorRun, "_finish", cut)
        with pytest.raises(Cut, match="walk"):
            loop.sync()
    with monkeypatch.context() as patch:
        patch.setattr(State, "fresh_work", cut_behind)
        with pytest.raises(Cut, match="gone"):
            loop.sync()
    assert loop.sync().status == "complete"
    loop.check()
    loop.check_unchanged()


def test_a_run_cut_off_at_its_close_sends_nothing_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(session: LocalSession, **_: object) -> None:
        raise Cut(detail="before the close")

    monkeypatch.setattr(LocalSession, "close", cut)
    with pytest.raises(Cut):
        loop.sync()
    monkeypatch.undo()
    result = loop.sync()
    assert (result.status, result.new, result.bytes_sent) == ("complete", 0, 0)
    loop.check()
    loop.check_unchanged()


@pytest.mark.parametrize("lost", ["state", "index", "manifest"])
def test_what_the_client_lost_costs_a_comparison_and_nothing_is_sent(loop: Loop, lost: str) -> None:
    loop.sync()
    folder = loop.manifest_path().parent
    if lost == "state":
        for path in [one for one in folder.iterdir() if one.is_file()]:
            path.unlink()
    else:
        (folder / lost).unlink()
    result = loop.sync()
    assert (result.new, result.removed, result.failed, result.bytes_sent) == (0, 0, 0, 0)
    loop.check()
    loop.check_unchanged()


def test_a_target_that_lost_its_run_is_compared_with_what_it_holds(loop: Loop) -> None:
    loop.sync()
    (loop.copy / ".mirrorkeep" / ".mirrorkeep.copy").write_text("damaged")
    (loop.copy / "d1" / "f1").unlink()
    result = loop.sync()
    assert result.new + result.changed >= 1
    loop.check()
