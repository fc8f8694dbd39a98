"""Small records: written whole or not at all, whatever the storage does, and gone for good once removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorkeep.errors import DamagedRecord
from mirrorkeep.store import keys, records

RECORD = {"name": "laptop", "filler": "x" * 9000}


@pytest.fixture
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each write take a thousand bytes at most, as one does that a signal or a full disk cuts off."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:1000]))


@pytest.mark.usefixtures("small_writes")
def test_a_record_that_the_storage_takes_piece_by_piece_is_whole(tmp_path: Path) -> None:
    records.write_record(str(tmp_path / "record"), RECORD)
    assert records.read_record(str(tmp_path / "record")) == RECORD


@pytest.mark.usefixtures("small_writes")
def test_a_statement_of_key_rotation_that_is_written_piece_by_piece_is_whole(tmp_path: Path) -> None:
    keys.create_keys(str(tmp_path))
    for number in range(3):
        keys.rotate_verdict_key(str(tmp_path), f"2026-01-0{number + 1}T00:00:00Z")
    assert len(keys.rotations(str(tmp_path))) == 3


def test_a_record_that_finds_no_room_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "record")
    records.write_record(path, {"name": "old"})
    write, left = os.write, [1]

    def full(fd: int, data: bytes) -> int:
        if not left:
            raise OSError(28, os.strerror(28))
        left.pop()
        return write(fd, bytes(data)[:1000])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        records.write_record(path, RECORD)
    assert records.read_record(path) == {"name": "old"}


def test_a_record_that_is_removed_twice_was_there_once(tmp_path: Path) -> None:
    records.write_record(str(tmp_path / "record"), RECORD)
    assert records.remove_record(str(tmp_path / "record"))
    assert not records.remove_record(str(tmp_path / "record"))


def test_a_durable_folder_is_made_with_all_that_is_missing_above_it(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "c"
    for _ in range(2):
        records.make_durable_folder(str(place))
        assert place.is_dir()
        assert place.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        records.make_durable_folder(str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("content", [b"", b'{"na', b"[1]", b"\xff\xfe", b"null"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    for read in (records.read_record, records.RecordCache().read):
        with pytest.raises(DamagedRecord) as refused:
            read(str(path))
        assert str(path) in str(refused.value)
    assert path.read_bytes() == content
