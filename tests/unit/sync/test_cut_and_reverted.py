"""A run is cut off after it changed the mirror; before the next one the source goes back to what it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.store.local_copy import validate_directory
from mirrorkeep.sync.close import Closing
from mirrorkeep.sync.mirror import MirrorRun
from mirrorkeep.sync.options import RunResult
from mirrorkeep.tree.walk import Directory, Event, Siblings, Unreadable, walk
from rig.compare import Comparer
from tests.property.sync.loop import Cut, Loop


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    for folder in ("going", "going/inner", "staying"):
        (loop.source / folder).mkdir(parents=True)
        for number in range(3):
            (loop.source / folder / f"f{number}").write_bytes(f"{folder} {number}".encode() * 50)
    (loop.source / "going" / "empty").mkdir()
    os.link(loop.source / "going" / "f0", loop.source / "staying" / "same")
    (loop.source / "going" / "link").symlink_to("f1")
    (loop.source / "going" / "large").write_bytes(os.urandom(3 << 20))
    (loop.source / "large").write_bytes(os.urandom(3 << 20))
    (loop.source / "link").symlink_to("staying")
    loop.sync()
    return loop


def cut_before_the_close(loop: Loop, patch: pytest.MonkeyPatch, committed: str) -> None:
    """Run to the end, all but the close; commit everything, or nothing, or only before anything was done."""
    prepare, commit = MirrorRun._prepare, MirrorRun.commit

    def prepare_and_commit(run: MirrorRun, *arguments: Any) -> None:
        prepare(run, *arguments)
        commit(run)
        run._dispatch.wait()

    def cut(closing: Closing, *_: object) -> None:
        closing.wait()
        raise Cut(detail="before the close")

    with patch.context() as patched:
        patched.setattr(Closing, "close", cut)
        if committed != "all":
            patched.setattr(MirrorRun, "commit", lambda run: None)
        if committed == "before":
            patched.setattr(MirrorRun, "_prepare", prepare_and_commit)
        with pytest.raises(Cut):
            loop.sync()


def differences(loop: Loop, copy: Path) -> list[str]:
    comparer = Comparer(str(loop.source), str(copy), skip=(b".mirrorkeep",))
    return [str(one) for one in comparer.differences()]


def move_out(loop: Loop) -> Callable[[], object]:
    aside = loop.folder / "aside"
    (loop.source / "going").rename(aside)
    return lambda: aside.rename(loop.source / "going")


def rename_folder(loop: Loop) -> Callable[[], object]:
    (loop.source / "going").rename(loop.source / "staying" / "gone")
    return lambda: (loop.source / "staying" / "gone").rename(loop.source / "going")


def edit_in_place(loop: Loop) -> Callable[[], object]:
    paths = [loop.source / "staying" / "f1", loop.source / "large"]
    before = [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    for path, content, _ in before:
        path.write_bytes(bytes(len(content)))

    def revert() -> None:
        for path, content, mtime_ns in before:
            path.write_bytes(content)
            os.utime(path, ns=(mtime_ns, mtime_ns))

    return revert


def change_mode(loop: Loop) -> Callable[[], object]:
    for name in ("staying", "staying/f0", "large"):
        (loop.source / name).chmod(0o750)

    def revert() -> None:
        (loop.source / "staying").chmod(0o755)
        (loop.source / "staying" / "f0").chmod(0o644)
        (loop.source / "large").chmod(0o644)

    return revert


def change_type(loop: Loop) -> Callable[[], object]:
    aside = loop.folder / "aside"
    (loop.source / "going").rename(aside)
    (loop.source / "going").write_bytes(b"a file now")

    def revert() -> None:
        (loop.source / "going").unlink()
        aside.rename(loop.source / "going")

    return revert


def swap(loop: Loop) -> Callable[[], object]:
    def exchange() -> None:
        aside = loop.folder / "aside"
        (loop.source / "going").rename(aside)
        (loop.source / "staying").rename(loop.source / "going")
        aside.rename(loop.source / "staying")

    exchange()
    return exchange


def become_folder(loop: Loop) -> Callable[[], object]:
    """A file becomes a folder with something in it, and stays one."""
    (loop.source / "staying" / "f2").unlink()
    (loop.source / "staying" / "f2").mkdir()
    (loop.source / "staying" / "f2" / "inside").write_bytes(b"inside")
    return lambda: None


def become_folder_and_go(loop: Loop) -> Callable[[], object]:
    become_folder(loop)
    return lambda: shutil.rmtree(loop.source / "staying" / "f2")


def become_file(loop: Loop) -> Callable[[], object]:
    change_type(loop)
    return lambda: None


CHANGES = [
    become_folder,
    become_folder_and_go,
    become_file,
    move_out,
    rename_folder,
    edit_in_place,
    change_mode,
    change_type,
    swap,
]


@pytest.mark.parametrize("committed", ["all", "nothing", "before"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_what_a_run_did_and_the_source_took_back_is_done_again(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Loop], Callable[[], object]],
    committed: str,
) -> None:
    revert = change(loop)
    cut_before_the_close(loop, monkeypatch, committed)
    revert()
    assert loop.sync().failures == []
    assert differences(loop, loop.copy) == []
    assert (loop.restore(loop.folder / "restored").failed, differences(loop, loop.folder / "restored")) == (
        0,
        [],
    )
    loop.check_unchanged()


@pytest.mark.parametrize("committed", ["all", "nothing", "before"])
@pytest.mark.parametrize("change", [become_folder, become_file, swap], ids=lambda one: one.__name__)
def test_a_first_run_that_was_cut_off_stands_in_nobodys_way(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Loop], Callable[[], object]],
    committed: str,
) -> None:
    shutil.rmtree(loop.folder / "state")
    shutil.rmtree(loop.copy)
    cut_before_the_close(loop, monkeypatch, committed)
    change(loop)
    assert loop.sync().failures == []
    assert differences(loop, loop.copy) == []
    loop.check_unchanged()


# --- what the next run cannot look at -----------------------------------------------------------------------


def walk_without(*closed: bytes) -> Callable[..., Iterator[Event]]:
    """Return a walk that may not read some folders."""

    def is_inside(path: bytes) -> bool:
        return any((path + b"/").startswith(folder + b"/") for folder in closed)

    def events(*arguments: Any, **options: Any) -> Iterator[Event]:
        for event in walk(*arguments, **options):
            if isinstance(event, Directory) and event.path in closed:
                yield Unreadable(event.path, "Permission denied")
                yield event
            elif not is_inside(event.parent if isinstance(event, Siblings) else event.path):
                yield event

    return events


def sync_without(loop: Loop, patch: pytest.MonkeyPatch, *closed: bytes) -> RunResult:
    with patch.context() as patched:
        patched.setattr("mirrorkeep.sync.mirror.walk", walk_without(*closed))
        return loop.sync()


@pytest.mark.parametrize("committed", ["all", "before"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_what_is_in_doubt_stays_so_while_its_folder_cannot_be_read(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Loop], Callable[[], object]],
    committed: str,
) -> None:
    (loop.source / "staying" / "same").unlink()  # where links may have strayed the store is asked instead
    loop.sync()
    revert = change(loop)
    cut_before_the_close(loop, monkeypatch, committed)
    revert()
    for _ in range(2):
        sync_without(loop, monkeypatch, b"going", b"staying")
    assert loop.sync().failures == []
    assert differences(loop, loop.copy) == []
    loop.check_unchanged()
    assert [path.name for path in (loop.folder / "state").glob("*/undecided*")] == []


def test_what_is_in_doubt_stays_so_when_the_run_that_could_not_look_is_cut_off_too(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    revert = move_out(loop)
    cut_before_the_close(loop, monkeypatch, "nothing")
    revert()
    sync_without(loop, monkeypatch, b"going")
    (loop.source / "new").write_bytes(b"new")
    with monkeypatch.context() as patch:
        patch.setattr("mirrorkeep.sync.mirror.walk", walk_without(b"going"))
        cut_before_the_close(loop, monkeypatch, "nothing")
    assert loop.sync().failures == []
    assert differences(loop, loop.copy) == []
    loop.check_unchanged()


def test_damage_that_was_found_in_a_folder_that_cannot_be_read_is_repaired_when_it_can(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loop.copy / "going" / "f1").write_bytes(b"damaged")
    found: list[bytes] = []
    validate_directory(str(loop.copy), lambda one: found.append(one[0]))
    assert set(found) == {b"going/f1"}
    assert sync_without(loop, monkeypatch, b"going").status == "partial"
    assert loop.sync().status == "complete"
    assert differences(loop, loop.copy) == []


def test_doubts_whose_file_is_damaged_stop_no_run(loop: Loop) -> None:
    state = next((loop.folder / "state").iterdir())
    (state / "undecided").write_bytes(b"\0" * 500)
    assert loop.sync().status == "complete"
    assert not (state / "undecided").exists()
