"""Taking in the manifest of a run that closes: as a whole, as a delta against the last one, or not at all.

Answers for: what is put in staging is a sound manifest with exactly the digest that the client named.  It
is not durable and not in place: the close does both.  Memory: a block, however long the manifest is.

The manifest of the last run lies in the tip, where it can be damaged like anything else.  A close that builds
on it is refused as *foreign* then, and the client hands its own over whole: at once where the file is gone or
a delta fails on it, else after validation has read it (:func:`distrust_damaged_manifest`).

Not here: the close (``runs``), the manifest's format.  A crash leaves a file in the part's staging folder,
which is emptied at start-up.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from mirrorkeep.errors import (
    BadUsage,
    DigestMismatch,
    ForeignManifest,
    MalformedRequest,
    MirrorkeepError,
)
from mirrorkeep.store.drivers.system import make_folder, storage_errors
from mirrorkeep.tree.layout import HIDDEN, STAGING

if TYPE_CHECKING:
    from mirrorkeep.store.volume import Part, PartState

MAX_MANIFEST_BYTES: Final = 64 * 1024**3
"""Three hundred million entries; more than that is an attack."""
_BLOCK_BYTES: Final = 256 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_FILE_SIZE: Final = re.compile(rb",st_size=(\d+)(?:,[^\n]*?)??,type=file,")


@dataclass(frozen=True)
class Manifest:
    """A manifest taken in.  ``bytes`` is the content that its files hold together; ``staged`` the path of
    the file relative to the part's root, None when the one in the tip is meant."""

    digest: str
    entries: int
    bytes: int
    staged: str | None = None
    root: str = ""


def receive_manifest(
    part: Part, state: PartState, *, form: str, base: str, digest: str, body_path: str | None
) -> Manifest:
    """Check and stage the manifest of a run; see ``runs.close_run`` for the forms and errors."""
    if form in ("same", "delta") and not _has_its_file(part, state):
        raise ForeignManifest(snapshot="the tip", detail="the tip's manifest is damaged or gone")
    if form == "same":
        if state.manifest is None or state.manifest_digest != digest:
            raise ForeignManifest(snapshot="the tip", detail="the tip's manifest has another digest")
        return Manifest(digest, state.manifest["entries"], state.manifest["bytes"])
    if form not in ("delta", "full") or body_path is None:
        raise BadUsage(detail="a manifest comes as same, delta or full, the latter two with a body")
    if form == "delta" and (not base or base != state.manifest_digest):
        raise ForeignManifest(snapshot="the tip", detail="the delta is against another manifest")
    staging = os.path.join(os.fsdecode(HIDDEN), os.fsdecode(STAGING))
    staged = os.path.join(staging, f"manifest-{secrets.token_hex(8)}")
    path = os.path.join(part.root, staged)
    try:
        with storage_errors(path):
            make_folder(os.path.dirname(path), 0o700)
            with open(path, "xb", opener=_private) as stream, open(body_path, "rb") as body:
                out = _HashingWriter(stream)
                if form == "delta":
                    _apply(part, body, out)
                else:
                    for block in _unpacked(body):
                        out.write(block)
        if out.digest() != digest:
            raise DigestMismatch(path="the manifest", expected=digest, actual=out.digest())
        entries, content_bytes = count_entries(path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(path)
        refused = isinstance(error, MirrorkeepError | OSError)
        if refused and form == "delta" and digest_of_file(part.manifest_path()) != base:
            raise ForeignManifest(snapshot="the tip", detail="the tip's manifest is damaged") from None
        raise
    return Manifest(digest, entries, content_bytes, staged, part.root)


def discard_manifest(manifest: Manifest) -> None:
    """Remove what was staged and is not wanted.  Repeatable."""
    if manifest.staged:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(manifest.root, manifest.staged))


def distrust_damaged_manifest(part: Part) -> None:
    """Have the next close bring its manifest whole, if the file in the tip is not what the state says.

    Reads the file.  Durable when this returns; repeatable.  What else is known of the tip stays true.
    """
    known = part.state().manifest_digest
    if not known or digest_of_file(part.manifest_path()) == known:
        return
    with part.frozen():
        state = part.state()
        if state.manifest is not None and state.manifest_digest == known:
            part.change_state(state, manifest={**state.manifest, "damaged": True})


def _has_its_file(part: Part, state: PartState) -> bool:
    """Say whether the tip's manifest is there and was not found damaged (one system call)."""
    return not (state.manifest or {}).get("damaged") and os.path.exists(part.manifest_path())


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file, "" when there is none."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def count_entries(path: str) -> tuple[int, int]:
    """Read a manifest from end to end; return its entries and the bytes of its files.

    Raises MalformedManifest.
    """
    from mirrorkeep.manifest.reader import ManifestReader

    content_bytes = 0
    with open(path, "rb") as stream:
        reader = ManifestReader(stream)
        for _, lines in reader.batches():
            content_bytes += sum(map(int, _FILE_SIZE.findall(b"\n".join(lines))))
        return reader.entries, content_bytes


def _apply(part: Part, body: IO[bytes], out: _HashingWriter) -> None:
    from mirrorkeep.delta.stream import patch_from

    with open(part.manifest_path(), "rb") as present:
        patch_from(_unpacked(body), present.fileno(), out)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _unpacked(body: IO[bytes]) -> Iterator[bytes]:
    first = body.read(_BLOCK_BYTES)
    if first[:2] != _GZIP_MAGIC:
        while first:
            yield first
            first = body.read(_BLOCK_BYTES)
        return
    unpacker = zlib.decompressobj(wbits=31)
    try:
        while first:
            while first:
                yield unpacker.decompress(first, _BLOCK_BYTES)
                first = unpacker.unconsumed_tail
            first = body.read(_BLOCK_BYTES)
        yield unpacker.flush()
    except zlib.error as error:
        raise MalformedRequest(detail=f"the body's gzip is damaged: {error}") from None
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedRequest(detail="the body's gzip is cut off or followed by something")


class _HashingWriter:
    """Writes through to a file, hashes what passes, and stops at the largest manifest there may be."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hasher = hashlib.sha256()
        self._length = 0

    def write(self, data: bytes | memoryview) -> int:
        self._length += len(data)
        if self._length > MAX_MANIFEST_BYTES:
            raise MalformedRequest(detail="the manifest is too large")
        self._hasher.update(data)
        return self._stream.write(data)

    def digest(self) -> str:
        return self._hasher.hexdigest()
