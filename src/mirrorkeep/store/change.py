"""Which entries' content a validation reads again: the choice of full, incremental and metadata-only.

Answers for the incremental promise: everything that differs from the last validated snapshot, by the
storage's own account or, where it keeps none, by both manifests and the files' attributes; every entry with
a known finding; and a share of the rest, so that every byte is read within the cycle.  The paths come in
manifest order as the compare goes along, so a choice looks at one path at a time.

Not here: reading and comparing (``examine``), where the cycle is kept (``cycle``).  Sorting spills into a
folder that the caller gives and removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from mirrorkeep.manifest.groups import other_names
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.peek import path_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.spill import SpilledSort
from mirrorkeep.store.cycle import END
from mirrorkeep.sync.compare import pair
from mirrorkeep.tree.layout import HIDDEN, MAX_NAME_BYTES, ROOT_SIDECAR, is_own_name, is_replaced_name


class PathSet:
    """Paths in manifest order, asked for in manifest order: one pass over both."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        """``keys`` are order keys, ascending."""
        self._keys = iter(keys)
        self._next = next(self._keys, None)

    def has(self, key: bytes) -> bool:
        """Whether the path of order key ``key`` is in the set; keys must come ascending."""
        while self._next is not None and self._next < key:
            self._next = next(self._keys, None)
        return self._next == key


class Everything:
    """Full: every byte."""

    def wants(self, path: bytes, size_bytes: int) -> bool:
        """Whether the content of the file at ``path`` is read."""
        return True


class Known:
    """Metadata only, save for entries with known findings: those are looked at whole."""

    def __init__(self, open_paths: Iterable[bytes]) -> None:
        self._open = PathSet(order_key(path) for path in open_paths)

    def wants(self, path: bytes, size_bytes: int) -> bool:
        """Whether the content of the file at ``path`` is read."""
        return self._open.has(order_key(path))


class Changed:
    """Incremental: what changed, what is known to be damaged, and a share of the rest."""

    def __init__(
        self, changed_keys: Iterable[bytes], open_paths: Iterable[bytes], *, position: bytes, share_bytes: int
    ) -> None:
        """``position``: order key after which the rolling read goes on; ``share_bytes``: how far."""
        self._changed = PathSet(changed_keys)
        self._open = PathSet(order_key(path) for path in open_paths)
        self._start = position
        self._left_bytes = share_bytes
        self._position = position

    def wants(self, path: bytes, size_bytes: int) -> bool:
        """Whether the content of the file at ``path`` is read."""
        key = order_key(path)
        changed, known = self._changed.has(key), self._open.has(key)
        if key > self._start and self._left_bytes > 0:
            self._left_bytes -= size_bytes
            self._position = key
            return True
        return changed or known or is_renamed(path)

    def end(self) -> bytes:
        """Return, after the last entry, up to which order key the share reached: everything is read
        from the start of the share up to there."""
        return END if self._left_bytes > 0 else self._position


def is_renamed(path: bytes) -> bool:
    """Whether some name of ``path`` lies in storage under another name, so that accounts miss it."""
    if len(path) <= MAX_NAME_BYTES and HIDDEN not in path:
        return False
    return any(name.startswith(HIDDEN) or len(name) > MAX_NAME_BYTES for name in path.split(b"/"))


def entry_of(stored: bytes) -> bytes | None:
    """Return the entry that a stored path belongs to: a file itself or its sidecar; None for neither.

    Entries under replaced names have no answer here: their content is always read (:func:`is_renamed`).
    """
    names = stored.split(b"/") if stored else []
    if any(map(is_replaced_name, names)):
        return None
    if HIDDEN not in names:
        return stored
    at = names.index(HIDDEN)
    below = names[at + 1 :]
    if len(below) != 1:
        return None
    if below[0] == ROOT_SIDECAR and at == 0:
        return b""
    return None if is_own_name(below[0]) else b"/".join([*names[:at], below[0]])


def sorted_keys(stored_paths: Iterable[bytes], manifest: str, directory: str) -> Iterator[bytes]:
    """Yield the order keys of the entries of ``stored_paths``, ascending; spills into ``directory``.

    A storage speaks of one name of a file, whichever: the others that ``manifest`` has come with it.
    Raises MalformedManifest.
    """
    with SpilledSort(directory) as rows:
        for stored in stored_paths:
            path = entry_of(stored)
            if path is not None:
                rows.add(order_key(path))
        lines = (line for _, line in manifest_lines(manifest))
        for path in other_names(lines, rows, directory):
            rows.add(order_key(path))
        yield from rows


def changed_by_manifest(
    old_root: str, old_manifest: str, new_root: str, new_manifest: str
) -> Iterator[bytes]:
    """Yield the order keys of the entries that differ by their records or by size and mtime in storage."""
    for one in pair(manifest_lines(old_manifest), manifest_lines(new_manifest)):
        if one.actual is None:
            continue
        if one.actual != one.expected or _attributes(old_root, one.path) != _attributes(new_root, one.path):
            yield order_key(one.path)


def manifest_lines(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield ``(path, line)`` of every record of the manifest at ``path``.  Raises MalformedManifest."""
    with open(path, "rb") as stream:
        for _, line in ManifestReader(stream).lines():
            yield path_of(line), line


def _attributes(root: str, path: bytes) -> tuple[int, int] | None:
    try:
        found = os.lstat(os.fsencode(root) + b"/" + path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
