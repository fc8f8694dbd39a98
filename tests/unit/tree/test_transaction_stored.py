"""Large files: segments by several workers, compare-and-set, what is shared, what is refused."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.errors import (
    DigestMismatch,
    GenerationConflict,
    LengthMismatch,
    MalformedDelta,
    MalformedRequest,
    NotFound,
    PatchTargetMissing,
    PathRefused,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.protocol import Segment
from mirrorkeep.tree.stored import StoredTransaction, StoredTree
from mirrorkeep.tree.transaction import segment_digest
from rig import scratch
from tests.unit.tree.stored_trial import file_fields, file_line, put, staged

PIECE = 65536


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(str(root)) as opened:
        yield opened


def segments(content: bytes) -> list[Segment]:
    return [Segment(at, min(at + PIECE, len(content))) for at in range(0, len(content), PIECE)]


def send(transaction: StoredTransaction, content: bytes, segment: Segment) -> None:
    body = content[segment.start : segment.end]
    transaction.write(segment, body, delta=False, digest=segment_digest(body))


def cut(content: bytes, length: int) -> list[bytes]:
    return [content[at : at + length] for at in range(0, len(content), length)]


@pytest.mark.parametrize("length", [1, 999, 1 << 20])
def test_a_segment_is_written_from_the_pieces_it_came_in(
    tree: StoredTree, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    content = os.urandom(5000)
    transaction = tree.begin(file_line(b"f", content), on_base=False)
    written = os.pwritev

    def interrupted(fd: int, pieces: list[memoryview], offset: int) -> int:
        """Take what a signal or a full disk may leave of a write: here and there, only a part."""
        return written(fd, [b"".join(pieces)[: max(1, len(pieces) * len(pieces[0]) * 2 // 3)]], offset)

    monkeypatch.setattr(os, "pwritev", interrupted)
    whole = Segment(0, len(content))
    pieces = cut(content, length)  # of one byte each: more than one call of the system may take
    with pytest.raises(LengthMismatch):
        transaction.write_pieces(whole, pieces[1:], digest=segment_digest(content))
    wrong = [bytes([content[0] ^ 1]), *cut(content[1:], length)]
    with pytest.raises(DigestMismatch):
        transaction.write_pieces(whole, wrong, digest=segment_digest(content))
    transaction.write_pieces(whole, pieces, digest=segment_digest(*pieces))
    transaction.finish(file_line(b"f", content), [whole])
    assert tree.check(b"f", file_line(b"f", content), content=True) == []


def opening(path: bytes, base: bytes) -> bytes:
    """Return the record a sender opens with: the base's digest, as it believes."""
    return format_record(path, {keys.TYPE: keys.FILE, keys.HASH: file_fields(base)[keys.HASH]})


def test_a_new_file_is_made_of_segments_in_any_order(tree: StoredTree, root: Path) -> None:
    content = os.urandom(5 * PIECE + 17)
    transaction = tree.begin(file_line(b"d/f", content), on_base=False)
    for segment in reversed(segments(content)):
        send(tree.resume(transaction.id), content, segment)
        send(tree.resume(transaction.id), content, segment)
    assert not (root / "d/f").exists()
    tree.resume(transaction.id).finish(file_line(b"d/f", content), segments(content))
    assert tree.check(b"d/f", file_line(b"d/f", content), content=True) == []


def _work(root: str, name: str, content: bytes, share: list[Segment]) -> None:
    with StoredTree(root) as tree:
        for segment in share:
            send(tree.resume(name), content, segment)


def test_several_processes_write_one_file(tree: StoredTree, root: Path) -> None:
    content = os.urandom(12 * PIECE)
    transaction = tree.begin(file_line(b"f", content), on_base=False)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_work, args=(str(root), transaction.id, content, segments(content)[one::3]))
        for one in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    transaction.finish(file_line(b"f", content), segments(content))
    assert (root / "f").read_bytes() == content


def test_a_delta_copies_from_anywhere_in_the_base(tree: StoredTree, root: Path) -> None:
    base = os.urandom(4 * PIECE)
    tree.apply([put(b"f", base)])
    # Something inserted at the front, the halves swapped, all by copies out of the base.
    content = b"inserted" + base[2 * PIECE :] + base[: 2 * PIECE]
    transaction = tree.begin(opening(b"f", base), on_base=True)
    first = Segment(0, 8 + 2 * PIECE)
    second = Segment(8 + 2 * PIECE, len(content))
    for segment, operations in (
        (second, [Copy(0, 2 * PIECE)]),
        (first, [Literal(b"inserted"), Copy(2 * PIECE, 2 * PIECE)]),
    ):
        digest = segment_digest(content[segment.start : segment.end])
        transaction.write(segment, build_delta(operations), delta=True, digest=digest)
    transaction.finish(file_line(b"f", content), [first, second])
    assert tree.check(b"f", file_line(b"f", content), content=True) == []
    assert not [name for name in staged(root) if not name.endswith(".begin")]


def test_what_is_not_sent_comes_from_the_base_and_the_rest_is_cut_off(tree: StoredTree) -> None:
    base = os.urandom(4 * PIECE)
    tree.apply([put(b"f", base)])
    content = base[:PIECE] + os.urandom(PIECE) + base[2 * PIECE : 3 * PIECE]
    transaction = tree.begin(opening(b"f", base), on_base=True)
    send(transaction, content, Segment(PIECE, 2 * PIECE))
    transaction.finish(file_line(b"f", content), [Segment(PIECE, 2 * PIECE)])
    assert tree.check(b"f", file_line(b"f", content), content=True) == []


def test_finishing_twice_is_finishing_once(tree: StoredTree) -> None:
    content = os.urandom(PIECE)
    transaction = tree.begin(file_line(b"f", content), on_base=False)
    send(transaction, content, Segment(0, PIECE))
    transaction.finish(file_line(b"f", content), [Segment(0, PIECE)])
    generation = tree.stat(b"f").generation
    tree.resume(transaction.id).finish(file_line(b"f", content), [Segment(0, PIECE)])
    assert tree.stat(b"f").generation == generation
    with pytest.raises(PatchTargetMissing):
        send(tree.resume(transaction.id), content, Segment(0, PIECE))


def test_the_file_that_was_replaced_is_let_go_behind_the_scenes(
    tree: StoredTree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last descriptor is that of a thread: nobody waits until its memory is given back."""
    base = os.urandom(PIECE)
    tree.apply([put(b"file", base)])
    inode, may_go = (root / "file").stat().st_ino, threading.Event()
    release = os.close

    def close(fd: int) -> None:
        if threading.current_thread().name == "discard":
            assert may_go.wait(60)
        release(fd)

    monkeypatch.setattr(os, "close", close)
    transaction = tree.begin(opening(b"file", base), on_base=True)
    transaction.finish(file_line(b"file", base), [])
    behind = [thread for thread in threading.enumerate() if thread.name == "discard"]
    assert len(behind) == 1
    assert not [name for name in staged(root) if name.endswith(".base")]
    assert inode in open_inodes() and inode != (root / "file").stat().st_ino
    may_go.set()
    behind[0].join(60)
    assert inode not in open_inodes()


@pytest.mark.parametrize("lacking", ["descriptor", "thread"])
def test_a_file_is_published_where_nothing_can_be_done_behind_the_scenes(
    tree: StoredTree, root: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    base = os.urandom(PIECE)
    tree.apply([put(b"file", base)])
    inode, take = (root / "file").stat().st_ino, os.open

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    def open_nothing_more(path: bytes, flags: int, *more: int, **options: int) -> int:
        if flags & os.O_PATH:
            raise OSError(24, "Too many open files")
        return take(path, flags, *more, **options)

    if lacking == "thread":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(os, "open", open_nothing_more)
    transaction = tree.begin(opening(b"file", base), on_base=True)
    transaction.finish(file_line(b"file", base), [])
    assert not [name for name in staged(root) if name.endswith(".base")]
    assert inode not in open_inodes() and inode != (root / "file").stat().st_ino


def open_inodes() -> set[int]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.fstat(int(fd)).st_ino)
    return found


def test_a_missing_segment_publishes_nothing(tree: StoredTree, root: Path) -> None:
    content = os.urandom(3 * PIECE)
    transaction = tree.begin(file_line(b"f", content), on_base=False)
    for segment in segments(content)[:2]:
        send(transaction, content, segment)
    for claimed in (segments(content), segments(content)[:2]):
        with pytest.raises(PatchTargetMissing):
            transaction.finish(file_line(b"f", content), claimed)
    assert not (root / "f").exists()
    send(transaction, content, segments(content)[2])
    transaction.finish(file_line(b"f", content), segments(content))
    assert (root / "f").read_bytes() == content


def test_bytes_beyond_the_base_have_to_be_sent(tree: StoredTree) -> None:
    base = os.urandom(PIECE)
    tree.apply([put(b"f", base)])
    transaction = tree.begin(opening(b"f", base), on_base=True)
    with pytest.raises(PatchTargetMissing):
        transaction.finish(file_line(b"f", base + bytes(PIECE)), [])


def test_a_bad_segment_counts_as_unwritten_and_may_be_sent_again(tree: StoredTree) -> None:
    base = os.urandom(2 * PIECE)
    tree.apply([put(b"f", base)])
    content = base[:PIECE] + b"x" * PIECE
    segment = Segment(PIECE, 2 * PIECE)
    digest = segment_digest(content[PIECE:])
    transaction = tree.begin(opening(b"f", base), on_base=True)
    wrong = build_delta([Copy(0, PIECE)])
    for body, delta, error in (
        (wrong, True, DigestMismatch),
        (b"y" * PIECE, False, DigestMismatch),
        (b"y", False, LengthMismatch),
        (b"no delta", True, MalformedDelta),
        (build_delta([Copy(PIECE, 2 * PIECE)]), True, MalformedDelta),
    ):
        with pytest.raises(error):
            transaction.write(segment, body, delta=delta, digest=digest)
        with pytest.raises(PatchTargetMissing):
            transaction.finish(file_line(b"f", content), [segment])
    # In place in the base, but no longer in the clone, which the wrong delta has written over.
    half = build_delta([Copy(PIECE, PIECE)])
    transaction.write(segment, half, delta=True, digest=segment_digest(base[PIECE:]))
    transaction.finish(file_line(b"f", base), [segment])
    assert tree.check(b"f", file_line(b"f", base), content=True) == []


def test_a_base_that_nobody_vouches_for_is_read_whole(tree: StoredTree, root: Path) -> None:
    base, believed = os.urandom(2 * PIECE), os.urandom(2 * PIECE)
    tree.apply([put(b"f", base)])
    for line in (opening(b"f", believed), file_line(b"f", believed), format_record(b"f", {})):
        content = believed[:PIECE] + b"x" * PIECE
        transaction = tree.begin(line, on_base=True)
        send(transaction, content, Segment(PIECE, 2 * PIECE))
        with pytest.raises(DigestMismatch):
            transaction.finish(file_line(b"f", content), [Segment(PIECE, 2 * PIECE)])
        transaction.abandon()
    assert (root / "f").read_bytes() == base
    assert staged(root) == []


def test_the_newer_file_stays(tree: StoredTree, root: Path) -> None:
    base = os.urandom(PIECE)
    tree.apply([put(b"f", base)])
    transaction = tree.begin(opening(b"f", base), on_base=True)
    new = tree.begin(file_line(b"g", base), on_base=False)
    send(new, base, Segment(0, PIECE))
    tree.apply([put(b"f", b"newer"), put(b"g", b"newer")])
    with pytest.raises(GenerationConflict):
        transaction.finish(file_line(b"f", base), [])
    with pytest.raises(GenerationConflict):
        new.finish(file_line(b"g", base), [Segment(0, PIECE)])
    assert (root / "f").read_bytes() == (root / "g").read_bytes() == b"newer"


def test_the_base_stays_as_it_was_for_deltas(tree: StoredTree, root: Path) -> None:
    base = os.urandom(PIECE)
    tree.apply([put(b"f", base)])
    transaction = tree.begin(opening(b"f", base), on_base=True)
    tree.apply([put(b"f", b"newer")])
    digest = segment_digest(base)
    transaction.write(Segment(0, PIECE), build_delta([Copy(0, PIECE)]), delta=True, digest=digest)
    with pytest.raises(GenerationConflict):
        transaction.finish(file_line(b"f", base), [Segment(0, PIECE)])


def test_transactions_that_cannot_be(tree: StoredTree, root: Path) -> None:
    (root / "stray").write_bytes(b"no sidecar")
    tree.apply([put(b"d/f", b"x")])
    for path in (b"missing", b"missing/too", b"stray", b"d"):
        with pytest.raises((PatchTargetMissing, PathRefused)):
            tree.begin(format_record(path, {}), on_base=True)
    with pytest.raises(PathRefused):
        tree.begin(format_record(b"", {}), on_base=False)
    for name in ("0" * 24, "../../../x", "", "g" * 24):
        with pytest.raises((NotFound, MalformedRequest)):
            tree.resume(name)
    transaction = tree.begin(file_line(b"n", b"x"), on_base=False)
    with pytest.raises(PatchTargetMissing):
        transaction.write(
            Segment(0, 1), build_delta([Literal(b"x")]), delta=True, digest=segment_digest(b"x")
        )
    with pytest.raises(PathRefused):
        transaction.finish(file_line(b"other", b""), [])
    transaction.abandon()
    transaction.abandon()
    with pytest.raises(NotFound):
        tree.resume(transaction.id)
    assert staged(root) == []


def test_an_unvouched_segment_has_the_whole_read(tree: StoredTree) -> None:
    transaction = tree.begin(file_line(b"f", b"right"), on_base=False)
    transaction.write(Segment(0, 5), b"wrong", delta=False, digest=None)
    with pytest.raises(DigestMismatch):
        transaction.finish(file_line(b"f", b"right"), [Segment(0, 5)])
    transaction.write(Segment(0, 5), b"right", delta=False, digest=None)
    transaction.finish(file_line(b"f", b"right"), [Segment(0, 5)])
    assert tree.read_range(b"f", 0, 9) == b"right"


def test_holes_need_no_segment(tree: StoredTree, root: Path) -> None:
    content = b"x" * PIECE + bytes(64 * PIECE) + b"y" * PIECE
    last = Segment(65 * PIECE, 66 * PIECE)
    line = file_line(b"f", content, sparse=b"0+%d;%d+%d" % (PIECE, 65 * PIECE, PIECE))
    transaction = tree.begin(line, on_base=False)
    for segment in (Segment(0, PIECE), last):
        send(transaction, content, segment)
    transaction.finish(line, [Segment(0, PIECE), last])
    assert tree.check(b"f", line, content=True) == []
    assert (root / "f").stat().st_blocks * 512 < 16 * PIECE


def test_zeros_that_were_sent_are_holes_around_what_the_record_forgets(tree: StoredTree, root: Path) -> None:
    content = bytes(64 * PIECE) + b"data" + bytes(64 * PIECE)
    line = file_line(b"f", content, sparse=b"")
    transaction = tree.begin(line, on_base=False)
    for segment in segments(content):
        send(transaction, content, segment)
    transaction.finish(line, segments(content))
    assert tree.check(b"f", line, content=True) == []
    assert (root / "f").stat().st_blocks * 512 <= 17 * PIECE


@pytest.mark.root
@pytest.mark.btrfs
def test_unchanged_blocks_stay_shared_with_the_snapshot(tmp_path: Path) -> None:
    size, changed = 10 * 1024 * 1024, 128 * 1024
    mount = scratch.make(tmp_path, "pool", size_bytes=512 << 20)
    try:
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(mount / "tip")], check=True)
        base = os.urandom(size)
        with StoredTree(str(mount / "tip")) as tree:
            transaction = tree.begin(file_line(b"f", base), on_base=False)
            for segment in segments(base):
                send(transaction, base, segment)
            transaction.finish(file_line(b"f", base), segments(base))
            snapshot = ["subvolume", "snapshot", "-r", str(mount / "tip"), str(mount / "snap")]
            subprocess.run(["btrfs", "-q", *snapshot], check=True)
            content = base[: 2 << 20] + os.urandom(changed) + base[(2 << 20) + changed :]
            transaction = tree.begin(opening(b"f", base), on_base=True)
            segment = Segment(2 << 20, (2 << 20) + changed)
            send(transaction, content, segment)
            transaction.finish(file_line(b"f", content), [segment])
            assert tree.check(b"f", file_line(b"f", content), content=True) == []
        subprocess.run(["sync", "-f", str(mount)], check=True)
        command = ["btrfs", "filesystem", "du", "--raw", "-s", str(mount / "tip" / "f")]
        row = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        total, exclusive = map(int, row.split()[:2])
        assert total == size
        assert exclusive <= changed + 2 * 4096
    finally:
        scratch.discard(tmp_path)
