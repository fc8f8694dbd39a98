"""The manifest leads to the digest of every segment of a large file, whatever became of the file (MAN-38)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mirrorkeep.delta.segments import SEGMENT_BYTES, digest_segments, pack_digests
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.difference import compare_manifests
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.sync import sending
from mirrorkeep.sync.describe import describe_tree
from mirrorkeep.tree.stored import StoredTree
from tests.property.sync.loop import Loop

SIZE_BYTES = 2 * SEGMENT_BYTES + 1000


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "image").write_bytes(os.urandom(SIZE_BYTES))
    loop.sync()
    loop.sync()  # signatures of the first run are there now, or the store is asked for one
    return loop


def check(loop: Loop, name: str) -> None:
    """Assert that manifest and sidecar have the digests of what the file is now."""
    with (loop.source / name).open("rb") as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        expected = pack_digests(size_bytes, digest_segments(stream.fileno(), size_bytes))
    path = os.fsencode(name)
    assert loop.manifest()[path].get(keys.SEGMENTS, b"") == expected
    with StoredTree(os.fsencode(loop.copy), read_only=True) as tree:
        record = tree.stat(path).record
        assert record is not None and record.fields.get(keys.SEGMENTS, b"") == expected


def test_a_new_file(loop: Loop) -> None:
    check(loop, "image")


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES, SIZE_BYTES + 7, SEGMENT_BYTES + 1, SEGMENT_BYTES, 100])
def test_an_edited_file(loop: Loop, size_bytes: int) -> None:
    with (loop.source / "image").open("r+b") as stream:
        stream.truncate(size_bytes)
        stream.seek(max(size_bytes - 50, 0))
        stream.write(b"edited")
    result = loop.sync()
    assert (result.changed >= 1, result.failed) == (True, 0)
    check(loop, "image")


def test_another_mode_another_name_and_a_copy(loop: Loop) -> None:
    os.chmod(loop.source / "image", 0o600)
    sent_bytes = loop.sync().bytes_sent
    check(loop, "image")
    (loop.source / "image").rename(loop.source / "renamed")
    result = loop.sync()
    check(loop, "renamed")
    shutil.copy(loop.source / "renamed", loop.source / "copied")
    copied = loop.sync()
    check(loop, "copied")
    assert (result.moved, copied.copied) == (1, 1)
    assert sent_bytes + result.bytes_sent + copied.bytes_sent < 1000


def test_a_record_without_digests_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror made before there were any: metadata cost nothing more, the next content brings them."""
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "image").write_bytes(os.urandom(SIZE_BYTES))
    with monkeypatch.context() as before:
        before.setattr(sending, "pack_digests", lambda size_bytes, digests: b"")
        loop.sync()
    assert keys.SEGMENTS not in loop.manifest()[b"image"]
    os.chmod(loop.source / "image", 0o600)
    assert loop.sync().bytes_sent < 1000
    assert keys.SEGMENTS not in loop.manifest()[b"image"]
    with (loop.source / "image").open("ab") as stream:
        stream.write(b"more")
    assert loop.sync().bytes_sent < SIZE_BYTES // 10
    check(loop, "image")


def test_a_description_of_the_source_says_the_same(loop: Loop) -> None:
    def tell(path: bytes, detail: str) -> None:
        raise AssertionError(detail)

    lines = describe_tree(os.fsencode(loop.source), tell)
    record = next(one for one in map(parse_record, lines) if one.path == b"image")
    assert record.fields[keys.SEGMENTS] == loop.manifest()[b"image"][keys.SEGMENTS]
    without = Record(
        record.path, {key: value for key, value in record.fields.items() if key != keys.SEGMENTS}
    )
    assert list(compare_manifests([record], [without])) == []
    other = Record(record.path, {**record.fields, keys.SEGMENTS: b"x"})
    assert [one.fields for one in compare_manifests([record], [other])] == [(keys.SEGMENTS,)]
