"""Killed before any change of the client's state, or with no room for it: the next run completes.

A child process makes the run and ends, as by SIGKILL, before its n-th call that changes the state's folder;
for every n until it comes to its end.  With an error instead, the process goes on and says so.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.sync import local
from mirrorkeep.sync.close import Closing
from mirrorkeep.tree import durability
from rig.compare import Comparer
from tests.property.sync.loop import Cut, Loop

CALLS = (
    "replace",
    "rename",
    "unlink",
    "rmdir",
    "makedirs",
    "truncate",
    "fsync",
    "fdatasync",
    "write",
    "writev",
)
KILLED = 9
pytestmark = pytest.mark.soak


def steps(kill_count: int) -> range:
    """Return which calls to act before: every fifth, all of them in the long tier."""
    return range(1, 400, 1 if kill_count > 100 else 5)


class Steps:
    """Counts the calls of this process that change something below a folder, and acts before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, step: int, act: Callable[[], None]) -> None:
        self._folder = os.fspath(folder) + "/"
        self._pid = os.getpid()
        self._act = act
        self.left = step
        for name in CALLS:
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            if os.getpid() == self._pid and self._is_inside(*arguments, **named):
                self.left -= 1
                if self.left == 0:
                    self._act()
            return call(*arguments, **named)

        return counted

    def _is_inside(self, place: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
        fd = place if isinstance(place, int) else dir_fd
        path = os.readlink(f"/proc/self/fd/{fd}") if fd is not None else os.fsdecode(place)
        return path.startswith(self._folder)


def make_tree(loop: Loop) -> None:
    for folder in ("a", "a/inner", "b"):
        (loop.source / folder).mkdir(parents=True)
        for number in range(2):
            (loop.source / folder / f"f{number}").write_bytes(f"{folder} {number}".encode() * 9)
    os.link(loop.source / "a" / "f0", loop.source / "b" / "same")


def change_tree(loop: Loop) -> None:
    """Rename a folder over and back at every second call, edit, add and remove."""
    (loop.source / "b" / "f0").write_bytes(os.urandom(30))
    (loop.source / "b" / f"new{random.random()}").write_bytes(b"new")
    for old in sorted((loop.source / "b").glob("new*"))[:-2]:
        old.unlink()
    here, there = loop.source / "a" / "inner", loop.source / "b" / "inner"
    here.rename(there) if here.exists() else there.rename(here)


def leave_open(loop: Loop) -> None:
    """Leave a run behind that was cut off after a commit."""

    def cut(closing: Closing, *_: object) -> None:
        closing.wait()
        raise Cut(detail="before the close")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Closing, "close", cut)
        with pytest.raises(Cut):
            loop.sync()


def first(loop: Loop) -> None:
    make_tree(loop)


def changed(loop: Loop) -> None:
    make_tree(loop)
    loop.sync()
    change_tree(loop)


def resumed(loop: Loop) -> None:
    changed(loop)
    leave_open(loop)
    change_tree(loop)


def first_resumed(loop: Loop) -> None:
    make_tree(loop)
    leave_open(loop)


@pytest.fixture(autouse=True)
def nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves is in memory; flushing everything at every step would take minutes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    for module in (local, durability):
        monkeypatch.setattr(module, "flush_file_system", lambda fd: None)


@pytest.fixture(params=[first, changed, resumed, first_resumed], ids=lambda one: one.__name__)
def prepare(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def make_loop(tmp_path: Path, prepare: Callable[[Loop], None]) -> Any:
    """Return ``make(step)``: source, target and state of their own, ready for the run that is cut off."""

    def make(step: int) -> Loop:
        folder = tmp_path / str(step)
        folder.mkdir()
        loop = Loop(folder)
        loop.options = replace(loop.options, threads=1, commit_interval_s=0.0)
        prepare(loop)
        return loop

    return make


def check(loop: Loop) -> None:
    """A next run completes and leaves the mirror equal to the source, and a state to start from."""
    result = loop.sync()
    assert result.failures == []
    comparer = Comparer(str(loop.source), str(loop.copy), skip=(b".mirrorkeep",))
    assert [str(one) for one in comparer.differences()] == []
    again = loop.sync()
    assert (again.unchanged, again.bytes_sent) == (again.entries, 0)


def test_killed_before_any_change_of_the_state(make_loop: Callable[[int], Loop], kill_count: int) -> None:
    for step in steps(kill_count):
        loop = make_loop(step)
        child = os.fork()
        if not child:
            try:
                with pytest.MonkeyPatch.context() as patch:
                    Steps(patch, loop.folder / "state", step, lambda: os._exit(KILLED))
                    loop.sync()
                os._exit(0)
            except BaseException:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, KILLED), step
        if step % 2:
            change_tree(loop)
        check(loop)
        if code == 0:
            assert step > 8
            return
    raise AssertionError("the run never came to its end")


def test_no_room_for_any_change_of_the_state(
    make_loop: Callable[[int], Loop], monkeypatch: pytest.MonkeyPatch, kill_count: int
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    for step in steps(kill_count):
        loop = make_loop(step)
        with monkeypatch.context() as patch:
            acting = Steps(patch, loop.folder / "state", step, fail)
            try:
                loop.sync()
            except (OSError, MirrorkeepError):
                pass
        if step % 2:
            change_tree(loop)
        check(loop)
        if acting.left > 0:
            assert step > 8
            return
    raise AssertionError("the run never came to its end")
