"""Whatever the edit, the patched clone is the new file; whatever the bytes, a refusal is the only error."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorkeep.delta.difference import Difference
from mirrorkeep.delta.patch import (
    Copy,
    Literal,
    apply_delta,
    build_delta,
    check_delta,
    delta_operations,
    patch_pieces,
)
from mirrorkeep.delta.signature import Signature, sign_file
from mirrorkeep.errors import MalformedDelta, MalformedSignature
from tests.unit.delta.trial import Trial

BLOCK = 256
SOURCE = hashlib.shake_256(b"properties").digest(40_000)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def open_temporary(content: bytes) -> int:
    """Return the descriptor of an unlinked file; the caller closes it."""
    with tempfile.TemporaryFile() as stream:
        fd = os.dup(stream.fileno())
    os.pwrite(fd, content, 0)
    return fd


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Old content: random, repeated and zero stretches, of any length down to nothing."""
    pieces = st.one_of(
        st.tuples(st.integers(0, 30_000), st.integers(0, 9_000)).map(lambda at: SOURCE[at[0] : sum(at)]),
        st.integers(0, 5_000).map(bytes),
        st.integers(1, 30).map(lambda times: SOURCE[:BLOCK] * times),
        st.integers(1, 500).map(lambda times: b"period" * times),
    )
    return b"".join(draw(st.lists(pieces, max_size=4)))


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One edit of a content."""
    kind = draw(st.sampled_from(("insert", "remove", "overwrite", "move", "append", "cut", "double", "zero")))
    where, other, length = draw(st.floats(0, 1)), draw(st.floats(0, 1)), draw(st.integers(0, 3_000))
    fresh = hashlib.shake_256(draw(st.binary(max_size=3))).digest(length)

    def edit(content: bytes) -> bytes:
        at = int(where * len(content))
        there = int(other * len(content))
        piece, rest = content[at : at + length], content[:at] + content[at + length :]
        return {
            "insert": content[:at] + fresh + content[at:],
            "remove": rest,
            "overwrite": content[:at] + fresh + content[at + length :],
            "move": rest[:there] + piece + rest[there:],
            "append": content + fresh,
            "cut": content[:at],
            "double": content[:there] + piece + content[there:],
            "zero": content[:at] + bytes(len(piece)) + content[at + length :],
        }[kind]

    return edit


@QUICK
@given(
    contents(),
    st.lists(edits(), max_size=4),
    st.sampled_from((100, 257, 2_048, 7_777, 1 << 20)),
    st.booleans(),
)
def test_the_patched_clone_is_the_new_file(
    base: bytes, changes: list[Callable[[bytes], bytes]], segment_bytes: int, bare: bool
) -> None:
    new = base
    for change in changes:
        new = change(new)
    opened: list[int] = []

    def opening(content: bytes) -> int:
        opened.append(open_temporary(content))
        return opened[-1]

    try:
        one = Trial(opening, base, new)
        found = one.compare(segment_bytes, block_bytes=BLOCK, bare=bare)
        sent = one.patch(found)
        assert sent <= len(new) + 40 * (len(found) + 1)
        if new == base:
            assert sent == 0
    finally:
        for fd in opened:
            os.close(fd)


OPERATIONS = st.lists(
    st.one_of(
        st.builds(Copy, st.integers(0, 30_000), st.integers(0, 10_000)),
        st.builds(Literal, st.binary(max_size=300)),
    ),
    max_size=20,
)


@QUICK
@given(OPERATIONS)
def test_a_built_delta_makes_what_its_operations_say(operations: list[Copy | Literal]) -> None:
    wanted = b"".join(
        SOURCE[operation.offset : operation.offset + operation.length]
        if isinstance(operation, Copy)
        else bytes(operation.data)
        for operation in operations
    )
    delta = build_delta(operations)
    base, out = open_temporary(SOURCE), open_temporary(b"")
    try:
        apply_delta(delta, base, out, 9, expected_bytes=len(wanted), cloned=False)
        assert os.pread(out, len(wanted) + 1, 9) == wanted
        pieces = patch_pieces(delta, base, 9, expected_bytes=len(wanted))
        assert b"".join(piece.data for piece in pieces) == wanted
        place = 9
        for piece in pieces:
            if piece.stays:  # what is not written has to be there: the new file began as a clone
                assert piece.data == SOURCE[place : place + len(piece.data)]
            place += len(piece.data)
    finally:
        os.close(base)
        os.close(out)


def refused_or_whole(delta: bytes) -> None:
    """Read ``delta``: either every operation is sound, or it is refused and nothing was written."""
    base, out = open_temporary(SOURCE[:5_000]), open_temporary(b"old")
    try:
        made = check_delta(delta, 5_000)
        if made < 1 << 20:
            apply_delta(delta, base, out, 0, expected_bytes=made, cloned=False)
            assert os.fstat(out).st_size == max(made, 3)
    except MalformedDelta:
        assert os.pread(out, 9, 0) == b"old"
    finally:
        os.close(base)
        os.close(out)


@QUICK
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_no_delta_or_a_sound_one(data: bytes, with_magic: bool) -> None:
    refused_or_whole(b"rs\x026" + data if with_magic else data)


@QUICK
@given(OPERATIONS, st.data())
def test_a_damaged_delta_is_refused_or_sound(operations: list[Copy | Literal], data: st.DataObject) -> None:
    delta = bytearray(build_delta(operations))
    for _ in range(data.draw(st.integers(1, 3))):
        delta[data.draw(st.integers(0, len(delta) - 1))] = data.draw(st.integers(0, 255))
    refused_or_whole(bytes(delta[: data.draw(st.integers(0, len(delta)))]))


@QUICK
@given(OPERATIONS)
def test_building_what_was_parsed_gives_the_same_delta(operations: list[Copy | Literal]) -> None:
    """Neighbouring literals stay apart, neighbouring copies are joined: parsing and building agree."""
    delta = build_delta(operations)
    assert build_delta(delta_operations(delta)) == delta


@QUICK
@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(
            lambda magic, block, strong, sums: struct.pack(">III", magic, block, strong) + sums,
            st.sampled_from((0x72730147, 0x72730137, 0x72730146, 0x72730236)),
            st.one_of(st.sampled_from((256, 1000, 4096, 65536, 1 << 26)), st.integers(0, 1 << 32 - 1)),
            st.one_of(st.sampled_from((8, 16, 32)), st.integers(0, 40)),
            st.binary(max_size=400),
        ),
    )
)
def test_arbitrary_bytes_as_signature_are_refused_or_harmless(data: bytes) -> None:
    try:
        signature = Signature.load(data)
    except MalformedSignature:
        return
    if signature.block_bytes > 65536:  # margins of a block on both sides: slow, not different
        return
    fd = open_temporary(SOURCE)
    try:
        change = Difference(signature, fd, len(SOURCE)).segment(0, len(SOURCE))
    finally:
        os.close(fd)
    assert change.body == SOURCE


@QUICK
@given(st.data())
def test_a_damaged_signature_never_makes_a_delta_of_another_length(data: st.DataObject) -> None:
    base, new = open_temporary(SOURCE), open_temporary(SOURCE[:9_000] + b"+" + SOURCE[9_000:])
    try:
        damaged = bytearray(sign_file(base, len(SOURCE), block_bytes=BLOCK).signature)
        for _ in range(data.draw(st.integers(1, 5))):
            damaged[data.draw(st.integers(12, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        change = Difference(Signature.load(bytes(damaged)), new, len(SOURCE) + 1).segment(0, len(SOURCE) + 1)
        pieces = patch_pieces(change.body, base, expected_bytes=len(SOURCE) + 1)
        assert b"".join(piece.data for piece in pieces) == os.pread(new, len(SOURCE) + 1, 0)
    finally:
        os.close(base)
        os.close(new)
