"""Manifests to try things on."""

from __future__ import annotations

import io
import random

from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter


def entry_lines(count: int, *, seed: int = 1) -> list[bytes]:
    """Return the lines of ``count`` files in order, 100 in a directory, without the directories."""
    rng = random.Random(seed)
    return [
        format_record(
            b"d%05d/f%02d" % divmod(number, 100),
            {
                b"type": b"file",
                b"st_size": b"%d" % rng.randrange(10**6),
                b"hash": rng.randbytes(32).hex().encode(),
            },
        )
        for number in range(count)
    ]


def written(lines: list[bytes], *, every: int = 64, digest: str = "sha256") -> bytes:
    """Return the manifest of these entries."""
    out = io.BytesIO()
    writer = ManifestWriter(out, {b"part": b"p"}, digest=digest, checkpoint_every=every)
    for line in lines:
        writer.add(line)
    summary = writer.finish()
    assert summary.entries == len(lines)
    assert summary.size_bytes == len(out.getvalue())
    return out.getvalue()
