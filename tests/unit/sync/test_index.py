"""The index of ``stat`` blobs: what matches, what never does, and that it is only a cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync.index import (
    blob_of_line,
    build_index,
    open_index,
    settled_blob,
    unsettled_blob,
)
from mirrorkeep.tree.walk import STAT
from tests.unit.sync.test_detect import Tree, blobs_of, paths_of_manifest

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


def blob(mtime_ns: int, ctime_ns: int) -> bytes:
    return STAT.pack(0o100644, 0, 0, 1, 5, mtime_ns, ctime_ns, 77, 88) + b"name\0"


@pytest.mark.parametrize(
    ("mtime_ns", "ctime_ns", "read_ns", "settled"),
    [
        (5 * SECOND + 1, 5 * SECOND + 1, 6 * SECOND, True),
        (5 * SECOND + 1, 5 * SECOND + 1, 5 * SECOND + 10_000_000, False),  # within the clock's tick
        (SECOND, 6 * SECOND - 1, 6 * SECOND, False),  # an old time, set a moment ago
        (5 * SECOND, 5 * SECOND, 6 * SECOND, False),  # a file system that counts whole seconds
        (5 * SECOND, 5 * SECOND, 8 * SECOND, True),
        (9 * SECOND + 1, SECOND + 1, 6 * SECOND, False),  # from the future: may be written again unseen
        (6 * SECOND + DAY, SECOND + 1, 6 * SECOND, True),  # from so far that it was set: a write shows
        (6 * SECOND + DAY, 6 * SECOND, 6 * SECOND, False),
    ],
)
def test_what_may_still_change_unseen_never_matches(
    mtime_ns: int, ctime_ns: int, read_ns: int, settled: bool
) -> None:
    one = blob(mtime_ns, ctime_ns)
    assert settled_blob(one, read_ns) == (one if settled else unsettled_blob(one))
    assert unsettled_blob(one) != one
    assert len(unsettled_blob(one)) == len(one)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    for name in ("plain", "with,comma", "folder/inner", "new\nline", os.fsdecode(b"\xff")):
        tree.write(name, b"content")
    (tree.root / "link").symlink_to("somewhere/else")
    os.mkfifo(tree.root / "pipe", 0o640)
    os.chmod(tree.root / "plain", 0o4711)
    os.utime(tree.root / "folder" / "inner", ns=(-3, -3))
    tree.record()
    return tree


def test_the_blob_of_a_record_is_the_walk_s(tree: Tree) -> None:
    lines = [line for line in Path(tree.manifest).read_bytes().splitlines() if b"_internal_type=" not in line]
    for line, walked in zip(lines, blobs_of(tree.events()), strict=True):
        if b",type=directory," not in line:  # which may be recorded and not stamped
            assert blob_of_line(line) == walked, line
        else:
            assert blob_of_line(line) == unsettled_blob(walked)


@pytest.mark.parametrize("missing", [b"st_ino", b"inode_ctime", b"st_size", b"st_nlink"])
def test_an_incomplete_record_never_matches(tree: Tree, missing: bytes) -> None:
    line = next(line for line in Path(tree.manifest).read_bytes().splitlines() if line.startswith(b"=plain,"))
    record = parse_record(line)
    fields = {key: value for key, value in record.fields.items() if key != missing}
    assert blob_of_line(format_record(record.path, fields)) == unsettled_blob(blob_of_line(line))


def test_an_index_made_anew_finds_everything_but_directories_unchanged(tree: Tree) -> None:
    os.unlink(tree.index)
    build_index(tree.manifest, tree.index, tree.digest)
    assert tree.detect().of("changed") == [b"folder", b""]


@pytest.mark.parametrize("damage", ["gone", "byte", "short", "other manifest", "head"])
def test_an_index_that_does_not_fit_is_not_used(tree: Tree, damage: str) -> None:
    data = Path(tree.index).read_bytes()
    digest = tree.digest
    match damage:
        case "gone":
            os.unlink(tree.index)
        case "byte":
            Path(tree.index).write_bytes(data[:-3] + b"?" + data[-2:])
        case "short":
            Path(tree.index).write_bytes(data[:-1])
        case "other manifest":
            digest = "0" * 64
        case "head":
            Path(tree.index).write_bytes(b"something else\n" * 30)
    assert open_index(tree.index, digest) is None


def test_a_match_moves_on_and_a_mismatch_does_not(tree: Tree) -> None:
    old = tree.old()
    blobs = blobs_of(tree.events())
    assert not old.match(unsettled_blob(blobs[0]), 1)
    assert old.match(b"".join(blobs[:3]), 3)
    assert old.position == 3
    head = old.head()
    assert head is not None and head.path == paths_of_manifest(tree)[3].replace(b"&#10;", b"\n")
    assert head.blob == blobs[3]
    old.advance()
    assert old.match(b"".join(blobs[4:]), len(blobs) - 4)
    assert old.head() is None
    old.close()


def test_the_cursor_knows_where_records_lie(tree: Tree) -> None:
    text = Path(tree.manifest).read_bytes()
    old = tree.old()
    assert text[old.first_text_offset() :].startswith(b"=")
    for path in paths_of_manifest(tree):
        assert text[old.text_offset() :].startswith(b"=" + path + b",")
        old.advance()
    assert b"_internal_type=" in text[old.text_offset() :].splitlines()[0]  # the trailer
    old.close()


def test_windows_smaller_than_the_tree_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirrorkeep.sync import index

    tree = Tree(tmp_path)
    for number in range(400):
        tree.write(f"d{number % 7}/{'n' * (number % 90)}{number}")
    time.sleep(0.07)  # the entries' times are to lie behind the clock's granularity
    tree.record()
    monkeypatch.setattr(index, "WINDOW_BYTES", 1000)
    assert tree.detect().actions == []
    tree.write("d3/nn3", b"longer")
    assert set(tree.detect().of("changed")) <= {b"d3/nn3", b"d3"}
