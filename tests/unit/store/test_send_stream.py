"""The parser of ``btrfs send``: names followed to where they end up, anything odd makes it say nothing."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.store.drivers import send_stream
from mirrorkeep.store.drivers.send_stream import Difference, crc32c, read_difference

SNAPSHOT, MKFILE, MKDIR, RENAME, LINK, UNLINK, RMDIR, CHMOD, UTIMES, END = 2, 3, 4, 9, 10, 11, 12, 18, 20, 21
PATH, PATH_TO, PATH_LINK = 15, 16, 17
MAGIC = b"btrfs-stream\0" + struct.pack("<I", 1)


def command(code: int, *attributes: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in attributes)
    head = struct.pack("<IHI", len(body), code, 0)
    return struct.pack("<IHI", len(body), code, crc32c(head + body)) + body


def stream(*commands: bytes) -> bytes:
    return MAGIC + command(SNAPSHOT, (PATH, b"new")) + b"".join(commands) + command(END)


def read(*commands: bytes) -> Difference:
    difference = read_difference(io.BytesIO(stream(*commands)))
    assert difference is not None
    return difference


def one(code: int, path: bytes) -> bytes:
    return command(code, (PATH, path))


def rename(old: bytes, new: bytes) -> bytes:
    return command(RENAME, (PATH, old), (PATH_TO, new))


def test_the_checksum_is_the_known_one_without_inversions() -> None:
    assert crc32c(b"123456789", 0xFFFFFFFF) ^ 0xFFFFFFFF == 0xE3069283


def test_a_new_file_appears_under_its_final_name() -> None:
    made = read(one(MKFILE, b"o257-7-0"), rename(b"o257-7-0", b"d/new"), one(UTIMES, b"d"))
    assert made == Difference([b"d", b"d/new"], [], [])


def test_changes_are_told_under_the_name_that_a_file_ends_up_with() -> None:
    made = read(one(CHMOD, b"a"), rename(b"a", b"b"), one(CHMOD, b"b"))
    assert made == Difference([b"b"], [b"b"], [b"a"])


def test_what_is_in_a_moved_folder_moves_along() -> None:
    made = read(rename(b"d", b"e"), one(CHMOD, b"e/file"))
    assert made == Difference([b"e", b"e/file"], [b"e", b"e/file"], [b"d"])


def test_a_folder_put_aside_and_back_is_not_moved() -> None:
    made = read(rename(b"d", b"o260-7-0"), rename(b"o260-7-0", b"d"))
    assert made == Difference([b"d"], [], [])


def test_a_swap_moves_both() -> None:
    made = read(rename(b"a", b"o1-1-0"), rename(b"b", b"a"), rename(b"o1-1-0", b"b"))
    assert made == Difference([b"a", b"b"], [b"a", b"b"], [b"a", b"b"])


def test_a_removed_folder_is_told_by_its_old_name() -> None:
    made = read(rename(b"d/x", b"o9-1-0"), one(UNLINK, b"o9-1-0/f"), one(RMDIR, b"o9-1-0"))
    assert made.gone == [b"d/x", b"d/x/f"]


def test_a_link_changes_both_names() -> None:
    made = read(command(LINK, (PATH, b"new"), (PATH_LINK, b"old")))
    assert made == Difference([b"new", b"old"], [], [])


def test_the_root_is_a_path_too() -> None:
    assert read(one(UTIMES, b"")).changed == [b""]


@pytest.mark.parametrize(
    "odd",
    [
        command(99, (PATH, b"a")),
        command(0, (PATH, b"a")),
        command(RENAME, (PATH, b"a")),
        command(CHMOD),
        command(UNLINK, (PATH, b"")),
        struct.pack("<IHI", 0x7FFFFFFF, CHMOD, 0),
    ],
)
def test_what_is_not_understood_makes_no_answer(odd: bytes) -> None:
    assert read_difference(io.BytesIO(stream(odd))) is None


GOOD = stream(one(MKDIR, b"o1"), rename(b"o1", b"d"), one(CHMOD, b"d/f"))


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_stream_that_is_cut_off_makes_no_answer(length: int) -> None:
    assert read_difference(io.BytesIO(GOOD[:length])) is None


def test_bytes_behind_the_end_make_no_answer() -> None:
    assert read_difference(io.BytesIO(GOOD + b"x")) is None


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_a_flipped_bit_makes_no_answer(bit: int) -> None:
    damaged = bytearray(GOOD)
    damaged[bit // 8] ^= 1 << bit % 8
    assert read_difference(io.BytesIO(bytes(damaged))) is None


@given(st.binary(max_size=200))
def test_garbage_makes_no_answer_and_no_exception(garbage: bytes) -> None:
    assert read_difference(io.BytesIO(MAGIC + garbage)) is None


def test_more_names_than_memory_should_hold_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_stream, "MAX_NAMES", 10)
    few, many = ([one(CHMOD, b"d/%d" % number) for number in range(count)] for count in (9, 10))
    assert read_difference(io.BytesIO(stream(*few))) is not None
    assert read_difference(io.BytesIO(stream(*many))) is None
