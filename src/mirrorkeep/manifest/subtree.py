"""The manifest of a part of a tree, out of the manifest of the whole (MAN-03).

Paths become relative to the part's top, so that the result describes a copy of the part alone.  A file whose
first name lies outside the part is led by its first name inside.

Not here: where the leaders of such files are remembered, which is the caller's (``sync/links``).  Memory: one
record.  Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record

SUBTREE: Final = b"subtree"
"""In a header: the path of this part in the whole tree."""

Lead = Callable[[bytes, bytes], bytes]
"""``lead(outside, path)``: the first of the paths that this was asked with for the leader ``outside``."""


def extract_subtree(records: Iterable[Record], top: bytes, lead: Lead) -> Iterator[Record]:
    """Yield the records of the directory ``top`` and of everything in it, in order, ``top`` as the root.

    Nothing is yielded for a path that the manifest does not have.
    """
    inside = top + b"/" if top else b""
    for record in records:
        if record.path == top:
            yield Record(b"", record.fields)
            return
        if record.path.startswith(inside):
            path = record.path[len(inside) :]
            yield Record(path, lead_inside(record, path, inside, lead))


def lead_inside(record: Record, path: bytes, inside: bytes, lead: Lead) -> dict[bytes, bytes]:
    """Return the fields of a record as ``path`` of the part, which the whole has below ``inside``."""
    outside = record.fields.get(keys.HARD_LINK)
    if outside is None:
        return record.fields
    if outside.startswith(inside):
        return {**record.fields, keys.HARD_LINK: outside[len(inside) :]}
    fields = {key: value for key, value in record.fields.items() if key != keys.HARD_LINK}
    first = lead(outside, path)
    return fields if first == path else {**fields, keys.HARD_LINK: first}
