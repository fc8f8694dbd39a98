"""Signatures: block length, format, refusals, the short last block."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorkeep.delta import librsync, signature
from mirrorkeep.delta.signature import Signature, choose_block_bytes, make_signature, sign_file
from mirrorkeep.errors import EngineMissing, MalformedSignature, SourceChanged

OpenFile = Callable[[bytes], int]
CONTENT = hashlib.shake_256(b"signature").digest(300_000)


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 10 << 20, 1 << 30, 1 << 32, 1 << 40, 10 << 40, 1 << 50])
def test_a_signature_stays_below_16_mib(size_bytes: int) -> None:
    block = choose_block_bytes(size_bytes)
    assert block >= 4096
    assert block & (block - 1) == 0
    assert 12 + 20 * -(-size_bytes // block) < 16 << 20


def test_blocks_are_small_as_long_as_the_signature_allows() -> None:
    assert choose_block_bytes(3 << 30) == 4096
    assert choose_block_bytes(4 << 30) == 8192


def test_a_signature_costs_half_a_percent(open_file: OpenFile) -> None:
    data = make_signature(open_file(bytes(10 << 20)), 10 << 20)
    assert len(data) <= 0.005 * (10 << 20)


def test_strong_sums_are_blake2b_of_the_blocks(open_file: OpenFile) -> None:
    loaded = Signature.load(make_signature(open_file(CONTENT), len(CONTENT)))
    assert (loaded.blocks, loaded.block_bytes, loaded.strong_bytes) == (74, 4096, 16)
    for block in range(loaded.blocks):
        piece = CONTENT[block * 4096 : (block + 1) * 4096]
        assert loaded.strong(block) == hashlib.blake2b(piece, digest_size=32).digest()[:16]


def test_stripes_make_the_same_signature_as_one_pass(
    open_file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = open_file(CONTENT)
    whole = sign_file(fd, len(CONTENT), workers=1)
    monkeypatch.setattr(signature, "_STRIPE_BYTES", 65536)
    assert sign_file(fd, len(CONTENT)) == whole
    assert len(whole.outline) == 16 * (len(CONTENT) // 65536)


def test_a_file_that_became_shorter_is_not_signed(open_file: OpenFile) -> None:
    with pytest.raises(SourceChanged):
        make_signature(open_file(CONTENT), len(CONTENT) + 1)


def test_an_empty_file_has_a_signature_of_no_blocks(open_file: OpenFile) -> None:
    loaded = Signature.load(make_signature(open_file(b""), 0))
    assert (loaded.blocks, loaded.base_bytes) == (0, 0)


def head(magic: int = 0x72730147, block: int = 4096, strong: int = 16) -> bytes:
    return struct.pack(">III", magic, block, strong)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "shorter than a head"),
        (head()[:11], "shorter than a head"),
        (head(0x72730236), "magic number"),
        (head(0x72730136), "MD4"),
        (head(0x72730146), "MD4"),
        (head(block=0), "blocks of 0 bytes"),
        (head(block=1 << 31), "blocks of"),
        (head(strong=4), "strong sums of 4 bytes"),
        (head(strong=33), "strong sums of 33 bytes"),
        (head() + bytes(19), "cut off"),
    ],
)
def test_what_is_not_a_usable_signature_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedSignature, match=why):
        Signature.load(data)


def test_a_signature_of_another_size_is_refused(open_file: OpenFile) -> None:
    signed = sign_file(open_file(CONTENT), len(CONTENT))
    assert Signature.load(signed.signature, base_bytes=len(CONTENT)).base_bytes == len(CONTENT)
    with pytest.raises(MalformedSignature, match="not of a file of"):
        Signature.load(signed.signature, base_bytes=len(CONTENT) + 4096)
    with pytest.raises(MalformedSignature, match="outline"):
        Signature.load(signed.signature, outline=signed.outline + bytes(16))


def test_the_size_of_the_base_is_bounded_until_it_is_learned(open_file: OpenFile) -> None:
    loaded = Signature.load(make_signature(open_file(CONTENT), len(CONTENT)))
    assert (loaded.least_base_bytes, loaded.most_base_bytes) == (73 * 4096 + 1, 74 * 4096)
    assert loaded.find_tail(CONTENT[73 * 4096 :] + b"what was appended") == len(CONTENT) - 73 * 4096
    assert loaded.base_bytes == loaded.least_base_bytes == loaded.most_base_bytes == len(CONTENT)


@pytest.mark.parametrize("length", [1, 2, 100, 4095, 4096])
@pytest.mark.parametrize("known", [True, False])
def test_a_short_last_block_is_found_before_other_bytes(
    open_file: OpenFile, length: int, known: bool
) -> None:
    base = CONTENT[: 4096 + length]
    loaded = Signature.load(
        make_signature(open_file(base), len(base)), base_bytes=len(base) if known else None
    )
    assert loaded.find_tail(memoryview(base)[4096:]) == length
    assert loaded.find_tail(base[4096:] + CONTENT[:5000]) == length
    assert loaded.find_tail(b"\xff" + base[4096:]) == 0


def test_without_librsync_the_remedy_is_named() -> None:
    with pytest.raises(EngineMissing, match=r"apt install librsync2"):
        librsync.open_library("librsync-that-is-not-there.so.2")


def test_librsync_refusing_a_signature_is_a_malformed_signature() -> None:
    with pytest.raises(MalformedSignature, match="librsync refused it"):
        librsync.SumSet(b"no signature at all")


def test_a_set_of_sums_can_be_closed_twice(open_file: OpenFile) -> None:
    sums = librsync.SumSet(make_signature(open_file(CONTENT), len(CONTENT)))
    sums.close()
    sums.close()


def test_signing_keeps_no_descriptor(open_file: OpenFile) -> None:
    fd = open_file(CONTENT)
    before = len(list(Path("/proc/self/fd").iterdir()))
    make_signature(fd, len(CONTENT))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
