"""Hard links whose folders are renamed: names move, and nothing about the files themselves tells of it."""

from __future__ import annotations

import os
from pathlib import Path

from rig.compare import Comparer
from rig.mirrored import Mirrored
from rig.served import Served, checked


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
