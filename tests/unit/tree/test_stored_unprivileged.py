"""A tree that is kept without root: whatever the source forbids its owner, the server reads what it keeps."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.manifest.record import parse_record
from mirrorkeep.tree.metadata.acl import with_owner
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import delete, directory, file_line, put

NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that is the working directory, and do the rest of the test as nobody if as root."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    if os.geteuid():
        yield root
        return
    os.chown(root, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield root
    finally:
        os.seteuid(0)


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(".") as opened:
        assert (
            opened.apply([directory(b"probe", posix_acl_default=b"u::rwx;u:1:rwx;g::---;m::rwx;o::---")])
            == []
        )
        if opened.read_sidecar(b"probe").entries.keys() != {b"record"}:
            pytest.skip("the file system has no access lists")
        assert opened.apply([delete(b"probe", b"directory")]) == []
        yield opened


@pytest.mark.parametrize(("owner", "mode"), [(b"r--", b"100440"), (b"---", b"100040"), (b"-wx", b"100340")])
def test_a_list_that_forbids_the_owner_keeps_no_file_from_the_server(
    tree: StoredTree, owner: bytes, mode: bytes
) -> None:
    fields = {"st_mode": mode, "posix_acl_access": b"u::" + owner + b";u:1234:r--;g::r--;m::r--;o::---"}
    frame, stamped = put(b"f", b"x", **fields), file_line(b"f", b"x", **{**fields, "st_mtime": b"1600000000"})
    for sent in (frame, Frame(Op.STAMP, stamped)):
        assert tree.apply([sent]) == []
        assert tree.check(b"f", sent.line, content=True) == []
        assert tree.read_range(b"f", 0, 10) == b"x"
        assert tree.read_sidecar(b"f").line == sent.line
    assert stat.S_IMODE(os.stat("f").st_mode) & 0o077 == 0o040, "nobody else may do more than at the source"


@pytest.mark.parametrize("owner", [b"r-x", b"---"])
def test_a_list_that_forbids_the_owner_keeps_no_folder_from_the_server(
    tree: StoredTree, owner: bytes
) -> None:
    acl = b"u::" + owner + b";u:1234:r-x;g::r-x;m::r-x;o::---"
    folder = directory(b"d", st_mode=b"40050", posix_acl_access=acl, posix_acl_default=acl)
    file, below = put(b"d/below/f", b"x"), directory(b"d/below")
    assert tree.apply([folder]) == []
    assert tree.apply([file, below, folder]) == []
    for sent in (file, below, folder):
        assert tree.check(parse_record(sent.line).path, sent.line, content=True) == []
    os.setxattr("d", "system.posix_acl_default", b"\2\0\0\0")
    assert [one.kind for one in tree.check(b"d", folder.line, content=True)] == ["acl"]


def test_only_the_owners_entry_of_a_list_gets_more() -> None:
    assert with_owner(b"u::r--;u:1:---;g::---;m::rwx;o::---", 6) == b"u::rw-;u:1:---;g::---;m::rwx;o::---"
    assert with_owner(b"u::--x;g::r--", 6) == b"u::rwx;g::r--"
    assert with_owner(b"g::r--;u:7:r--", 7) == b"g::r--;u:7:r--"
