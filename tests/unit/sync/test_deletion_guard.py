"""What the guard against deletions counts (trap 6)."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorkeep.cli.main import program
from mirrorkeep.errors import DeletionGuard
from mirrorkeep.sync.local import LocalSession
from mirrorkeep.sync.plan import Plan
from mirrorkeep.sync.progress import Silent
from tests.property.sync.loop import Loop


def make_source(loop: Loop) -> None:
    """Numbered photos, and as many other files."""
    for folder, count in (("photos", 50), ("rest", 60)):
        (loop.source / folder).mkdir(parents=True)
        for number in range(count):
            place = loop.source / folder / f"{number:04}"
            place.write_bytes(b"%s %d" % (folder.encode(), number))
            os.utime(place, (1_500_000_000 + number,) * 2)


def renumber(photos: Path) -> None:
    """Give each photo the name of the next one."""
    for number in range(len(os.listdir(photos)) - 1, -1, -1):
        (photos / f"{number:04}").rename(photos / f"{number + 1:04}")


@pytest.mark.parametrize("renumbered", [False, True])
def test_files_that_take_each_others_names_do_not_hide_deletions(tmp_path: Path, renumbered: bool) -> None:
    loop = Loop(tmp_path)
    make_source(loop)
    loop.sync()
    shutil.rmtree(loop.source / "rest")
    if renumbered:
        renumber(loop.source / "photos")
    with pytest.raises(DeletionGuard) as stopped:
        loop.sync(replace(loop.options, allow_deletes=False))
    assert stopped.value.fields["removed"] == 61
    assert len([name for name in os.listdir(loop.copy / "rest") if name.isdigit()]) == 60
    assert loop.sync().removed == 61
    loop.check()


def test_renames_are_no_deletions(tmp_path: Path) -> None:
    """All files of a folder move to another: only the folder itself goes."""
    loop = Loop(tmp_path)
    make_source(loop)
    loop.sync()
    for place in (loop.source / "rest").iterdir():
        place.rename(loop.source / "photos" / f"moved {place.name}")
    (loop.source / "rest").rmdir()
    result = loop.sync(replace(loop.options, allow_deletes=False))
    assert (result.removed, result.moved) == (1, 60)
    loop.check()


def make_groups(loop: Loop) -> None:
    """Thirty files of five names each."""
    (loop.source / "groups").mkdir(parents=True)
    for number in range(30):
        place = loop.source / "groups" / f"{number:04}"
        place.write_bytes(b"%d" % number)
        for name in "bcde":
            os.link(place, f"{place}{name}")


def test_hard_links_whose_folder_is_renamed_are_no_deletions(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    make_groups(loop)
    loop.sync()
    (loop.source / "groups").rename(loop.source / "other groups")
    assert planned(loop).stop is None
    result = loop.sync(replace(loop.options, allow_deletes=False))
    assert (result.removed, result.moved) == (1, 30)
    loop.check()


def test_a_name_that_goes_while_others_stay_is_a_deletion(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    make_groups(loop)
    loop.sync()
    for number in range(30):
        for name in ("", "c", "d"):
            (loop.source / "groups" / f"{number:04}{name}").unlink()
    stop = planned(loop).stop
    assert stop is not None
    assert stop.fields["removed"] == 90
    with pytest.raises(DeletionGuard) as stopped:
        loop.sync(replace(loop.options, allow_deletes=False))
    assert stopped.value.fields["removed"] == 90
    assert loop.sync().removed == 90
    loop.check()


def planned(loop: Loop) -> Plan:
    """Return the dry run of what the next run would do."""
    source, state = os.fspath(loop.source), os.fspath(loop.folder / "state")
    options = replace(loop.options, allow_deletes=False)
    session = LocalSession(os.fspath(loop.copy))
    plan = Plan(source, session, state, loop.target, options, Silent(), lambda *_: None)
    plan.execute()
    session.release()
    return plan


@pytest.mark.parametrize(("percent", "stops"), [(20, True), (60, False)])
def test_the_share_that_may_go_is_set(tmp_path: Path, percent: int, stops: bool) -> None:
    loop = Loop(tmp_path)
    make_source(loop)
    loop.sync()
    for number in range(55):
        (loop.source / "rest" / f"{number:04}").unlink()
    argv = ["sync", os.fspath(loop.source), os.fspath(loop.copy), "--state", os.fspath(tmp_path / "state 2")]
    result = CliRunner().invoke(program, [*argv, "--delete-limit", str(percent)])
    assert isinstance(result.exception, DeletionGuard) is stops
    assert len([name for name in os.listdir(loop.copy / "rest") if name.isdigit()]) == (60 if stops else 5)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str) -> None:
    loop = Loop(tmp_path)
    make_source(loop)
    loop.sync()
    shutil.rmtree(loop.source / "rest")
    argv = ["sync", os.fspath(loop.source), os.fspath(loop.copy), "--state", os.fspath(tmp_path / "state")]
    child, terminal = pty.fork()
    if not child:
        os.execv(
            sys.executable, [sys.executable, "-c", "from mirrorkeep.cli.main import main; main()", *argv]
        )
    told = b""
    try:
        while b"[y/N]" not in told:
            told += os.read(terminal, 1000)
        os.write(terminal, answer.encode() + b"\n")
        with contextlib.suppress(OSError):  # the end of a terminal
            while more := os.read(terminal, 1000):
                told += more
    finally:
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if answer == "y" else 6), told
    assert b"61 of 113 entries" in told
    assert (loop.copy / "rest").exists() is (answer == "n")
