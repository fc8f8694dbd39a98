"""Any file system to any other, and either end near or far: one engine for all of it (GEN-09, GEN-13)."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rig import scratch
from rig.compare import Comparer
from rig.served import Served, Volume, checked

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")
SIZES = {"ext4": 128 << 20, "xfs": 320 << 20, "btrfs": 256 << 20, "tmpfs": 64 << 20}
MIB = 1 << 20

pytestmark = [pytest.mark.root, pytest.mark.btrfs, pytest.mark.engine("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")]


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One file system of each kind."""
    folder = tmp_path_factory.mktemp("mounts")
    try:
        yield {kind: scratch.make(folder, kind, kind=kind, size_bytes=SIZES[kind]) for kind in KINDS}
    finally:
        scratch.discard(folder)


def make_tree(folder: Path) -> None:
    """A little of everything that all four can hold."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "small").write_bytes(b"small")
    (folder / "large").write_bytes(os.urandom(3 * MIB))
    with (folder / "sparse").open("wb") as stream:
        stream.truncate(8 * MIB)
        stream.seek(5 * MIB)
        stream.write(b"in the middle")
    os.link(folder / "deep" / "er" / "small", folder / "second name")
    os.symlink("deep/er/small", folder / "link")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(folder, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    (folder / os.fsdecode(b"\xff\xfe name \n")).write_bytes(b"no text")
    os.setxattr(folder / "large", "trusted.note", b"all four keep these")
    acl = ["setfacl", "-m", "u:1234:rx,d:u:1234:rwx", str(folder / "deep")]
    subprocess.run(acl, check=True)
    os.chown(folder / "large", 1234, 5678)
    os.chmod(folder / "large", 0o4750)
    os.utime(folder / "deep", ns=(0, 1_600_000_000_987_654_321))


def differences(one: Path, other: Path) -> list[str]:
    comparer = Comparer(str(one), str(other), skip=(b".mirrorkeep", b"lost+found"))
    return [str(found) for found in comparer.differences()]


def run(command: str, one: Path | str, other: Path | str, volume: Volume, *options: str) -> None:
    checked(command, str(one), str(other), *options, environment=volume.environment)


@pytest.mark.engine("setfacl")
@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_a_tree_of_any_file_system_goes_to_a_store_to_a_copy_and_back_to_any_other(
    store: Served, mounts: dict[str, Path], tmp_path: Path, number: int
) -> None:
    """Each kind is a source, the place of a local copy, and twice the place of what is restored."""
    home, copy, first, second = (mounts[KINDS[(number + step) % len(KINDS)]] for step in range(4))
    source = home / f"source of {KINDS[number]}"
    source.mkdir()
    make_tree(source)
    volume = store.create_volume(KINDS[number])
    state = ("--state", str(tmp_path / "state"))
    run("sync", source, volume.url, volume, "--wait", *state)
    run("sync", source, copy / "copy", volume, *state)
    restored = {
        first / "from the store": volume.url,
        second / "from the copy": copy / "copy",
        home / "from the store, at home": volume.url,
    }
    for target, origin in restored.items():
        run("restore", origin, target, volume)
        assert differences(source, target) == []
    (source / "deep" / "er" / "small").write_bytes(b"changed")
    with (source / "large").open("r+b") as stream:
        stream.write(b"changed")
    run("sync", source, volume.url, volume, "--wait", *state)
    for target in (first / "from the store", second / "from the copy"):
        run("restore", volume.url, target, volume, "--overwrite-newer")
        assert differences(source, target) == []


@pytest.mark.engine("setfacl")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_store_on_another_file_system_finds_no_damage_in_what_it_was_sent(
    mounts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """XFS shows root each access list twice: the second is neither mirrored nor taken for damage."""
    source = mounts["ext4"] / f"to a store on {kind}"
    source.mkdir()
    make_tree(source)
    served = Served(mounts[kind] / "data", driver="dir", limit_s=120)
    served.create()
    served.start()
    try:
        volume = served.create_volume("there")
        for _ in range(2):
            argv = ("sync", str(source), volume.url, "--wait", "--state", str(tmp_path / "state"), "--json")
            row = checked(*argv, environment=volume.environment).last
            assert (row["verdict"], row["failed"]) == ("verified", 0)
            run("restore", volume.url, mounts[kind] / "back", volume)
            assert differences(source, mounts[kind] / "back") == []
            subprocess.run(["setfacl", "-m", "u:4321:r", str(source / "deep")], check=True)
    finally:
        served.stop()


def test_a_snapshot_of_the_source_is_a_source(store: Served, mounts: dict[str, Path], tmp_path: Path) -> None:
    """Frozen and read-only: the live tree goes on meanwhile, and what is mirrored is what was frozen."""
    live, frozen = mounts["btrfs"] / "live", mounts["btrfs"] / "frozen"
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(live)], check=True)
    make_tree(live)
    subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", str(live), str(frozen)], check=True)
    (live / "large").write_bytes(b"the live tree goes on")
    (live / "new").write_bytes(b"later")
    volume = store.create_volume("frozen")
    run("sync", frozen, volume.url, volume, "--wait", "--state", str(tmp_path / "state"))
    run("restore", volume.url, tmp_path / "back", volume)
    assert differences(frozen, tmp_path / "back") == []


def test_what_was_restored_from_a_backup_is_the_source_of_the_next(
    store: Served, mounts: dict[str, Path], tmp_path: Path
) -> None:
    """Near to near, near to far, far to near: the tree that comes out is the one that went in."""
    source = mounts["ext4"] / "chain"
    source.mkdir()
    make_tree(source)
    volumes = [store.create_volume(f"chain{number}") for number in range(2)]
    state = ("--state", str(tmp_path / "state"))
    place: Path = source
    steps = (tmp_path / "copy", volumes[0].url, mounts["xfs"] / "copy", volumes[1].url)
    for number, step in enumerate(steps):
        volume = volumes[number // 2]
        run("sync", place, step, volume, *state)
        place = mounts[KINDS[number]] / f"chain {number}"
        run("restore", step, place, volume)
        assert differences(source, place) == []


Mounted = Callable[[Volume, str], Path]


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    from .test_dav_clients import open_mounts

    with open_mounts() as made:
        yield made.mount


@pytest.mark.engine("mount.davfs")
def test_a_tree_that_is_mounted_over_webdav_is_a_source(
    store: Served, tmp_path: Path, mounted: Mounted
) -> None:
    """Far to far: a snapshot of one volume, mounted, is mirrored to another one; names and bytes are kept."""
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "small.txt").write_bytes(b"small")
    (source / "folder" / "large.bin").write_bytes(os.urandom(2 * MIB))
    first, second = store.create_volume("far1"), store.create_volume("far2")
    state = ("--state", str(tmp_path / "state"))
    run("sync", source, first.url, first, *state)
    (row,) = checked("snapshots", first.url, "--json", environment=first.environment).rows
    far = mounted(first, f"{store.url}/snapshots/{row['name']}/far1")
    run("sync", far, second.url, second, "--wait", "--exclude", "/lost+found", *state)
    run("restore", second.url, tmp_path / "back", second)
    for path in ("small.txt", "folder/large.bin"):
        assert (tmp_path / "back" / path).read_bytes() == (source / path).read_bytes()
    assert sorted(os.listdir(tmp_path / "back")) == ["folder", "small.txt"]
