"""Reading the native tree: records that describe exactly the bytes beside them, and named failures."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest
from blake3 import blake3

from mirrorkeep.errors import NotFound, PathRefused, SourceUnreadable
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.tree import native, wire
from mirrorkeep.tree.metadata.statx import StatReader
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.native_line import LineMaker
from mirrorkeep.tree.protocol import Failure, Frame, Op


def only(tree: NativeTree, path: bytes) -> Frame | Failure:
    (item,) = tree.frames([path])
    return item


def frame(tree: NativeTree, path: bytes) -> Frame:
    item = only(tree, path)
    assert isinstance(item, Frame), item
    return item


def failure_code(tree: NativeTree, path: bytes) -> str:
    item = only(tree, path)
    assert isinstance(item, Failure), item
    return item.code


@pytest.mark.parametrize("name", [b"plain", b"a,b=c&d", b"line\nbreak\r", b"\xff\xfe", b"%s {x}"])
def test_the_direct_line_equals_the_formatted_one(tmp_path: Path, name: bytes) -> None:
    full = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(full)).write_bytes(b"x" * 5000)
    for mtime_ns in (0, 1, 1_600_000_000_000_000_000, 1_600_000_000_100_000_000, 2**33 * 10**9 + 10):
        os.utime(full, ns=(mtime_ns, mtime_ns))
        dir_fd, fd = os.open(tmp_path, os.O_RDONLY), os.open(full, os.O_RDONLY)
        try:
            facts, maker = StatReader().by_fd(fd), LineMaker("sha256")
            direct = maker.file(b"d/" + name, fd, dir_fd, name, facts, "ab" * 32)
            assert direct == maker.unusual_file(b"d/" + name, fd, dir_fd, name, facts, "ab" * 32)
            assert parse_record(direct).path == b"d/" + name
        finally:
            os.close(fd)
            os.close(dir_fd)


def test_times_before_the_epoch_take_the_other_way(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    os.utime(tmp_path / "f", ns=(-5, -1_500_000_000))
    record = parse_record(frame(NativeTree(str(tmp_path)), b"f").line)
    assert record.fields[keys.MTIME] == b"-1.5"
    assert record.fields[keys.ATIME] == b"-0.000000005"


def test_a_file_comes_whole_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello")
    (tmp_path / "f").chmod(0o640)
    item = frame(NativeTree(str(tmp_path)), b"f")
    record = parse_record(item.line)
    status = (tmp_path / "f").stat()
    assert (item.op, item.data, record.kind, record.size) == (Op.PUT, b"hello", keys.FILE, 5)
    assert record.hash.decode() == hashlib.sha256(b"hello").hexdigest()
    assert record.fields[keys.MODE] == b"100640"
    assert record.mtime_ns == status.st_mtime_ns
    assert int(record.fields[keys.INODE]) == status.st_ino


@pytest.mark.parametrize(
    ("digest", "value", "named"),
    [("sha1", hashlib.sha1(b"hi").hexdigest(), None), ("blake3", blake3(b"hi").hexdigest(), b"blake3")],
)
def test_other_digests(tmp_path: Path, digest: str, value: str, named: bytes | None) -> None:
    (tmp_path / "f").write_bytes(b"hi")
    record = parse_record(frame(NativeTree(str(tmp_path), digest=digest), b"f").line)
    assert (record.hash.decode(), record.fields.get(keys.HASH_NAME)) == (value, named)


def test_every_type_has_its_operation(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    tree = NativeTree(str(tmp_path))
    seen = {}
    for path in (b"folder", b"link", b"fifo", b"socket", b""):
        item = frame(tree, path)
        seen[path] = (item.op, parse_record(item.line).kind)
    assert seen == {
        b"folder": (Op.STAMP, keys.DIRECTORY),
        b"link": (Op.LINK, keys.LINK),
        b"fifo": (Op.NODE, keys.FIFO),
        b"socket": (Op.NODE, keys.SOCKET),
        b"": (Op.STAMP, keys.DIRECTORY),
    }
    assert parse_record(frame(tree, b"link").line).fields[keys.LINK_TARGET] == b"nowhere"


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"1")
    (tmp_path / "large").write_bytes(bytes(wire.SMALL_FILE_BYTES + 1))
    (tmp_path / "trap").symlink_to("/etc")
    tree = NativeTree(str(tmp_path))
    paths = [b"gone", b"large", b"good/below", b"trap/passwd", b"../etc/passwd", b"a//b", b"nul\0", b"good"]
    items = list(tree.frames(paths))
    assert [item.code for item in items[:-1] if isinstance(item, Failure)] == [
        "not_found",
        "too_large",
        "not_found",
        "path_refused",
        "path_refused",
        "path_refused",
        "path_refused",
    ]
    assert [item.index for item in items[:-1] if isinstance(item, Failure)] == list(range(7))
    assert isinstance(items[-1], Frame)


def test_an_unreadable_file_carries_the_systems_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"1")

    def refuse(fd: int, count: int) -> bytes:
        raise OSError(5, "broken disk")

    monkeypatch.setattr(native.os, "read", refuse)
    item = only(NativeTree(str(tmp_path)), b"f")
    assert isinstance(item, Failure)
    assert (item.code, item.detail) == ("source_unreadable", "f: Input/output error")


def test_a_file_that_moves_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"before")
    read, left = os.read, [1]

    def read_and_disturb(fd: int, count: int) -> bytes:
        data = read(fd, count)
        if left:
            left.pop()
            file.write_bytes(b"after!")
        return data

    monkeypatch.setattr(native.os, "read", read_and_disturb)
    item = frame(NativeTree(str(tmp_path)), b"f")
    assert item.data == b"after!"
    assert parse_record(item.line).hash.decode() == hashlib.sha256(b"after!").hexdigest()


@pytest.mark.parametrize("disturbance", ["grow", "shrink", "replace"])
def test_a_file_that_never_rests_is_source_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbance: str
) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 100)
    read, size = os.read, [100]

    def read_and_disturb(fd: int, count: int) -> bytes:
        if disturbance == "replace":
            (tmp_path / "new").write_bytes(b"y" * 100)
            (tmp_path / "new").rename(file)
            return read(fd, count)
        size[0] += 1 if disturbance == "grow" else -1
        os.truncate(file, size[0])
        return read(fd, count)

    monkeypatch.setattr(native.os, "read", read_and_disturb)
    assert failure_code(NativeTree(str(tmp_path)), b"f") == "source_changed"


def test_reading_leaves_access_times_alone(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    os.utime(tmp_path / "f", ns=(1, 2 * 10**18))
    frame(NativeTree(str(tmp_path)), b"f")
    assert (tmp_path / "f").stat().st_atime_ns == 1


def test_ranges_descriptions_and_the_settled_check_for_large_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    tree = NativeTree(str(tmp_path))
    assert tree.read_range(b"f", 2, 5) == b"234"
    assert tree.read_range(b"f", 8, 50) == b"89"
    fields, before = tree.describe(b"f")
    assert keys.HASH not in fields
    assert fields[keys.SIZE] == b"10"
    fd = tree.open_content(b"f")
    try:
        assert tree.settled(before, fd)
        (tmp_path / "f").write_bytes(b"012345678X")
        assert not tree.settled(before, fd)
    finally:
        os.close(fd)


def test_open_content_refuses_nodes_and_missing_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    tree = NativeTree(str(tmp_path))
    with pytest.raises(SourceUnreadable, match="not a regular file"):
        tree.open_content(b"fifo")
    with pytest.raises(NotFound):
        tree.open_content(b"gone")
    with pytest.raises(PathRefused):
        tree.read_range(b"../x", 0, 1)


def test_many_directories_need_few_descriptors(tmp_path: Path) -> None:
    paths = []
    for number in range(200):
        (tmp_path / f"d{number}" / "e").mkdir(parents=True)
        (tmp_path / f"d{number}" / "e" / "f").write_bytes(b"%d" % number)
        paths.append(b"d%d/e/f" % number)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    for number, item in enumerate(NativeTree(str(tmp_path)).frames(paths)):
        assert isinstance(item, Frame)
        assert item.data == b"%d" % number
        most = max(most, len(os.listdir("/proc/self/fd")) - before)
    assert most <= 64
    assert len(os.listdir("/proc/self/fd")) == before
