"""The delta format: every command, every refusal, and what patching writes and does not write."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from mirrorkeep.delta.patch import (
    DELTA_MAGIC,
    Copy,
    Literal,
    apply_delta,
    build_delta,
    check_delta,
    delta_operations,
    patch_pieces,
)
from mirrorkeep.errors import MalformedDelta

BASE = bytes(range(256)) * 300
WIDTHS = (1, 2, 4, 8)
OpenFile = Callable[[bytes], int]


def plain(delta: bytes) -> list[tuple[int, int] | bytes]:
    """Return the operations in a form that compares by value."""
    return [
        (operation.offset, operation.length) if isinstance(operation, Copy) else bytes(operation.data)
        for operation in delta_operations(delta)
    ]


@pytest.mark.parametrize("offset_width", range(4))
@pytest.mark.parametrize("length_width", range(4))
def test_every_width_of_a_copy_is_read(offset_width: int, length_width: int) -> None:
    command = bytes((69 + 4 * offset_width + length_width,))
    fields = (7).to_bytes(WIDTHS[offset_width], "big") + (9).to_bytes(WIDTHS[length_width], "big")
    assert plain(DELTA_MAGIC + command + fields + b"\0") == [(7, 9)]


@pytest.mark.parametrize("width", range(4))
def test_every_width_of_a_literal_is_read(width: int) -> None:
    head = bytes((65 + width,)) + (3).to_bytes(WIDTHS[width], "big")
    assert plain(DELTA_MAGIC + head + b"abc" + b"\0") == [b"abc"]


@pytest.mark.parametrize("length", [1, 64])
def test_short_literals_carry_their_length_in_the_command(length: int) -> None:
    data = b"x" * length
    assert plain(DELTA_MAGIC + bytes((length,)) + data + b"\0") == [data]


@pytest.mark.parametrize(
    ("delta", "why"),
    [
        (b"", "magic"),
        (b"rs\x026", "end is missing"),
        (b"rs\x027\0", "magic"),
        (b"rs\x026\0\0", "after its end"),
        (b"rs\x026\x05abc\0", "inside literal"),
        (b"rs\x026\x41\x00\0", "no bytes"),
        (b"rs\x026\x45\x00\x00\0", "no bytes"),
        (b"rs\x026\x54" + bytes(15), "inside a command"),
        (b"rs\x026\x55\0", "reserved command 85"),
        (b"rs\x026\xff\0", "reserved command 255"),
        (b"rs\x026\x44" + b"\xff" * 8 + b"abc\0", "inside literal"),
    ],
)
def test_what_is_not_a_delta_is_refused(delta: bytes, why: str) -> None:
    with pytest.raises(MalformedDelta, match=why):
        list(delta_operations(delta))


@pytest.mark.parametrize(
    ("operation", "command"),
    [
        (Copy(0, 1), 69), (Copy(0, 256), 70), (Copy(255, 65536), 71), (Copy(1, 1 << 32), 72),
        (Copy(256, 1), 73), (Copy(65536, 1), 77), (Copy(1 << 32, 1), 81), (Copy(1 << 40, 1 << 40), 84),
        (Literal(b"a"), 1), (Literal(b"a" * 64), 64), (Literal(b"a" * 65), 65), (Literal(b"a" * 256), 66),
        (Literal(b"a" * 65536), 67),
    ],
)  # fmt: skip
def test_the_narrowest_command_is_built(operation: Copy | Literal, command: int) -> None:
    delta = build_delta([operation])
    assert delta[4] == command
    expected = operation.data if isinstance(operation, Literal) else (operation.offset, operation.length)
    assert plain(delta) == [expected]


def test_neighbouring_copies_are_joined_and_empty_operations_left_out() -> None:
    operations = [Copy(0, 10), Copy(10, 5), Copy(0, 0), Literal(b""), Copy(15, 1), Copy(20, 4), Literal(b"z")]
    assert plain(build_delta(operations)) == [(0, 16), (20, 4), b"z"]


def test_no_operations_make_the_empty_delta() -> None:
    assert build_delta([]) == b"rs\x026\0"
    assert check_delta(b"rs\x026\0", 0, 0) == 0


def test_the_unchanged_delta_of_the_document_is_accepted(open_file: OpenFile) -> None:
    delta = bytes.fromhex("7273023647000000ffff00")
    assert len(delta) == 11
    base, out = open_file(BASE), open_file(b"")
    apply_delta(delta, base, out, 0, expected_bytes=65535, cloned=False)
    assert os.pread(out, len(BASE), 0) == BASE[:65535]


@pytest.mark.parametrize(
    ("operations", "expected"),
    [([Copy(len(BASE) - 3, 4)], 4), ([Copy(1 << 62, 4)], 4), ([Copy(0, 9)], 10), ([Literal(b"abcd")], 3)],
)
def test_a_delta_that_does_not_fit_writes_nothing(
    open_file: OpenFile, operations: list[Copy | Literal], expected: int
) -> None:
    base, out = open_file(BASE), open_file(b"old")
    with pytest.raises(MalformedDelta):
        apply_delta(build_delta([Literal(b"new"), *operations]), base, out, 0, expected_bytes=expected + 3)
    assert os.pread(out, 100, 0) == b"old"


def test_a_fault_at_the_end_of_a_delta_is_seen_before_the_first_write(open_file: OpenFile) -> None:
    base, out = open_file(BASE), open_file(b"old")
    with pytest.raises(MalformedDelta):
        apply_delta(build_delta([Literal(b"new")])[:-1], base, out, 0, expected_bytes=3)
    assert os.pread(out, 100, 0) == b"old"


def test_what_a_clone_holds_in_place_is_not_written(open_file: OpenFile) -> None:
    base, out = open_file(BASE), open_file(b"-" * len(BASE))  # a pretended clone: a write would show
    apply_delta(
        build_delta([Copy(100, 50), Literal(b"ab"), Copy(152, 48)]), base, out, 100, expected_bytes=100
    )
    assert os.pread(out, 102, 99) == b"-" * 51 + b"ab" + b"-" * 49


def test_moved_ranges_are_copied(open_file: OpenFile) -> None:
    base, out = open_file(BASE), open_file(BASE)
    apply_delta(build_delta([Copy(70_000, 300), Copy(1, 5_000)]), base, out, 64, expected_bytes=5_300)
    assert os.pread(out, 5_364, 0) == BASE[:64] + BASE[70_000:70_300] + BASE[1:5_001]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_where_the_kernel_cannot_copy_it_goes_through_memory(
    open_file: OpenFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    base, out = open_file(BASE), open_file(b"")
    apply_delta(build_delta([Copy(3, 60_000)]), base, out, 0, expected_bytes=60_000)
    assert os.pread(out, 70_000, 0) == BASE[3:60_003]


def test_a_full_disk_is_the_callers(open_file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with pytest.raises(OSError, match="full") as caught:
        apply_delta(build_delta([Copy(3, 60)]), open_file(BASE), open_file(b""), 0, expected_bytes=60)
    assert caught.value.errno == errno.ENOSPC


def test_short_writes_are_continued(open_file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    out = open_file(b"")
    apply_delta(build_delta([Literal(BASE[:100])]), open_file(b""), out, 5, expected_bytes=100)
    assert os.pread(out, 200, 0) == bytes(5) + BASE[:100]


def test_pieces_say_what_stays_where_it_was(open_file: OpenFile) -> None:
    operations = [Copy(0, 5_000), Copy(9_000, 4_096), Literal(b"x" * 5_000), Copy(14_096, 50_000)]
    pieces = patch_pieces(build_delta(operations), open_file(BASE), expected_bytes=64_096)
    assert [(len(piece.data), piece.stays) for piece in pieces] == [
        (5_000, True),
        (4_096, False),
        (5_000, False),
        (50_000, True),
    ]
    wanted = BASE[:5_000] + BASE[9_000:13_096] + b"x" * 5_000 + BASE[14_096:64_096]
    assert b"".join(piece.data for piece in pieces) == wanted
    moved = patch_pieces(build_delta([Copy(0, 5_000)]), open_file(BASE), 1, expected_bytes=5_000)
    assert [piece.stays for piece in moved] == [False]


def test_pieces_of_a_fine_delta_are_few(open_file: OpenFile) -> None:
    operations = [one for place in range(0, 60_000, 2) for one in (Copy(place, 1), Literal(b"x"))]
    pieces = patch_pieces(build_delta(operations), open_file(BASE), expected_bytes=60_000)
    assert len(pieces) == 1
    assert bytes(pieces[0].data) == b"".join(BASE[place : place + 1] + b"x" for place in range(0, 60_000, 2))


def test_pieces_read_the_base_to_the_end_of_a_copy(
    open_file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 5_000), offset))
    pieces = patch_pieces(build_delta([Copy(7, 12_345)]), open_file(BASE), expected_bytes=12_345)
    assert b"".join(piece.data for piece in pieces) == BASE[7:12_352]


def test_pieces_are_no_more_than_expected(open_file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = build_delta([operation for _ in range(100) for operation in (Copy(0, 50_000), Copy(1, 1))])
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("it was read before it was checked"))
    with pytest.raises(MalformedDelta, match="more than the expected"):
        patch_pieces(delta, open_file(BASE), expected_bytes=1_000_000)


def test_operations_view_the_delta_instead_of_copying_it() -> None:
    delta = build_delta([Literal(BASE)])
    (operation,) = delta_operations(delta)
    assert isinstance(operation, Literal)
    assert isinstance(operation.data, memoryview)
    assert operation.data.obj is delta
