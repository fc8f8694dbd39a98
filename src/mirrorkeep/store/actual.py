"""The manifest of what a tip really holds, made from its sidecars when somebody asks (MAN-49).

Not here: comparing it with anything.  Nothing is stored; the manifest is made in pieces as it is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mirrorkeep.tree.stored import StoredTree

_PIECE_BYTES: Final = 256 * 1024


def write_actual(tree: StoredTree, doubted: Sequence[tuple[int, int]] = ()) -> Iterator[bytes]:
    """Yield the text of the manifest of ``tree``, in pieces of about 256 KiB.

    Files of a generation in a ``doubted`` span, after its first and up to its second number, have no digest.
    """
    from mirrorkeep.manifest.writer import ManifestWriter

    buffer = io.BytesIO()
    writer = ManifestWriter(buffer, {b"source": b"actual"})
    for _, line in tree.actual_records(doubted):
        writer.add(line)
        if buffer.tell() >= _PIECE_BYTES:
            yield _taken(buffer)
    writer.finish()
    yield _taken(buffer)


def _taken(buffer: io.BytesIO) -> bytes:
    data = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return data
