"""Digests of whole files, and the fields of a record that name a content by them.

Not here: comparing with what a mirror has (``large``).  Nothing is written.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final

from blake3 import blake3

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import parse_record

_BLOCK_BYTES: Final = 1 << 20


def hash_content(fd: int, size_bytes: int, digest_name: str) -> bytes:
    """Return the digest (hex) of the first ``size_bytes`` of an open file."""
    hasher = new_hasher(digest_name)
    buffer = bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)
    position = 0
    while position < size_bytes:
        got = os.preadv(fd, [view[: min(_BLOCK_BYTES, size_bytes - position)]], position)
        if not got:
            break
        hasher.update(view[:got])
        position += got
    return str(hasher.hexdigest()).encode()


def new_hasher(digest_name: str) -> Any:
    """Return a fresh hash object for a digest name of the manifest's header."""
    if digest_name == "blake3":
        return blake3()
    return hashlib.new(digest_name)


def base_fields(digest: bytes, digest_name: str) -> dict[bytes, bytes]:
    """Return the fields that name a content: the store then trusts the ranges that are not sent."""
    named = {keys.HASH: digest}
    if digest_name == "blake3":
        named[keys.HASH_NAME] = b"blake3"
    return named


def segment_fields(value: bytes) -> dict[bytes, bytes]:
    """Return the field of a record that holds the digests of its segments; none for a small file."""
    return {keys.SEGMENTS: value} if value else {}


def segments_of(line: bytes) -> dict[bytes, bytes]:
    """Return the field that holds the digests of a record's segments, if it has one."""
    return segment_fields(parse_record(line, check=False).fields.get(keys.SEGMENTS, b"") if line else b"")
