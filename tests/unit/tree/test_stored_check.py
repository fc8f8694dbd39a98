"""Checking one entry against one line, the walk, and the account of what is really there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.tree.protocol import Failure, Frame, Op
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import MTIME_NS, directory, file_line, line, link, put

FILE = put(b"d/f", b"content")
LINK = link(b"d/l", b"target")
NODE = Frame(Op.NODE, line(b"d/n", b"fifo"))
DIRECTORY = directory(b"d")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(str(root)) as opened:
        assert opened.apply([FILE, LINK, NODE, DIRECTORY]) == []
        yield opened


def kinds(tree: StoredTree, frame: Frame, *, content: bool = True) -> list[str]:
    path = parse_record(frame.line).path
    return sorted(finding.kind for finding in tree.check(path, frame.line, content=content))


def test_what_was_stored_has_no_findings(tree: StoredTree) -> None:
    for frame in (FILE, LINK, NODE, DIRECTORY):
        assert kinds(tree, frame) == []


def keep_times(path: Path, act: Callable[[], object]) -> None:
    act()
    os.utime(path, ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)


def test_damage_behind_unchanged_times_is_found_by_content_only(tree: StoredTree, root: Path) -> None:
    keep_times(root / "d/f", lambda: (root / "d/f").write_bytes(b"CONTENT"))
    assert kinds(tree, FILE, content=False) == []
    assert kinds(tree, FILE) == ["content"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.write_bytes(b"longer content"), ["mtime", "size"]),
        (lambda path: path.chmod(0o777), ["mode"]),
        (lambda path: os.utime(path, ns=(5, 5)), ["mtime"]),
        (lambda path: path.unlink(), ["missing"]),
        (lambda path: (path.unlink(), path.mkdir()), ["type"]),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), ["type"]),
        (lambda path: (path.unlink(), os.mkfifo(path)), ["type"]),
    ],
)
def test_each_damage_has_its_kind(
    tree: StoredTree, root: Path, damage: Callable[[Path], object], expected: list[str]
) -> None:
    damage(root / "d/f")
    assert kinds(tree, FILE) == expected


def test_damaged_and_missing_sidecars_are_findings(tree: StoredTree, root: Path) -> None:
    sidecar = root / "d/.mirrorkeep/f"
    whole = sidecar.read_bytes()
    sidecar.write_bytes(whole[:-1])
    assert kinds(tree, FILE) == ["sidecar"]
    sidecar.unlink()
    assert kinds(tree, FILE) == ["sidecar"]
    (root / "d/.mirrorkeep/n").unlink()
    assert kinds(tree, NODE) == ["missing", "sidecar"]


def test_another_record_is_a_finding_and_volatile_fields_are_not(tree: StoredTree) -> None:
    seen = file_line(b"d/f", b"content", st_atime=b"17", inode_ctime=b"18")
    tagged = file_line(b"d/f", b"content", version=b"7")
    assert [finding.kind for finding in tree.check(b"d/f", seen, content=True)] == []
    assert [finding.kind for finding in tree.check(b"d/f", tagged, content=True)] == ["metadata"]


@pytest.mark.parametrize(
    "key", [b"xattr:security.selinux", b"xattr:security.ima", b"xattr:btrfs.compression"]
)
def test_labels_that_each_system_gives_its_own_files_are_kept_and_not_compared(
    tree: StoredTree, key: bytes
) -> None:
    labelled = put(b"d/g", b"content", **{key.decode(): b"a label of the client"})
    folder = directory(b"d", **{key.decode(): b"another"})
    assert tree.apply([labelled, folder]) == []
    assert kinds(tree, labelled) == kinds(tree, folder) == []
    assert kinds(tree, FILE) == []


def test_links_and_nodes_are_compared(tree: StoredTree, root: Path) -> None:
    (root / "d/l").unlink()
    keep_times(root / "d/l", lambda: (root / "d/l").symlink_to("elsewhere"))
    assert kinds(tree, LINK) == ["link"]
    (root / "d/n").write_bytes(b"")
    assert kinds(tree, NODE) == ["type"]


def test_a_name_that_left_its_file_is_found(tree: StoredTree, root: Path) -> None:
    leader = put(b"d/a", b"shared", st_nlink=b"3")
    names = [
        Frame(Op.HARD_LINK, file_line(path, b"shared", st_nlink=b"3", hard_link=b"d/a"))
        for path in (b"d/b", b"e")
    ]
    assert tree.apply([leader, *names]) == []
    assert [kinds(tree, frame) for frame in (leader, *names)] == [[], [], []]
    become_another_file(root / "d/b")
    assert [kinds(tree, frame) for frame in (leader, *names)] == [[], ["hard_link"], []]
    assert kinds(tree, names[0], content=False) == ["hard_link"]
    become_another_file(root / "d/a")
    assert [kinds(tree, frame) for frame in (leader, *names)] == [[], ["hard_link"], ["hard_link"]]
    (root / "d/a").unlink()
    assert [kinds(tree, frame) for frame in (leader, *names)] == [["missing"], [], []]
    assert tree.apply([leader, *names]) == []
    assert [kinds(tree, frame) for frame in (leader, *names)] == [[], [], []]


def become_another_file(path: Path) -> None:
    """Put an equal file in place of one name, as ``cp -p`` and ``mv`` do."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)


def test_a_name_that_a_run_could_not_bring_along_is_no_damage(tree: StoredTree) -> None:
    """The leader has new content, the other name its old record: two files, and the manifest says so."""
    left = file_line(b"b", b"old", st_nlink=b"2", hard_link=b"a")
    assert tree.apply([put(b"a", b"old", st_nlink=b"2"), Frame(Op.HARD_LINK, left)]) == []
    assert tree.apply([put(b"a", b"new", st_nlink=b"2")]) == []
    assert tree.check(b"b", left, content=True) == []


def test_a_missing_directory_makes_all_below_it_missing(tree: StoredTree) -> None:
    below = put(b"gone/deep/f", b"x")
    through = put(b"d/f/x", b"x")
    assert kinds(tree, below) == kinds(tree, through) == ["missing"]


@pytest.mark.root
def test_owners_count_where_they_are_set(tree: StoredTree, root: Path) -> None:
    os.chown(root / "d/f", 4321, 4321)
    assert kinds(tree, FILE) == ["owner"]
    with StoredTree(str(root), set_owner=False) as other:
        assert kinds(other, FILE) == []


def test_the_walk_is_in_manifest_order_and_names_strays_and_losses(tree: StoredTree, root: Path) -> None:
    names = [b"a", b"a.b", b"a/x", b"b/c/d", b"b-", b"\xff", b"\xff\x01", b"b/c-"]
    tree.apply([put(name, b"x") for name in names if name != b"a"])
    (root / "stray").write_bytes(b"")
    (root / "d/f").unlink()
    found = {entry.path: entry for entry in tree.walk()}
    paths = list(found)
    assert paths == sorted(paths, key=order_key)
    assert set(paths) >= {*names, b"", b"b", b"b/c", b"d", b"d/f", b"d/l", b"d/n", b"stray"}
    assert found[b"stray"].sidecar is None
    assert found[b"d/f"].native is None
    assert found[b"d/n"].native is None


def test_the_account_describes_what_is_really_there(tree: StoredTree, root: Path) -> None:
    actual = dict(tree.actual_records())
    assert {actual[path] for path in (b"d", b"d/f", b"d/l", b"d/n")} == {
        DIRECTORY.line,
        FILE.line,
        LINK.line,
        NODE.line,
    }
    (root / "d/f").write_bytes(b"changed on the server")
    (root / "d/stray").write_bytes(b"stray")
    (root / "d/l").unlink()
    actual = dict(tree.actual_records())
    assert parse_record(actual[b"d/f"]).hash == parse_record(actual[b"d/stray"]).hash == b""
    assert parse_record(actual[b"d/f"]).size == len(b"changed on the server")
    assert b"d/l" not in actual
    assert list(actual) == sorted(actual, key=order_key)


def test_frames_make_the_same_tree_again(tree: StoredTree, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    paths = [entry.path for entry in tree.walk()]
    frames = list(tree.frames(paths))
    with StoredTree(str(tmp_path / "copy")) as copy:
        assert copy.apply(frame for frame in frames if isinstance(frame, Frame)) == []
        assert dict(copy.actual_records()) == dict(tree.actual_records())


def test_what_cannot_be_read_is_a_failure_in_its_place(tree: StoredTree, root: Path) -> None:
    (root / "d/short").write_bytes(b"")
    tree.apply([put(b"d/short", b"1234"), put(b"d/large", bytes(1024 * 1024 + 1))])
    (root / "d/short").write_bytes(b"1")
    got = list(tree.frames([b"nothing", b"d/f", b"d/short", b"d/large", b"../x"]))
    assert [one.code if isinstance(one, Failure) else one.line for one in got] == [
        "not_found",
        FILE.line,
        "length_mismatch",
        "too_large",
        "path_refused",
    ]


def test_ranges_end_with_the_file(tree: StoredTree) -> None:
    assert tree.read_range(b"d/f", 2, 5) == b"nte"
    assert tree.read_range(b"d/f", 2, 500) == b"ntent"
    assert tree.read_range(b"d/f", 50, 60) == b""


def test_descriptors_do_not_pile_up(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"%d/%d/f" % (one, two), b"x") for one in range(20) for two in range(10)])
    before = len(os.listdir("/proc/self/fd"))
    with StoredTree(str(root), read_only=True) as frozen:
        paths = [entry.path for entry in frozen.walk()]
        for path in paths:
            frozen.check(path, file_line(path, b"x"), content=True)
        assert len(os.listdir("/proc/self/fd")) - before < 64 * 2 + 10
