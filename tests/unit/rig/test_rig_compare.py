"""The comparer of trees: it judges the product, so each kind of difference has to be seen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compare import Comparer


def make_tree(top: Path) -> Path:
    (top / "folder").mkdir(parents=True)
    (top / "folder" / "one").write_bytes(b"one" * 5000)
    (top / "folder" / "two").write_bytes(b"two")
    os.link(top / "folder" / "two", top / "folder" / "twin")
    (top / "link").symlink_to("folder/one")
    os.mkfifo(top / "pipe")
    (top / ".mirrorkeep").mkdir()
    return top


def stamp(path: Path, *, follow: bool = True) -> None:
    os.utime(path, ns=(1_000_000_007, 1_000_000_009), follow_symlinks=follow)


def pair(tmp_path: Path) -> tuple[Path, Path]:
    left, right = make_tree(tmp_path / "left"), make_tree(tmp_path / "right")
    for top in (left, right):
        for path in sorted(top.rglob("*"), reverse=True):
            stamp(path, follow=False)
        stamp(top)
    return left, right


def kinds(left: Path, right: Path) -> set[tuple[bytes, str]]:
    return {(d.path, d.kind) for d in Comparer(str(left), str(right), skip=(b".mirrorkeep",)).differences()}


def test_equal_trees_have_no_difference_and_are_counted(tmp_path: Path) -> None:
    left, right = pair(tmp_path)
    comparer = Comparer(str(left), str(right), skip=(b".mirrorkeep",))
    assert list(comparer.differences()) == []
    assert (comparer.tally.entries, comparer.tally.files) == (7, 3)
    assert comparer.tally.size_bytes == 15000 + 3 + 3


def flip(top: Path) -> None:
    data = bytearray((top / "folder" / "one").read_bytes())
    data[12345] ^= 1
    (top / "folder" / "one").write_bytes(data)
    stamp(top / "folder" / "one")


def unlink_twin(top: Path) -> None:
    (top / "folder" / "twin").unlink()
    shutil.copy(top / "folder" / "two", top / "folder" / "twin")
    stamp(top / "folder" / "twin")
    stamp(top / "folder")


def retarget(top: Path) -> None:
    (top / "link").unlink()
    (top / "link").symlink_to("folder/two")
    stamp(top / "link", follow=False)
    stamp(top)


def retype(top: Path) -> None:
    (top / "pipe").unlink()
    (top / "pipe").mkdir()
    stamp(top / "pipe")
    stamp(top)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip, {(b"folder/one", "content")}),
        (unlink_twin, {(b"folder/two", "hard link")}),
        (retarget, {(b"link", "link")}),
        (retype, {(b"pipe", "type")}),
        (lambda top: os.chmod(top / "folder/one", 0o600), {(b"folder/one", "mode")}),
        (lambda top: os.utime(top / "folder/one", ns=(5, 1_000_000_010)), {(b"folder/one", "mtime")}),
        (lambda top: os.truncate(top / "folder/one", 9), {(b"folder/one", "size"), (b"folder/one", "mtime")}),
        (lambda top: (top / "pipe").unlink(), {(b"pipe", "missing"), (b"", "mtime")}),
        (lambda top: (top / "new").touch(), {(b"new", "extra"), (b"", "mtime")}),
    ],
)
def test_each_kind_of_difference_is_named(
    tmp_path: Path, change: Callable[[Path], object], expected: set[tuple[bytes, str]]
) -> None:
    left, right = pair(tmp_path)
    os.chmod(left / "folder/one", 0o644)
    os.chmod(right / "folder/one", 0o644)
    change(right)
    assert kinds(left, right) == expected


@pytest.mark.root
def test_owners_are_compared(tmp_path: Path) -> None:
    left, right = pair(tmp_path)
    os.chown(right / "folder/one", 12, 34)
    assert kinds(left, right) == {(b"folder/one", "owner")}


@pytest.mark.root
@pytest.mark.btrfs
def test_extended_attributes_and_holes_are_compared(btrfs_mount: Path) -> None:
    left, right = pair(btrfs_mount)
    os.setxattr(right / "folder/two", "user.colour", b"blue")
    with open(left / "holes", "wb") as stream:
        stream.truncate(8 << 20)
    (right / "holes").write_bytes(bytes(8 << 20))
    os.sync()
    for top in (left, right):
        stamp(top / "holes")
        stamp(top)
    # Both names of the hard-linked file carry the attribute.
    expected = {(b"folder/two", "xattr"), (b"folder/twin", "xattr"), (b"holes", "holes")}
    assert kinds(left, right) == expected
