"""Somebody takes the server's own folder out of a tip that is being served: no run believes that it wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.mirrored import HIDDEN, Mirrored
from rig.served import Served

DRIVERS = ["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])]


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def move_away(folder: Path) -> None:
    shutil.move(folder, folder.parents[2] / "elsewhere")


@pytest.mark.parametrize("take_away", [remove, move_away])
@pytest.mark.parametrize("driver", DRIVERS)
def test_what_changed_is_stored_when_the_hidden_folder_is_gone(
    make_served: Callable[..., Served], tmp_path: Path, driver: str, take_away: Callable[[Path], None]
) -> None:
    mirrored = Mirrored(make_served(driver=driver), tmp_path)
    (mirrored.source / "folder").mkdir(parents=True)
    for name in ("f0", "f1", "f2", "folder/f3"):
        (mirrored.source / name).write_bytes(os.urandom(5000))
    (mirrored.source / "large").write_bytes(os.urandom(12 << 20))
    mirrored.sync()
    for turn in range(2):  # both workers have had the staging folder open
        for name in ("f1", "folder/f3"):
            (mirrored.source / name).write_bytes(b"before %d" % turn)
        mirrored.sync()
    take_away(mirrored.tip() / os.fsdecode(HIDDEN))
    for turn in range(2):
        for name in ("f1", "folder/f3"):
            (mirrored.source / name).write_bytes(b"since then %d" % turn)
        with (mirrored.source / "large").open("r+b") as stream:
            stream.write(b"%d" % turn)
        row = mirrored.sync()
        assert row["changed"] >= 3 and row["failed"] == 0  # more: what lost its sidecar is sent again
        assert mirrored.differences() == []
        assert (mirrored.tip() / os.fsdecode(HIDDEN) / "f0").exists()  # which did not change
    mirrored.check_verdict()
