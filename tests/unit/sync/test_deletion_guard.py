"""What the guard against deletions counts (trap 6)."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorkeep.errors import DeletionGuard
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
