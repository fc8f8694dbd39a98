"""A restore worker: what one refused entry costs the others."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorkeep.cli.main import program
from mirrorkeep.errors import PathRefused, StoreUnreachable
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync.restore_links import There
from mirrorkeep.sync.restore_worker import Fetch, RestoreWorker
from mirrorkeep.tree import native_publish
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame
from tests.property.sync.loop import Loop


def record(path: bytes) -> bytes:
    digest = hashlib.sha256(path).hexdigest().encode()
    return format_record(path, {b"type": b"file", b"st_size": b"%d" % len(path), b"hash": digest})


class Master:
    """Serves files that contain their own path; refuses a whole request that names ``bad``."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        if b"bad" in paths:
            raise self._error
        yield from paths

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        raise NotImplementedError

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        return path[start:end]


def fetch(paths: list[bytes]) -> Fetch:
    return Fetch([(path, record(path)) for path in paths], [There.NOTHING] * len(paths), overwrite=False)


def test_one_refused_entry_does_not_take_its_bundle_along(tmp_path: Path) -> None:
    worker = RestoreWorker(Master(PathRefused(path=b"bad", detail="no")), NativeTree(str(tmp_path)))
    good = [b"f%d" % number for number in range(20)]
    done = worker(fetch([*good[:7], b"bad", *good[7:]]))
    assert [(path, code) for path, code, _ in done.failures] == [(b"bad", "path_refused")]
    assert done.written == 20
    assert {path.name.encode() for path in tmp_path.iterdir()} == set(good)


def test_a_store_that_does_not_answer_ends_the_restore(tmp_path: Path) -> None:
    worker = RestoreWorker(Master(StoreUnreachable(url="host", detail="gone")), NativeTree(str(tmp_path)))
    with pytest.raises(StoreUnreachable):
        worker(fetch([b"a", b"bad"]))


def dated(path: bytes, mode: bytes = b"100644") -> bytes:
    fields = {**parse_record(record(path)).fields, b"st_mtime": b"1000000000", b"st_mode": mode}
    return format_record(path, fields)


@pytest.mark.parametrize("content", [b"", b"half", b"wrong"], ids=["empty", "part", "same-size"])
def test_what_a_cut_off_restore_left_half_made_is_made_anew(tmp_path: Path, content: bytes) -> None:
    worker = RestoreWorker(Master(PathRefused(path=b"bad", detail="no")), NativeTree(str(tmp_path)))
    for name, mode in ((b"ours", native_publish.MAKING), (b"user", 0o600)):
        target = tmp_path / name.decode()
        target.write_bytes(content)  # newer than the record
        target.chmod(mode)
    names = [b"ours", b"user"]
    done = worker(Fetch([(name, dated(name)) for name in names], [There.SOMETHING] * 2, overwrite=False))
    assert [(path, code) for path, code, _ in done.failures] == [(b"user", "newer_kept")]
    assert (tmp_path / "ours").read_bytes() == b"ours"
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o644
    assert (tmp_path / "user").read_bytes() == content


def test_nothing_of_a_file_that_cannot_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "no room")

    worker = RestoreWorker(Master(PathRefused(path=b"bad", detail="no")), NativeTree(str(tmp_path)))
    monkeypatch.setattr(os, "pwrite", full)
    done = worker(Fetch([(b"f", dated(b"f"))], [There.NOTHING], overwrite=False))
    assert [(path, code) for path, code, _ in done.failures] == [(b"f", "no_space")]
    assert list(tmp_path.iterdir()) == []


def test_where_modes_are_not_kept_a_file_has_no_name_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = [], os.open

    def without_marks(path: bytes, flags: int, mode: int = 0o777, **named: int) -> int:
        if flags & os.O_CREAT and mode == native_publish.MAKING:
            opened.append(path)
            mode = 0o755  # what such a file system shows for everything
        return real(path, flags, mode, **named)

    worker = RestoreWorker(Master(PathRefused(path=b"bad", detail="no")), NativeTree(str(tmp_path)))
    monkeypatch.setattr(os, "open", without_marks)
    seen: list[list[str]] = []
    write = os.pwrite

    def watched(fd: int, data: bytes, offset: int) -> int:
        seen.append(os.listdir(tmp_path))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    done = worker(Fetch([(b"f", dated(b"f"))], [There.NOTHING], overwrite=False))
    assert not done.failures and (tmp_path / "f").read_bytes() == b"f"
    assert opened == [b"f"] and seen == [[]]
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


@pytest.mark.parametrize("mode", [b"101000", b"100000", b"104755", b"100600"])
def test_a_new_file_has_its_own_mode_whatever_it_is(tmp_path: Path, mode: bytes) -> None:
    worker = RestoreWorker(Master(PathRefused(path=b"bad", detail="no")), NativeTree(str(tmp_path)))
    done = worker(Fetch([(b"f", dated(b"f", mode))], [There.NOTHING], overwrite=False))
    assert not done.failures
    status = (tmp_path / "f").stat()
    assert (status.st_mode, status.st_mtime) == (int(mode, 8), 1000000000)


class Stale(Master):
    """Gives old content in bundles, as a tip that changed unnoticed would; the file itself is good."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self.alone: list[bytes] = []

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        for path in paths:
            yield {b"stale": b"STALE", b"short": b"sh"}.get(path, path)

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        self.alone.append(path)
        return path[start:end] if self._whole else b"wrong"[start:end]


@pytest.mark.parametrize("whole", [True, False])
def test_wrong_content_is_asked_for_once_more_by_itself(tmp_path: Path, whole: bool) -> None:
    master = Stale(whole=whole)
    names = [b"a", b"stale", b"b", b"short"]
    done = RestoreWorker(master, NativeTree(str(tmp_path)))(fetch(names))
    assert master.alone == [b"stale", b"short"]
    good = names if whole else [b"a", b"b"]
    assert sorted(path.name.encode() for path in tmp_path.iterdir()) == sorted(good)
    assert all((tmp_path / name.decode()).read_bytes() == name for name in good)
    wrong = [] if whole else [(b"stale", "digest_mismatch"), (b"short", "digest_mismatch")]
    assert done.written == len(good)
    assert [(path, code) for path, code, _ in done.failures] == wrong


def test_what_is_refused_is_named_as_in_the_destination(tmp_path: Path) -> None:
    class Refusing(Master):
        def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
            for index, path in enumerate(paths):
                yield Failure(index, path, "not_found", "gone")

    worker = RestoreWorker(Refusing(PathRefused(path=b"", detail="")), NativeTree(str(tmp_path)))
    done = worker(Fetch([(b"folder/f", record(b"f"))], [There.NOTHING], overwrite=False))
    assert [(path, code) for path, code, _ in done.failures] == [(b"f", "not_found")]
    assert done.settled == []


@pytest.mark.parametrize("as_json", [True, False])
def test_what_the_destination_cannot_hold_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    for name, size in (("a", 3), ("b", 3), ("large", 2 << 20)):
        (loop.source / name).write_bytes(b"x" * size)
        os.setxattr(loop.source / name, "user.tag", b"1")
    loop.sync()

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no attributes here")

    monkeypatch.setattr(os, "setxattr", refuse)
    argv = ["restore", os.fspath(loop.copy), os.fspath(tmp_path / "back"), *(["--json"] if as_json else [])]
    result = CliRunner().invoke(program, argv)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "back" / "large").stat().st_size == 2 << 20
    if as_json:
        assert json.loads(result.stdout.splitlines()[-1])["not_set"]["xattr:user.tag"] == 3
    else:
        assert "could not be set here" in result.stderr and "xattr:user.tag of 3" in result.stderr
