"""Hard links of a restore: a name is linked only to what this restore made, or found to be right."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync import links
from mirrorkeep.sync.restore_links import FurtherNames
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.compare import Comparer
from tests.property.sync.loop import Loop
from tests.unit.sync.test_restore_newer import OLD_S, age, restore

CONTENT = b"right content"


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    """A copy of one file of four names."""
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "a").write_bytes(CONTENT)
    for name in "bcd":
        os.link(loop.source / "a", loop.source / name)
    age(loop.source)
    loop.sync()
    return loop


def write(path: Path, content: bytes, seconds: int) -> None:
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


def groups(folder: Path) -> list[list[str]]:
    """Return which names are one file."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.iterdir()):
        found.setdefault(path.lstat().st_ino, []).append(path.name)
    return sorted(found.values())


def test_nothing_leads_to_a_file_that_was_kept(loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(out / "a", b"other content", OLD_S + 1)  # as long, and so near in time that it could be the same
    for _ in range(2):
        assert restore(loop, out) == {"a": "newer_kept"}
        assert (out / "a").read_bytes() == b"other content"
        assert (out / "b").read_bytes() == CONTENT
        assert groups(out) == [["a"], ["b", "c", "d"]]


def test_a_name_that_is_newer_itself_carries_nothing(loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in "abd":
        write(out / name, b"other content", OLD_S + 1)
    assert restore(loop, out) == dict.fromkeys("abd", "newer_kept")
    assert [(out / name).read_bytes() for name in "abcd"] == [b"other content"] * 2 + [
        CONTENT,
        b"other content",
    ]


def test_a_file_that_was_changed_under_all_its_names_is_kept_under_all(loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert restore(loop, out) == {}
    assert groups(out) == [["a", "b", "c", "d"]]
    (out / "c").write_bytes(b"other content")
    assert restore(loop, out) == dict.fromkeys("abcd", "newer_kept")
    assert groups(out) == [["a", "b", "c", "d"]]
    assert (out / "a").read_bytes() == b"other content"
    assert restore(loop, out, overwrite=True) == {}
    assert groups(out) == [["a", "b", "c", "d"]]
    assert (out / "d").read_bytes() == CONTENT


def test_names_lead_to_each_other_where_their_leader_fails(loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "b").mkdir()
    assert restore(loop, out) == dict.fromkeys("ab", "already_exists")
    assert (out / "c").read_bytes() == CONTENT
    assert groups(out) == [["a"], ["b"], ["c", "d"]]


def test_a_part_keeps_the_links_whose_leader_lies_outside_of_it(loop: Loop, tmp_path: Path) -> None:
    folder = loop.source / "z"
    folder.mkdir()
    (loop.source / "other").write_bytes(CONTENT)
    for name, leader in (("1", "a"), ("2", "other"), ("3", "a"), ("4", "other"), ("5", "a")):
        os.link(loop.source / leader, folder / name)
    loop.sync()
    for _ in range(2):
        assert restore(loop, tmp_path / "out", path=b"z") == {}
        assert groups(tmp_path / "out") == [["1", "3", "5"], ["2", "4"]]
    assert restore(loop, tmp_path / "one", path=b"z/5") == {}
    assert (tmp_path / "one" / "5").read_bytes() == CONTENT
    write(tmp_path / "out" / "1", b"other content", OLD_S + 1)  # all of its names at once
    (tmp_path / "out" / "3").unlink()
    kept = {"1": "newer_kept", "5": "newer_kept"}
    assert restore(loop, tmp_path / "out", path=b"z") == kept
    assert groups(tmp_path / "out") == [["1", "5"], ["2", "4"], ["3"]]


@pytest.mark.parametrize("size_bytes", [9, SMALL_FILE_BYTES + 1], ids=["small", "large"])
def test_names_that_are_files_of_their_own_do_not_stay_linked(
    loop: Loop, tmp_path: Path, size_bytes: int
) -> None:
    source, out = loop.source, tmp_path / "out"
    content = b"x" * size_bytes
    for number, name in enumerate(("e", "f", "g", "i")):  # two plain files, two of two names
        write(source / name, content, OLD_S + number)
        (source / name).chmod(0o600 + number)
    os.link(source / "g", source / "h")
    os.link(source / "i", source / "j")
    loop.sync()
    out.mkdir()
    write(out / "e", content, OLD_S + 9)
    write(tmp_path / "outside", content, OLD_S)
    for name in "fgi":
        os.link(out / "e", out / name)
    os.link(tmp_path / "outside", out / "h")
    before = (tmp_path / "outside").stat()
    for _ in range(2):
        assert restore(loop, out) == {}
        assert groups(out) == [["a", "b", "c", "d"], ["e"], ["f"], ["g", "h"], ["i", "j"]]
        assert [str(one) for one in Comparer(str(source), str(out)).differences()] == []
    after = (tmp_path / "outside").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)


def test_names_that_are_linked_already_stay_linked_and_are_not_written(loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore(loop, out)
    inode = (out / "a").stat().st_ino
    restore(loop, out)
    assert (out / "a").stat().st_ino == inode
    assert groups(out) == [["a", "b", "c", "d"]]


def test_links_and_nodes_that_are_entries_of_their_own_do_not_stay_linked(loop: Loop, tmp_path: Path) -> None:
    source, out = loop.source, tmp_path / "out"
    for number, name in enumerate(("l1", "l2")):
        (source / name).symlink_to("target")
        os.mkfifo(source / f"p{number}", 0o600 + number)
        os.utime(source / name, (OLD_S + number,) * 2, follow_symlinks=False)
    loop.sync()
    out.mkdir()
    (out / "l1").symlink_to("target")
    os.link(out / "l1", out / "l2", follow_symlinks=False)
    os.mkfifo(out / "p0")
    os.link(out / "p0", out / "p1")
    assert restore(loop, out) == {}
    assert [str(one) for one in Comparer(str(source), str(out)).differences()] == []


def test_names_of_a_symbolic_link_or_a_fifo_come_back_each_by_itself(loop: Loop, tmp_path: Path) -> None:
    source, out = loop.source, tmp_path / "out"
    (source / "l1").symlink_to("target")
    os.mkfifo(source / "p1")
    for name in "lp":
        os.link(source / f"{name}1", source / f"{name}2", follow_symlinks=False)
    loop.sync()
    assert restore(loop, out) == {}
    assert groups(out) == [["a", "b", "c", "d"], ["l1"], ["l2"], ["p1"], ["p2"]]
    assert (out / "l2").readlink() == Path("target") and (out / "p2").is_fifo()


def further(path: bytes, inode: int, leader: bytes = b"gone") -> bytes:
    fields = {keys.TYPE: b"file", keys.HASH: b"%x" % inode, keys.INODE: b"%d" % inode}
    return format_record(path, {**fields, keys.HARD_LINK: leader})


def bring(names: FurtherNames, lines: Iterable[bytes], refused: set[bytes]) -> dict[bytes, bytes]:
    """Do what a restore does; return what each name was linked to, nothing for what got the content."""
    became: dict[bytes, bytes] = {}

    def fetch(line: bytes) -> None:
        record = parse_record(line)
        assert keys.HARD_LINK not in record.fields and record.path not in became
        became[record.path] = b""
        if record.path not in refused:
            names.settle([(record.path, record.hash)])

    def link(rows: Iterable[bytes]) -> None:
        for row in rows:
            record = parse_record(row)
            became[record.path] = record.fields[keys.HARD_LINK]

    link(names.linked(lines))
    while names.next_carriers(fetch):
        link(names.linked_to_carriers(fetch))
    return became


def test_more_groups_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.LinkTable.__init__, "__kwdefaults__", {"max_in_memory": 7})
    names = FurtherNames(os.fspath(tmp_path), b"/nowhere", overwrite=False)
    lines = [further(b"%d/%d" % (name, file), file) for name in range(5) for file in range(100)]
    became = bring(names, lines, refused={b"0/%d" % file for file in range(50)})
    names.close()
    for name in range(5):
        for file in range(100):
            carrier = 1 if file < 50 else 0
            expected = b"" if name <= carrier else b"%d/%d" % (carrier, file)
            assert became[b"%d/%d" % (name, file)] == expected


def test_content_that_never_comes_is_asked_for_once_a_name(tmp_path: Path) -> None:
    names = FurtherNames(os.fspath(tmp_path), b"/nowhere", overwrite=False)
    lines = [further(b"%d" % name, 1) for name in range(50)]
    became = bring(names, lines, refused={b"%d" % name for name in range(50)})
    names.close()
    assert became == {b"%d" % name: b"" for name in range(50)}


def test_a_leader_with_other_content_leads_nobody(tmp_path: Path) -> None:
    names = FurtherNames(os.fspath(tmp_path), b"/nowhere", overwrite=False)
    names.settle([(b"a", b"1"), (b"b", b"2")])
    lines = [further(b"%d" % name, 2, leader) for name, leader in enumerate((b"a", b"b", b"a"))]
    assert bring(names, lines, refused=set()) == {b"0": b"", b"1": b"b", b"2": b"0"}
    names.close()
