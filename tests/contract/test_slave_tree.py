"""What every slave tree must do, whichever it is: one suite over all of them (``protocol.Slave``).

A slave joins by a row in ``SLAVES``: its name, and how to open one on an empty folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.errors import DigestMismatch, MirrorkeepError, PatchTargetMissing
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Master, Op, Segment, Slave
from mirrorkeep.tree.stored import StoredTree
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

SLAVES: dict[str, Callable[[str], Slave]] = {
    "stored": StoredTree,
    "native": NativeTree,
}
MTIME, MTIME_NS = b"1600000000.987654321", 1_600_000_000_987_654_321
HIDDEN = ".mirrorkeep"


@dataclass
class Trial:
    slave: Slave
    root: Path

    def apply(self, *frames: Frame) -> list[str]:
        """Apply the frames as one call and return the codes of those that failed."""
        return [failure.code for failure in self.slave.apply(frames)]

    def names(self, below: str = "") -> list[str]:
        return sorted(name for name in os.listdir(self.root / below) if not name.startswith(HIDDEN))

    def content(self, path: str) -> bytes:
        assert not (self.root / path).is_symlink()
        return (self.root / path).read_bytes()


@pytest.fixture(params=SLAVES)
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    root = tmp_path / "tree"
    root.mkdir()
    slave = SLAVES[request.param](str(root))
    yield Trial(slave, root)
    if close := getattr(slave, "close", None):
        close()


def record(path: bytes, kind: bytes = keys.FILE, content: bytes = b"", **changes: bytes) -> bytes:
    fields = {
        keys.TYPE: kind,
        keys.MTIME: MTIME,
        keys.MODE: b"40750" if kind == keys.DIRECTORY else b"100640",
    }
    if kind == keys.FILE:
        fields |= {keys.SIZE: b"%d" % len(content), keys.HASH: hashlib.sha256(content).hexdigest().encode()}
    return format_record(path, fields | {name.encode(): value for name, value in changes.items()})


def put(path: bytes, content: bytes, **changes: bytes) -> Frame:
    return Frame(Op.PUT, record(path, content=content, **changes), content)


def link(path: bytes, target: bytes) -> Frame:
    return Frame(Op.LINK, record(path, keys.LINK, link_target=target))


def remove(path: bytes, kind: bytes = keys.FILE) -> Frame:
    return Frame(Op.DELETE, record(path, kind))


def test_a_put_makes_content_and_metadata(trial: Trial) -> None:
    assert trial.apply(put(b"a/b/f", b"content"), put(b"empty", b"")) == []
    status = (trial.root / "a/b/f").stat()
    assert trial.content("a/b/f") == b"content"
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, MTIME_NS)
    assert trial.content("empty") == b""


def test_a_put_replaces_by_a_new_file(trial: Trial) -> None:
    trial.apply(put(b"f", b"old"))
    with (trial.root / "f").open("rb") as reader:
        assert trial.apply(put(b"f", b"new")) == []
        assert reader.read() == b"old"
    assert trial.content("f") == b"new"


def test_every_operation_may_be_repeated(trial: Trial) -> None:
    rounds = [
        [put(b"d/f", b"x", st_nlink=b"2")],
        [Frame(Op.HARD_LINK, record(b"d/g", content=b"x", hard_link=b"d/f", st_nlink=b"2"))],
        [link(b"d/l", b"target")],
        [Frame(Op.COPY, record(b"d/c", content=b"x"), b"d/f")],
        [Frame(Op.STAMP, record(b"d/c", content=b"x", st_mode=b"100600"))],
        [Frame(Op.DIRECTORY, record(b"d/e", keys.DIRECTORY))],
        [Frame(Op.STAMP, record(b"d/e", keys.DIRECTORY))],
        [Frame(Op.STAMP, record(b"d", keys.DIRECTORY))],
    ]
    for frames in rounds:
        assert trial.apply(*frames) == []
        assert trial.apply(*frames) == []
    assert trial.names("d") == ["c", "e", "f", "g", "l"]
    assert (trial.root / "d/f").samefile(trial.root / "d/g")
    assert not (trial.root / "d/f").samefile(trial.root / "d/c")
    assert stat.S_IMODE((trial.root / "d/c").stat().st_mode) == 0o600
    for path in ("d/e", "d"):
        assert (trial.root / path).stat().st_mtime_ns == MTIME_NS
    gone = [
        remove(b"d/c"),
        remove(b"d/f"),
        remove(b"d/g"),
        remove(b"d/l", keys.LINK),
        remove(b"d/e", keys.DIRECTORY),
    ]
    assert trial.apply(*gone) == []
    assert trial.apply(*gone) == []
    assert trial.names("d") == []


def test_wrong_content_leaves_the_old(trial: Trial) -> None:
    trial.apply(put(b"f", b"old"))
    wrong = Frame(Op.PUT, record(b"f", content=b"right"), b"wrong")
    fresh = Frame(Op.PUT, record(b"g", content=b"right"), b"wrong")
    assert trial.apply(wrong, fresh, put(b"h", b"good")) == ["digest_mismatch", "digest_mismatch"]
    assert trial.names() == ["f", "h"]
    assert trial.content("f") == b"old"


def test_failures_name_their_frame(trial: Trial) -> None:
    failures = trial.slave.apply([put(b"f", b"x"), Frame(Op.STAMP, record(b"missing", content=b"x"))])
    assert [(failure.index, failure.path) for failure in failures] == [(1, b"missing")]
    assert isinstance(failures[0], Failure)


@pytest.mark.parametrize("path", [b"../f", b"a/../../f", b"a/./f", b"/f", b"a//f", b"a/\0"])
def test_no_path_leaves_the_tree(trial: Trial, path: bytes) -> None:
    assert len(trial.apply(put(path, b"x"))) == 1
    assert os.listdir(trial.root.parent) == ["tree"]


def test_nothing_is_written_through_a_planted_link(trial: Trial) -> None:
    outside = trial.root.parent / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"mine")
    trial.apply(link(b"l", os.fsencode(outside)), link(b"m", os.fsencode(outside / "f")))
    trial.apply(put(b"l/f", b"theirs"), put(b"m", b"theirs"))
    trial.apply(Frame(Op.STAMP, record(b"l", keys.DIRECTORY)), remove(b"l/f"))
    assert (outside / "f").read_bytes() == b"mine"
    assert os.listdir(outside) == ["f"]
    assert trial.content("m") == b"theirs"


def test_names_are_bytes(trial: Trial) -> None:
    names = [b"new\nline", b"\xff\xfe", b"a,b=c&d", b" ", b"-", b"n" * 255]
    assert trial.apply(*(put(b"d/" + name, name) for name in names)) == []
    assert sorted(os.fsencode(name) for name in trial.names("d")) == sorted(names)


def test_a_full_directory_is_not_removed(trial: Trial) -> None:
    trial.apply(put(b"d/f", b"x"))
    assert len(trial.apply(remove(b"d", keys.DIRECTORY))) == 1
    assert trial.content("d/f") == b"x"


def test_files_swap_places_in_two_phases(trial: Trial) -> None:
    trial.apply(put(b"a", b"of a"), put(b"d/b", b"of b"))
    hold = [
        Frame(Op.HOLD, record(b"a", content=b"of a"), b"a1"),
        Frame(Op.HOLD, record(b"d/b", content=b"of b"), b"b2"),
    ]
    place = [
        Frame(Op.PLACE, record(b"d/b", content=b"of a"), b"a1"),
        Frame(Op.PLACE, record(b"a", content=b"of b"), b"b2"),
    ]
    assert trial.apply(*hold) == []
    assert trial.apply(*place) == []
    assert trial.apply(*place) == []
    assert (trial.content("a"), trial.content("d/b")) == (b"of b", b"of a")


def test_an_entry_changes_its_type_when_the_old_one_is_deleted_first(trial: Trial) -> None:
    directory = record(b"x", keys.DIRECTORY)
    steps = [
        ([put(b"x", b"file"), remove(b"x")], stat.S_IFREG),
        ([link(b"x", b"target"), remove(b"x", keys.LINK)], stat.S_IFLNK),
        (
            [Frame(Op.DIRECTORY, directory), Frame(Op.STAMP, directory), Frame(Op.DELETE, directory)],
            stat.S_IFDIR,
        ),
        ([put(b"x", b"file"), remove(b"x")], stat.S_IFREG),
    ]
    for frames, kind in steps:
        assert trial.apply(*frames[:-1]) == []
        assert stat.S_IFMT((trial.root / "x").lstat().st_mode) == kind
        assert trial.apply(frames[-1]) == []
        assert trial.names() == []


# --- transactions -------------------------------------------------------------------------------


def digest(data: bytes) -> bytes:
    return bytes(blake3(data).digest())


def test_a_new_large_file(trial: Trial) -> None:
    content = os.urandom(300_000)
    transaction = trial.slave.begin(record(b"d/f", content=content), on_base=False)
    parts = [Segment(0, 100_000), Segment(100_000, 300_000)]
    for part in reversed(parts):
        body = content[part.start : part.end]
        transaction.write(part, body, delta=False, digest=digest(body))
    assert not (trial.root / "d/f").exists()
    transaction.finish(record(b"d/f", content=content), parts)
    assert trial.content("d/f") == content
    assert (trial.root / "d/f").stat().st_mtime_ns == MTIME_NS


def test_a_changed_large_file(trial: Trial) -> None:
    base = os.urandom(300_000)
    trial.apply(put(b"f", base))
    content = base[:1000] + b"inserted" + base[1000:250_000]
    transaction = trial.slave.begin(record(b"f", content=content), on_base=True)
    part = Segment(0, len(content))
    delta = build_delta([Copy(0, 1000), Literal(b"inserted"), Copy(1000, 249_000)])
    with pytest.raises(DigestMismatch):
        transaction.write(part, delta, delta=True, digest=digest(b"other"))
    with pytest.raises(PatchTargetMissing):
        transaction.finish(record(b"f", content=content), [part])
    transaction.write(part, delta, delta=True, digest=digest(content))
    transaction.finish(record(b"f", content=content), [part])
    assert trial.content("f") == content


def test_an_abandoned_transaction_leaves_the_old(trial: Trial) -> None:
    trial.apply(put(b"f", b"old"))
    transaction = trial.slave.begin(record(b"f", content=b"new"), on_base=True)
    transaction.write(Segment(0, 3), b"new", delta=False, digest=digest(b"new"))
    transaction.abandon()
    with pytest.raises(MirrorkeepError):
        transaction.finish(record(b"f", content=b"new"), [Segment(0, 3)])
    assert trial.content("f") == b"old"
    assert trial.names() == ["f"]


# --- and back -----------------------------------------------------------------------------------


def test_what_was_written_is_read_back(trial: Trial) -> None:
    frames = [put(b"d/f", b"content"), link(b"d/l", b"target"), Frame(Op.STAMP, record(b"d", keys.DIRECTORY))]
    assert trial.apply(*frames) == []
    assert isinstance(trial.slave, StoredTree | NativeTree)
    master: Master = trial.slave
    got = list(master.frames([b"d", b"d/l", b"missing", b"d/f"]))
    assert [one.code if isinstance(one, Failure) else one.op for one in got] == [
        Op.STAMP,
        Op.LINK,
        "not_found",
        Op.PUT,
    ]
    assert isinstance(got[3], Frame)
    assert got[3].data == b"content"
    assert master.read_range(b"d/f", 3, 100) == b"tent"


def test_contents_come_in_order_however_many_are_asked_for(trial: Trial) -> None:
    names = [b"%03d" % number for number in range(60)]
    assert trial.apply(*(put(name, b"content of " + name) for name in names)) == []
    assert isinstance(trial.slave, StoredTree | NativeTree)
    wanted = [*names[30:], b"missing", *names[:30]]
    got = list(trial.slave.contents(wanted))
    assert [one.index for one in got if isinstance(one, Failure)] == [30]
    del got[30], wanted[30]
    assert got == [b"content of " + name for name in wanted]


def test_contents_alone_come_in_the_order_asked_for(trial: Trial) -> None:
    large = b"x" * (SMALL_FILE_BYTES + 1)
    frames = [put(b"d/f", b"content"), put(b"e", b""), link(b"d/l", b"f"), put(b"large", large)]
    assert trial.apply(*frames) == []
    assert isinstance(trial.slave, StoredTree | NativeTree)
    wanted = [b"d/f", b"missing/f", b"d", b"d/l", b"../x", b"large", b"e", b"d/f"]
    got = list(trial.slave.contents(wanted))
    assert [one if isinstance(one, bytes) else type(one) for one in got] == [
        b"content",
        *[Failure] * 5,
        b"",
        b"content",
    ]
    assert [one.index for one in got if isinstance(one, Failure)] == [1, 2, 3, 4, 5]
