"""Killed at any system call, a native write leaves the old entry or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.tree import native_publish
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Frame, Op

OLD, NEW = b"old" * 3000, b"new!" * 5000
CALLS = (
    "open",
    "pwrite",
    "ftruncate",
    "chown",
    "chmod",
    "utime",
    "setxattr",
    "link",
    "rename",
    "unlink",
    "close",
)
KILLED = 9


def record(path: bytes, data: bytes) -> bytes:
    return format_record(
        path,
        {
            keys.TYPE: keys.FILE,
            keys.MODE: b"100640",
            keys.MTIME: b"1234567890",
            keys.SIZE: b"%d" % len(data),
            keys.HASH: hashlib.sha256(data).hexdigest().encode(),
            keys.XATTR_PREFIX + b"user.note": b"x",
        },
    )


def plain_record(path: bytes, data: bytes) -> Record:
    fields = dict(parse_record(record(path, data)).fields)
    del fields[keys.XATTR_PREFIX + b"user.note"]
    return Record(path, fields)


def run_and_die(
    root: Path, frames: list[Frame], step: int, files: Sequence[tuple[Record, bytes]] = ()
) -> bool:
    """Apply ``frames``, or put ``files``, in a child that dies before call ``step``; say whether it did."""
    child = os.fork()
    if not child:
        left = [step]

        def deadly(call: Any) -> Any:
            def counted(*arguments: Any, **named: Any) -> Any:
                if not left[0]:
                    os._exit(KILLED)
                left[0] -= 1
                return call(*arguments, **named)

            return counted

        try:
            for name in CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            tree = NativeTree(str(root))
            os._exit(1 if (tree.put(files) if files else tree.apply(frames)) else 0)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED)
    return code == KILLED


@pytest.mark.parametrize("unnamed", [True, False], ids=["nameless", "temporary-name"])
@pytest.mark.parametrize("existing", [True, False], ids=["replaced", "new"])
def test_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, existing: bool) -> None:
    if not unnamed:
        monkeypatch.setattr(native_publish, "_UNNAMED", 0)
    frames = [Frame(Op.PUT, record(b"f", NEW), NEW)]
    for step in range(100):
        root = tmp_path / str(step)
        root.mkdir()
        if existing:
            (root / "f").write_bytes(OLD)
        died = run_and_die(root, frames, step)
        found = (root / "f").read_bytes() if (root / "f").exists() else None
        assert found in ((OLD, NEW) if existing else (None, NEW))
        if found == NEW:  # a name is only ever given to what is stamped already
            assert (root / "f").stat().st_mtime_ns == 1_234_567_890 * 10**9
            assert os.getxattr(root / "f", "user.note") == b"x"
        others = [name for name in os.listdir(root) if name != "f"]
        assert all(name.startswith(".mirrorkeep-part-") for name in others)
        assert NativeTree(str(root)).apply(frames) == []
        assert (root / "f").read_bytes() == NEW
        if not died:
            assert step > 5
            return
    raise AssertionError("the write never came to its end")


def test_a_swap(tmp_path: Path) -> None:
    frames = [
        Frame(Op.HOLD, record(b"a", OLD), b"01"),
        Frame(Op.HOLD, record(b"b", NEW), b"02"),
        Frame(Op.PLACE, record(b"b", OLD), b"01"),
        Frame(Op.PLACE, record(b"a", NEW), b"02"),
    ]
    for step in range(200):
        root = tmp_path / str(step)
        root.mkdir()
        (root / "a").write_bytes(OLD)
        (root / "b").write_bytes(NEW)
        died = run_and_die(root, frames, step)
        assert (root / "a").read_bytes() in (OLD, NEW)
        assert (root / "b").read_bytes() in (OLD, NEW)
        contents = {file.read_bytes() for file in root.iterdir()}
        assert contents - {b""} == {OLD, NEW}  # under whatever names; empty is the probe for case
        if not died:
            assert sorted(os.listdir(root)) == ["a", "b"]
            assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (NEW, OLD)
            return
    raise AssertionError("the swap never came to its end")


@pytest.mark.parametrize("existing", [True, False], ids=["replaced", "new"])
def test_a_restored_file_is_whole_or_marked(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "file"
    files = [(plain_record(b"file", NEW), NEW)]
    seen, step = set(), 0
    while True:
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        if existing:
            path.write_bytes(OLD)
        if not run_and_die(tmp_path, [], step, files):
            break
        if path.exists():
            status = path.stat()
            marked = stat.S_IMODE(status.st_mode) == native_publish.MAKING
            seen.add("marked" if marked else "named")
            assert not (marked and existing)
            if not marked:
                assert path.read_bytes() in ((OLD,) if existing else ()) + (NEW,)
            if not marked and path.read_bytes() == NEW:
                assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o640, 1234567890)
        for leftover in tmp_path.iterdir():
            assert leftover == path or leftover.name.startswith(".mirrorkeep-part-")
        step += 1
    assert path.read_bytes() == NEW
    assert seen == ({"named"} if existing else {"named", "marked"})
    assert sorted(tmp_path.iterdir()) == [path]
