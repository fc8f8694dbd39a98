"""Files that are mostly hole: they cost what their data costs, on the way and on the store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.mirrored import Mirrored
from rig.served import Served, checked

MIB = 1 << 20
BLOCK = 4096


def write(path: Path, size_bytes: int, *offsets: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.truncate(size_bytes)
        for offset in offsets:
            stream.seek(offset)
            stream.write(os.urandom(BLOCK))


@pytest.mark.parametrize(
    "driver", ["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])]
)
def test_a_file_needs_the_room_of_its_data(
    make_served: Callable[..., Served], tmp_path: Path, driver: str
) -> None:
    size_bytes = 400 * MIB  # more than the whole pool of 300 MiB has
    mirrored = Mirrored(make_served(driver=driver, size="300M" if driver == "btrfs" else None), tmp_path)
    mirrored.source.mkdir()
    image = mirrored.source / "disk.img"
    write(image, size_bytes, 0, 12 * MIB, 18 * MIB, size_bytes - BLOCK)
    row = mirrored.sync()
    assert (row["new"], row["failed"]) == (1, 0)
    assert row["bytes_sent"] < MIB
    assert mirrored.differences() == []
    stored = (mirrored.tip() / "disk.img").stat()
    assert stored.st_blocks * 512 < 2 * MIB

    write(image, size_bytes + 100 * MIB, 12 * MIB, size_bytes + 50 * MIB)  # it grows, and changes
    row = mirrored.sync()
    assert (row["new"], row["failed"]) == (0, 0)
    assert row["bytes_sent"] < MIB
    assert mirrored.differences() == []
    assert (mirrored.tip() / "disk.img").stat().st_blocks * 512 < 22 * MIB  # two segments on the base
    mirrored.check_verdict()
    mirrored.check_snapshots()

    back = tmp_path / "back"
    checked("restore", mirrored.volume.url, str(back), environment=mirrored.volume.environment)
    assert (back / "disk.img").stat().st_blocks * 512 < 2 * MIB
