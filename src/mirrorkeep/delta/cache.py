"""The cache of signatures on the client: one librsync signature for every large file (DEL-03..05, 10).

``DIRECTORY/ab/ID.sig`` is a pure signature that ``rdiff delta`` reads.  ``DIRECTORY/ab/ID.base`` beside
it is one JSON line, the *note*, which names the path, the digest and size of the base, and the SHA-256
of the signature file and of the outline; the outline follows it.  ID is the first 40 hex digits of the
path's SHA-256.

A cache: whatever is missing, foreign, outdated or damaged is *not there* (None), and the caller
fetches a signature from the server or sends the file whole.

Not here: when a signature is made or trusted (``sync``).

A crash leaves a whole pair, or a pair that does not fit together and is not used, and at worst a
temporary file ``.new-*``.  Nothing is flushed: what a power cut tears fails its SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from typing import Any, Final

from mirrorkeep.delta.signature import Signature
from mirrorkeep.errors import MalformedSignature

_VERSION: Final = 1
_MOST_NOTE_BYTES: Final = 1024 * 1024


class SignatureCache:
    """The signatures of one job's large files.  Several threads and processes may use it at once."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def save(
        self,
        path: bytes,
        digest: bytes,
        signature: bytes,
        *,
        base_bytes: int | None = None,
        outline: bytes = b"",
    ) -> None:
        """Keep ``signature`` of the file at ``path`` whose content has ``digest``; replaces an older one.

        ``base_bytes`` is the size of that content, ``outline`` comes with it from ``sign_file``.  Raises
        OSError (ENOSPC): the older one is then there or not, and never mistaken for the new one.
        """
        stem = self._stem(path)
        os.makedirs(os.path.dirname(stem), mode=0o700, exist_ok=True)
        note = {
            "version": _VERSION,
            "path": path.hex(),
            "digest": digest.hex(),
            "base_bytes": base_bytes,
            "signature": hashlib.sha256(signature).hexdigest(),
            "outline": hashlib.sha256(outline).hexdigest(),
        }
        _replace(stem + ".sig", signature)
        _replace(stem + ".base", json.dumps(note).encode() + b"\n" + outline)

    def load(self, path: bytes, digest: bytes) -> Signature | None:
        """Return the signature of the content with ``digest`` at ``path``; None when there is no good one."""
        stem = self._stem(path)
        try:
            note, outline = _read_note(stem + ".base")
            if note.get("path") != path.hex() or note.get("digest") != digest.hex():
                return None
            with open(stem + ".sig", "rb") as stream:
                data = stream.read()
            if hashlib.sha256(data).hexdigest() != note.get("signature"):
                return None
            base_bytes = note.get("base_bytes")
            return Signature.load(
                data, base_bytes=base_bytes if isinstance(base_bytes, int) else None, outline=outline
            )
        except (OSError, ValueError, RecursionError, MalformedSignature):
            return None

    def forget(self, path: bytes) -> None:
        """Remove what is kept for ``path``; nothing happens when there is nothing."""
        stem = self._stem(path)
        for name in (stem + ".base", stem + ".sig"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    def signature_file(self, path: bytes) -> str:
        """Return the name of the file that holds, or would hold, the signature of ``path``."""
        return self._stem(path) + ".sig"

    def _stem(self, path: bytes) -> str:
        identity = hashlib.sha256(path).hexdigest()[:40]
        return os.path.join(self.directory, identity[:2], identity)


def _read_note(name: str) -> tuple[dict[str, Any], bytes]:
    """Return the note and the outline behind it; raises ValueError when they do not fit together."""
    with open(name, "rb") as stream:
        line, outline = stream.readline(_MOST_NOTE_BYTES), stream.read(_MOST_NOTE_BYTES)
    note = json.loads(line)
    if not isinstance(note, dict) or note.get("version") != _VERSION:
        raise ValueError("not a note of this version")
    if hashlib.sha256(outline).hexdigest() != note.get("outline"):
        raise ValueError("the outline is damaged")
    return note, outline


def _replace(name: str, data: bytes) -> None:
    """Write ``data`` beside ``name`` and rename it into place; a failure leaves what was there."""
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(name))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.rename(temporary, name)
    except BaseException:
        os.unlink(temporary)
        raise
