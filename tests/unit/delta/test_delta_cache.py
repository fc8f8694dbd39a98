"""The signature cache: what is there is right, whatever is wrong is not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.delta.signature import SignedFile, sign_file

PATH = b"data/\xff base\n.db"
DIGEST = b"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def cache(tmp_path: Path) -> SignatureCache:
    return SignatureCache(str(tmp_path / "signatures"))


@pytest.fixture
def signed(open_file: Callable[[bytes], int]) -> SignedFile:
    return sign_file(open_file(CONTENT), len(CONTENT))


def save(cache: SignatureCache, signed: SignedFile, path: bytes = PATH, digest: bytes = DIGEST) -> None:
    cache.save(path, digest, signed.signature, base_bytes=signed.size_bytes, outline=signed.outline)


def files_of(cache: SignatureCache) -> tuple[Path, Path]:
    signature = Path(cache.signature_file(PATH))
    return signature, signature.with_suffix(".base")


def test_what_was_saved_is_loaded(cache: SignatureCache, signed: SignedFile) -> None:
    save(cache, signed)
    loaded = cache.load(PATH, DIGEST)
    assert loaded is not None
    assert (loaded.data, loaded.outline) == (signed.signature, signed.outline)
    assert loaded.base_bytes == len(CONTENT)


def test_a_bare_signature_from_elsewhere_is_kept_too(cache: SignatureCache, signed: SignedFile) -> None:
    cache.save(PATH, DIGEST, signed.signature)
    loaded = cache.load(PATH, DIGEST)
    assert loaded is not None
    assert (loaded.base_bytes, loaded.groups) == (None, 0)


def test_nothing_is_there_at_first(cache: SignatureCache) -> None:
    assert cache.load(PATH, DIGEST) is None
    cache.forget(PATH)


def test_the_file_is_a_pure_signature(cache: SignatureCache, signed: SignedFile) -> None:
    save(cache, signed)
    assert files_of(cache)[0].read_bytes() == signed.signature


def test_another_content_makes_it_outdated(cache: SignatureCache, signed: SignedFile) -> None:
    save(cache, signed)
    assert cache.load(PATH, DIGEST[::-1]) is None


def test_another_paths_files_are_foreign(cache: SignatureCache, signed: SignedFile) -> None:
    save(cache, signed, path=b"other")
    for name in (cache.signature_file(b"other"), cache.signature_file(b"other").replace(".sig", ".base")):
        target = Path(cache.signature_file(PATH)).with_suffix(Path(name).suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(name).read_bytes())
    assert cache.load(b"other", DIGEST) is not None
    assert cache.load(PATH, DIGEST) is None


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_not_there(
    cache: SignatureCache, signed: SignedFile, which: int, share: float
) -> None:
    save(cache, signed)
    damaged = files_of(cache)[which]
    data = bytearray(damaged.read_bytes())
    data[int(share * len(data))] ^= 4
    damaged.write_bytes(data)
    assert cache.load(PATH, DIGEST) is None


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kept", [0, 5, 100])
def test_a_torn_file_is_not_there(cache: SignatureCache, signed: SignedFile, which: int, kept: int) -> None:
    save(cache, signed)
    os.truncate(files_of(cache)[which], kept)
    assert cache.load(PATH, DIGEST) is None


@pytest.mark.parametrize("note", [b"[]\n", b"{}\n", b'{"version": 2}\n', b"[" * 100_000, b"\xff\n"])
def test_a_strange_note_is_not_there(cache: SignatureCache, signed: SignedFile, note: bytes) -> None:
    save(cache, signed)
    files_of(cache)[1].write_bytes(note)
    assert cache.load(PATH, DIGEST) is None


def test_a_crash_between_the_two_files_leaves_nothing_that_counts(
    cache: SignatureCache, signed: SignedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(cache, signed)
    real = os.rename

    def crash_at_the_note(source: str, target: str) -> None:
        if target.endswith(".base"):
            raise OSError("the machine stops here")
        real(source, target)

    monkeypatch.setattr(os, "rename", crash_at_the_note)
    newer = SignedFile(signed.signature[:-20], signed.outline, signed.size_bytes)
    with pytest.raises(OSError, match="stops here"):
        save(cache, newer, digest=b"newer")
    assert cache.load(PATH, DIGEST) is None
    assert cache.load(PATH, b"newer") is None
    assert not list(files_of(cache)[0].parent.glob(".new-*"))


def test_forgetting_removes_both_files(cache: SignatureCache, signed: SignedFile) -> None:
    save(cache, signed)
    cache.forget(PATH)
    assert cache.load(PATH, DIGEST) is None
    assert not any(name.exists() for name in files_of(cache))
