"""Names that are one file: what a manifest says of hard links, by the inodes at the source.

Whoever has a doubt about one name has it about all of them, for they share one content.  Devices are not in
records, so files of two file systems that happen to have one number count as one; that costs a second look.

Not here: who leads among the names while a run is under way (``sync/links``).  Sorting spills into a folder
that the caller gives and empties; memory does not grow with the number of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key, payload_of, row_in_order
from mirrorkeep.manifest.peek import has_one_name, inode_of, kind_of, path_of
from mirrorkeep.manifest.spill import SpilledSort

_INODE_BYTES: Final = 17
_NAMED, _OTHER = b"\0", b"\1"


def other_names(lines: Iterable[bytes], named: Iterable[bytes], directory: str) -> Iterator[bytes]:
    """Yield, in manifest order, the paths that are not named of files of which a name is.

    ``lines`` are the records of a whole manifest, ``named`` order keys, ascending.  Raises MalformedManifest.
    """
    with SpilledSort(directory) as names, SpilledSort(directory) as found:
        _sort_by_inode(lines, iter(named), names)
        doubted = b""
        for row in names:
            inode, tag, path = row[:_INODE_BYTES], row[_INODE_BYTES:][:1], row[_INODE_BYTES + 1 :]
            if tag == _NAMED:
                doubted = inode
            elif inode == doubted:
                found.add(row_in_order(path, path))
        yield from map(payload_of, found)


def _sort_by_inode(lines: Iterable[bytes], named: Iterator[bytes], names: SpilledSort) -> None:
    """Add a row for each name of a file with several: its inode, whether it is named, its path."""
    key = next(named, None)
    if key is None:
        return
    for line in lines:
        if has_one_name(line) or kind_of(line) != keys.FILE or (inode := inode_of(line)) < 0:
            continue
        path = path_of(line)
        here = order_key(path)
        while key is not None and key < here:
            key = next(named, None)
        tag = _NAMED if key == here else _OTHER
        names.add(inode.to_bytes(_INODE_BYTES, "big") + tag + path)
