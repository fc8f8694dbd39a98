"""What a restore finds in its way that is newer than the snapshot stays, whatever either of them is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorkeep.sync.local import LocalSource
from mirrorkeep.sync.progress import Silent
from mirrorkeep.sync.restore import Restore
from mirrorkeep.tree import native_publish
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from tests.property.sync.loop import Loop

OLD_S = 1_600_000_000
NAMES = ("further", "link", "pipe", "plain")


class Noting(Silent):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.noted: dict[str, str] = {}

    def failure(self, path: bytes, code: str, detail: str) -> None:
        assert path.decode() not in self.noted
        self.noted[path.decode()] = code


def age(folder: Path, seconds: int = OLD_S) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def restore(loop: Loop, destination: Path, *, path: bytes = b"", overwrite: bool = False) -> dict[str, str]:
    reporter, source = Noting(), LocalSource(str(loop.copy))
    Restore(source, str(destination), reporter, path=path, threads=2, overwrite_newer=overwrite).execute()
    return reporter.noted


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "first").write_bytes(b"old content")
    (loop.source / "first").chmod(0o640)
    os.link(loop.source / "first", loop.source / "further")
    (loop.source / "link").symlink_to("first")
    os.mkfifo(loop.source / "pipe")
    (loop.source / "plain").write_bytes(b"old plain")
    age(loop.source)
    loop.sync()
    return loop


def put_file(path: Path) -> None:
    path.write_bytes(b"work of the user")


def put_link(path: Path) -> None:
    path.symlink_to("work of the user")


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [put_file, put_link, put_pipe])
def test_what_is_newer_is_kept_and_what_is_older_makes_room(loop: Loop, tmp_path: Path, put: object) -> None:
    destination = tmp_path / "out"
    assert restore(loop, destination) == {}
    for name in NAMES:
        (destination / name).unlink()
        put(destination / name)  # type: ignore[operator]
    inodes = {name: (destination / name).lstat().st_ino for name in NAMES}
    kept = set(NAMES) - ({"pipe"} if put is put_pipe else set())  # a FIFO is a FIFO: it is only stamped
    assert restore(loop, destination) == dict.fromkeys(kept, "newer_kept")
    assert {name: (destination / name).lstat().st_ino for name in NAMES} == inodes
    age(destination, OLD_S - 1)
    assert restore(loop, destination) == {}
    check(destination)


@pytest.mark.parametrize("put", [put_file, put_link])
def test_what_is_newer_goes_when_that_is_asked_for(loop: Loop, tmp_path: Path, put: object) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    for name in NAMES:
        put(destination / name)  # type: ignore[operator]
    assert restore(loop, destination, overwrite=True) == {}
    check(destination)


def check(destination: Path) -> None:
    assert (destination / "further").samefile(destination / "first")
    assert (destination / "further").read_bytes() == b"old content"
    assert (destination / "link").readlink() == Path("first")
    assert (destination / "pipe").is_fifo()
    assert (destination / "plain").read_bytes() == b"old plain"


def test_what_a_cut_off_restore_left_is_not_newer(loop: Loop, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    restore(loop, destination)
    for name in ("further", "link", "pipe"):
        (destination / name).unlink()
        (destination / name).write_bytes(b"ha")
        (destination / name).chmod(native_publish.MAKING)
    assert restore(loop, destination) == {}
    check(destination)


def test_a_name_that_was_only_touched_is_linked_again(loop: Loop, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    restore(loop, destination)
    (destination / "further").unlink()
    (destination / "further").write_bytes(b"old content")  # now: newer, and nothing new in it
    assert restore(loop, destination) == {}
    check(destination)


@pytest.mark.parametrize("size_bytes", [4, SMALL_FILE_BYTES + 1], ids=["small", "large"])
def test_what_is_of_another_kind_stays(loop: Loop, tmp_path: Path, size_bytes: int) -> None:
    (loop.source / "folder").mkdir()
    (loop.source / "folder" / "inside").write_bytes(b"x" * size_bytes)
    (loop.source / "other").write_bytes(b"y" * size_bytes)
    age(loop.source)
    loop.sync()
    destination = tmp_path / "out"
    destination.mkdir()
    (destination / "folder").write_bytes(b"a file now")
    for name in (*NAMES, "other"):
        (destination / name).mkdir()
        (destination / name / "in it").write_bytes(b"more work")
    codes = dict.fromkeys((*NAMES, "other", "folder"), "already_exists") | {"folder/inside": "not_found"}
    assert restore(loop, destination) == codes
    assert (destination / "folder").read_bytes() == b"a file now"
    for name in (*NAMES, "other"):
        assert (destination / name / "in it").read_bytes() == b"more work"
    assert (destination / "first").read_bytes() == b"old content"
