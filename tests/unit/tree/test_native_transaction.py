"""Large native files: segments in any order, checked, published at once or not at all."""

from __future__ import annotations

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.errors import DigestMismatch, GenerationConflict, LengthMismatch, PatchTargetMissing
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Segment

PIECE = 65_536
DATA = random.Random(1).randbytes(10 * PIECE + 123)


def line(data: bytes, **fields: bytes) -> bytes:
    return format_record(
        b"big",
        {
            keys.TYPE: keys.FILE,
            keys.MODE: b"100600",
            keys.MTIME: b"5",
            keys.SIZE: b"%d" % len(data),
            keys.HASH: hashlib.sha256(data).hexdigest().encode(),
            **{name.encode(): value for name, value in fields.items()},
        },
    )


def segments(data: bytes) -> list[Segment]:
    return [Segment(start, min(start + PIECE, len(data))) for start in range(0, len(data), PIECE)]


def digest(data: bytes) -> bytes:
    return bytes(blake3(data).digest())


@pytest.fixture
def tree(tmp_path: Path) -> NativeTree:
    return NativeTree(str(tmp_path))


def test_a_new_file_from_many_threads(tree: NativeTree, tmp_path: Path) -> None:
    transaction = tree.begin(line(DATA), on_base=False)

    def send(segment: Segment) -> None:
        body = DATA[segment.start : segment.end]
        transaction.write(segment, body, delta=False, digest=digest(body))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, reversed(segments(DATA))))
    assert os.listdir(tmp_path) == []
    transaction.finish(line(DATA), segments(DATA))
    assert (tmp_path / "big").read_bytes() == DATA
    assert (tmp_path / "big").stat().st_mtime_ns == 5 * 10**9


def test_a_delta_over_the_base_and_a_shorter_file(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(DATA)
    new = DATA[:PIECE] + b"insert" + DATA[PIECE : 3 * PIECE - 6] + DATA[3 * PIECE : 5 * PIECE]
    segment = Segment(PIECE, 3 * PIECE)
    delta = build_delta([Literal(b"insert"), Copy(PIECE, 2 * PIECE - 6)])
    transaction = tree.begin(line(new), on_base=True)
    transaction.write(segment, delta, delta=True, digest=digest(new[PIECE : 3 * PIECE]))
    transaction.finish(line(new), [segment])
    assert (tmp_path / "big").read_bytes() == new
    assert os.listdir(tmp_path) == ["big"]


def test_a_wrong_segment_counts_as_unwritten(tree: NativeTree, tmp_path: Path) -> None:
    transaction = tree.begin(line(DATA), on_base=False)
    first = Segment(0, len(DATA))
    with pytest.raises(DigestMismatch):
        transaction.write(first, DATA[:-1] + b"?", delta=False, digest=digest(DATA))
    with pytest.raises(LengthMismatch):
        transaction.write(first, DATA[:-1], delta=False, digest=digest(DATA))
    with pytest.raises(PatchTargetMissing):
        transaction.write(first, build_delta([Copy(0, 5)]), delta=True, digest=digest(DATA))
    with pytest.raises(PatchTargetMissing, match="was not written"):
        transaction.finish(line(DATA), [first])
    transaction.abandon()
    transaction.abandon()
    assert os.listdir(tmp_path) == []


def test_a_base_that_somebody_changed_is_found_out(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(DATA[:-1] + b"!")
    transaction = tree.begin(line(DATA), on_base=True)
    with pytest.raises(DigestMismatch):
        transaction.finish(line(DATA), [])
    transaction.abandon()
    assert (tmp_path / "big").read_bytes() == DATA[:-1] + b"!"


def test_publishing_compares_and_sets(tree: NativeTree, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(DATA)
    transaction = tree.begin(line(DATA), on_base=True)
    (tmp_path / "big").write_bytes(b"newer")
    with pytest.raises(GenerationConflict):
        transaction.finish(line(DATA), [])
    transaction.abandon()
    assert (tmp_path / "big").read_bytes() == b"newer"


def test_a_gap_in_the_segments_is_not_published(tree: NativeTree, tmp_path: Path) -> None:
    transaction = tree.begin(line(DATA), on_base=False)
    first = Segment(0, PIECE)
    transaction.write(first, DATA[:PIECE], delta=False, digest=digest(DATA[:PIECE]))
    with pytest.raises(DigestMismatch):
        transaction.finish(line(DATA), [first])
    transaction.abandon()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("on_base", [False, True])
def test_holes_stay_holes(tree: NativeTree, tmp_path: Path, on_base: bool) -> None:
    data = DATA[:PIECE] + bytes(4 * PIECE) + DATA[:PIECE] + bytes(PIECE)
    sparse = b"0+%d;%d+%d" % (PIECE, 5 * PIECE, PIECE)
    if on_base:
        (tmp_path / "big").write_bytes(b"\1" * len(data))
    transaction = tree.begin(line(data, sparse=sparse), on_base=on_base)
    parts = [Segment(0, 3 * PIECE + 5), Segment(3 * PIECE + 5, len(data))]
    for part in parts:
        body = data[part.start : part.end]
        transaction.write(part, body, delta=False, digest=digest(body))
    transaction.finish(line(data, sparse=sparse), parts)
    status = (tmp_path / "big").stat()
    assert (tmp_path / "big").read_bytes() == data
    assert status.st_blocks * 512 <= 2 * PIECE + 8192


def test_a_wrong_claim_of_holes_loses_nothing(tree: NativeTree, tmp_path: Path) -> None:
    transaction = tree.begin(line(DATA, sparse=b""), on_base=False)
    whole = Segment(0, len(DATA))
    transaction.write(whole, DATA, delta=False, digest=digest(DATA))
    transaction.finish(line(DATA, sparse=b""), [whole])
    assert (tmp_path / "big").read_bytes() == DATA
