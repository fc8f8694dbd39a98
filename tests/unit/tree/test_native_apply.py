"""Writing the native tree: whole or not at all, repeatable, and never outside the root."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree import native_case, native_publish
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.native_case import CaseGuard
from mirrorkeep.tree.protocol import Frame, Op


def line(path: bytes, data: bytes | None = None, **fields: bytes) -> bytes:
    values = {name.encode(): value for name, value in fields.items()}
    if data is not None:
        values |= {
            keys.TYPE: keys.FILE,
            keys.SIZE: b"%d" % len(data),
            keys.HASH: hashlib.sha256(data).hexdigest().encode(),
        }
    return format_record(path, {keys.MODE: b"100644", keys.MTIME: b"1000000000.5", **values})


def put(path: bytes, data: bytes, **fields: bytes) -> Frame:
    return Frame(Op.PUT, line(path, data, **fields), data)


def folder(path: bytes) -> Frame:
    return Frame(Op.DIRECTORY, format_record(path, {keys.TYPE: keys.DIRECTORY}))


def move(op: Op, path: bytes, data: bytes, argument: bytes) -> Frame:
    return Frame(op, line(path, data), argument)


def delete(path: bytes) -> Frame:
    return Frame(Op.DELETE, format_record(path, {}))


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> NativeTree:
    return NativeTree(str(tmp_path))


def test_a_file_appears_with_content_mode_and_time(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([put(b"f", b"hello")]) == []
    status = (tmp_path / "f").stat()
    assert (tmp_path / "f").read_bytes() == b"hello"
    assert (status.st_mode, status.st_mtime_ns) == (0o100644, 1_000_000_000_500_000_000)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o4755, 0o2750, 0o666, 0o777, 0o600, 0o444, 0])
def test_a_new_file_has_its_owner_and_every_bit_of_its_mode(
    tree: NativeTree, tmp_path: Path, mode: int
) -> None:
    mode_text = b"%o" % (0o100000 | mode)
    assert tree.apply([put(b"f", b"x", st_mode=mode_text, st_uid=b"1234", st_gid=b"4321")]) == []
    assert tree.apply([put(b"g", b"x", st_mode=mode_text, st_uid=b"0", st_gid=b"0")]) == []
    for name, owner in (("f", (1234, 4321)), ("g", (0, 0))):
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == owner
        assert status.st_mode == 0o100000 | mode
        assert status.st_mtime_ns == 1_000_000_000_500_000_000


@pytest.mark.root
def test_what_a_folder_hands_down_does_not_stay_on_a_new_file(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    rule = b"".join(
        struct.pack("<HHI", tag, bits, who)
        for tag, bits, who in ((1, 7, 2**32 - 1), (2, 7, 1234), (4, 0, 2**32 - 1), (16, 7, 2**32 - 1))
    ) + struct.pack("<HHI", 32, 0, 2**32 - 1)
    try:
        os.setxattr(tmp_path / "d", "system.posix_acl_default", struct.pack("<I", 2) + rule)
    except OSError:
        pytest.skip("the file system has no access lists")
    assert tree.apply([put(b"d/f", b"x"), put(b"d/g", b"x"), put(b"h", b"x")]) == []
    for name in ("d/f", "d/g", "h"):
        assert "system.posix_acl_access" not in os.listxattr(tmp_path / name)
        assert (tmp_path / name).stat().st_mode == 0o100644


@pytest.mark.parametrize("unnamed", [True, False], ids=["nameless", "temporary-name"])
def test_replacing_keeps_old_readers_and_leaves_nothing_beside(
    tree: NativeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.setattr(native_publish, "_UNNAMED", 0)
    assert tree.apply([put(b"f", b"old")]) == []
    with (tmp_path / "f").open("rb") as reader:
        assert tree.apply([put(b"f", b"new"), put(b"f", b"new")]) == []
        assert reader.read() == b"old"
    assert content(tmp_path) == {"f": b"new"}
    assert os.listdir(tmp_path) == ["f"]


def test_wrong_content_changes_nothing_and_stops_nothing(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    frames = [
        Frame(Op.PUT, line(b"f", b"right"), b"wrong"),
        Frame(Op.PUT, line(b"f", b"right"), b"short"[:3]),
        Frame(Op.PUT, b"not a record", b""),
        put(b"f/below", b"x"),
        put(b"g", b"good"),
    ]
    codes = [(failure.index, failure.code) for failure in tree.apply(frames)]
    assert codes == [
        (0, "digest_mismatch"),
        (1, "length_mismatch"),
        (2, "malformed_manifest"),
        (3, "not_found"),
    ]
    assert content(tmp_path) == {"f": b"old", "g": b"good"}


def test_a_failure_while_writing_leaves_the_old_file_and_no_other(
    tree: NativeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "pwrite", full)
    for unnamed in (native_publish._UNNAMED, 0):
        monkeypatch.setattr(native_publish, "_UNNAMED", unnamed)
        assert [failure.code for failure in tree.apply([put(b"f", b"new")])] == ["no_space"]
        assert os.listdir(tmp_path) == ["f"]
        assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("path", [b"../out", b"/abs", b"a/../../out", b"./f", b"a//b", b"nul\0", b""])
def test_paths_that_leave_the_tree_are_refused(tree: NativeTree, tmp_path: Path, path: bytes) -> None:
    (tmp_path / "a").mkdir()
    assert [failure.code for failure in tree.apply([put(path, b"x")])] == ["path_refused"]
    assert content(tmp_path) == {}


def test_planted_links_are_never_followed(
    tree: NativeTree, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "victim").write_bytes(b"safe")
    (tmp_path / "dir").symlink_to(outside)
    (tmp_path / "file").symlink_to(outside / "victim")
    frames = [put(b"dir/victim", b"x"), delete(b"dir/victim"), put(b"file", b"mine")]
    assert [failure.code for failure in tree.apply(frames)] == ["path_refused", "path_refused"]
    assert content(outside) == {"victim": b"safe"}
    assert not (tmp_path / "file").is_symlink()
    assert [f.code for f in tree.apply([Frame(Op.STAMP, line(b"dir", type=b"directory"))])] == [
        "already_exists"
    ]


def test_directories_links_and_nodes_may_be_repeated(tree: NativeTree, tmp_path: Path) -> None:
    frames = [
        folder(b"d"),
        Frame(Op.LINK, line(b"d/link", type=b"link", link_target=b"there")),
        Frame(Op.NODE, line(b"d/fifo", type=b"fifo")),
        put(b"d/f", b"x"),
        Frame(Op.HARD_LINK, line(b"d/g", b"x", hard_link=b"d/f")),
    ]
    for _ in range(2):
        assert tree.apply(frames) == []
    assert (tmp_path / "d" / "link").readlink() == Path("there")
    assert (tmp_path / "d" / "fifo").is_fifo()
    assert (tmp_path / "d" / "g").stat().st_ino == (tmp_path / "d" / "f").stat().st_ino
    assert sorted(os.listdir(tmp_path / "d")) == ["f", "fifo", "g", "link"]


def test_a_link_takes_the_place_of_a_file_but_never_of_a_directory(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "d").mkdir()
    assert tree.apply([Frame(Op.LINK, line(b"f", type=b"link", link_target=b"t"))]) == []
    failures = tree.apply([Frame(Op.LINK, line(b"d", type=b"link", link_target=b"t")), put(b"d", b"x")])
    assert [failure.code for failure in failures] == ["already_exists", "already_exists"]
    assert os.listdir(tmp_path / "d") == []
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


def test_swapped_names_move_without_content(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([put(b"a", b"A"), put(b"b", b"B")]) == []
    frames = [
        move(Op.HOLD, b"a", b"A", b"01"),
        move(Op.HOLD, b"b", b"B", b"02"),
        move(Op.PLACE, b"b", b"A", b"01"),
        move(Op.PLACE, b"a", b"B", b"02"),
    ]
    for upto in (2, 3, 4):  # what a crash after any frame needs: the same again from the placing on
        assert tree.apply(frames[:upto]) == [] if upto == 2 else tree.apply(frames[2:upto]) == []
    assert content(tmp_path) == {"a": b"B", "b": b"A"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_held_file_that_somebody_wrote_to_is_not_placed(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([put(b"a", b"A"), move(Op.HOLD, b"a", b"A", b"0f")]) == []
    (tmp_path / "a").write_bytes(b"other")
    assert [f.code for f in tree.apply([move(Op.PLACE, b"c", b"A", b"0f")])] == ["length_mismatch"]
    assert [f.code for f in tree.apply([move(Op.PLACE, b"c", b"A", b"ff")])] == ["not_found"]
    assert [f.code for f in tree.apply([move(Op.PLACE, b"c", b"A", b"../x")])] == ["malformed_bundle"]
    assert tree.empty_staging() == 1
    assert content(tmp_path) == {"a": b"other"}


def test_a_copy_is_its_own_file_and_checked(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([put(b"a", b"A" * 10_000), move(Op.COPY, b"b", b"A" * 10_000, b"a")]) == []
    assert (tmp_path / "a").stat().st_ino != (tmp_path / "b").stat().st_ino
    assert (tmp_path / "b").read_bytes() == b"A" * 10_000
    assert [f.code for f in tree.apply([move(Op.COPY, b"b", b"wrong", b"a")])] == ["length_mismatch"]
    assert (tmp_path / "b").read_bytes() == b"A" * 10_000


def test_deleting_is_repeatable_and_never_recursive(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([folder(b"d"), put(b"d/f", b"x")]) == []
    assert [f.code for f in tree.apply([delete(b"d")])] == ["already_exists"]
    assert [f.code for f in tree.apply([delete(b"")])] == ["path_refused"]
    for _ in range(2):
        assert tree.apply([delete(b"d/f"), delete(b"d")]) == []
    assert os.listdir(tmp_path) == []


def test_only_what_puts_something_there_makes_missing_directories(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([delete(b"x/y/f")]) == []
    failures = tree.apply([Frame(Op.STAMP, line(b"x/f", b"")), move(Op.HOLD, b"x/f", b"", b"01")])
    assert [failure.code for failure in failures] == ["not_found", "not_found"]
    assert os.listdir(tmp_path) == []
    assert tree.apply([put(b"a/b/f", b"1"), move(Op.COPY, b"c/f", b"1", b"a/b/f")]) == []
    assert content(tmp_path) == {"a/b/f": b"1", "c/f": b"1"}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_directory_is_deleted_with_what_a_crash_left_in_it(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".mirrorkeep-part-1-2-3").write_bytes(b"torn")
    assert tree.apply([delete(b"d")]) == []
    assert os.listdir(tmp_path) == []


def test_a_directory_made_anew_in_one_call_is_looked_up_again(tree: NativeTree, tmp_path: Path) -> None:
    frames = [folder(b"d"), put(b"d/f", b"1"), delete(b"d/f"), delete(b"d"), folder(b"d"), put(b"d/f", b"2")]
    assert tree.apply(frames) == []
    assert content(tmp_path) == {"d/f": b"2"}


def test_another_spelling_is_refused_where_case_folds(
    tree: NativeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folding file system is imitated: names are looked up without regard to capitals."""
    (tmp_path / "Readme").write_bytes(b"first")
    real_stat = os.stat

    def folding_stat(
        path: bytes, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        if isinstance(path, bytes) and path.lower() == b"readme":
            path = b"Readme"
        return real_stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(native_case.os, "stat", folding_stat)
    tree._case = CaseGuard(folds=True)
    failures = tree.apply([put(b"README", b"second"), put(b"Readme", b"third"), put(b"other", b"x")])
    assert [(f.index, f.code) for f in failures] == [(0, "path_refused")]
    assert content(tmp_path) == {"Readme": b"third", "other": b"x"}


def test_this_place_is_probed_once_and_left_clean(tree: NativeTree, tmp_path: Path) -> None:
    assert tree.apply([put(b"a", b"1"), put(b"A", b"2")]) == []
    assert tree._case.folds is False
    assert sorted(os.listdir(tmp_path)) == ["A", "a"]


def test_what_linux_cannot_hold_is_counted(tree: NativeTree) -> None:
    fields = {"acl_list": b"O:BAG:SYD:(A;;FA;;;BA)", "attrs": b"32"}
    assert tree.apply([put(b"f", b"x", **fields)]) == []
    assert tree.shortfalls == {keys.SDDL: 1, keys.WINDOWS_ATTRIBUTES: 1}
