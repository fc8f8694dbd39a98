"""Restores of many files: cut off and resumed, and without the store at all (REC-09, LOC-04)."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.trees import make_small_files
from rig.compare import Comparer
from rig.served import COMMAND, END_WITH_PARENT, Served, Volume, checked, descendants
from rig.tapping import TappingProxy

MIB = 1 << 20
FILES, LARGE_BYTES = 4000, 2 * MIB


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thousands of small files and a few large ones, among them two names of one file and a link."""
    folder = tmp_path_factory.mktemp("many") / "source"
    folder.mkdir()
    make_small_files(str(folder), FILES, mean_bytes=2500)
    for number in range(3):
        (folder / f"large{number}").write_bytes(random.Random(number).randbytes(LARGE_BYTES))
    os.link(folder / "large0", folder / "second name")
    os.symlink("large1", folder / "link")
    return folder


@pytest.fixture(scope="module")
def volume(store: Served, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    made = store.create_volume("many")
    state = tmp_path_factory.mktemp("state")
    checked("sync", str(source), made.url, "--state", str(state), environment=made.environment)
    return made


def differences(one: Path, other: Path) -> list[str]:
    comparer = Comparer(str(one), str(other), skip=(b".mirrorkeep",))
    return [str(found) for found in comparer.differences()]


def whole_files(folder: Path, like: Path) -> int:
    """Return how many bytes of files that are whole a folder holds."""
    size = 0
    for path in folder.rglob("*"):
        twin = like / path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and twin.exists():
            size += path.stat().st_size * (path.read_bytes() == twin.read_bytes())
    return size


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def test_a_restore_that_is_killed_goes_on_and_fetches_nothing_twice(
    store: Served, source: Path, volume: Volume, tmp_path: Path
) -> None:
    """The line holds back everything after three quarters, so that the kill falls into the middle."""
    target = tmp_path / "restored"
    files = {path.stat().st_ino: path.stat().st_size for path in source.rglob("*") if path.is_file()}
    whole = sum(files.values())
    with TappingProxy(store.port, hold_after=3 * whole // 4) as proxy:
        argv = [*END_WITH_PARENT, *COMMAND, "restore", proxy.url(volume.url), str(target), "--threads", "2"]
        process = subprocess.Popen(argv, env={**os.environ, **volume.environment}, stdin=subprocess.DEVNULL)
        try:
            assert proxy.held.wait(60)
        finally:
            kill_with_children(process)
        carriers = sum(len(one.down) > MIB for one in proxy.connections)
    assert carriers > 1, "several connections bring it"
    there = whole_files(target, source)
    assert 3 * LARGE_BYTES + MIB < there < whole, "large files and small ones are there, and not all"
    with TappingProxy(store.port) as proxy:
        again = replace(volume, url=proxy.url(volume.url))
        row = checked("restore", again.url, str(target), "--json", environment=again.environment).last
        came_down = sum(len(one.down) for one in proxy.connections)
    assert differences(source, target) == []
    assert row["unchanged"] > 0
    assert row["restored"] + row["unchanged"] == FILES + 3
    assert row["bytes_read"] <= whole - there
    manifest_bytes = 500 * (FILES + 100)
    assert came_down < 1.01 * (whole - there) + manifest_bytes
    assert not list(target.rglob(".mirrorkeep*")), "nothing of the cut-off restore is left"


def test_a_restore_needs_few_requests_and_only_the_difference_of_an_older_tree(
    store: Served, source: Path, volume: Volume, tmp_path: Path
) -> None:
    """Bundles and deltas, as in a mirror run: it starts from the older copy in the place of the new one."""
    target = tmp_path / "older"
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    small = sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size < MIB)
    for path in small[:50]:
        path.write_bytes(b"older")
        os.utime(path, (1, 1))
    with (target / "large2").open("r+b") as stream:
        stream.seek(2 * MIB)
        stream.write(b"older" * 2000)
    os.utime(target / "large2", (1, 1))
    row = checked("restore", volume.url, str(target), "--json", environment=volume.environment).last
    assert differences(source, target) == []
    assert (row["restored"], row["unchanged"]) == (51, FILES + 3 - 51)
    fetched = sum((source / path.relative_to(target)).stat().st_size for path in small[:50])
    assert row["bytes_read"] < fetched + 256 * 1024


def test_a_local_copy_restores_while_the_store_is_down(tmp_path: Path) -> None:
    """The same source to a store and to a disk; the store goes; the disk gives back all, then one file."""
    source = tmp_path / "source"
    source.mkdir()
    make_small_files(str(source), 300, mean_bytes=2500)
    (source / "large1").write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    os.link(source / "large1", source / "second name")
    served = Served(tmp_path / "data", driver="dir", limit_s=120)
    served.create()
    served.start()
    try:
        volume = served.create_volume("away")
        for target in (volume.url, str(tmp_path / "disk")):
            argv = ("sync", str(source), target, "--state", str(tmp_path / "state"))
            checked(*argv, environment=volume.environment)
    finally:
        served.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port), timeout=5)
    unset = {"MIRRORKEEP_TOKEN": "", "MIRRORKEEP_CA": ""}
    row = checked("restore", str(tmp_path / "disk"), str(tmp_path / "back"), "--json", environment=unset).last
    assert (row["status"], row["restored"]) == ("complete", 301)
    assert differences(source, tmp_path / "back") == []
    one = ("restore", str(tmp_path / "disk"), str(tmp_path / "one"), "--path", "large1")
    checked(*one, environment=unset)
    assert (tmp_path / "one" / "large1").read_bytes() == (source / "large1").read_bytes()
