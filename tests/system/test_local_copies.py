"""A copy on a drive of this machine beside the mirror on a store: made at once, proven, repaired, restored.

Through the command line alone.  A loop device with a file system of its own stands for a drive.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compare import Comparer
from rig.mirrored import Mirrored
from rig.served import Result, Served, checked, command

HIDDEN = b".mirrorkeep"


def make_source(root: Path) -> None:
    for number in range(200):
        place = root / f"folder{number % 7}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(number * 20))
    (root / "large").write_bytes(os.urandom(6_000_000))
    os.link(root / "large", root / "folder1" / "another name")
    (root / "link").symlink_to("large")
    os.setxattr(root / "large", "user.note", b"kept")
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files + folders:
            os.utime(os.path.join(folder, name), ns=(10**18, 10**18 + 7), follow_symlinks=False)


def differences(one: Path, other: Path) -> list[str]:
    skipped = (HIDDEN, b"lost+found")
    return [str(found) for found in Comparer(str(one), str(other), skip=skipped).differences()]


def local_arguments(mirrored: Mirrored, drive: Path) -> list[str]:
    return ["sync", str(mirrored.source), str(drive), "--state", str(mirrored.state), "--json"]


@pytest.mark.root
@pytest.mark.engine("mkfs.ext4")
def test_a_drive_and_a_store_take_one_source_at_the_same_time(
    served_store: Served, scratch_mount: Callable[..., Path], tmp_path: Path
) -> None:
    drive = scratch_mount("drive", kind="ext4", size_bytes=96 << 20)
    mirrored = Mirrored(served_store, tmp_path)
    make_source(mirrored.source)
    done: list[Result] = []
    beside = threading.Thread(target=lambda: done.append(command(*local_arguments(mirrored, drive))))
    beside.start()
    mirrored.sync()
    beside.join()
    assert [one.status for one in done] == [0], done
    assert mirrored.differences() == []
    assert differences(mirrored.source, drive) == []
    assert done[0].last["entries"] == 200 + 7 + 4
    mirrored.check_verdict()
    assert checked("validate", str(drive), "--json").last["verdict"] == "verified"
    assert (drive / "lost+found").is_dir(), "what the file system has in its root is no entry of the copy"
    os.utime(drive / "large", ns=(1, 1))
    found = command("validate", str(drive), "--json")
    assert [row["path"] for row in found.rows if "kind" in row] == ["folder1/another name", "large"]
    repaired = checked(*local_arguments(mirrored, drive)).last
    assert repaired["removed"] == 0
    assert (drive / "lost+found").is_dir()
    assert differences(mirrored.source, drive) == []


def test_a_damaged_copy_is_named_by_its_own_manifest_and_repaired_by_the_next_run(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    make_source(source)
    argv = ("sync", str(source), str(copy), "--state", str(tmp_path / "state"), "--json")
    checked(*argv)
    for name in ("folder3/file101", "large"):
        times = (copy / name).stat()
        with (copy / name).open("r+b") as stream:
            stream.seek(1000)
            stream.write(b"rot")
        os.utime(copy / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    (copy / "folder2" / "file100").unlink()
    found = command("validate", str(copy), "--json")
    assert found.status == 4
    assert {(row["path"], row["kind"]) for row in found.rows if "kind" in row} == {
        ("folder1/another name", "content"),
        ("folder2/file100", "missing"),
        ("folder3/file101", "content"),
        ("large", "content"),
    }
    assert found.last["verdict"] == "failed"
    repaired = checked(*argv).last
    assert (repaired["status"], repaired["removed"]) == ("complete", 0)
    assert repaired["unchanged"] > 190
    assert differences(source, copy) == []
    assert checked("validate", str(copy), "--json").last["findings"] == 0
    assert checked(*argv).last["bytes_sent"] == 0


def test_a_copy_gives_everything_back_while_the_store_is_away(served_store: Served, tmp_path: Path) -> None:
    mirrored = Mirrored(served_store, tmp_path)
    make_source(mirrored.source)
    copy, back = tmp_path / "copy", tmp_path / "back"
    mirrored.sync()
    checked(*local_arguments(mirrored, copy))
    served_store.kill()
    served_store.data.rename(tmp_path / "out of reach")
    done = checked("restore", str(copy), str(back), "--json").last
    assert (done["status"], done["failed"]) == ("complete", 0)
    assert [str(one) for one in Comparer(str(mirrored.source), str(back)).differences()] == []
