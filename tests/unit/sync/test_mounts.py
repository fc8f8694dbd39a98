"""A file system that is not mounted any more takes nothing away from the mirror (trap 6)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorkeep.errors import SourceUnmounted
from mirrorkeep.store.examine import Found
from mirrorkeep.store.local_copy import validate_directory
from mirrorkeep.sync.local import LocalSession
from mirrorkeep.sync.options import RunOptions, RunResult
from mirrorkeep.sync.plan import Plan
from mirrorkeep.sync.progress import Silent
from rig import scratch
from tests.property.sync.loop import Cut, Loop

pytestmark = pytest.mark.root


class Disk:
    """A file system with files, mounted on a folder or not."""

    def __init__(self, folder: Path) -> None:
        self._place = scratch.make(folder, "disk", kind="tmpfs", size_bytes=8 << 20)
        self._points: list[Path] = []
        self.folder = folder
        (self._place / "inner").mkdir()
        for number in range(12):
            (self._place / "inner" / f"f{number}").write_bytes(b"precious %d" % number)

    def mount(self, point: Path) -> None:
        point.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", self._place, point], check=True)
        self._points.append(point)

    def unmount(self) -> None:
        while self._points:
            subprocess.run(["umount", self._points.pop()], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disks")
    yield made
    made.unmount()
    scratch.discard(made.folder)


@pytest.fixture
def loop(tmp_path: Path, disk: Disk) -> Loop:
    """A source with a few files of its own and the disk on ``disk``; deletions are guarded."""
    loop = Loop(tmp_path)
    loop.options = replace(loop.options, allow_deletes=False)
    (loop.source / "home").mkdir(parents=True)
    for number in range(20):
        (loop.source / "home" / f"f{number}").write_bytes(b"%d" % number)
    disk.mount(loop.source / "disk")
    return loop


def failures(result: RunResult) -> list[tuple[bytes, str]]:
    return [failure[:2] for failure in result.failures]


def planned(loop: Loop) -> RunResult:
    state, session = os.fspath(loop.folder / "state"), LocalSession(os.fspath(loop.copy))
    source = os.fspath(loop.source)
    return Plan(source, session, state, loop.target, loop.options, Silent(), lambda *_: None).execute()


def copied(loop: Loop) -> list[str]:
    return sorted(name for name in os.listdir(loop.copy / "disk" / "inner") if name.startswith("f"))


@pytest.mark.parametrize("underneath", [False, True], ids=["an empty folder", "files underneath"])
def test_what_was_mounted_is_kept_until_it_is_mounted_again(loop: Loop, disk: Disk, underneath: bool) -> None:
    assert loop.sync().status == "complete"
    disk.unmount()
    if underneath:
        (loop.source / "disk" / "inner").mkdir()
        (loop.source / "disk" / "log").write_bytes(b"written while it was away")
    (loop.source / "home" / "f1").unlink()
    (loop.source / "home" / "more").write_bytes(b"more")
    plan = planned(loop)
    assert (plan.new, plan.removed, plan.failed) == (1, 1, 1)
    result = loop.sync()
    assert (result.status, result.new, result.removed) == ("partial", 1, 1)
    assert failures(result) == [(b"disk", "source_unmounted")]
    for _ in range(2):  # it is remembered for as long as it takes
        result = loop.sync()
        assert (result.status, result.new, result.changed, result.removed) == ("partial", 0, 0, 0)
        assert len(copied(loop)) == 12
    disk.mount(loop.source / "disk")
    loop.check_unchanged()
    loop.check()


def test_damage_to_what_is_not_mounted_is_repaired_when_it_is(loop: Loop, disk: Disk) -> None:
    loop.sync()
    (loop.copy / "disk" / "inner" / "f3").write_bytes(b"damaged")
    os.chmod(loop.copy / "disk", 0o701)
    found: list[Found] = []
    validate_directory(os.fspath(loop.copy), found.append)
    assert {one[0] for one in found} == {b"disk", b"disk/inner/f3"}
    disk.unmount()
    assert failures(loop.sync()) == [(b"disk", "source_unmounted")]
    disk.mount(loop.source / "disk")
    assert loop.sync().status == "complete"
    found.clear()
    validate_directory(os.fspath(loop.copy), found.append)
    assert found == []


def test_what_is_gone_for_good_goes_once_that_is_said(loop: Loop, disk: Disk) -> None:
    loop.sync()
    disk.unmount()
    confirmed = loop.sync(replace(loop.options, allow_deletes=True))
    assert (confirmed.status, confirmed.removed) == ("complete", 13)
    loop.check_unchanged()
    loop.check()


def test_a_folder_that_is_removed_with_its_mount_is_a_deletion_like_others(loop: Loop, disk: Disk) -> None:
    loop.sync()
    disk.unmount()
    (loop.source / "disk").rmdir()
    assert (loop.sync().removed, loop.sync().status) == (14, "complete")
    (loop.source / "disk").mkdir()
    assert loop.sync().status == "complete"
    loop.check()


def test_a_mount_within_one_that_is_missing_is_remembered_as_well(
    loop: Loop, disk: Disk, tmp_path: Path
) -> None:
    outer = Disk(tmp_path / "outer")
    outer.mount(loop.source / "outer")
    disk.mount(loop.source / "outer" / "within")
    try:
        loop.sync()
        disk.unmount()
        outer.unmount()
        assert failures(loop.sync()) == [(b"disk", "source_unmounted"), (b"outer", "source_unmounted")]
        outer.mount(loop.source / "outer")
        result = loop.sync()
        assert failures(result) == [(b"disk", "source_unmounted"), (b"outer/within", "source_unmounted")]
        assert result.removed == 0
    finally:
        disk.unmount()
        outer.unmount()
        scratch.discard(outer.folder)


def test_a_run_that_is_cut_off_remembers_what_was_mounted(
    loop: Loop, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise Cut(detail="cut")

    monkeypatch.setattr(LocalSession, "close", cut)
    with pytest.raises(Cut):
        loop.sync()
    monkeypatch.undo()
    disk.unmount()
    assert failures(loop.sync()) == [(b"disk", "source_unmounted")]
    assert len(copied(loop)) == 12
    disk.mount(loop.source / "disk")
    assert loop.sync().status == "complete"
    loop.check()


@pytest.mark.parametrize("underneath", [False, True], ids=["an empty folder", "files underneath"])
@pytest.mark.parametrize("one_file_system", [False, True])
def test_a_source_that_is_not_mounted_itself_stops_the_run(
    tmp_path: Path, disk: Disk, one_file_system: bool, underneath: bool
) -> None:
    loop = Loop(tmp_path)
    options = RunOptions(threads=2, one_file_system=one_file_system)
    disk.mount(loop.source)
    loop.sync(options)
    disk.unmount()
    if underneath:
        (loop.source / "log").write_bytes(b"written while it was away")
    with pytest.raises(SourceUnmounted):
        loop.sync(options)
    disk.mount(loop.source)
    assert loop.sync(options).status == "complete"
    loop.check_unchanged()
    loop.check()


def test_with_one_file_system_a_mount_point_is_an_empty_folder_mounted_or_not(loop: Loop, disk: Disk) -> None:
    options = replace(loop.options, one_file_system=True)
    loop.sync(options)
    disk.unmount()
    for _ in range(2):
        result = loop.sync(options)
        assert (result.status, result.removed) == ("complete", 0)
    disk.mount(loop.source / "disk")
    assert loop.sync(options).status == "complete"
    assert loop.sync().new == 13  # now it is entered
    assert loop.sync(options).removed == 13  # and now it is not
    disk.unmount()
    assert loop.sync().status == "complete"
