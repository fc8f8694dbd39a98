"""A store with one part at work, for the tests of runs: begin, write, commit and close in a line each."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.store import runs
from mirrorkeep.store.pool import Store
from mirrorkeep.store.volume import Part

NOON = 1_767_268_800.0
"""2026-01-01 12:00:00 UTC."""


def manifest_of(paths: Iterable[bytes], *, size_bytes: int = 10) -> bytes:
    """Return a sound manifest of regular files of that size."""
    stream = io.BytesIO()
    writer = ManifestWriter(stream, {b"source": b"test"})
    for path in sorted(paths, key=order_key):
        fields = {b"type": b"file", b"st_size": b"%d" % size_bytes, b"hash": b"0" * 64}
        writer.add(format_record(path, fields))
    writer.finish()
    return stream.getvalue()


def digest_of(manifest: bytes) -> str:
    """Return the digest that names a manifest."""
    return hashlib.sha256(manifest).hexdigest()


def header_of(run: runs.RunInfo) -> str:
    """Return the header that every write of the run carries."""
    return f"{run.run};epoch={run.epoch};incarnation={run.incarnation}"


def make_store(data: Path, driver: str = "dir") -> Store:
    """Return a new store whose clock stands still at NOON, with a service's incarnation."""
    store = Store.create(str(data), driver, 256 << 20)
    store.clock = lambda: NOON
    store.start_incarnation()
    return store


def close(
    part: Part,
    run: runs.RunInfo,
    manifest: bytes,
    *,
    body: bytes | None = None,
    form: str = "full",
    base: str = "",
) -> runs.Closed:
    """Close the run with ``manifest``, sent as it is or as ``body``."""
    path = os.path.join(part.volume.store.data, "run", f"upload-{secrets.token_hex(4)}")
    with open(path, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(manifest if body is None else body)
    return runs.close_run(
        part,
        run.run,
        run.epoch,
        run.incarnation,
        form=form,
        base=base,
        digest=digest_of(manifest),
        body_path=path,
    )
