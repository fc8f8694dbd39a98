"""What is there already does not travel again, measured against a store that serves."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.served import Served, checked

MIB = 1 << 20
SIZE_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("seeds") / "data", driver="dir", limit_s=600)
    served.create()
    served.start()
    yield served
    served.stop()


def test_going_back_three_versions_moves_the_differences_alone(store: Served, tmp_path: Path) -> None:
    volume = store.create_volume("versions")
    source = tmp_path / "source"
    source.mkdir()
    chance = random.Random(5)
    content = bytearray(chance.randbytes(SIZE_BYTES))
    first = bytes(content)
    for version in range(4):
        if version:
            at = chance.randrange(SIZE_BYTES - MIB)
            content[at : at + 50_000] = chance.randbytes(49_000 + 1000 * version)
        (source / "image").write_bytes(content)
        checked("sync", str(source), volume.url, "--json", environment=volume.environment)
    rows = checked("snapshots", volume.url, "--json", environment=volume.environment).rows
    back = ("--snapshot", rows[0]["name"], "--json")
    revert = checked(
        "restore", volume.url, str(source), "--overwrite-newer", *back, environment=volume.environment
    )
    assert (source / "image").read_bytes() == first
    assert revert.last["restored"] == 1
    assert revert.last["bytes_read"] < SIZE_BYTES * 3 // 100

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "image").write_bytes(content)
    seeded = checked(
        *("restore", volume.url, str(tmp_path / "new"), "--seed", str(tmp_path / "old")),
        *back,
        environment=volume.environment,
    )
    assert (tmp_path / "new" / "image").read_bytes() == first
    assert seeded.last["bytes_read"] < SIZE_BYTES * 3 // 100
    assert os.stat(tmp_path / "new" / "image").st_mtime_ns == os.stat(source / "image").st_mtime_ns
