"""Hard links whose folders are renamed: names move, and nothing about the files themselves tells of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compare import Comparer
from rig.mirrored import Mirrored
from rig.served import Served, checked, command

DRIVERS = ["dir", pytest.param("btrfs", marks=pytest.mark.btrfs)]


def test_links_survive_the_absence_of_their_leader(served_store: Served, tmp_path: Path) -> None:
    mirrored = Mirrored(served_store, tmp_path)
    source = mirrored.source
    for folder in ("a", "m", "z"):
        (source / folder).mkdir(parents=True)
    (source / "a" / "leader").write_bytes(b"one file of three names" * 100)
    os.link(source / "a" / "leader", source / "m" / "second")
    os.link(source / "a" / "leader", source / "z" / "third")
    mirrored.sync()
    for _ in range(2):
        (source / "a").rename(tmp_path / "away")
        mirrored.sync()
        assert mirrored.differences() == []
        (tmp_path / "away").rename(source / "a")
        mirrored.sync()
        assert mirrored.differences() == []
    mirrored.check_verdict()
    mirrored.check_snapshots()


def test_links_survive_the_renaming_of_their_folders(served_store: Served, tmp_path: Path) -> None:
    mirrored = Mirrored(served_store, tmp_path)
    source = mirrored.source
    (source / "a").mkdir(parents=True)
    (source / "m").mkdir()
    (source / "a" / "leader").write_bytes(b"one file of three names" * 100)
    os.link(source / "a" / "leader", source / "m" / "second")
    os.link(source / "a" / "leader", source / "third")
    mirrored.sync()
    assert mirrored.differences() == []
    for old, new in (("a", "z"), ("m", "b"), ("z", "a"), ("a", "y")):
        (source / old).rename(source / new)
        mirrored.sync()
        assert mirrored.differences() == []
        target = tmp_path / f"restored to {new}, from {old}"
        argv = ("restore", mirrored.volume.url, str(target), "--json")
        checked(*argv, environment=mirrored.volume.environment)
        assert [str(one) for one in Comparer(str(source), str(target)).differences()] == []
    mirrored.check_verdict()
    mirrored.check_snapshots()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ["a/leader", "m/second"])
def test_a_link_that_was_broken_on_the_store_is_found_and_made_again(
    make_served: Callable[..., Served], tmp_path: Path, driver: str, name: str
) -> None:
    mirrored = Mirrored(make_served(driver=driver), tmp_path)
    source = mirrored.source
    for folder in ("a", "m"):
        (source / folder).mkdir(parents=True)
    (source / "a" / "leader").write_bytes(b"one file of three names" * 100)
    os.link(source / "a" / "leader", source / "m" / "second")
    os.link(source / "a" / "leader", source / "third")
    mirrored.sync()
    stored = mirrored.tip() / name
    times = stored.parent.stat()
    shutil.copy2(stored, stored.with_name("copy"))
    stored.with_name("copy").rename(stored)
    os.utime(stored.parent, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert mirrored.differences() != []
    argv = ("validate", mirrored.volume.url, "--wait", "--json")
    result = command(*argv, environment=mirrored.volume.environment)
    found = {row["path"]: row["kind"] for row in result.rows if "kind" in row}
    split = {"m/second": "hard_link", "third": "hard_link"}
    assert (result.status, found) == (4, split if name == "a/leader" else {name: "hard_link"})
    assert mirrored.sync("--wait")["verdict"] == "repaired"
    assert mirrored.differences() == []
    assert mirrored.sync("--wait")["verdict"] == "verified"


@pytest.mark.btrfs
def test_damage_of_a_file_is_named_under_every_name_and_repaired_under_every_name(
    make_served: Callable[..., Served], tmp_path: Path
) -> None:
    """The storage tells of one name of what changed, and not of the one that the other is a link to."""
    mirrored = Mirrored(make_served(driver="btrfs"), tmp_path)
    source, tip = mirrored.source, mirrored.tip()
    for folder in ("0", "b"):
        (source / folder).mkdir(parents=True)
    for number in range(4):
        (source / "0" / f"read first {number}").write_bytes(os.urandom(5_000_000))
    (source / "b" / "one").write_bytes(b"one file of two names" * 100)
    mirrored.sync("--wait")
    (source / "a").mkdir()
    os.link(source / "b" / "one", source / "a" / "other")
    mirrored.sync("--wait")
    hurt = tip / "b" / "one"
    status = hurt.stat()
    hurt.write_bytes(b"X" * status.st_size)
    os.utime(hurt, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = mirrored.try_sync("--wait")
    assert (found.status, found.last["verdict"]) == (4, "failed")
    path = tip.parent / "parts" / "=" / "findings" / "3"
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["a/other", "b/one"]
    assert mirrored.sync("--wait")["verdict"] == "repaired"
    assert mirrored.differences() == []
    mirrored.check_verdict()
