"""However many parts a store has, a process keeps few of their trees open, and closes none in use."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.store import runs
from mirrorkeep.store.open_trees import OpenTrees
from mirrorkeep.store.pool import Store
from mirrorkeep.tree.layout import HIDDEN
from tests.unit.store.part_at_work import make_store

PARTS = 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    gc.collect()  # what earlier tests left must not be closed while this one counts
    store = make_store(tmp_path / "data", "dir")
    yield store
    store.close(detach=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fill(store: Store, volumes: int, parts: int) -> None:
    """Make volumes with parts, each with a file in it."""
    for number in range(volumes):
        volume = store.create_volume(f"v{number}")
        for other in range(parts):
            part = volume.part(b"p%d" % other, create=True)
            Path(part.root, "file").write_text(f"{number} {other}")


def test_what_was_not_used_for_longest_is_let_go(store: Store) -> None:
    store.open_trees = OpenTrees(4)
    fill(store, 1, PARTS)
    volume, before = store.volume("v0"), descriptors()
    often = volume.part(b"p0").tree()
    for number in range(PARTS):
        tree = volume.part(b"p%d" % number).tree()
        assert tree.placement.staging.fd >= 0
        assert volume.part(b"p0").tree() is often
        assert descriptors() - before <= 2 * 5
    assert volume.part(b"p%d" % (PARTS - 1)).tree() is tree
    assert volume.part(b"p1").tree() is not tree


def test_a_tree_in_use_stays_open_and_closes_after_it(store: Store) -> None:
    store.open_trees = OpenTrees(2)
    fill(store, 1, PARTS)
    volume = store.volume("v0")
    used = volume.part(b"p0").tree()
    for number in range(1, PARTS):
        volume.part(b"p%d" % number).tree()
    fd = used.placement.root_fd
    assert os.listdir(fd)
    again = volume.part(b"p0").tree()
    assert again is not used
    assert os.stat("file", dir_fd=fd).st_size
    before = descriptors()
    del used
    assert descriptors() == before - 1


def test_plain_folders_count_as_well(store: Store) -> None:
    store.open_trees = OpenTrees(3)
    fill(store, 30, 0)
    before = descriptors()
    for volume in store.volumes():
        volume.plain_tree().make_directory(b"folder")
    assert descriptors() - before <= 2 * 3


def test_what_is_deleted_is_not_kept_open(store: Store) -> None:
    fill(store, 3, 3)
    before = descriptors()
    trees = [part.tree() for volume in store.volumes() for part in volume.parts()]
    del trees
    assert descriptors() == before + 9
    for number in range(3):
        store.delete_volume(f"v{number}")
    assert descriptors() == before


def test_a_store_of_many_parts_recovers_and_works_with_few_descriptors(store: Store) -> None:
    """More parts than descriptors, as a store of a thousand machines has under the usual limit."""
    fill(store, 30, 10)
    for volume in store.volumes():
        for part in volume.parts():
            staging = Path(part.root, os.fsdecode(HIDDEN), ".mirrorkeep.staging")
            staging.mkdir(parents=True, exist_ok=True)
            (staging / "left").write_text("of a killed worker")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            allowed = max(map(int, os.listdir("/proc/self/fd"))) + 260  # beyond what earlier tests hold
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
            again = Store.open(store.data)
            again.open_trees = OpenTrees(100)
            again.recover()
            for volume in again.volumes():
                for part in volume.parts():
                    assert not os.listdir(part.tree().placement.staging.fd)
                    runs.begin_run(part, "", {})
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
