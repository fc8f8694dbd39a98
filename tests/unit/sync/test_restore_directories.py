"""Directories of a restore: all made, then stamped, by many workers at once where that cannot fail."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.progress import Silent
from mirrorkeep.sync.restore import MAX_PLACED, Restore
from mirrorkeep.tree.metadata import flags
from mirrorkeep.tree.protocol import Failure, Frame

NOBODY = 65534


class Described:
    """A source that has directories only."""

    name = "described"

    def __init__(self, modes: dict[bytes, int]) -> None:
        self._modes = modes

    def fetch_manifest(self, path: str) -> None:
        with open(path, "wb") as out:
            writer = ManifestWriter(out, {})
            for number, directory in enumerate(sorted(self._modes, key=order_key)):
                fields = {
                    b"type": b"directory",
                    b"st_mode": b"%o" % (stat.S_IFDIR | self._modes[directory]),
                    b"st_mtime": b"%d.5" % (1_000_000_000 + number),
                }
                writer.add_many([format_record(directory, fields)])
            writer.finish()

    def master(self) -> Described:
        return self

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        raise NotImplementedError

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        raise NotImplementedError

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        raise NotImplementedError


def tree() -> dict[bytes, int]:
    """Directories whose stamping, as they come, falls into the order after that of most they hold."""
    modes: dict[bytes, int] = {b"": 0o755}
    for upper in range(8):
        modes[b"u%d" % upper] = 0o000 if upper % 2 else 0o500
        for lower in range(MAX_PLACED + 20):
            modes[b"u%d/l%d" % (upper, lower)] = 0o711
    return modes


def as_nobody(action: Callable[[], bool]) -> bool:
    """Do something in a child that is not root; say whether it was true."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            status = 0 if action() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def check(root: Path, modes: dict[bytes, int]) -> None:
    for number, directory in enumerate(sorted(modes, key=order_key)):
        status = os.stat(os.path.join(os.fsencode(root), directory))
        found = (stat.S_IMODE(status.st_mode), status.st_mtime)
        assert found == (modes[directory], 1_000_000_000.5 + number), directory


@pytest.mark.root
def test_directories_have_their_modes_and_times_whoever_stamps_them_first(tmp_path: Path) -> None:
    modes = tree()
    result = Restore(Described(modes), str(tmp_path / "out"), Silent()).execute()
    assert (result.status, result.entries) == ("complete", len(modes))
    check(tmp_path / "out", modes)


def test_a_user_closes_directories_after_what_is_in_them() -> None:
    modes = tree()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        target = Path(folder, "out")
        done = as_nobody(
            lambda: Restore(Described(modes), str(target), Silent()).execute().status == "complete"
        )
        if os.geteuid() == 0:
            check(target, modes)
        for directory in modes:
            if os.geteuid() != 0:
                os.chmod(os.path.join(os.fsencode(target), directory), 0o700)
    assert done


class Filed(Described):
    """A source of one file in a folder."""

    def __init__(self) -> None:
        super().__init__({})

    def fetch_manifest(self, path: str) -> None:
        file = {b"type": b"file", b"st_size": b"4", b"st_mode": b"100644", b"st_mtime": b"1000000000"}
        digest = hashlib.sha256(b"text").hexdigest().encode()
        folder = {b"type": b"directory", b"st_mode": b"40755", b"st_mtime": b"1000000000"}
        with open(path, "wb") as out:
            writer = ManifestWriter(out, {})
            writer.add_many(
                [
                    format_record(b"folder/inner/file", {**file, b"hash": digest}),
                    *(format_record(directory, folder) for directory in (b"folder/inner", b"folder", b"")),
                ]
            )
            writer.finish()

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        for _ in paths:
            yield b"text"


@pytest.fixture
def protected(tmp_path: Path) -> Iterator[Path]:
    """A folder that takes nothing before its flags are cleared."""
    folder = tmp_path / "out"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    try:
        if flags.write_flags(fd, flags.read_flags(fd) | flags.IMMUTABLE | flags.APPEND):
            pytest.skip("this file system has no such flags")
        yield folder
        flags.clear_protection(fd)
    finally:
        os.close(fd)


def protection(folder: Path) -> int:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return flags.read_flags(fd) & flags.PROTECTING
    finally:
        os.close(fd)


@pytest.mark.root
def test_a_folder_that_a_file_is_restored_into_keeps_its_protection(protected: Path) -> None:
    for _ in range(2):
        result = Restore(Filed(), str(protected), Silent(), path=b"folder/inner/file").execute()
        assert (result.status, os.listdir(protected)) == ("complete", ["file"])
        assert protection(protected) == flags.PROTECTING


@pytest.mark.root
@pytest.mark.parametrize("path", [b"folder/inner/file", b""])
def test_a_folder_has_its_protection_again_after_a_restore_that_ends_early(
    protected: Path, path: bytes
) -> None:
    class Interrupted(Silent):
        def phase(self, name: str) -> None:
            if name == "links":  # all files are there
                assert protection(protected) == 0
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Restore(Filed(), str(protected), Interrupted(), path=path).execute()
    assert protection(protected) == flags.PROTECTING


@pytest.mark.root
def test_a_folder_that_comes_with_its_record_is_protected_as_that_says(protected: Path) -> None:
    result = Restore(Filed(), str(protected), Silent()).execute()
    assert (result.status, protection(protected)) == ("complete", 0)
    assert (protected / "folder" / "inner" / "file").read_bytes() == b"text"


def test_a_directory_that_cannot_be_made_is_reported_once(tmp_path: Path) -> None:
    modes = {b"": 0o755, b"fine": 0o711, b"n" * 300: 0o755}

    class Noting(Silent):
        def failure(self, path: bytes, code: str, detail: str) -> None:
            noted.append(path)

    noted: list[bytes] = []
    result = Restore(Described(modes), str(tmp_path / "out"), Noting()).execute()
    assert (result.status, result.failed, noted) == ("partial", 1, [b"n" * 300])
    assert stat.S_IMODE((tmp_path / "out" / "fine").stat().st_mode) == 0o711
