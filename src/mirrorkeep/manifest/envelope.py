"""The lines around the entries: header, checkpoints, trailer, and the hashes they carry.

A special line has the field ``_internal_type``, which no entry has: that is how a reader finds it in a
block without parsing (:data:`SPECIAL_TAG`).

- The header names the format version and, in ours, the ``digest`` of the manifest and of its ``hash``
  fields; a header without it means ``sha1``, as in the document that the format comes from.
- A checkpoint holds the digest of all bytes of the file before it (claim 9): a manifest that was cut off
  is known good up to its last checkpoint.
- The trailer holds the digest of the whole file with the digits of that digest, and of the trailer's own
  CRC, as zeros.

Not here: files and streams (``reader``, ``writer``).  Pure functions: a crash leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, Protocol

from mirrorkeep.errors import MalformedManifest
from mirrorkeep.manifest.record import CRC_DIGITS, Record, format_record

FORMAT_VERSION: Final = b"1"
INTERNAL_TYPE: Final = b"_internal_type"
INTERNAL_VERSION: Final = b"_internal_version"
DIGEST: Final = b"digest"
ENTRIES: Final = b"entries"
HEADER: Final = b"header"
CHECKPOINT: Final = b"checkpoint"
TRAILER: Final = b"trailer"
SPECIAL_TAG: Final = b"," + INTERNAL_TYPE + b"="
DEFAULT_DIGEST: Final = "sha1"
"""What a header without a ``digest`` means."""
DIGEST_HEX_DIGITS: Final = {"sha256": 64, "sha1": 40, "blake3": 64}


class Hasher(Protocol):
    """The part of ``hashlib``'s objects that a manifest needs."""

    def update(self, data: bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


def _new_hasher(digest: str) -> Hasher:
    if digest == "blake3":
        from blake3 import blake3  # an accelerator: loaded only where it is asked for

        return blake3()
    return hashlib.new(digest)


class FileHash:
    """The hashes of a manifest while it is read or written: its own digest, and SHA-256 of the file.

    The manifest's digest is what checkpoints and trailer carry; the SHA-256 of the file's bytes as they
    are stored is its name everywhere else.  They are one computation where the digest is ``sha256``.
    """

    def __init__(self, digest: str) -> None:
        if digest not in DIGEST_HEX_DIGITS:
            raise ValueError(f"unknown digest {digest!r}")
        self._stored = hashlib.sha256()
        self._own: Hasher | None = None if digest == "sha256" else _new_hasher(digest)

    def update(self, data: bytes) -> None:
        """Take the next bytes of the file."""
        self._stored.update(data)
        if self._own is not None:
            self._own.update(data)

    def running(self) -> str:
        """Return the manifest's own digest of the bytes so far."""
        return (self._own or self._stored).hexdigest()

    def seal(self, blank: bytes) -> str:
        """Return the hash of the whole file, whose last line with its newline is ``blank`` (zeros in it)."""
        if self._own is None:
            whole = self._stored.copy()
            whole.update(blank)
            return whole.hexdigest()
        self._own.update(blank)  # the trailer is last: nothing comes behind it
        return self._own.hexdigest()

    def finish(self, line: bytes) -> str:
        """Return the SHA-256 of the file as stored, whose last line with its newline is ``line``."""
        self._stored.update(line)
        return self._stored.hexdigest()


def file_hash_key(digest: str) -> bytes:
    """Return the key of the whole file's hash in the trailer."""
    return b"_internal_file_%b_hash" % digest.encode()


def running_hash_key(digest: str) -> bytes:
    """Return the key of the hash up to a checkpoint."""
    return b"_internal_running_%b_hash" % digest.encode()


# --- header -----------------------------------------------------------------------------------


def header_fields(fields: Mapping[bytes, bytes], digest: str) -> dict[bytes, bytes]:
    """Return the fields of the header line; other ``fields`` are kept, whatever they are."""
    named = {**fields, INTERNAL_TYPE: HEADER, INTERNAL_VERSION: FORMAT_VERSION}
    if digest != DEFAULT_DIGEST or DIGEST in named:
        named[DIGEST] = digest.encode()
    return named


def check_header(record: Record) -> str:
    """Return the name of the digest that the first record states; raises MalformedManifest."""
    if record.path != HEADER or record.fields.get(INTERNAL_TYPE) != HEADER:
        raise MalformedManifest(offset=0, detail="the first line is not a header")
    version = record.fields.get(INTERNAL_VERSION, b"")
    if version != FORMAT_VERSION:
        raise MalformedManifest(offset=0, detail=f"format version {version[:20]!r} is not known here")
    digest = record.fields.get(DIGEST, DEFAULT_DIGEST.encode()).decode("ascii", "replace")
    if digest not in DIGEST_HEX_DIGITS:
        raise MalformedManifest(offset=0, detail=f"digest {digest[:20]!r} is not known here")
    return digest


# --- checkpoint -------------------------------------------------------------------------------


def checkpoint_fields(digest: str, hexdigest: str, fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields that say: the bytes so far hash to ``hexdigest``; other ``fields`` are kept."""
    return {**fields, running_hash_key(digest): hexdigest.encode(), INTERNAL_TYPE: CHECKPOINT}


def check_checkpoint(record: Record, digest: str, hexdigest: str, entries: int, offset: int) -> None:
    """Raise MalformedManifest unless the checkpoint at ``offset`` agrees with what was read so far."""
    if record.fields.get(running_hash_key(digest)) != hexdigest.encode():
        raise MalformedManifest(offset=offset, detail="the bytes before a checkpoint do not match its hash")
    check_entries(record, entries, offset)


def check_entries(record: Record, entries: int, offset: int) -> None:
    """Raise MalformedManifest when the record states another number of entries (none stated is fine)."""
    stated = record.fields.get(ENTRIES)
    if stated is not None and stated != b"%d" % entries:
        raise MalformedManifest(offset=offset, detail=f"{entries} entries, {stated[:20]!r} are stated")


# --- trailer ----------------------------------------------------------------------------------


def seal_trailer(digest: str, hashes: FileHash, fields: Mapping[bytes, bytes]) -> bytes:
    """Return the trailer line for a file whose other bytes ``hashes`` has taken; ``fields`` are kept."""
    key = file_hash_key(digest)
    named = {**fields, key: b"0" * DIGEST_HEX_DIGITS[digest], INTERNAL_TYPE: TRAILER}
    blank = blank_trailer(format_record(TRAILER, named), digest, 0)
    named[key] = hashes.seal(blank + b"\n").encode()
    return format_record(TRAILER, named)


def blank_trailer(line: bytes, digest: str, offset: int) -> bytes:
    """Return the trailer line with the digits of its file hash and of its CRC as zeros.

    Raises MalformedManifest when it carries no well-formed hash of the manifest's digest.
    """
    digits = DIGEST_HEX_DIGITS[digest]
    pattern = rb",%b=([0-9a-f]{%d}),"  # a comma follows: the CRC is always behind it
    match = re.search(pattern % (file_hash_key(digest), digits), line)
    if match is None:
        raise MalformedManifest(offset=offset, detail=f"the trailer carries no {digest} hash of the file")
    start, end = match.span(1)
    return line[:start] + b"0" * digits + line[end:-CRC_DIGITS] + b"0" * CRC_DIGITS


def internal_type(record: Record) -> bytes:
    """Return the value of ``_internal_type``, ``b""`` for an entry."""
    return record.fields.get(INTERNAL_TYPE, b"")
