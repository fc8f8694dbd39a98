"""Stores, volumes and parts: made, opened again, found, kept apart, deleted; and room for writers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import (
    AlreadyExists,
    BadUsage,
    EngineMissing,
    NoSpace,
    NotFound,
    PartNesting,
    PathRefused,
)
from mirrorkeep.store import runs
from mirrorkeep.store.drivers import btrfs
from mirrorkeep.store.pool import Store
from tests.unit.store.part_at_work import close, make_store, manifest_of

SMALL = manifest_of([b"a"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data")
    yield made
    made.close(detach=True)


@pytest.fixture
def btrfs_store(tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data", "btrfs")
    yield made
    made.close(detach=True)


def test_a_store_lies_as_the_architecture_says(store: Store) -> None:
    store.create_volume("laptop")
    for name in ("store.json", "keys/ca.pem", "registry/volumes/laptop.json", "queue", "run", "log"):
        assert os.path.exists(os.path.join(store.data, name)), name
    for name in ("tip", "snapshots", "parts"):
        assert os.path.isdir(os.path.join(store.data, "pool/volumes/laptop", name)), name
    for name in ("keys", "registry", "pool/volumes"):
        assert stat.S_IMODE(os.stat(os.path.join(store.data, name)).st_mode) == 0o700


def test_a_place_that_is_taken_is_left_alone(store: Store, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        Store.create(store.data, "dir")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(AlreadyExists):
        Store.create(str(tmp_path / "other"), "dir")
    assert os.listdir(tmp_path / "other") == ["file"]


def test_a_driver_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing):
        Store.create(str(tmp_path / "data"), "zfs")
    Store.create(str(tmp_path / "data"), "dir").close()


def test_opening_what_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="store init"):
        Store.open(str(tmp_path))


def test_a_store_of_a_newer_format_is_not_touched(store: Store) -> None:
    settings = Path(store.data, "store.json")
    settings.write_text(settings.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(BadUsage, match="newer"):
        Store.open(store.data)


@pytest.mark.btrfs
@pytest.mark.root
def test_an_image_is_mounted_again_wherever_it_was_left(btrfs_store: Store) -> None:
    tip = btrfs_store.create_volume("laptop").tip
    Path(tip, "file").write_text("content")
    btrfs_store.close(detach=True)
    assert os.listdir(os.path.join(btrfs_store.data, "pool")) == []
    for _ in range(2):
        opened = Store.open(btrfs_store.data)
        assert Path(opened.volume("laptop").tip, "file").read_text() == "content"
        opened.close()
    flags = os.statvfs(os.path.join(btrfs_store.data, "pool")).f_flag
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    assert flags & os.ST_NOEXEC
    btrfs_store.driver.attach()


@pytest.mark.btrfs
@pytest.mark.root
def test_many_processes_that_start_at_once_mount_once(btrfs_store: Store) -> None:
    btrfs_store.close(detach=True)
    script = f"from mirrorkeep.store.pool import Store; Store.open({btrfs_store.data!r})"
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [child.wait(30) for child in children] == [0] * 4
    mounts = Path("/proc/self/mountinfo").read_text().count(f" {btrfs_store.data}/pool ")
    assert mounts == 1


@pytest.mark.btrfs
@pytest.mark.root
def test_a_full_host_is_told_before_the_image_runs_into_it(
    btrfs_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def nearly_full(path: str) -> os.statvfs_result:
        found = list(real(path))
        if path == btrfs_store.data:
            found[4] = (64 << 20) // found[1]  # f_bavail: 64 MiB
        return os.statvfs_result(found)

    btrfs_store.ensure_room(0)
    monkeypatch.setattr(btrfs.os, "statvfs", nearly_full)
    btrfs_store._usage = (float("-inf"), btrfs_store._usage[1])
    with pytest.raises(NoSpace):
        btrfs_store.ensure_room(0)
    assert NoSpace.http_status == 507


@pytest.mark.btrfs
@pytest.mark.root
def test_an_image_smaller_than_btrfs_can_be_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadUsage):
        Store.create(str(tmp_path / "data"), "btrfs", 1 << 20)
    assert not (tmp_path / "data" / "pool.img").exists()


def test_room_is_asked_for_in_bytes(store: Store) -> None:
    store.ensure_room(1 << 20)
    with pytest.raises(NoSpace):
        store.ensure_room(1 << 60)


def test_the_incarnation_is_that_of_the_last_start(store: Store) -> None:
    other = Store.open(store.data)
    first = store.start_incarnation()
    assert other.incarnation == store.incarnation == first
    second = other.start_incarnation()
    assert second != first
    assert store.incarnation == second
    other.close()


@pytest.mark.parametrize(
    ("listen", "shown"), [("127.0.0.1:8443", "127.0.0.1:8443"), ("[::1]:9", "[::1]:9"), ("0.0.0.0:1", ":1")]
)
def test_the_address_of_the_last_service_is_remembered(store: Store, listen: str, shown: str) -> None:
    assert store.address() == "127.0.0.1:8443"
    store.remember_address(listen)
    assert store.address().endswith(shown)
    assert not store.address().startswith("0.0.0.0")


# --- volumes and parts -----------------------------------------------------------------------------


def test_volumes_are_deleted_with_everything(store: Store) -> None:
    volume = store.create_volume("laptop")
    part = volume.part(b"home", create=True)
    close(part, runs.begin_run(part, "", {}), SMALL)
    token = store.registry.create_token("laptop")
    store.delete_volume("laptop")
    assert not os.path.exists(volume.folder)
    assert store.registry.authenticate_token(token) is None
    with pytest.raises(NotFound):
        store.volume("laptop")
    assert store.create_volume("laptop").parts() == []


def test_storage_with_snapshots_that_nobody_registered_is_not_reused(store: Store) -> None:
    volume = store.create_volume("laptop")
    part = volume.part(b"", create=True)
    close(part, runs.begin_run(part, "", {}), SMALL)
    store.registry.delete_volume("laptop")
    with pytest.raises(AlreadyExists, match="snapshots"):
        store.create_volume("laptop")
    assert os.listdir(volume.snapshots)


def test_a_path_leads_to_the_part_that_owns_it(store: Store) -> None:
    volume = store.create_volume("laptop")
    assert volume.part_for(b"home/a") is None
    home = volume.part(b"home/\xffann", create=True)
    etc = volume.part(b"etc", create=True)
    for path, owner in (
        (b"home/\xffann", home),
        (b"home/\xffann/x/y", home),
        (b"home/\xffann2", None),
        (b"home", None),
        (b"", None),
        (b"etc/passwd", etc),
    ):
        assert volume.part_for(path) is owner
    assert [part.path for part in volume.parts()] == [b"etc", b"home/\xffann"]
    assert home.key == "home%2F%FFann"
    with pytest.raises(NotFound):
        volume.part(b"home")


def test_the_whole_volume_may_be_one_part(store: Store) -> None:
    volume = store.create_volume("laptop")
    part = volume.part(b"", create=True)
    assert (part.key, part.root) == ("=", volume.tip)
    assert volume.part_for(b"") is volume.part_for(b"any/where") is part


@pytest.mark.parametrize("path", [b"", b"a", b"a/b/c", b"a/b/c/d"])
def test_parts_never_nest(store: Store, path: bytes) -> None:
    volume = store.create_volume("laptop")
    volume.part(b"a/b/c" if path != b"a/b/c" else b"", create=True)
    with pytest.raises(PartNesting):
        volume.part(path, create=True)
    volume = store.create_volume("desktop")
    volume.part(b"a/b", create=True)
    volume.part(b"a/bc", create=True)  # a neighbour with a common beginning


@pytest.mark.parametrize(
    "path",
    [b"..", b"a/../b", b".", b"a//b", b"/a", b"a/", b".mirrorkeep", b"a/.mirrorkeep/b", b"a\0b", b"x" * 300],
)
def test_places_that_no_part_can_have(store: Store, path: bytes) -> None:
    volume = store.create_volume("laptop")
    with pytest.raises(PathRefused):
        volume.part(path, create=True)
    assert os.listdir(volume.tip) == []


def test_a_part_is_not_made_over_a_file_or_through_a_link(store: Store, tmp_path: Path) -> None:
    volume = store.create_volume("laptop")
    Path(volume.tip, "file").write_text("mine")
    os.symlink(tmp_path, os.path.join(volume.tip, "link"))
    for path in (b"file", b"file/x", b"link", b"link/x"):
        with pytest.raises(PathRefused):
            volume.part(path, create=True)
    assert not (tmp_path / "x").exists()


def test_a_part_may_be_called_like_anothers_while_it_is_made(store: Store) -> None:
    volume = store.create_volume("v")
    making = volume.part(b"x.making", create=True)
    assert volume.part_for(b"x.making/file") is making
    run = runs.begin_run(making, "host:/x", {})
    snapshot = close(making, run, SMALL).snapshot
    assert snapshot is not None
    assert not volume.has_room_for(b"x.making/below") and volume.has_room_for(b"x")
    other = volume.part(b"x", create=True)
    store.recover()
    store.driver.snapshot(other.root, other.place_of(snapshot))
    assert [part.path for part in volume.parts()] == [b"x", b"x.making"]
    assert making.state().sequence == 1
    assert os.path.isdir(making.snapshot_root(snapshot))
    assert os.path.isfile(making.manifest_path(snapshot))


def test_a_volume_made_again_by_another_process_is_a_new_one(store: Store) -> None:
    volume = store.create_volume("v")
    volume.plain_tree().make_directory(b"old")
    assert store.volume("v") is volume
    with_other = Store.open(store.data)
    with_other.delete_volume("v")
    with_other.create_volume("v")
    with_other.close()
    again = store.volume("v")
    assert again is not volume and again is store.volume("v")
    assert list(again.plain_tree().list(b"")) == []
    again.plain_tree().make_directory(b"new")
    assert os.path.isdir(os.path.join(again.tip, "new"))


def test_another_process_sees_a_new_part_at_its_next_look(store: Store) -> None:
    other = Store.open(store.data)
    volume = store.create_volume("laptop")
    seen = other.volume("laptop")
    assert seen.part_for(b"a") is None
    time.sleep(0.06)
    assert seen.part_for(b"a") is None  # now the empty list is remembered
    volume.part(b"a", create=True)
    assert seen.part_for(b"a/b") is not None
    other.close()


def test_threads_that_make_the_same_part_get_one(store: Store) -> None:
    volume = store.create_volume("laptop")
    made: list[object] = []
    threads = [threading.Thread(target=lambda: made.append(volume.part(b"p", create=True))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(map(id, made))) == 1


def test_one_parts_snapshot_is_not_anothers(store: Store) -> None:
    volume = store.create_volume("laptop")
    one, two = (volume.part(path, create=True) for path in (b"a/one", b"a/two"))
    Path(one.root, "file").write_text("one")
    names = [close(part, runs.begin_run(part, "", {}), SMALL).snapshot for part in (one, two)]
    assert names[0] == names[1]
    assert Path(one.snapshot_root("latest"), "file").exists()
    assert not Path(two.snapshot_root("latest"), "file").exists()


@pytest.mark.btrfs
@pytest.mark.root
def test_no_mode_comes_from_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    store = make_store(tmp_path / "data", "btrfs")
    try:
        part = store.create_volume("laptop").part(b"a/b", create=True)
        close(part, runs.begin_run(part, "", {}), SMALL)
        for folder, names, files in os.walk(store.data):
            for name in [*names, *files]:
                found = os.lstat(os.path.join(folder, name))
                if not stat.S_ISLNK(found.st_mode):
                    assert not found.st_mode & 0o022, os.path.join(folder, name)
    finally:
        os.umask(before)
        store.close(detach=True)
