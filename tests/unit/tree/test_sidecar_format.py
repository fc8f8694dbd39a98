"""The sidecar's format: codec, random access, size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorkeep.errors import MalformedSidecar
from mirrorkeep.tree.sidecar import decode_sidecar, encode_record_sidecar, encode_sidecar, look_up

TYPICAL = {
    b"record": b"=a/long/enough/path/of/a/file.txt,hash=" + b"0" * 64 + b",st_size=12288" + b"x" * 250,
    b"dav:{http://example.org/ns}author": b"somebody",
    b"dav:{http://example.org/ns}title": b"a title of some length",
    **{b"tag:%d" % number: b"classified" for number in range(9)},
}


def write(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def test_twelve_typical_entries_stay_far_below_one_block() -> None:
    assert len(TYPICAL) == 12
    assert len(encode_sidecar(1, TYPICAL)) < 1024


def test_a_sidecar_of_one_record_is_the_same_by_both_ways() -> None:
    for record in (b"", b"=x,_internal_record_crc=00000000", bytes(range(256)) * 20):
        assert encode_record_sidecar(2**64 - 1, record) == encode_sidecar(2**64 - 1, {b"record": record})


def test_round_trip_keeps_generation_and_entries() -> None:
    sidecar = decode_sidecar(encode_sidecar(1_700_000_000_000_000_000, TYPICAL))
    assert (sidecar.generation, sidecar.entries) == (1_700_000_000_000_000_000, TYPICAL)
    assert sidecar.line == TYPICAL[b"record"]


def test_an_empty_sidecar_is_a_sidecar() -> None:
    assert decode_sidecar(encode_sidecar(0, {})).entries == {}


def test_random_access_finds_every_key_and_no_other(tmp_path: Path) -> None:
    entries = {b"key%05d" % number: os.urandom(number % 40) for number in range(5000)}
    fd = write(tmp_path / "big", encode_sidecar(7, entries))
    try:
        for key in list(entries)[::97]:
            assert look_up(fd, key) == entries[key]
        assert look_up(fd, b"") is None
        assert look_up(fd, b"key00000x") is None
        assert look_up(fd, b"zzz") is None
    finally:
        os.close(fd)


def test_random_access_reads_little_of_a_large_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {b"key%06d" % number: b"v" for number in range(100_000)} | {b"large": b"x" * (1 << 20)}
    fd = write(tmp_path / "big", encode_sidecar(7, entries))
    read = 0
    pread = os.pread

    def counting(file: int, count: int, offset: int) -> bytes:
        nonlocal read
        data = pread(file, count, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    try:
        assert look_up(fd, b"key054321") == b"v"
    finally:
        os.close(fd)
    assert read < 2000


@pytest.mark.parametrize("position", range(0, len(encode_sidecar(5, {b"a": b"one", b"b": b"two"}))))
def test_any_flipped_bit_is_noticed(position: int) -> None:
    data = bytearray(encode_sidecar(5, {b"a": b"one", b"b": b"two"}))
    data[position] ^= 0x10
    with pytest.raises(MalformedSidecar):
        decode_sidecar(bytes(data))


def test_every_truncation_is_noticed() -> None:
    data = encode_sidecar(5, TYPICAL)
    for length in range(len(data)):
        with pytest.raises(MalformedSidecar):
            decode_sidecar(data[:length])


def test_random_access_notices_a_damaged_entry(tmp_path: Path) -> None:
    data = bytearray(encode_sidecar(5, {b"a": b"one", b"b": b"two"}))
    data[-1] ^= 1
    fd = write(tmp_path / "damaged", bytes(data))
    try:
        assert look_up(fd, b"a") == b"one"
        with pytest.raises(MalformedSidecar):
            look_up(fd, b"b")
    finally:
        os.close(fd)
