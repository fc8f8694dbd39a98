"""Which digest a record means, and whether content matches it.

A record's ``hash`` is named by its length (40 digits SHA-1, 64 SHA-256); BLAKE3, as long as SHA-256, is
named by the record's ``hash_name`` key.

Not here: whole-file reading policies (``stored_check``), segment digests' place on the wire (``wire``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Final, Protocol

from mirrorkeep.errors import DigestMismatch, LengthMismatch, MalformedRequest
from mirrorkeep.manifest import keys
from mirrorkeep.tree.protocol import Data

BLAKE3: Final = b"blake3"
_READ_BYTES: Final = 1 << 20


class Hasher(Protocol):
    """What all digests share."""

    def update(self, data: Any, /) -> Any: ...

    def hexdigest(self) -> str: ...

    def digest(self) -> bytes: ...


def new_hasher(fields: Mapping[bytes, bytes]) -> Hasher:
    """Return a fresh hasher for the record's digest; raises MalformedRequest when nobody knows it."""
    name = fields.get(keys.HASH_NAME)
    if name == BLAKE3:
        from blake3 import blake3

        hasher: Hasher = blake3()
        return hasher
    digits = len(fields.get(keys.HASH, b""))
    if digits == 64 and name in (None, b"sha256"):
        return hashlib.sha256()
    if digits == 40 and name in (None, b"sha1"):
        return hashlib.sha1(usedforsecurity=False)
    raise MalformedRequest(detail=f"unknown digest of {digits} digits in a record")


def check_content(path: bytes, fields: Mapping[bytes, bytes], data: Data) -> None:
    """Raise LengthMismatch or DigestMismatch unless ``data`` is what the record describes."""
    size = fields.get(keys.SIZE)
    if size is not None and int(size) != len(data):
        raise LengthMismatch(path=path, expected=int(size), actual=len(data))
    expected = fields.get(keys.HASH, b"")
    if len(expected) == 64 and keys.HASH_NAME not in fields:
        actual = hashlib.sha256(data).hexdigest().encode()
    else:
        hasher = new_hasher(fields)
        hasher.update(data)
        actual = hasher.hexdigest().encode()
    if actual != expected:
        raise DigestMismatch(path=path, expected=expected, actual=actual)


def hash_open_file(fd: int, fields: Mapping[bytes, bytes]) -> bytes:
    """Return the hex digest of the whole open file, of the kind the record means; raises OSError."""
    hasher = new_hasher(fields)
    position = 0
    while block := os.pread(fd, _READ_BYTES, position):
        hasher.update(block)
        position += len(block)
    return hasher.hexdigest().encode()


def same_digest(left: Mapping[bytes, bytes], right: Mapping[bytes, bytes]) -> bool:
    """Say whether two records name the same content by the same digest (and name one at all)."""
    digest = left.get(keys.HASH)
    return (
        bool(digest)
        and digest == right.get(keys.HASH)
        and left.get(keys.HASH_NAME) == right.get(keys.HASH_NAME)
        and left.get(keys.SIZE) == right.get(keys.SIZE)
    )
