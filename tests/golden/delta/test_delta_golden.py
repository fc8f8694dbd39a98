"""Frozen bytes: every signature and delta that was ever released stays readable, and is still made."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.delta.difference import Difference
from mirrorkeep.delta.patch import check_delta
from mirrorkeep.delta.signature import Signature, sign_file

FOLDER = Path(__file__).parent
BASE = bytes(index * index % 251 for index in range(140_000))
NEW = BASE[:10_000] + b"inserted" + BASE[10_000:90_000] + BASE[100_000:]


def frozen(name: str) -> bytes:
    return bytes.fromhex((FOLDER / name).read_text())


@pytest.fixture
def base_fd(tmp_path: Path) -> int:
    (tmp_path / "base").write_bytes(BASE)
    return os.open(tmp_path / "base", os.O_RDONLY)


def test_the_content_behind_the_golden_files_is_what_it_was() -> None:
    assert hashlib.sha256(BASE).hexdigest() == (FOLDER / "base.sha256").read_text().strip()


def test_signature_and_outline_are_frozen(base_fd: int) -> None:
    signed = sign_file(base_fd, len(BASE))
    assert signed.signature == frozen("signature.hex")
    assert signed.outline == frozen("outline.hex")


def test_the_delta_is_frozen(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(NEW)
    fd = os.open(tmp_path / "new", os.O_RDONLY)
    signature = Signature.load(frozen("signature.hex"), base_bytes=len(BASE))
    change = Difference(signature, fd, len(NEW)).segment(0, len(NEW))
    os.close(fd)
    assert change.body == frozen("delta.hex")


def test_the_frozen_delta_makes_the_new_file(tmp_path: Path, base_fd: int) -> None:
    assert check_delta(frozen("delta.hex"), len(BASE), len(NEW)) == len(NEW)


@pytest.mark.parametrize("length", [65_535, 100_000, 9_961_472])
def test_the_unchanged_delta_of_the_document_is_frozen(length: int) -> None:
    """FACT-5: magic ``72730236``, a copy from 0 with a length of 4 bytes, the end: 11 bytes."""
    delta = bytes.fromhex("727302364700") + length.to_bytes(4, "big") + b"\0"
    assert len(delta) == 11
    assert check_delta(delta, length, length) == length


def test_the_cache_reads_its_first_version(tmp_path: Path) -> None:
    cache = SignatureCache(str(tmp_path))
    signature = Path(cache.signature_file(b"db/base.dat"))
    signature.parent.mkdir()
    signature.write_bytes(frozen("signature.hex"))
    signature.with_suffix(".base").write_bytes(frozen("cache-note-1.hex"))
    loaded = cache.load(b"db/base.dat", b"digest of the base")
    assert loaded is not None
    assert (loaded.base_bytes, loaded.outline) == (len(BASE), frozen("outline.hex"))
