"""What a tree occupies, directory by directory, out of its manifest alone (GEN-19).

Sizes are apparent ones, as ``du -b`` counts them (before coreutils 9.2, which leaves directories themselves
out): directories count their own ``st_size``, links the length of their target, a file with several names
counts once, at the first of them in manifest order.  Memory: the depth of the tree.

Not here: blocks on disk, which a manifest does not know.  A crash leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record


@dataclass(frozen=True, slots=True)
class DirectoryUsage:
    """A directory with everything below it: apparent bytes and entries (itself included)."""

    path: bytes
    size_bytes: int
    entries: int


def summarise_usage(records: Iterable[Record]) -> Iterator[DirectoryUsage]:
    """Yield the usage of each directory when its record comes, children first, the root (``b""``) last.

    A manifest of a part of a tree may lack directories; what stands below a missing one counts towards
    the next that is there.  Without a root the total of everything is yielded as ``b""`` at the end.
    """
    totals: list[tuple[bytes, int, int]] = []
    rooted = False
    for record in records:
        size_bytes = 0 if keys.HARD_LINK in record.fields else _own_bytes(record)
        entries = 1
        if record.kind == keys.DIRECTORY:
            inside = record.path + b"/" if record.path else b""
            while totals and totals[-1][0].startswith(inside):
                _, below_bytes, below_entries = totals.pop()
                size_bytes += below_bytes
                entries += below_entries
            yield DirectoryUsage(record.path, size_bytes, entries)
            rooted = not record.path
        _add(totals, record.path, size_bytes, entries)
    if not rooted:
        yield DirectoryUsage(b"", sum(item[1] for item in totals), sum(item[2] for item in totals))


def _own_bytes(record: Record) -> int:
    return len(record.fields.get(keys.LINK_TARGET, b"")) if record.kind == keys.LINK else record.size


def _add(totals: list[tuple[bytes, int, int]], path: bytes, size_bytes: int, entries: int) -> None:
    """Add to the total of what lies in the parent of ``path``; parents on the stack lie in each other."""
    inside = path.rpartition(b"/")[0] + b"/"
    if totals and totals[-1][0] == inside:
        _, more_bytes, more_entries = totals.pop()
        size_bytes += more_bytes
        entries += more_entries
    totals.append((inside, size_bytes, entries))
