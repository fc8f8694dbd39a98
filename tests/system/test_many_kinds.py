"""Programs, databases, registry hives, several file systems in one source: all come back (GEN-11)."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rig import scratch
from rig.compare import Comparer
from rig.mirrored import Mirrored
from rig.served import Served, checked

HIVE_BLOCKS = 40


def make_hive(path: Path) -> None:
    """Write what begins like a Windows registry hive: a base block of 4096 bytes, then bins."""
    base = struct.pack("<4sIIQIIIII", b"regf", 7, 7, 0x01D0_0000_0000_0000, 1, 5, 0, 1, 32)
    base = base.ljust(508, b"\0")
    words = struct.unpack("<127I", base)
    checksum = 0
    for word in words:
        checksum ^= word
    with path.open("wb") as stream:
        stream.write((base + struct.pack("<I", checksum)).ljust(4096, b"\0"))
        for number in range(HIVE_BLOCKS):
            head = struct.pack("<4sII", b"hbin", number * 4096, 4096)
            stream.write(head + os.urandom(4096 - len(head)))


def edit_hive(path: Path) -> None:
    """Change one bin and the sequence numbers in the base block, as a system does that writes a value."""
    with path.open("r+b") as stream:
        stream.seek(4)
        stream.write(struct.pack("<II", 8, 8))
        stream.seek(4096 * 20 + 100)
        stream.write(b"a value")


def rows_of(path: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        return database.execute("select * from things order by number").fetchall()


def fill(path: Path, first: int) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table if not exists things (number integer primary key, name text)")
        rows = [(number, f"thing {number}" * 20) for number in range(first, first + 3000)]
        database.executemany("insert into things values (?, ?)", rows)


@pytest.mark.root
@pytest.mark.engine("mkfs.ext4", "mkfs.xfs")
def test_what_a_machine_holds_comes_back_from_several_file_systems(
    served_store: Served, scratch_mount: Callable[..., Path], tmp_path: Path
) -> None:
    one = scratch_mount("source", kind="ext4", size_bytes=64 << 20)
    other = one / "data"
    other.mkdir()
    scratch.run("mount", "--bind", str(scratch_mount("more", kind="xfs", size_bytes=320 << 20)), str(other))
    mirrored = Mirrored(served_store, tmp_path)
    mirrored.source = one
    assert one.stat().st_dev != other.stat().st_dev
    program = shutil.which("true")
    assert program is not None
    (one / "bin").mkdir()
    shutil.copy(os.path.realpath(program), one / "bin" / "true")
    assert (one / "bin" / "true").read_bytes()[:4] == b"\x7fELF"
    make_hive(one / "SYSTEM.hive")
    fill(other / "things.db", 0)
    (other / "same inode number").write_bytes(b"on another device")
    mirrored.sync()
    assert mirrored.differences() == []

    edit_hive(one / "SYSTEM.hive")
    fill(other / "things.db", 3000)
    changed = mirrored.sync()
    assert (changed["new"], changed["removed"]) == (0, 0)
    assert mirrored.differences() == []
    mirrored.check_verdict()
    mirrored.check_snapshots()

    back = tmp_path / "back"
    checked("restore", mirrored.volume.url, str(back), "--json", environment=mirrored.volume.environment)
    assert [str(one) for one in Comparer(str(one), str(back)).differences()] == []
    assert subprocess.run([back / "bin" / "true"], check=False).returncode == 0
    assert rows_of(back / "data" / "things.db") == rows_of(other / "things.db")
    assert len(rows_of(back / "data" / "things.db")) == 6000
