"""Files of 50 TB and more: offsets, segments, signatures and ranges, on a file that is mostly hole (PERF-01).

Nobody reads 50 TB in a test: what would take so long is done for the end of the file, where offsets are
largest.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorkeep.delta.segments import SEGMENT_BYTES, digest_range, digest_unit, plan_segments, unpack_digests
from mirrorkeep.delta.signature import STRONG_BYTES, Signature, choose_block_bytes, sign_range
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.server.extensions import parse_content_range
from mirrorkeep.tree.metadata.sparse import find_data, ranges_from_text, ranges_to_text
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Segment
from mirrorkeep.tree.stored import StoredTree
from mirrorkeep.tree.transaction import segment_digest
from tests.unit.tree.stored_trial import file_line

TB = 10**12
SIZE_BYTES = 50 * TB + 12_345
PIECES = {0: b"first", 5 * TB + 7: b"behind 32 bits", 32 * TB: b"behind 2**44", SIZE_BYTES - 4: b"last"}
SIZES = [SIZE_BYTES, 56 * TB, 57 * TB, 100 * TB, 200 * TB]


@pytest.fixture
def very_large(scratch_mount: Callable[..., Path]) -> Iterator[Path]:
    path = scratch_mount("xfs", kind="xfs", size_bytes=320 << 20) / "very large"
    with path.open("wb") as stream:
        for offset, data in PIECES.items():
            os.pwrite(stream.fileno(), data, offset)
    assert path.stat().st_size == SIZE_BYTES
    yield path


@pytest.mark.root
@pytest.mark.engine("mkfs.xfs")
def test_a_walk_sees_its_size_and_where_its_data_is(very_large: Path) -> None:
    fields, _ = NativeTree(os.fspath(very_large.parent)).describe(b"very large")
    assert fields[keys.SIZE] == b"50000000012345"
    fd = os.open(very_large, os.O_RDONLY)
    try:
        found = find_data(fd, SIZE_BYTES)
        assert found is not None and len(found) == len(PIECES)
        for (start, end), (offset, data) in zip(found, PIECES.items(), strict=True):
            assert start <= offset and offset + len(data) <= end
            assert os.pread(fd, len(data), offset) == data
    finally:
        os.close(fd)
    assert sum(end - start for start, end in found) < 1 << 20
    assert ranges_from_text(ranges_to_text(found), SIZE_BYTES) == found


@pytest.mark.parametrize("size_bytes", SIZES[:3])
def test_its_segments_cover_it_and_its_record_stays_short(size_bytes: int) -> None:
    """Segments tile the file: the first and the last few are looked at, and how many there are."""
    spans = list(itertools.islice(plan_segments(size_bytes), 3))
    assert spans == [(n * SEGMENT_BYTES, (n + 1) * SEGMENT_BYTES) for n in range(3)]
    count = -(-size_bytes // SEGMENT_BYTES)
    last = None
    for number, span in enumerate(plan_segments(size_bytes), 1):
        last = (number, span)
    assert last == (count, ((count - 1) * SEGMENT_BYTES, size_bytes))
    unit = digest_unit(size_bytes)
    units = -(-size_bytes // unit)
    assert units <= 128
    value = b"%d:" % unit + b"00" * 16 * units
    assert list(unpack_digests(value, size_bytes))[-1] == ((units - 1) * unit, size_bytes)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_signature_of_it_is_one_that_is_accepted(size_bytes: int) -> None:
    block_bytes = choose_block_bytes(size_bytes)
    blocks = -(-size_bytes // block_bytes)
    head = struct.pack(">III", 0x72730147, block_bytes, STRONG_BYTES)
    data = head + bytes((4 + STRONG_BYTES) * blocks)
    assert len(data) < 16 << 20
    loaded = Signature.load(data, base_bytes=size_bytes)
    assert (loaded.blocks, loaded.block_bytes) == (blocks, block_bytes)
    loaded.sums()


@pytest.mark.root
@pytest.mark.engine("mkfs.xfs")
def test_its_end_is_signed_and_digested_with_little_memory(very_large: Path) -> None:
    block_bytes = choose_block_bytes(SIZE_BYTES)
    start = SIZE_BYTES // block_bytes * block_bytes
    fd = os.open(very_large, os.O_RDONLY)
    tracemalloc.start()
    try:
        signed = sign_range(fd, start, SIZE_BYTES, block_bytes)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        digest = digest_range(fd, (start, SIZE_BYTES))
    finally:
        tracemalloc.stop()
        os.close(fd)
    tail = bytes(SIZE_BYTES - 4 - start) + b"last"
    assert Signature.load(signed).strong(0) == hashlib.blake2b(tail, digest_size=32).digest()[:STRONG_BYTES]
    assert digest == digest_range_of(tail)
    assert peak_bytes < 8 << 20  # sixteen blocks would be 1 GiB


def digest_range_of(data: bytes) -> bytes:
    fd = os.memfd_create("tail")
    try:
        os.write(fd, data)
        return digest_range(fd, (0, len(data)))
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.engine("mkfs.xfs")
def test_its_last_segment_is_staged_at_its_place(scratch_mount: Callable[..., Path]) -> None:
    root = scratch_mount("xfs", kind="xfs", size_bytes=320 << 20) / "tree"
    root.mkdir()
    line = file_line(b"f", b"", st_size=b"%d" % SIZE_BYTES)
    assert parse_record(line).size == SIZE_BYTES
    start = SIZE_BYTES // SEGMENT_BYTES * SEGMENT_BYTES
    body = os.urandom(SIZE_BYTES - start)
    with StoredTree(os.fspath(root)) as tree:
        transaction = tree.begin(line, on_base=False)
        segment = Segment(start, SIZE_BYTES)
        transaction.write(segment, body, delta=False, digest=segment_digest(body))
        staged = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size == SIZE_BYTES]
        assert len(staged) == 1
        with staged[0].open("rb") as stream:
            assert os.pread(stream.fileno(), len(body), start) == body
            assert os.pread(stream.fileno(), 8, 32 * TB) == bytes(8)
        assert staged[0].stat().st_blocks * 512 < 2 * len(body)
        transaction.abandon()


@pytest.mark.parametrize("size_bytes", [*SIZES, 999_999 * TB])
@pytest.mark.parametrize("form", ["bytes:%d-%d/%d", "bytes %d-%d/%d"])
def test_the_range_of_its_last_byte_is_understood(size_bytes: int, form: str) -> None:
    header = form % (size_bytes - 1, size_bytes - 1, size_bytes)
    assert parse_content_range(header) == (size_bytes - 1, size_bytes, size_bytes)
