"""A manifest of a tree of this machine, made by reading it: no store, no run, nothing remembered.

For describing what is carried by hand (seeding, media), and for checking a tree, or a part of one, against a
manifest that somebody else made.  Reading is the master's own (``tree/native``).

Not here: comparing descriptions (``manifest/difference``).  Memory: a batch of small files, and the table of
hard links, which spills.  Nothing is written beside a temporary folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

from mirrorkeep.delta.segments import digest_segments, pack_digests
from mirrorkeep.errors import BadUsage, MirrorkeepError, NotFound, SourceChanged
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, format_record, parse_record
from mirrorkeep.sync.digests import base_fields, hash_content, segment_fields
from mirrorkeep.sync.links import LinkTable
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure
from mirrorkeep.tree.walk import STAT, Directory, Keep, Siblings, walk

BATCH: Final = 64
Tell = Callable[[bytes, str], None]
"""``tell(path, detail)`` for each entry that could not be read; it is left out."""

FOREIGN: Final = frozenset({keys.ATIME, keys.INODE, keys.INODE_CTIME, keys.BIRTH_TIME, keys.LINKS})
"""Keys that a copy, of a part above all, cannot have in common with what it was made from.  Which names are
one file is compared by ``hard_link``."""


def part_of_tree(root: str | bytes, top: bytes) -> bytes:
    """Return the native path of the directory ``top`` inside ``root``; raises BadUsage for anything else.

    No link is followed on the way: what it leads to is not a part of the tree.
    """
    whole = os.path.realpath(os.fsencode(root))
    place = os.path.join(whole, top) if top else whole
    if top.startswith(b"/") or os.path.realpath(place) != place or not os.path.isdir(place):
        raise BadUsage(detail=f"{os.fsdecode(top)} is no directory inside {os.fsdecode(whole)}")
    return place


def describe_tree(
    root: str | bytes, tell: Tell, *, digest: str = "sha256", keep: Keep | None = None
) -> Iterator[bytes]:
    """Yield the record lines of everything in ``root``, in manifest order, content hashed.

    Raises OSError when the root itself cannot be opened.
    """
    tree = NativeTree(root, digest=digest)
    with (
        tempfile.TemporaryDirectory(prefix="mirrorkeep-describe-") as folder,
        closing(LinkTable(folder)) as links,
    ):
        for event in walk(root, keep=keep):
            if isinstance(event, Siblings):
                prefix = event.parent + b"/" if event.parent else b""
                items = [(prefix + name, blob) for name, blob in zip(event.names, event.blobs, strict=True)]
                for start in range(0, len(items), BATCH):
                    yield from _batch(tree, links, items[start : start + BATCH], tell)
            elif isinstance(event, Directory):
                yield from _batch(tree, links, [(event.path, event.blob)], tell)
            else:
                tell(event.path, event.detail)


def _batch(
    tree: NativeTree, links: LinkTable, items: list[tuple[bytes, bytes]], tell: Tell
) -> Iterator[bytes]:
    frames = tree.frames([path for path, _ in items])
    for (path, blob), frame in zip(items, frames, strict=True):
        if not isinstance(frame, Failure):
            line = frame.line
        elif frame.code == "too_large":
            try:
                line = _large(tree, path)
            except MirrorkeepError as error:
                tell(path, str(error))
                continue
        else:
            if frame.code != NotFound.code:  # what vanished in the meantime is no part of the tree
                tell(path, frame.detail)
            continue
        yield _linked(tree, links, path, blob, line)


def _large(tree: NativeTree, path: bytes) -> bytes:
    fields, before = tree.describe(path)
    fd = tree.open_content(path)
    try:
        digest = hash_content(fd, before.st_size, tree.digest)
        segments = pack_digests(before.st_size, digest_segments(fd, before.st_size))
        if not tree.settled(before, fd):
            raise SourceChanged(path=path)
    finally:
        os.close(fd)
    return format_record(path, {**fields, **base_fields(digest, tree.digest), **segment_fields(segments)})


def _linked(tree: NativeTree, links: LinkTable, path: bytes, blob: bytes, line: bytes) -> bytes:
    """Name the leader in the record of a further name of a file."""
    mode, _, _, names, _, _, _, inode, _ = STAT.unpack_from(blob)
    if names < 2 or stat.S_ISDIR(mode):
        return line
    leader = links.lead(os.lstat(os.path.join(tree.root, path)).st_dev, inode, path)
    if leader == path:
        return line
    record = parse_record(line, check=False)
    return format_record(path, {**record.fields, keys.HARD_LINK: leader})


def comparable(records: Iterator[Record]) -> Iterator[Record]:
    """Yield records without the size of directories, which is their file system's own business."""
    for record in records:
        if record.kind == keys.DIRECTORY:
            kept = {key: value for key, value in record.fields.items() if key != keys.SIZE}
            yield Record(record.path, kept)
        else:
            yield record
