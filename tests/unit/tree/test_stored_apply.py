"""Bundles on a stored tree: what each operation leaves, repeated or not, and what it refuses."""

from __future__ import annotations

import gc
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import ReadOnly
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.protocol import Failure, Frame, Op, Segment
from mirrorkeep.tree.sidecar import decode_sidecar
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import (
    MTIME_NS,
    delete,
    directory,
    file_fields,
    file_line,
    line,
    link,
    look,
    put,
    staged,
)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[StoredTree]:
    root = tmp_path / "root"
    root.mkdir()
    with StoredTree(str(root)) as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def codes(failures: list[Failure]) -> list[tuple[int, str]]:
    return [(failure.index, failure.code) for failure in failures]


def sidecar_line(root: Path, name: str) -> bytes:
    parent, _, base = name.rpartition("/")
    return decode_sidecar((root / parent / ".mirrorkeep" / base).read_bytes()).line


# --- files --------------------------------------------------------------------------------------


def test_a_new_file_has_content_metadata_and_sidecar(tree: StoredTree, root: Path) -> None:
    frame = put(b"a/b/file", b"content")
    assert tree.apply([frame]) == []
    status = (root / "a/b/file").stat()
    assert (root / "a/b/file").read_bytes() == b"content"
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, MTIME_NS)
    assert sidecar_line(root, "a/b/file") == frame.line
    assert staged(root) == []


def test_the_mode_is_right_whatever_the_umask(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    script = (
        "import sys, os; os.umask(0o077); sys.path[:0] = [%r, 'src']; from stored_trial import put;"
        "from mirrorkeep.tree.stored import StoredTree;"
        "t = StoredTree(%r); assert t.apply([put(b'f', b'', st_mode=b'100666')]) == []"
    )

    subprocess.run([sys.executable, "-c", script % (str(Path(__file__).parent), str(root))], check=True)
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o666


def test_an_existing_file_is_replaced_and_its_generation_grows(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"f", b"old")])
    before = tree.stat(b"f").generation
    inode = (root / "f").stat().st_ino
    frame = put(b"f", b"newer", st_mode=b"100600")
    assert tree.apply([frame]) == []
    assert tree.stat(b"f").generation > before
    assert (root / "f").read_bytes() == b"newer"
    assert (root / "f").stat().st_ino != inode
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o600
    assert sidecar_line(root, "f") == frame.line
    assert staged(root) == []


def test_the_same_record_again_repairs_damage(tree: StoredTree, root: Path) -> None:
    frame = put(b"f", b"right")
    tree.apply([frame])
    (root / "f").write_bytes(b"wrong")
    os.utime(root / "f", ns=(MTIME_NS, MTIME_NS))
    assert tree.apply([frame]) == []
    assert (root / "f").read_bytes() == b"right"


def test_data_without_a_sidecar_does_not_exist_and_is_replaced(tree: StoredTree, root: Path) -> None:
    (root / "f").write_bytes(b"torn by a crash")
    assert list(tree.list(b"")) == []
    assert tree.apply([put(b"f", b"whole")]) == []
    assert (root / "f").read_bytes() == b"whole"
    assert [entry.name for entry in tree.list(b"")] == [b"f"]


def test_wrong_content_is_refused_before_anything_changes(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"f", b"old")])
    before = look(root)
    wrong = Frame(Op.PUT, file_line(b"f", b"right"), b"wrong")
    short = Frame(Op.PUT, file_line(b"f", b"right"), b"r")
    other = Frame(Op.PUT, file_line(b"new/f", b"right"), b"wrong")
    assert codes(tree.apply([wrong, short, other])) == [
        (0, "digest_mismatch"),
        (1, "length_mismatch"),
        (2, "digest_mismatch"),
    ]
    assert look(root) == before


@pytest.mark.parametrize("name", ["sha1", "sha256", "blake3"])
def test_every_digest_of_the_format_is_checked(tree: StoredTree, name: str) -> None:
    import hashlib

    from blake3 import blake3

    digest = blake3(b"x").hexdigest() if name == "blake3" else hashlib.new(name, b"x").hexdigest()
    fields = file_fields(b"x", hash=digest.encode())
    if name == "blake3":
        fields[b"hash_name"] = b"blake3"
    good = format_record(b"f", fields)
    bad = format_record(b"f", {**fields, b"st_size": b"1"})
    failures = tree.apply([Frame(Op.PUT, good, b"x"), Frame(Op.PUT, bad, b"y")])
    assert codes(failures) == [(1, "digest_mismatch")]
    assert tree.check(b"f", good, content=True) == []


def test_one_bad_frame_stops_no_other(tree: StoredTree, root: Path) -> None:
    frames = [
        put(b"one", b"1"),
        Frame(Op.PUT, b"=broken", b""),
        put(b"../outside", b"2"),
        put(b"two", b"2", st_mode=b"rwx"),
        put(b"three", b"3", st_mtime=b"99999999999999999999"),
        put(b"four", b"4"),
    ]
    failures = tree.apply(frames)
    assert [failure.index for failure in failures] == [1, 2, 3, 4]
    assert sorted(name for name in os.listdir(root) if not name.startswith(".")) == ["four", "one"]
    assert not (root.parent / "outside").exists()


def test_a_sparse_file_keeps_its_holes(tree: StoredTree, root: Path) -> None:
    content = b"x" * 4096 + bytes(1 << 20) + b"y" * 4096
    sparse = b"0+4096;%d+4096" % (4096 + (1 << 20))
    assert tree.apply([put(b"f", content, sparse=sparse)]) == []
    assert (root / "f").read_bytes() == content
    assert (root / "f").stat().st_blocks * 512 < 64 * 1024


def test_names_of_any_bytes_survive(tree: StoredTree, root: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", b".mirrorkeep", b".mirrorkeep.root", b"n" * 300, b"a=b,c&d"]
    assert tree.apply([put(b"d/" + name, name) for name in names]) == []
    assert sorted(entry.name for entry in tree.list(b"d")) == sorted(names)
    assert sorted(path for path, _ in tree.actual_records()) == sorted(
        [*(b"d/" + n for n in names), b"d", b""]
    )
    for name in names:
        assert tree.read_range(b"d/" + name, 0, 1000) == name


# --- directories, links, nodes ------------------------------------------------------------------


def test_directories_are_made_stamped_and_removed(tree: StoredTree, root: Path) -> None:
    made = Frame(Op.DIRECTORY, line(b"d/e", b"directory"))
    assert (
        tree.apply([made, made, put(b"d/e/f", b"x"), directory(b"d/e"), directory(b"d"), directory(b"")])
        == []
    )
    for name in ("d/e", "d", ""):
        status = (root / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o750, MTIME_NS), name
    assert codes(tree.apply([delete(b"d/e", b"directory")])) == [(0, "already_exists")]
    gone = [delete(b"d/e/f"), delete(b"d/e", b"directory"), delete(b"d", b"directory")]
    assert tree.apply(gone) == []
    assert tree.apply(gone) == []
    assert [name for name in os.listdir(root) if name != ".mirrorkeep"] == []
    assert os.listdir(root / ".mirrorkeep") == [".mirrorkeep.root"]


def test_a_folder_whose_record_stays_keeps_its_sidecar_unless_that_is_damaged(
    tree: StoredTree, root: Path
) -> None:
    stamp = directory(b"d")
    tree.apply([stamp])
    sidecar = root / ".mirrorkeep" / "d"
    before = sidecar.stat().st_ino
    os.utime(root / "d", (1, 1))
    tree.apply([stamp])
    assert sidecar.stat().st_ino == before
    assert (root / "d").stat().st_mtime_ns == MTIME_NS
    sidecar.write_bytes(sidecar.read_bytes()[:-1] + b"x")
    tree.apply([stamp])
    assert sidecar_line(root, "d") == stamp.line


def test_stamping_makes_an_empty_directory(tree: StoredTree, root: Path) -> None:
    assert tree.apply([directory(b"empty")]) == []
    assert stat.S_IMODE((root / "empty").stat().st_mode) == 0o750


def test_links_are_links_with_their_times(tree: StoredTree, root: Path) -> None:
    assert tree.apply([link(b"l", b"/etc/passwd"), link(b"l", b"\xffelsewhere")]) == []
    assert os.readlink(os.fsencode(root / "l")) == b"\xffelsewhere"
    assert (root / "l").lstat().st_mtime_ns == MTIME_NS


def test_nothing_is_written_through_a_link(tree: StoredTree, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"mine")
    tree.apply([link(b"l", os.fsencode(outside)), link(b"g", os.fsencode(outside / "f"))])
    assert tree.apply([put(b"l/f", b"theirs"), put(b"g", b"theirs")]) == []
    assert (outside / "f").read_bytes() == b"mine"
    assert (root / "l/f").read_bytes() == b"theirs"
    assert not (root / "l").is_symlink()
    assert os.listdir(outside) == ["f"]


@pytest.mark.parametrize("kind", [b"fifo", b"socket", b"char_device", b"block_device"])
def test_nodes_live_in_their_sidecars(tree: StoredTree, root: Path, kind: bytes) -> None:
    frame = Frame(Op.NODE, line(b"d/n", kind, st_rdev=b"1:3"))
    assert tree.apply([put(b"d/n", b"a file before"), frame, frame]) == []
    assert os.listdir(root / "d") == [".mirrorkeep"]
    assert [(entry.name, entry.kind) for entry in tree.list(b"d")] == [(b"n", kind)]
    assert [type(one) for one in tree.frames([b"d/n"])] == [Frame]
    assert codes(tree.apply([delete(b"d", b"directory")])) == [(0, "already_exists")]
    assert tree.apply([delete(b"d/n", kind), delete(b"d", b"directory")]) == []


def test_an_entry_changes_its_type(tree: StoredTree, root: Path) -> None:
    node = Frame(Op.NODE, line(b"x", b"fifo"))
    steps = [
        put(b"x", b"file"),
        directory(b"x"),
        link(b"x", b"t"),
        put(b"x", b"file"),
        node,
        put(b"x", b"file"),
    ]
    for frame in steps:
        assert tree.apply([frame]) == []
        kind = frame.line.partition(b",type=")[2].partition(b",")[0]
        entry = tree.stat(b"x")
        assert entry.kind == kind
        assert entry.record is not None
        assert entry.record.kind == kind
        assert tree.check(b"x", frame.line, content=True) == []


def test_a_file_gives_way_when_something_lies_below_it(tree: StoredTree, root: Path) -> None:
    assert tree.apply([put(b"a", b"file"), put(b"a/b/c", b"below")]) == []
    assert (root / "a/b/c").read_bytes() == b"below"
    assert tree.stat(b"a").record is None


def test_a_full_directory_does_not_give_way_to_a_file(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a/b", b"kept")])
    assert codes(tree.apply([put(b"a", b"file"), link(b"a", b"t")])) == [
        (0, "already_exists"),
        (1, "already_exists"),
    ]
    assert (root / "a/b").read_bytes() == b"kept"
    assert staged(root) == []


# --- stamps -------------------------------------------------------------------------------------


def test_a_stamp_changes_metadata_and_keeps_content(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"f", b"content")])
    before = tree.stat(b"f")
    changed = file_line(b"f", b"content", st_mode=b"100600", st_mtime=b"1600000000.5")
    assert tree.apply([Frame(Op.STAMP, changed)]) == []
    after = tree.stat(b"f")
    assert (after.generation, after.native.st_ino) == (before.generation, before.native.st_ino)
    assert (after.mtime_ns, stat.S_IMODE(after.native.st_mode)) == (1_600_000_000_500_000_000, 0o600)
    assert sidecar_line(root, "f") == changed


def test_a_stamp_never_vouches_for_other_content(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"f", b"content")])
    before = look(root)
    other = Frame(Op.STAMP, file_line(b"f", b"CONTENT"))
    longer = Frame(Op.STAMP, file_line(b"f", b"content and more"))
    missing = Frame(Op.STAMP, file_line(b"g", b"content"))
    assert codes(tree.apply([other, longer, missing])) == [
        (0, "digest_mismatch"),
        (1, "digest_mismatch"),
        (2, "not_found"),
    ]
    assert look(root) == before


def test_a_stamp_with_another_digest_reads_the_content(tree: StoredTree, root: Path) -> None:
    import hashlib

    tree.apply([put(b"f", b"content")])
    right = file_line(b"f", b"content", hash=hashlib.sha1(b"content").hexdigest().encode())
    wrong = file_line(b"f", b"content", hash=hashlib.sha1(b"CONTENT").hexdigest().encode())
    assert codes(tree.apply([Frame(Op.STAMP, wrong), Frame(Op.STAMP, right)])) == [(0, "digest_mismatch")]
    assert sidecar_line(root, "f") == right


def test_a_stamp_notices_content_changed_on_the_server(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"f", b"content")])
    (root / "f").write_bytes(b"CONTENT")
    assert codes(tree.apply([Frame(Op.STAMP, file_line(b"f", b"content"))])) == [(0, "digest_mismatch")]


# --- hard links, moves, copies ------------------------------------------------------------------


def test_hard_links_share_inode_and_generation(tree: StoredTree, root: Path) -> None:
    member = Frame(Op.HARD_LINK, file_line(b"d/m", b"x", hard_link=b"a", st_nlink=b"2"))
    assert tree.apply([put(b"a", b"x", st_nlink=b"2"), member, member]) == []
    assert (root / "a").stat().st_ino == (root / "d/m").stat().st_ino
    assert tree.stat(b"a").generation == tree.stat(b"d/m").generation
    assert sidecar_line(root, "d/m") == member.line
    assert staged(root) == []


def test_a_hard_link_needs_its_leader_as_recorded(tree: StoredTree) -> None:
    tree.apply([put(b"a", b"x")])
    missing = Frame(Op.HARD_LINK, file_line(b"m", b"x", hard_link=b"nobody"))
    other = Frame(Op.HARD_LINK, file_line(b"m", b"y", hard_link=b"a"))
    assert codes(tree.apply([missing, other])) == [(0, "not_found"), (1, "digest_mismatch")]


def test_replacing_one_name_leaves_the_other(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"x"), Frame(Op.HARD_LINK, file_line(b"b", b"x", hard_link=b"a"))])
    assert tree.apply([put(b"a", b"changed")]) == []
    assert (root / "b").read_bytes() == b"x"


def test_two_files_swap_places(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"of a"), put(b"d/b", b"of b")])
    frames = [
        Frame(Op.HOLD, file_line(b"a", b"of a"), b"01"),
        Frame(Op.HOLD, file_line(b"d/b", b"of b"), b"02"),
        Frame(Op.PLACE, file_line(b"d/b", b"of a"), b"01"),
        Frame(Op.PLACE, file_line(b"a", b"of b"), b"02"),
    ]
    assert tree.apply(frames) == []
    assert tree.apply(frames[2:]) == []
    assert ((root / "a").read_bytes(), (root / "d/b").read_bytes()) == (b"of b", b"of a")
    for path, content in ((b"a", b"of b"), (b"d/b", b"of a")):
        assert tree.check(path, file_line(path, content), content=True) == []
    assert staged(root) == []


def test_a_move_with_new_metadata_leaves_the_source_alone(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"x")])
    placed = file_line(b"n", b"x", st_mode=b"100600", st_mtime=b"1600000000")
    frames = [Frame(Op.HOLD, file_line(b"a", b"x"), b"aa"), Frame(Op.PLACE, placed, b"aa")]
    assert tree.apply(frames) == []
    assert tree.check(b"a", file_line(b"a", b"x"), content=True) == []
    assert tree.check(b"n", placed, content=True) == []
    assert tree.apply([delete(b"a")]) == []
    assert tree.check(b"n", placed, content=True) == []


def test_a_hold_needs_what_it_names(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"x"), put(b"touched", b"x")])
    os.utime(root / "touched")
    frames = [
        Frame(Op.HOLD, file_line(b"a", b"other"), b"01"),
        Frame(Op.HOLD, file_line(b"gone", b"x"), b"02"),
        Frame(Op.HOLD, file_line(b"touched", b"x"), b"03"),
        Frame(Op.HOLD, file_line(b"a", b"x"), b"../../x"),
        Frame(Op.PLACE, file_line(b"n", b"x"), b"04"),
    ]
    assert codes(tree.apply(frames)) == [
        (0, "digest_mismatch"),
        (1, "not_found"),
        (2, "digest_mismatch"),
        (3, "malformed_request"),
        (4, "not_found"),
    ]


def test_nothing_is_placed_but_the_content_that_was_held(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"of a"), put(b"n", b"old")])
    frames = [
        Frame(Op.HOLD, file_line(b"a", b"of a"), b"01"),
        Frame(Op.PLACE, file_line(b"n", b"of b"), b"01"),
        Frame(Op.PLACE, file_line(b"n", b"of b", hash=b"../../../a"), b"01"),
    ]
    assert codes(tree.apply(frames)) == [(1, "not_found"), (2, "malformed_request")]
    assert tree.check(b"n", file_line(b"n", b"old"), content=True) == []
    assert tree.apply([Frame(Op.PLACE, file_line(b"n", b"of a"), b"01")]) == []
    assert tree.check(b"n", file_line(b"n", b"of a"), content=True) == []


def test_copies_are_independent_of_their_source(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"x")])
    copied = file_line(b"b", b"x", st_mode=b"100600")
    assert tree.apply([Frame(Op.COPY, copied, b"a"), Frame(Op.COPY, copied, b"a")]) == []
    assert (root / "a").stat().st_ino != (root / "b").stat().st_ino
    assert tree.check(b"b", copied, content=True) == []
    assert codes(tree.apply([Frame(Op.COPY, file_line(b"c", b"y"), b"a")])) == [(0, "digest_mismatch")]


# --- trees that share inodes, or refuse writes --------------------------------------------------


def test_no_inode_is_changed_in_place_where_snapshots_share_it(tmp_path: Path) -> None:
    root, snapshot = tmp_path / "root", tmp_path / "snapshot"
    root.mkdir()
    with StoredTree(str(root)) as tree:
        tree.apply([put(b"d/f", b"x"), put(b"d/g", b"y"), link(b"d/l", b"t"), directory(b"d")])
        subprocess.run(["cp", "-al", str(root), str(snapshot)], check=True)
        before = look(snapshot)
        modes = {path: path.lstat().st_mode for path in snapshot.rglob("*") if not path.is_dir()}
        changed = file_line(b"d/f", b"x", st_mode=b"100777", st_mtime=b"1600000000")
        frames = [
            Frame(Op.STAMP, changed),
            put(b"d/g", b"new"),
            link(b"d/l", b"u"),
            Frame(Op.HOLD, changed, b"01"),
            Frame(Op.PLACE, file_line(b"d/h", b"x", st_mode=b"100700"), b"01"),
        ]
        assert tree.apply(frames) == []
        assert tree.check(b"d/f", changed, content=True) == []
    assert look(snapshot) == before
    assert {path: path.lstat().st_mode for path in modes} == modes


def test_a_group_of_hard_links_stays_one_where_snapshots_share_its_inode(tmp_path: Path) -> None:
    root, snapshot = tmp_path / "root", tmp_path / "snapshot"
    root.mkdir()
    with StoredTree(str(root)) as tree:
        member = file_line(b"b", b"x", hard_link=b"a", st_nlink=b"2")
        tree.apply([put(b"a", b"x", st_nlink=b"2"), Frame(Op.HARD_LINK, member)])
        subprocess.run(["cp", "-al", str(root), str(snapshot)], check=True)
        changed = {"st_nlink": b"2", "st_mode": b"100777"}
        frames = [
            Frame(Op.STAMP, file_line(b"a", b"x", **changed)),
            Frame(Op.STAMP, file_line(b"b", b"x", hard_link=b"a", **changed)),
        ]
        assert tree.apply(frames) == []
        assert tree.apply(frames) == []
        assert (root / "a").samefile(root / "b")
        assert stat.S_IMODE((root / "b").stat().st_mode) == 0o777
        assert stat.S_IMODE((snapshot / "a").stat().st_mode) == 0o640


def test_a_dropped_tree_gives_its_descriptors_back(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"d/f", b"x")])
    gc.collect()  # what other tests dropped is not counted
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        StoredTree(str(root), read_only=True).stat(b"d/f")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_content_comes_for_regular_files_only(tree: StoredTree) -> None:
    wrong = Frame(Op.PUT, format_record(b"d", {**file_fields(b"x"), b"type": b"directory"}), b"x")
    assert codes(tree.apply([wrong])) == [(0, "malformed_request")]


def test_a_stamp_reaches_no_unrelated_name_of_the_inode(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"a", b"x")])
    os.link(root / "a", root.parent / "kept")
    assert tree.apply([Frame(Op.STAMP, file_line(b"a", b"x", st_mode=b"100777"))]) == []
    assert stat.S_IMODE((root.parent / "kept").stat().st_mode) == 0o640


def test_a_read_only_tree_refuses_every_write(tree: StoredTree, root: Path) -> None:
    tree.apply([put(b"f", b"x")])
    before = look(root)
    with StoredTree(str(root), read_only=True) as frozen:
        attempts = [
            lambda: frozen.apply([put(b"g", b"y")]),
            lambda: frozen.begin(file_line(b"g", b"y"), on_base=False),
            lambda: frozen.stage(b"g"),
            lambda: frozen.make_directory(b"d"),
            lambda: frozen.delete(b"f"),
            lambda: frozen.move(b"f", b"g", True),
            lambda: frozen.copy(b"f", b"g", True),
            lambda: frozen.update_sidecar(b"f", lambda entries: None),
            frozen.empty_staging,
            frozen.recover,
        ]
        for attempt in attempts:
            with pytest.raises(ReadOnly):
                attempt()
        assert frozen.read_range(b"f", 0, 10) == b"x"
    assert look(root) == before


# --- owners -------------------------------------------------------------------------------------


def test_without_root_the_server_stays_able_to_read(root: Path) -> None:
    root.mkdir()
    with StoredTree(str(root), set_owner=False) as tree:
        tree.placement.privileged = False
        frame = put(b"f", b"x", st_mode=b"104000", st_uid=b"12345")
        assert tree.apply([frame, directory(b"d", st_mode=b"40000")]) == []
        assert stat.S_IMODE((root / "f").stat().st_mode) == 0o600
        assert stat.S_IMODE((root / "d").stat().st_mode) == 0o700
        assert tree.check(b"f", frame.line, content=True) == []


@pytest.mark.root
def test_as_root_owners_and_set_id_bits_are_set(tree: StoredTree, root: Path) -> None:
    frame = put(b"f", b"x", st_uid=b"1234", st_gid=b"2345", st_mode=b"106755")
    assert tree.apply([frame]) == []
    status = (root / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o6755)
    assert tree.check(b"f", frame.line, content=True) == []
    assert tree.apply([put(b"f", b"y", st_uid=b"1", st_gid=b"2", st_mode=b"104711")]) == []
    status = (root / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1, 2, 0o4711)


@pytest.mark.root
def test_a_set_group_id_directory_gives_its_group_to_nobody(tree: StoredTree, root: Path) -> None:
    tree.apply([directory(b"d", st_mode=b"42775", st_uid=b"0", st_gid=b"777")])
    frame = put(b"d/f", b"x", st_uid=b"0", st_gid=b"0")
    assert tree.apply([frame]) == []
    assert (root / "d/f").stat().st_gid == 0
    assert tree.check(b"d/f", frame.line, content=True) == []


def test_extended_attributes_are_set_and_compared(tree: StoredTree, root: Path) -> None:
    (root / "probe").write_bytes(b"")
    try:
        os.setxattr(root / "probe", "user.probe", b"1")
    except OSError:
        pytest.skip("the file system has no user attributes")
    (root / "probe").unlink()
    fields = {**file_fields(b"x"), b"xattr:user.colour": b"red\0\xff"}
    frame = Frame(Op.PUT, format_record(b"f", fields), b"x")
    assert tree.apply([frame, frame]) == []
    assert os.getxattr(root / "f", "user.colour") == b"red\0\xff"
    assert tree.check(b"f", frame.line, content=True) == []
    os.setxattr(root / "f", "user.colour", b"blue")
    os.setxattr(root / "f", "user.other", b"1")
    assert [finding.kind for finding in tree.check(b"f", frame.line, content=True)] == ["xattr", "xattr"]


def test_attributes_that_the_storage_refuses_are_recorded_only(tree: StoredTree, root: Path) -> None:
    fields = {**file_fields(b"x"), b"xattr:nowhere.known": b"v"}
    frame = Frame(Op.PUT, format_record(b"f", fields), b"x")
    assert tree.apply([frame]) == []
    assert tree.check(b"f", frame.line, content=True) == []
    assert next(iter(tree.frames([b"f"]))).line == frame.line


def test_a_default_list_of_a_directory_reaches_no_child(tree: StoredTree, root: Path) -> None:
    acl = b"u::rwx;u:1000:rwx;g::rwx;m::rwx;o::---"
    made = directory(b"d", posix_acl_default=acl)
    try:
        assert tree.apply([made]) == []
        os.getxattr(root / "d", "system.posix_acl_default")
    except OSError:
        pytest.skip("the file system has no access lists")
    frame = put(b"d/e/f", b"x", st_mode=b"100604")
    assert tree.apply([frame, directory(b"d/e")]) == []
    assert tree.check(b"d/e/f", frame.line, content=True) == []
    assert os.listxattr(root / "d/e/f") == []
    assert os.listxattr(root / "d/e") == []


@pytest.mark.parametrize("moved", [False, True])
def test_a_tree_that_is_open_outlives_its_staging_folder(tree: StoredTree, root: Path, moved: bool) -> None:
    """Whoever held the old folder open would stage into nowhere."""
    assert tree.apply([put(b"f", b"old")]) == []
    assert tree.apply([put(b"f", b"older")]) == []
    if moved:
        (root / ".mirrorkeep").rename(root.parent / "elsewhere")
    else:
        shutil.rmtree(root / ".mirrorkeep")
    for content in (b"new", b"newer"):
        assert tree.apply([put(b"f", content)]) == []
        assert (root / "f").read_bytes() == content
        assert tree.check(b"f", file_line(b"f", content), content=True) == []
    assert staged(root) == []
    with StoredTree(str(root)) as other:
        line = file_line(b"large", b"data")
        begun = other.begin(line, on_base=False)
        begun.write(Segment(0, 4), b"data", delta=False, digest=None)
        tree.resume(begun.id).finish(line, [Segment(0, 4)])
    assert (root / "large").read_bytes() == b"data"
