"""Differences: what each kind of edit costs, and that nothing wrong comes out of a wrong signature."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from mirrorkeep.delta import alignment
from mirrorkeep.delta.difference import DELTA, PLAIN, UNCHANGED, Difference
from mirrorkeep.delta.patch import Copy, check_delta, delta_operations
from mirrorkeep.delta.segments import SEGMENT_BYTES, plan_segments
from mirrorkeep.delta.signature import Signature, sign_file
from mirrorkeep.errors import MalformedDelta, SourceChanged
from tests.unit.delta.trial import OpenFile, Trial

MIB = 1 << 20
RANDOM = hashlib.shake_256(b"difference").digest(4 * MIB)
FRESH = hashlib.shake_256(b"fresh").digest(2 * MIB)
MakeTrial = Callable[[bytes, bytes], Trial]

EDITS = {
    "one byte changed": (RANDOM[:MIB] + b"?" + RANDOM[MIB + 1 :], 4096 + 200),
    "first byte changed": (b"?" + RANDOM[1:], 4096 + 200),
    "last byte changed": (RANDOM[:-1] + b"?", 4096 + 200),
    "bytes inserted": (RANDOM[: MIB + 5] + b"inserted" + RANDOM[MIB + 5 :], 4096 + 500),
    "bytes inserted in front": (b"inserted" + RANDOM, 500),
    "bytes removed": (RANDOM[: MIB + 5] + RANDOM[MIB + 1234 :], 2 * 4096 + 500),
    "first byte removed": (RANDOM[1:], 4096 + 500),
    "halves exchanged": (RANDOM[2 * MIB :] + RANDOM[: 2 * MIB], 500),
    "a stretch moved forward": (
        RANDOM[: MIB + 7] + RANDOM[MIB + 300_007 : 3 * MIB + 9] + RANDOM[MIB + 7 : MIB + 300_007]
        + RANDOM[3 * MIB + 9 :],
        5 * 4096,
    ),
    "appended": (RANDOM + b"more" * 100, 400 + 500),
    "cut off": (RANDOM[: 3 * MIB + 77], 77 + 500),
    "a stretch doubled": (RANDOM[: 2 * MIB] + RANDOM[MIB:], 500),
    "two pages exchanged with two others": (
        RANDOM[:40_960] + RANDOM[2 * MIB : 2 * MIB + 8_192] + RANDOM[49_152 : 2 * MIB] + RANDOM[40_960:49_152]
        + RANDOM[2 * MIB + 8_192 :],
        500,
    ),
    "two inserts and a removal": (
        RANDOM[:300_000] + b"a" * 10 + RANDOM[300_000 : 2 * MIB] + b"b" * 77 + RANDOM[2 * MIB : 3 * MIB]
        + RANDOM[3 * MIB + 11 :],
        5 * 4096,
    ),
    "a large insert": (RANDOM[: MIB + 3] + FRESH + RANDOM[MIB + 3 :], len(FRESH) + 2 * 4096),
    "a large stretch rewritten": (RANDOM[:MIB] + FRESH[:MIB] + RANDOM[2 * MIB :], MIB + 500),
}  # fmt: skip


@pytest.mark.parametrize("bare", [False, True], ids=["outline", "bare"])
@pytest.mark.parametrize("segment_bytes", [SEGMENT_BYTES, MIB, 777_777])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_costs_little_more_than_itself(
    trial: MakeTrial, edit: str, segment_bytes: int, bare: bool
) -> None:
    new, bound = EDITS[edit]
    one = trial(RANDOM, new)
    changes = one.compare(segment_bytes, bare=bare)
    sent = one.patch(changes)
    assert sent <= bound + 700 * len(changes), f"{edit}: {sent} bytes sent"


@pytest.mark.parametrize("segment_bytes", [SEGMENT_BYTES, MIB, 777_777])
def test_an_unchanged_file_is_unchanged_in_every_segment(trial: MakeTrial, segment_bytes: int) -> None:
    for content in (RANDOM, RANDOM[:-5], bytes(MIB), b"x"):
        changes = trial(content, content).compare(segment_bytes)
        assert {change.kind for change in changes} == {UNCHANGED}


def test_an_unchanged_segment_is_a_delta_of_11_bytes(trial: MakeTrial) -> None:
    (change,) = trial(RANDOM, RANDOM).compare()
    assert change.body == bytes.fromhex("7273023647000040000000")
    assert len(change.body) == 11
    assert bytes(change.data) == RANDOM


def test_zeros_in_place_are_unchanged_and_not_searched(
    trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: alignment.Alignment, begin: int, end: int) -> object:
        raise AssertionError("a rolling search where nothing changed")

    monkeypatch.setattr(alignment.Alignment, "_search", refuse)
    assert {change.kind for change in trial(bytes(5 * MIB), bytes(5 * MIB)).compare(MIB)} == {UNCHANGED}


@pytest.mark.parametrize(
    ("base", "new", "bound"),
    [
        (bytes(3 * MIB), bytes(MIB + 1) + b"island" + bytes(2 * MIB), 10_000),
        (RANDOM[:MIB] + bytes(MIB) + RANDOM[MIB:], RANDOM[:MIB] + bytes(MIB + 999) + RANDOM[MIB:], 10_000),
        (RANDOM[:4096] + bytes(4096) + RANDOM[4096:], bytes(3 * MIB), 20_000),
        (RANDOM[:8192] * 100, b"!" + RANDOM[:8192] * 100, 10_000),
        (RANDOM[:4096] * 3 + RANDOM[:MIB], RANDOM[:4096] * 300, 5_000),
    ],
    ids=["island in zeros", "more zeros", "one block of zeros", "two blocks repeated", "one block repeated"],
)
def test_repeated_blocks_break_nothing(trial: MakeTrial, base: bytes, new: bytes, bound: int) -> None:
    one = trial(base, new)
    assert one.patch(one.compare(MIB)) <= bound


def test_new_data_is_plain(trial: MakeTrial) -> None:
    one = trial(RANDOM, FRESH)
    (change,) = one.compare()
    assert change.kind is PLAIN
    assert change.body == FRESH
    one.patch([change])


def test_anything_over_an_empty_base_is_plain_without_a_search(trial: MakeTrial) -> None:
    one = trial(b"", FRESH)
    assert {change.kind for change in one.compare(MIB)} == {PLAIN}


def test_an_empty_file_has_no_segments(trial: MakeTrial) -> None:
    one = trial(RANDOM, b"")
    assert one.patch(one.compare()) == 0


def test_an_empty_segment_is_unchanged(trial: MakeTrial) -> None:
    one = trial(RANDOM, RANDOM)
    change = Difference(one.sign(), one.new_fd, len(RANDOM)).segment(100, 100)
    assert change.is_unchanged
    assert change.body == b"rs\x026\0"


def test_segments_may_overlap_and_begin_anywhere(trial: MakeTrial) -> None:
    new = b"shifted" + RANDOM
    one = trial(RANDOM, new)
    difference = Difference(one.sign(), one.new_fd, len(new))
    for start, end in [(12_345, 12_346), (100_001, 1_000_000), (50_000, 500_000), (len(new) - 9, len(new))]:
        change = difference.segment(start, end)
        assert bytes(change.data) == new[start:end]
        if change.kind is DELTA:
            assert check_delta(change.body, len(RANDOM), end - start) == end - start


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, len(RANDOM) + 1)])
def test_a_segment_lies_inside_the_file(trial: MakeTrial, start: int, end: int) -> None:
    one = trial(RANDOM, RANDOM)
    with pytest.raises(ValueError, match="bytes"):
        Difference(one.sign(), one.new_fd, len(RANDOM)).segment(start, end)


def test_a_file_that_became_shorter_says_so(trial: MakeTrial) -> None:
    one = trial(RANDOM, RANDOM)
    difference = Difference(one.sign(), one.new_fd, len(RANDOM))
    os.ftruncate(one.new_fd, MIB)
    with pytest.raises(SourceChanged):
        difference.segment(0, 2 * MIB)


def test_later_segments_use_the_shift_that_an_earlier_one_found(
    trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    real = alignment.Alignment._search

    def count(self: alignment.Alignment, begin: int, end: int) -> object:
        searched.append(begin)
        return real(self, begin, end)

    monkeypatch.setattr(alignment.Alignment, "_search", count)
    one = trial(RANDOM, b"inserted" + RANDOM)
    one.patch(one.compare(MIB // 2))
    assert searched
    assert max(searched) < MIB // 2


def test_segments_in_many_threads_make_the_same_file(trial: MakeTrial) -> None:
    random = Random(8)
    new = bytearray(RANDOM)
    for _ in range(40):
        at = random.randrange(len(new))
        new[at : at + random.choice((0, 5, 4000))] = random.randbytes(random.choice((0, 3, 5000)))
    one = trial(RANDOM, bytes(new))
    difference = Difference(one.sign(), one.new_fd, len(new))
    with ThreadPoolExecutor(8) as pool:
        changes = list(pool.map(lambda span: difference.segment(*span), plan_segments(len(new), 100_000)))
    assert one.patch(changes) < MIB


def test_a_wrong_signature_costs_bytes_and_is_seen_by_the_digest(open_file: OpenFile) -> None:
    """DEL-13: of another file, the result is wrong at worst in a way that length or digest shows."""
    other = FRESH[:MIB]
    signed = sign_file(open_file(other), MIB)
    change = Difference(Signature.load(signed.signature), open_file(RANDOM), len(RANDOM)).segment(0, MIB)
    assert change.kind is PLAIN
    # The file did not change since that signature, but the base on the server is shorter than it says.
    change = Difference(Signature.load(signed.signature), open_file(other), MIB).segment(0, MIB)
    with pytest.raises(MalformedDelta, match="beyond the end"):
        check_delta(change.body, MIB - 1, MIB)


def test_a_damaged_block_sum_only_costs_that_block(open_file: OpenFile) -> None:
    signed = sign_file(open_file(RANDOM), len(RANDOM))
    data = bytearray(signed.signature)
    data[12 + 20 * 100 + 9] ^= 1
    change = Difference(Signature.load(bytes(data)), open_file(RANDOM), len(RANDOM)).segment(0, len(RANDOM))
    copies = [operation for operation in delta_operations(change.body) if isinstance(operation, Copy)]
    assert [(copy.offset, copy.length) for copy in copies] == [
        (0, 100 * 4096),
        (101 * 4096, len(RANDOM) - 101 * 4096),
    ]


def test_memory_does_not_grow_with_the_file() -> None:
    """WQ-11, on a sparse file of 384 MiB with islands: a fresh interpreter, its peak resident size."""
    script = """
        import os, re, tempfile
        from mirrorkeep.delta.difference import Difference
        from mirrorkeep.delta.segments import plan_segments
        from mirrorkeep.delta.signature import Signature, sign_file
        size = 384 << 20
        with tempfile.TemporaryFile() as stream:
            fd = stream.fileno()
            os.ftruncate(fd, size)
            for at in range(0, size, 8 << 20):
                os.pwrite(fd, os.urandom(100_000), at + 12_345)
            signed = sign_file(fd, size)
            for at in range(0, size, 8 << 20):
                os.pwrite(fd, os.urandom(5_000), at + 23_456)
            signature = Signature.load(signed.signature, base_bytes=size, outline=signed.outline)
            difference = Difference(signature, fd, size)
            sent = sum(len(difference.segment(*span).body) for span in plan_segments(size))
        assert sent < 48 * 5 * 4096, sent
        # Not getrusage: its peak includes that of the process which started this one.
        with open("/proc/self/status") as stream:
            print(int(re.search(r"VmHWM:\\s+(\\d+) kB", stream.read())[1]) // 1024)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 120
