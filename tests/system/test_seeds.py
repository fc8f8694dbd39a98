"""What is there already does not travel again, measured against a store that serves."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from rig.served import Served, checked

MIB = 1 << 20
SIZE_BYTES = 64 * MIB


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


def test_what_the_store_has_under_another_name_is_not_sent(store: Served, tmp_path: Path) -> None:
    volume = store.create_volume("twins")
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(os.urandom(100_000))
    (source / "large").write_bytes(os.urandom(8 * MIB))
    shutil.copy(source / "large", source / "large twin")
    first = checked("sync", str(source), volume.url, "--json", environment=volume.environment).last
    assert (first["failed"], first["copied"]) == (0, 1)
    assert first["bytes_sent"] < 9 * MIB

    shutil.copytree(source, tmp_path / "again")
    (tmp_path / "again").rename(source / "again")
    second = checked("sync", str(source), volume.url, "--json", environment=volume.environment).last
    assert (second["failed"], second["copied"]) == (0, 3)
    assert second["bytes_sent"] < 10_000
    validate = ("validate", volume.url, "--full", "--wait", "--json")
    assert checked(*validate, environment=volume.environment).last["verdict"] == "verified"
