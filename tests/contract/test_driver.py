"""What every storage driver promises, see ``mirrorkeep.store.driver.Driver``; one suite, all drivers."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import AlreadyExists, NotFound, StorageFailure
from mirrorkeep.store.driver import Driver, open_driver
from mirrorkeep.tree.descent import LEVELS_OPEN
from tests.unit.tree.deep import NAME, descriptors, make_deep, remove_deep, steps

DRIVERS = [
    pytest.param("dir", id="dir"),
    pytest.param("dir-reflink", id="dir-reflink", marks=[pytest.mark.btrfs, pytest.mark.root]),
    pytest.param("btrfs", id="btrfs", marks=[pytest.mark.btrfs, pytest.mark.root]),
    pytest.param("btrfs-host", id="btrfs-host", marks=[pytest.mark.btrfs, pytest.mark.root]),
]


class Pool:
    def __init__(self, data: Path, name: str) -> None:
        (data / "run").mkdir(parents=True)
        self.data = data
        self.settings = {"driver": name}
        self.settings |= open_driver(str(data), self.settings).create(256 << 20)
        self.driver = self.reopen()
        self.driver.attach()
        self.root = data / "pool"

    def reopen(self) -> Driver:
        return open_driver(str(self.data), self.settings)

    def tree(self, name: str = "tip") -> Path:
        path = self.root / name
        self.driver.create_tree(str(path))
        return path

    def freeze(self, tree: Path, name: str) -> Path:
        target = self.root / name
        self.driver.snapshot(str(tree), str(target))
        return target


@pytest.fixture(params=DRIVERS)
def pool(
    request: pytest.FixtureRequest, tmp_path: Path, scratch_mount: Callable[..., Path]
) -> Iterator[Pool]:
    name, _, where = request.param.partition("-")
    place = scratch_mount("host") if where else tmp_path
    made = Pool(place / "data", name)
    yield made
    made.driver.detach()


def fill(tree: Path) -> None:
    (tree / "folder" / ".mirrorkeep").mkdir(parents=True)
    (tree / "folder" / "file").write_bytes(b"content" * 1000)
    (tree / "folder" / ".mirrorkeep" / "file").write_bytes(b"sidecar")
    os.link(tree / "folder" / "file", tree / "twin")
    os.symlink("folder/nowhere", tree / "link")
    os.mkfifo(tree / "fifo", 0o640)
    with (tree / "sparse").open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"end")
    (tree / "folder" / "file").chmod(0o604)
    os.utime(tree / "folder" / "file", ns=(1, 1_234_567_890_123_456_789))
    os.utime(tree / "link", ns=(1, 987_654_321), follow_symlinks=False)
    os.utime(tree / "folder", ns=(1, 111_222_333_444), follow_symlinks=False)


def portrait(tree: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a stored tree reads of its entries, inode numbers only as groups of links."""
    seen: dict[str, tuple[object, ...]] = {}
    groups: dict[int, str] = {}
    for folder, names, files in os.walk(tree):
        for name in sorted([*names, *files]):
            path = os.path.join(folder, name)
            found = os.lstat(path)
            relative = os.path.relpath(path, tree)
            content: object = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                content = Path(path).read_bytes()
            group = groups.setdefault(found.st_ino, relative)
            seen[relative] = (found.st_mode, found.st_mtime_ns, found.st_uid, content, group)
    return seen


def test_a_new_tree_is_empty_and_making_it_again_changes_nothing(pool: Pool) -> None:
    tree = pool.tree()
    assert list(tree.iterdir()) == []
    assert tree.stat().st_mode & 0o777 == 0o755
    (tree / "file").write_text("kept")
    pool.driver.create_tree(str(tree))
    assert (tree / "file").read_text() == "kept"


def test_a_plain_folder_becomes_a_tree_with_what_it_holds(pool: Pool) -> None:
    outer = pool.tree("outer")
    folder = outer / "folder"
    fill(folder)
    before = portrait(folder)
    pool.driver.create_tree(str(folder))
    assert portrait(folder) == before
    snapshot = pool.freeze(folder, "frozen")
    assert portrait(snapshot) == before
    assert [p.name for p in outer.iterdir()] == ["folder"]


def test_a_snapshot_is_the_tree_with_hidden_folders_and_all_metadata(pool: Pool) -> None:
    tree = pool.tree()
    fill(tree)
    before = portrait(tree)
    snapshot = pool.freeze(tree, "frozen")
    assert portrait(snapshot) == before
    assert portrait(tree) == before
    assert (snapshot / "sparse").stat().st_blocks < (1 << 20) // 512


def test_a_snapshot_stays_when_the_tree_moves_on(pool: Pool) -> None:
    tree = pool.tree()
    fill(tree)
    snapshot = pool.freeze(tree, "frozen")
    before = portrait(snapshot)
    # As the store writes where inodes are shared: beside, then renamed over.
    (tree / "new").write_bytes(b"other")
    os.rename(tree / "new", tree / "folder" / "file")
    os.unlink(tree / "link")
    (tree / "more").mkdir()
    assert portrait(snapshot) == before


def test_a_snapshot_never_replaces_anything(pool: Pool) -> None:
    tree = pool.tree()
    pool.freeze(tree, "frozen")
    with pytest.raises(AlreadyExists):
        pool.freeze(tree, "frozen")


def test_a_snapshot_of_nothing_is_an_error_and_leaves_nothing(pool: Pool) -> None:
    with pytest.raises(NotFound):
        pool.freeze(pool.root / "nothing", "frozen")
    assert list(pool.root.iterdir()) == []


def test_immutable_snapshots_refuse_writes_in_the_kernel(pool: Pool) -> None:
    if not pool.driver.capabilities.immutable_snapshots:
        assert not pool.driver.capabilities.needs_root
        return
    tree = pool.tree()
    fill(tree)
    snapshot = pool.freeze(tree, "frozen")
    with pytest.raises(OSError) as caught:
        (snapshot / "folder" / "file").write_bytes(b"forged")
    assert caught.value.errno == errno.EROFS


def test_sharing_is_as_declared(pool: Pool) -> None:
    tree = pool.tree()
    (tree / "big").write_bytes(os.urandom(8 << 20))
    pool.driver.make_durable(str(tree))
    before = pool.driver.usage(str(tree)).used_bytes
    snapshot = pool.freeze(tree, "frozen")
    pool.driver.make_durable(str(tree))
    if pool.settings["driver"] != "dir" or pool.driver.capabilities.shares_blocks:
        assert pool.driver.usage(str(tree)).used_bytes - before < 2 << 20
    same_inode = os.lstat(tree / "big").st_ino == os.lstat(snapshot / "big").st_ino
    same_device = os.lstat(tree / "big").st_dev == os.lstat(snapshot / "big").st_dev
    assert (same_inode and same_device) == pool.driver.capabilities.shares_inodes


def test_deleting_takes_trees_snapshots_and_folders_of_both_and_may_be_repeated(pool: Pool) -> None:
    folder = pool.root / "volume"
    folder.mkdir()
    pool.driver.create_tree(str(folder / "tip"))
    pool.driver.create_tree(str(folder / "tip" / "inner"))
    fill(folder / "tip" / "inner")
    pool.driver.snapshot(str(folder / "tip" / "inner"), str(folder / "frozen"))
    (folder / "tip" / "inner" / "folder").chmod(0)
    for _ in range(2):
        pool.driver.delete_tree(str(folder))
        assert not folder.exists()


def test_a_tree_of_any_depth_is_frozen_with_few_descriptors_and_deleted(pool: Pool) -> None:
    tree = pool.tree()
    depth = 1100  # deeper than calls nest, and no path that long can be opened
    make_deep(tree, depth)
    before, freed = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 2 * LEVELS_OPEN + 20, freed[1]))
    try:
        snapshot = pool.freeze(tree, "frozen")
        with steps(snapshot) as go, steps(tree) as beside:
            for _ in range(depth):
                fd, original = go(NAME), beside(NAME)
                assert sorted(os.listdir(fd)) == sorted(os.listdir(original))
                assert os.fstat(fd).st_mtime_ns == os.fstat(original).st_mtime_ns
            with open(os.open("a", os.O_RDONLY, dir_fd=fd), "rb") as stream:
                assert stream.read() == b"%d" % (depth - 1)
        pool.driver.delete_tree(str(snapshot))
        assert not snapshot.exists()
        pool.driver.delete_tree(str(tree))
        assert not tree.exists()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, freed)
        remove_deep(pool.root)
    assert descriptors() == before


def test_a_folder_of_any_depth_becomes_a_tree_and_goes_with_the_trees_inside_it(pool: Pool) -> None:
    outer = pool.tree("outer")
    folder = outer / "folder"
    make_deep(folder, 1100)
    before = descriptors()
    try:
        pool.driver.create_tree(str(folder))
        with steps(folder) as go:
            for _ in range(1100):
                assert sorted(os.listdir(go(NAME)))[-1:] == ["z"]
        volume = pool.root / "volume"
        make_deep(volume, 1100)
        pool.driver.create_tree(str(volume / "down" / "inner"))
        fill(volume / "down" / "inner")
        for path in (outer, volume):
            pool.driver.delete_tree(str(path))
            assert not path.exists()
    finally:
        remove_deep(pool.root)
    assert descriptors() == before


def test_attach_and_detach_may_be_repeated_and_keep_everything(pool: Pool) -> None:
    tree = pool.tree()
    fill(tree)
    before = portrait(tree)
    pool.driver.attach()
    for _ in range(2):
        pool.driver.detach()
    again = pool.reopen()
    again.attach()
    again.attach()
    pool.driver = again
    assert portrait(tree) == before
    again.make_durable(str(tree))


def test_what_a_killed_service_left_attached_is_taken_over(pool: Pool) -> None:
    tree = pool.tree()
    fill(tree)
    other = pool.reopen()  # nobody detached
    other.attach()
    other.make_durable(str(tree))
    assert (tree / "folder" / "file").exists()
    with contextlib.suppress(StorageFailure):  # the first is still there: a mount stays
        other.detach()
    assert (tree / "folder" / "file").exists()


def test_usage_adds_up(pool: Pool) -> None:
    usage = pool.driver.usage(str(pool.root))
    assert 0 < usage.free_bytes <= usage.total_bytes
    assert usage.used_bytes + usage.free_bytes <= usage.total_bytes


def test_the_account_of_changes_is_complete_or_not_given(pool: Pool) -> None:
    tree = pool.tree()
    fill(tree)
    (tree / "old-folder" / "deep").mkdir(parents=True)
    (tree / "old-folder" / "deep" / "file").write_text("moves along")
    (tree / "gone").write_text("x")
    (tree / "a").write_text("a")
    (tree / "b").write_text("b")
    old = pool.freeze(tree, "old")
    before = portrait(old)
    (tree / "folder" / "file").unlink()
    (tree / "folder" / "file").write_text("replaced")
    (tree / "sparse").chmod(0o600)
    (tree / "new\nname\xff").write_text("new")
    (tree / "gone").unlink()
    os.rename(tree / "old-folder", tree / "new-folder")
    os.rename(tree / "a", tree / "c")
    os.rename(tree / "b", tree / "a")
    os.rename(tree / "c", tree / "b")
    new = pool.freeze(tree, "new")
    after = portrait(new)
    differing = {os.fsencode(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)}

    told = pool.driver.changed_between(str(old), str(new))
    if not pool.driver.capabilities.reports_changes:
        assert told is None
        return
    assert told is not None
    account = set(told)
    assert differing <= account
    # What it names beyond that are folders whose times changed and the other names of changed inodes.
    assert account - differing <= {b"", b"folder", b"twin", b"link"}
    for _ in range(20):  # the sender's end must not race with ours
        again = pool.driver.changed_between(str(old), str(new))
        assert again is not None
        assert set(again) == account


def test_generations_tell_a_fresh_snapshot_from_a_tree_that_moved_on(pool: Pool) -> None:
    tree = pool.tree()
    fill(tree)
    snapshot = pool.freeze(tree, "frozen")
    frozen = pool.driver.generation(str(snapshot))
    if frozen is None:
        assert not pool.driver.capabilities.reports_changes
        return
    portrait(tree)  # reading changes nothing
    pool.driver.make_durable(str(tree))
    assert pool.driver.generation(str(tree)) == frozen
    (tree / "twin").chmod(0o600)
    pool.driver.make_durable(str(tree))
    assert (pool.driver.generation(str(tree)) or 0) > frozen
    assert pool.driver.generation(str(snapshot)) == frozen


def test_the_storage_says_when_a_snapshot_was_taken(pool: Pool) -> None:
    before = time.time_ns()
    tree = pool.tree()
    snapshot = pool.freeze(tree, "frozen")
    taken = pool.driver.taken_ns(str(snapshot))
    if pool.driver.generation(str(tree)) is None:
        assert taken is None
    else:
        assert taken is not None and before - 10**8 <= taken <= time.time_ns()


def test_a_file_of_several_names_stays_one_when_its_inode_can_have_no_more_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(tmp_path / "data", "dir")
    tree = pool.tree()
    (tree / "a").write_bytes(b"x")
    (tree / "folder").mkdir()
    for name in ("b", "c", "folder/d"):
        os.link(tree / "a", tree / name)
    os.utime(tree / "folder", ns=(1, 111_222_333_444))
    link, limit = os.link, 6

    def limited(source: str, *arguments: object, src_dir_fd: int, **options: object) -> None:
        if os.stat(source, dir_fd=src_dir_fd).st_nlink >= limit:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, *arguments, src_dir_fd=src_dir_fd, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", limited)
    snapshot = pool.freeze(tree, "first")
    assert len({(snapshot / name).stat().st_ino for name in ("a", "b", "c", "folder/d")}) == 1
    assert portrait(snapshot) == portrait(tree)
    assert sorted(os.listdir(snapshot)) == ["a", "b", "c", "folder"]
    pool.driver.detach()
