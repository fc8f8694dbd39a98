"""Stamps of what is there: what an entry had and its record no longer has goes, and nothing else changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.tree.metadata import flags
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import directory, file_fields, file_line, put, staged

ACL = b"u::rwx;u:1234:rwx;g::r-x;m::rwx;o::---"
COLOUR = b"xattr:user.colour"
NO_DUMP = flags.LETTERS["d"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    try:
        os.setxattr(tmp_path / "root", "user.probe", b"1")
    except OSError:
        pytest.skip("the file system has no user attributes")
    os.removexattr(tmp_path / "root", "user.probe")
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(str(root)) as opened:
        yield opened


def attributed(path: bytes, **changes: bytes) -> bytes:
    """Return a file's record with an attribute, an access list and a flag."""
    fields = {**file_fields(b"x", st_mode=b"100770", posix_acl_access=ACL, **changes), COLOUR: b"red"}
    return format_record(path, {**fields, b"flags": b"%x" % NO_DUMP})


def has_no_dump(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return bool(flags.read_flags(fd) & NO_DUMP)
    finally:
        os.close(fd)


def findings(tree: StoredTree, *lines: bytes) -> list[str]:
    """Return the kinds of what validation finds with these records."""
    found = []
    for line in lines:
        found += [finding.kind for finding in tree.check(parse_record(line).path, line, content=True)]
    return found


# --- what the record no longer has --------------------------------------------------------------


def test_what_a_file_lost_at_the_source_is_gone_after_its_stamp(tree: StoredTree, root: Path) -> None:
    before, after = attributed(b"f"), file_line(b"f", b"x")
    assert tree.apply([Frame(Op.PUT, before, b"x")]) == []
    assert findings(tree, before) == []
    could_be_flagged = has_no_dump(root / "f")
    assert tree.apply([Frame(Op.STAMP, after)]) == []
    assert os.listxattr(root / "f") == []
    assert not could_be_flagged or not has_no_dump(root / "f")
    assert findings(tree, after) == []


def test_what_a_folder_lost_at_the_source_is_gone_after_its_stamp(tree: StoredTree, root: Path) -> None:
    for path in (b"d", b""):
        lists = {"posix_acl_access": ACL, "posix_acl_default": ACL, "st_mode": b"40770"}
        before, after = directory(path, **lists), directory(path)
        assert tree.apply([before]) == []
        assert findings(tree, before.line) == []
        assert tree.apply([after]) == []
        assert os.listxattr(root / os.fsdecode(path)) == []
        assert findings(tree, after.line) == []


def test_what_a_file_lost_while_it_was_renamed_is_gone_at_its_new_place(tree: StoredTree, root: Path) -> None:
    before, after = attributed(b"a"), file_line(b"b", b"x", st_mode=b"100770")
    for others in (0, 1):
        assert tree.apply([Frame(Op.PUT, before, b"x"), Frame(Op.HOLD, before, b"0%d" % others)]) == []
        if not others:
            assert tree.apply([Frame(Op.DELETE, before)]) == []
        assert tree.apply([Frame(Op.PLACE, after, b"0%d" % others)]) == []
        assert os.listxattr(root / "b") == []
        assert findings(tree, after) == []
    assert findings(tree, before) == []


def test_what_all_names_of_a_file_lost_is_gone_where_snapshots_share_it(root: Path, tmp_path: Path) -> None:
    before, after = attributed(b"f"), file_line(b"f", b"x", st_mode=b"100770")
    with StoredTree(str(root)) as tree:
        assert tree.apply([Frame(Op.PUT, before, b"x")]) == []
        os.link(root / "f", tmp_path / "snapshot")
        assert tree.apply([Frame(Op.STAMP, after)]) == []
        assert findings(tree, after) == []
    assert os.getxattr(tmp_path / "snapshot", "user.colour") == b"red"
    assert "system.posix_acl_access" in os.listxattr(tmp_path / "snapshot")


def test_names_of_one_file_with_attributes_stay_one(tree: StoredTree, root: Path) -> None:
    """Also with an attribute that the storage has refused: what is there is looked at, not only wanted."""
    refused = {"xattr:nowhere.known": b"v", "st_nlink": b"2"}
    leader, member = attributed(b"a", **refused), attributed(b"b", hard_link=b"a", **refused)
    assert tree.apply([Frame(Op.PUT, leader, b"x"), Frame(Op.HARD_LINK, member)]) == []
    again = attributed(b"a", **{**refused, "st_nlink": b"3"})
    assert tree.apply([Frame(Op.STAMP, again)]) == []
    assert (root / "a").samefile(root / "b")
    assert findings(tree, again, member) == []


# --- names of one inode -------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_a_stamp_reaches_no_name_that_parted_from_the_file(
    tree: StoredTree, root: Path, order: tuple[int, ...]
) -> None:
    """The first or the second of two names becomes a file of its own, which has a further name."""
    for parting, staying in ((b"a", b"b"), (b"b", b"a")):
        two = {"st_nlink": b"2", "st_mode": b"100644"}
        linked = Frame(Op.HARD_LINK, file_line(b"b", b"x", hard_link=b"a", **two))
        assert tree.apply([put(b"a", b"x", **two), linked]) == []
        parted = {"st_nlink": b"2", "st_mode": b"100600"}
        lines = [
            file_line(parting, b"x", **parted),
            file_line(staying, b"x", st_mode=b"100644"),
            file_line(b"d", b"x", hard_link=parting, **parted),
        ]
        ops = (Op.STAMP, Op.STAMP, Op.HARD_LINK)
        assert tree.apply([Frame(ops[number], lines[number]) for number in order]) == []
        assert findings(tree, *lines) == []
        assert (root / os.fsdecode(parting)).samefile(root / "d")
    assert staged(root) == []


def test_names_that_are_one_file_stay_one_when_its_metadata_change(tree: StoredTree, root: Path) -> None:
    fields = {"st_nlink": b"2", "st_mode": b"100644"}
    member = Frame(Op.HARD_LINK, file_line(b"b", b"x", hard_link=b"a", **fields))
    assert tree.apply([put(b"a", b"x", **fields), member]) == []
    fields["st_mode"] = b"100600"
    leader, member_line = file_line(b"a", b"x", **fields), file_line(b"b", b"x", hard_link=b"a", **fields)
    for op in (Op.HARD_LINK, Op.STAMP):
        assert tree.apply([Frame(Op.STAMP, leader), Frame(op, member_line)]) == []
        assert (root / "a").samefile(root / "b")
        assert tree.stat(b"a").generation == tree.stat(b"b").generation
        assert findings(tree, leader, member_line) == []


# --- what nobody asked for ----------------------------------------------------------------------


def test_a_new_folder_inherits_no_access_list(tree: StoredTree, root: Path) -> None:
    """Neither one that a client makes nor one that is copied, wherever the store was put."""
    assert tree.apply([directory(b"d", posix_acl_default=ACL)]) == []
    tree.make_directory(b"d/made")
    tree.copy(b"d/made", b"d/copied", False)
    for name in ("d/made", "d/copied"):
        assert os.listxattr(root / name) == []
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o755
