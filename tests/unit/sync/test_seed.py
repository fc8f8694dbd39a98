"""A restore rebuilds a large file from what is there: only the differences travel (LOC-03)."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mirrorkeep.delta.segments import SEGMENT_BYTES, digest_segments, pack_digests
from mirrorkeep.delta.signature import choose_block_bytes, sign_range
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync.restore_large import Fetched, LargeFetch
from mirrorkeep.sync.restore_links import There
from mirrorkeep.sync.seed import MERGE_BYTES, Seed, Stretch
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame

MIB = 1 << 20
NAME = b"image"


class Store:
    """A distant master that holds one file and counts what it hands out."""

    def __init__(self, content: bytes, signed: bytes | None = None) -> None:
        self.content = content
        self.signed = content if signed is None else signed
        self.ranges: list[tuple[int, int]] = []
        self.travelled = 0
        self.signed_bytes = 0

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        raise AssertionError("a large file does not travel in a bundle")

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        self.ranges.append((start, end))
        self.travelled += end - start
        return self.content[start:end]

    def signature_of_range(self, path: bytes, start: int, end: int) -> bytes:
        with tempfile.TemporaryFile() as stream:
            stream.write(self.signed)
            stream.flush()
            made = sign_range(stream.fileno(), start, end, choose_block_bytes(len(self.signed)))
        self.signed_bytes += end - start
        self.travelled += len(made)
        return made


def line_of(content: bytes, **more: bytes) -> bytes:
    fields = {b"type": b"file", b"st_size": b"%d" % len(content), b"st_mtime": b"1000"}
    fields[b"hash"] = hashlib.sha256(content).hexdigest().encode()
    return format_record(NAME, {**fields, **{key.encode(): value for key, value in more.items()}})


def restore(store: Store, folder: Path, *, seed: Path | None = None, line: bytes = b"") -> Fetched:
    """Bring the file into ``folder`` over whatever is there."""
    line = line or line_of(store.content)
    done = Fetched()
    fetch = LargeFetch(store, NativeTree(str(folder)), NativeTree(str(seed)) if seed else None)
    present = (folder / "image").exists()
    fetch.bring(NAME, parse_record(line), line, done, there=There(present), overwrite=True)
    assert done.read_bytes == store.travelled
    return done


def edited(content: bytes) -> bytes:
    """Return the content with bytes changed in ten places, some put in and some taken away."""
    new = bytearray(content)
    chance = random.Random(3)
    for _ in range(10):
        at = chance.randrange(len(new) - 5000)
        new[at : at + 4000] = chance.randbytes(4000)
    at = len(new) // 3
    new[at:at] = chance.randbytes(777)
    del new[2 * at : 2 * at + 1001]
    return bytes(new)


@pytest.fixture(scope="module")
def wanted() -> bytes:
    return random.Random(1).randbytes(64 * MIB)


def test_of_an_edited_file_of_64_mib_less_than_three_percent_travels(wanted: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(edited(wanted))
    store = Store(wanted)
    done = restore(store, tmp_path)
    assert not done.failures and done.written == 1
    assert (tmp_path / "image").read_bytes() == wanted
    assert store.travelled < len(wanted) * 3 // 100
    assert os.stat(tmp_path / "image").st_mtime == 1000


def test_a_damaged_block_costs_that_block_and_the_signature(wanted: bytes, tmp_path: Path) -> None:
    damaged = bytearray(wanted)
    damaged[30 * MIB + 5] ^= 1
    (tmp_path / "image").write_bytes(damaged)
    store = Store(wanted)
    restore(store, tmp_path)
    assert (tmp_path / "image").read_bytes() == wanted
    assert sum(end - start for start, end in store.ranges) == 4096


@pytest.mark.parametrize("there", [b"", b"x" * 100, os.urandom(2 * MIB)], ids=["empty", "tiny", "foreign"])
def test_what_is_there_and_of_no_use_is_replaced(there: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(there)
    store = Store(os.urandom(3 * MIB + 17))
    done = restore(store, tmp_path)
    assert done.written == 1
    assert (tmp_path / "image").read_bytes() == store.content


@pytest.mark.parametrize("old_bytes", [5 * MIB, 30 * MIB])
def test_shorter_and_longer_files_become_the_wanted_one(
    wanted: bytes, tmp_path: Path, old_bytes: int
) -> None:
    content = wanted[: 12 * MIB + 1]
    (tmp_path / "image").write_bytes(wanted[:old_bytes])
    store = Store(content)
    restore(store, tmp_path)
    assert (tmp_path / "image").read_bytes() == content
    missing = max(len(content) - old_bytes, 0)
    assert store.travelled < missing + len(content) // 50


def test_another_tree_serves_as_seed(wanted: bytes, tmp_path: Path) -> None:
    content = wanted[: 20 * MIB]
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "image").write_bytes(edited(content))
    store = Store(content)
    restore(store, tmp_path / "new", seed=tmp_path / "old")
    assert (tmp_path / "new" / "image").read_bytes() == content
    assert (tmp_path / "old" / "image").read_bytes() == edited(content)
    assert store.travelled < len(content) * 3 // 100


def test_a_seed_with_the_very_content_costs_nothing(wanted: bytes, tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "image").write_bytes(wanted)
    store = Store(wanted)
    restore(store, tmp_path / "new", seed=tmp_path / "old")
    assert (tmp_path / "new" / "image").read_bytes() == wanted
    assert store.travelled == 0


def test_a_signature_of_something_else_costs_bytes_and_never_data(wanted: bytes, tmp_path: Path) -> None:
    content, other = wanted[: 4 * MIB], wanted[8 * MIB : 12 * MIB]
    (tmp_path / "image").write_bytes(other)
    store = Store(content, signed=other)
    done = restore(store, tmp_path)
    assert not done.failures
    assert (tmp_path / "image").read_bytes() == content


def test_what_the_store_sends_must_be_what_the_manifest_says(wanted: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"old")
    store = Store(wanted[: 2 * MIB])
    done = restore(store, tmp_path, line=line_of(wanted[MIB : 3 * MIB]))
    assert [code for _, code, _ in done.failures] == ["digest_mismatch"]
    assert done.written == 0
    assert (tmp_path / "image").read_bytes() == b"old"


def test_holes_stay_holes_over_a_seed_that_has_none(wanted: bytes, tmp_path: Path) -> None:
    content = wanted[:MIB] + bytes(6 * MIB) + wanted[MIB : 2 * MIB]
    (tmp_path / "image").write_bytes(wanted[:MIB] + b"\1" * (6 * MIB) + wanted[MIB : 2 * MIB])
    store = Store(content)
    ranges = b"0+%d;%d+%d" % (MIB, 7 * MIB, MIB)
    restore(store, tmp_path, line=line_of(content, sparse=ranges))
    assert (tmp_path / "image").read_bytes() == content
    assert store.travelled < MIB


def test_near_gaps_are_one_request() -> None:
    near = [
        Stretch(0, 100_000, 0),
        Stretch(104_096, 104_096 + MERGE_BYTES - 1, 104_096),
        Stretch(200_000, 300_000, 7),
    ]
    seed = Seed(-1, near, in_destination=True)
    assert seed.stretches(0, 300_000) == [near[0], Stretch(100_000, 200_000), near[2]]
    assert seed.stretches(250_000, 310_000) == [Stretch(250_000, 300_000, 50_007), Stretch(300_000, 310_000)]
    assert seed.stretches(10, 20) == [Stretch(10, 20, 10)]


def digests_of(content: bytes) -> bytes:
    with tempfile.TemporaryFile() as stream:
        stream.write(content)
        stream.flush()
        return pack_digests(len(content), digest_segments(stream.fileno(), len(content)))


def test_with_digests_in_the_record_only_segments_that_differ_are_signed(
    wanted: bytes, tmp_path: Path
) -> None:
    damaged = bytearray(wanted)
    damaged[30 * MIB + 5] ^= 1
    (tmp_path / "image").write_bytes(damaged)
    store = Store(wanted)
    restore(store, tmp_path, line=line_of(wanted, segments=digests_of(wanted)))
    assert (tmp_path / "image").read_bytes() == wanted
    assert store.signed_bytes == SEGMENT_BYTES
    assert sum(end - start for start, end in store.ranges) == 4096


@pytest.mark.parametrize("old_bytes", [5 * MIB, 20 * MIB, 40 * MIB])
def test_digests_help_with_shorter_longer_and_shifted_files(
    wanted: bytes, tmp_path: Path, old_bytes: int
) -> None:
    content = wanted[: 30 * MIB + 1]
    there = wanted[: 15 * MIB] + b"put in" + wanted[15 * MIB : old_bytes]
    (tmp_path / "image").write_bytes(there)
    store = Store(content)
    restore(store, tmp_path, line=line_of(content, segments=digests_of(content)))
    assert (tmp_path / "image").read_bytes() == content
    missing = max(len(content) - len(there), 0)
    assert store.travelled < missing + len(content) * 2 // 100


@pytest.mark.parametrize("value", [b"x", b"9961472:00", b"0:", b"19922944:" + b"00" * 16 * 4])
def test_digests_that_make_no_sense_are_not_used(wanted: bytes, tmp_path: Path, value: bytes) -> None:
    (tmp_path / "image").write_bytes(edited(wanted))
    store = Store(wanted)
    restore(store, tmp_path, line=line_of(wanted, segments=value))
    assert (tmp_path / "image").read_bytes() == wanted
    assert store.travelled < len(wanted) * 3 // 100
