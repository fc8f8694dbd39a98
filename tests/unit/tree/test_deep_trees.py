"""Trees of any depth are walked, read and written with few descriptors, and nothing is taken for another."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.tree import descent, removal, walk
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Frame
from mirrorkeep.tree.walk import Directory, Event, Siblings, Unreadable
from tests.unit.tree.deep import NAME, descriptors, make_deep, remove_deep

DEPTH = 1100
LEVELS = 8
"""Open at one time in the tests of what is moved meanwhile."""


@pytest.fixture(autouse=True)
def tidy(tmp_path: Path) -> Iterator[None]:
    yield
    remove_deep(tmp_path)


def names_of(events: Iterator[Event]) -> list[bytes]:
    found: list[bytes] = []
    for event in events:
        match event:
            case Siblings(parent, names, _):
                found += [parent + b"/" + name if parent else name for name in names]
            case Directory(path, _):
                found.append(path)
            case Unreadable(path, _):
                found.append(b"?" + path)
    return found


@pytest.mark.parametrize("spilled", [False, True])
def test_a_deep_tree_is_walked_whole_with_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spilled: bool
) -> None:
    depth, name = (DEPTH, NAME) if not spilled else (100, NAME)
    make_deep(tmp_path / "top", depth, name)
    if spilled:
        monkeypatch.setattr(walk, "MAX_NAMES_IN_MEMORY", 2)
    before, most = descriptors(), 0

    def watched() -> Iterator[Event]:
        nonlocal most
        for event in walk.walk(tmp_path / "top"):
            most = max(most, descriptors())
            yield event

    paths = [b"/".join([name] * level) for level in range(1, depth + 1)]
    down = [path + b"/a" for path in paths]
    up = [one for path in reversed(paths) for one in (path + b"/z", path)]
    assert names_of(watched()) == [*down, *up, b""]
    assert most - before <= descent.LEVELS_OPEN + 5
    assert descriptors() == before


def test_a_walk_finds_back_whatever_is_moved_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LEVELS_OPEN", LEVELS)
    make_deep(tmp_path / "top", 30)
    events = walk.walk(tmp_path / "top")
    path = tmp_path / "top" / "/".join(["down"] * 10)
    found = names_of(next(events) for _ in range(30))  # all the way down
    os.rename(path / "down", tmp_path / "elsewhere")
    found += names_of(events)
    assert b"?" not in b"".join(found)
    assert len(found) == len(set(found)) == 30 * 3 + 1


def test_what_takes_a_folders_place_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "LEVELS_OPEN", LEVELS)
    make_deep(tmp_path / "top", 30)
    events = walk.walk(tmp_path / "top")
    found = names_of(next(events) for _ in range(30))
    path = tmp_path / "top" / "/".join(["down"] * 10)
    os.rename(path / "down", tmp_path / "below")
    os.rename(path, tmp_path / "folder")
    path.mkdir()
    (path / "z").write_text("another folder's")
    found += names_of(events)
    folder = os.fsencode("/".join(["down"] * 10))
    assert [one for one in found if one.startswith(b"?")] == [b"?" + folder]
    assert folder + b"/z" not in found
    assert folder.rpartition(b"/")[0] + b"/z" in found  # what is above it is looked at all the same


def test_entries_far_down_are_read_and_written(tmp_path: Path) -> None:
    make_deep(tmp_path / "top", DEPTH, files=(b"a",))
    paths = [b"/".join([NAME] * level) + b"/a" for level in (DEPTH, 1, DEPTH // 2, 2)]
    before = descriptors()
    frames = [one for one in NativeTree(str(tmp_path / "top")).frames(paths) if isinstance(one, Frame)]
    assert [one.data for one in frames] == [b"%d" % (DEPTH - 1), b"0", b"%d" % (DEPTH // 2 - 1), b"1"]
    copy = NativeTree(str(tmp_path / "copy"))
    (tmp_path / "copy").mkdir()
    assert copy.apply(frames) == []
    again = [one for one in copy.frames(paths) if isinstance(one, Frame)]
    assert [one.data for one in again] == [one.data for one in frames]
    assert descriptors() == before


def test_a_removal_takes_all_that_is_in_a_folder_and_nothing_that_is_linked_to(tmp_path: Path) -> None:
    make_deep(tmp_path / "top", DEPTH)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("stays")
    (tmp_path / "top" / "link").symlink_to("../outside")
    (tmp_path / "top" / "down" / "shut").mkdir()
    (tmp_path / "top" / "down" / "shut" / "inner").mkdir()
    (tmp_path / "top" / "down" / "shut" / "inner" / "file").write_text("goes")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(tmp_path)
            if os.geteuid() == 0:  # whom no mode shuts out
                subprocess.run(["chown", "-R", "1:1", "."], check=True)
                os.setuid(1)
            os.chmod("top/down/shut/inner", 0o400)
            os.chmod("top/down/shut", 0)
            removal.remove_tree("top")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert (tmp_path / "outside" / "file").read_text() == "stays"
    with pytest.raises(FileNotFoundError):
        removal.remove_tree(tmp_path / "top")
