"""Content that the mirror has is copied there, not sent; what is not there any more is sent after all."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest

from mirrorkeep.manifest.record import format_record
from mirrorkeep.sync import contents
from mirrorkeep.sync.contents import LEAST_BYTES, READ_FOR_ONE_SENT, ContentIndex, write_index
from mirrorkeep.tree.stored import StoredTree
from rig.compare import Comparer
from tests.property.sync.loop import Loop

MIB = 1 << 20
SIZES = [LEAST_BYTES, 300_000, MIB, MIB + 1, 12 * MIB]


def line(path: bytes, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest().encode()
    fields = {b"type": b"file", b"st_size": b"%d" % len(content), b"hash": digest, b"acl_list": b"a"}
    return format_record(path, fields)


@pytest.mark.parametrize("block_bytes", [200, 1 << 20])
def test_an_index_finds_every_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(contents, "_BLOCK_BYTES", block_bytes)
    chance = random.Random(2)
    held = {b"d/%d, a=b\n" % number: chance.randbytes(LEAST_BYTES + number % 7) for number in range(40)}
    small, text = chance.randbytes(LEAST_BYTES - 1), tmp_path / "text"
    rows = [line(path, content) for path, content in held.items()]
    text.write_bytes(b"=header,_internal_type=header\n" + b"\n".join([*rows, line(b"small", small)]) + b"\n")
    write_index(str(text), str(tmp_path))
    index = ContentIndex(str(text))
    for path, content in held.items():
        assert index.find(hashlib.sha256(content).hexdigest().encode(), len(content)) == path
        assert index.has_size(len(content))
    assert index.find(hashlib.sha256(b"other").hexdigest().encode(), LEAST_BYTES) == b""
    assert not index.has_size(len(small))
    assert not index.has_size(LEAST_BYTES + 7)
    index.close()


def test_an_index_of_nothing_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"=header,_internal_type=header\n")
    write_index(str(tmp_path / "text"), str(tmp_path))
    index = ContentIndex(str(tmp_path / "text"))
    assert not index.has_size(LEAST_BYTES)
    assert index.find(b"0" * 64, LEAST_BYTES) == b""
    index.close()


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    return loop


def check(loop: Loop) -> None:
    """Assert that what is restored is the source."""
    restored = loop.folder / "restored"
    assert loop.restore(restored).status == "complete"
    assert [str(one) for one in Comparer(str(loop.source), str(restored)).differences()] == []


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_copy_at_the_source_is_a_copy_on_the_mirror(loop: Loop, size_bytes: int) -> None:
    (loop.source / "first").write_bytes(os.urandom(size_bytes))
    assert loop.sync().copied == 0
    shutil.copy(loop.source / "first", loop.source / "second")
    os.chmod(loop.source / "second", 0o600)
    result = loop.sync()
    assert (result.new, result.copied) == (1, 1)
    assert result.bytes_sent < 1000
    check(loop)
    loop.check_unchanged()


@pytest.mark.parametrize("first_run", [True, False])
def test_equal_files_of_one_run_are_sent_once(loop: Loop, first_run: bool) -> None:
    if not first_run:
        (loop.source / "old").write_bytes(b"x")
        loop.sync()
    content = os.urandom(3 * MIB)
    for name in "abcd":
        (loop.source / name).write_bytes(content)
    (loop.source / "other").write_bytes(os.urandom(3 * MIB))
    result = loop.sync()
    assert (result.failed, result.new >= 5, result.copied) == (0, True, 3)
    assert 6 * MIB <= result.bytes_sent < 7 * MIB
    check(loop)
    loop.check_unchanged()


@pytest.mark.parametrize(("entries", "copied"), [(700, 1), (5_000, 0)])
def test_one_copy_is_worth_the_reading_of_sixteen_times_its_bytes(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, entries: int, copied: int
) -> None:
    """A manifest of 700 entries is larger than the file, one of 5,000 more than sixteen times as large."""
    (loop.source / "first").write_bytes(os.urandom(LEAST_BYTES))
    for number in range(entries):
        (loop.source / f"another file {number}").write_bytes(b"x")
    loop.sync()
    size_bytes = loop.manifest_path().stat().st_size
    assert size_bytes > LEAST_BYTES and (size_bytes < READ_FOR_ONE_SENT * LEAST_BYTES) is bool(copied)
    made: list[str] = []
    make = contents.write_index

    def count(text: str, work: str) -> None:
        made.append(text)
        make(text, work)

    monkeypatch.setattr(contents, "write_index", count)
    shutil.copy(loop.source / "first", loop.source / "second")
    result = loop.sync()
    assert (result.new, result.copied, len(made)) == (1, copied, copied)
    assert (result.bytes_sent < LEAST_BYTES // 2) is bool(copied)


def test_files_below_the_threshold_are_sent(loop: Loop) -> None:
    (loop.source / "first").write_bytes(os.urandom(LEAST_BYTES - 1))
    loop.sync()
    shutil.copy(loop.source / "first", loop.source / "second")
    assert loop.sync().copied == 0
    check(loop)


@pytest.mark.parametrize("size_bytes", [LEAST_BYTES, 2 * MIB])
@pytest.mark.parametrize("what", ["changed", "removed"])
def test_what_the_store_cannot_copy_is_sent(loop: Loop, size_bytes: int, what: str) -> None:
    (loop.source / "first").write_bytes(os.urandom(size_bytes))
    loop.sync()
    if what == "changed":
        (loop.copy / "first").write_bytes(os.urandom(size_bytes))
    else:
        (loop.copy / "first").unlink()
    shutil.copy(loop.source / "first", loop.source / "second")
    result = loop.sync()
    assert (result.failed, result.copied, result.new) == (0, 0, 1)
    assert result.bytes_sent >= size_bytes
    with StoredTree(os.fsencode(loop.copy), read_only=True) as tree:
        assert tree.read_range(b"second", 0, size_bytes) == (loop.source / "second").read_bytes()


def test_a_source_that_changes_in_the_same_run_is_not_copied(loop: Loop) -> None:
    content = os.urandom(2 * MIB)
    (loop.source / "first").write_bytes(content)
    loop.sync()
    (loop.source / "first").write_bytes(os.urandom(2 * MIB))
    (loop.source / "second").write_bytes(content)
    result = loop.sync()
    assert (result.failed, result.copied) == (0, 0)
    check(loop)
