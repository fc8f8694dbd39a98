"""What a stored tree holds, by name alone: the cheap side of a validation's comparison.

Answers for naming everything that is there, data or sidecar, in manifest order, at the cost of two
directory listings a directory and no ``stat``: the coordinator walks while worker processes look into
the entries.  A directory beyond ``MAX_NAMES_IN_MEMORY`` names is sorted in spilled runs (MAN-39).

Not here: what an entry is (``StoredTree.check``).  Spilled runs lie in a temporary folder that is removed
at the end; a crash leaves it to the system's own tidying.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Final

from mirrorkeep.errors import MalformedSidecar
from mirrorkeep.manifest.spill import SpilledSort
from mirrorkeep.tree.layout import Directories, Directory, is_own_name, is_replaced_name, storage_errors
from mirrorkeep.tree.placement import Placement
from mirrorkeep.tree.stored_read import record_of

MAX_NAMES_IN_MEMORY: Final = 50_000

_FOLDER: Final = b"\x00d"
_OTHER: Final = b"\x00o"
_SUFFIX_BYTES: Final = 2

Names = Iterator[tuple[bytes, bool]]
"""True name, and whether it is a directory to look into."""


def list_paths(placement: Placement) -> Iterator[tuple[bytes, bytes]]:
    """Yield ``(path, path)`` of everything stored, data or sidecar, in manifest order, the root last.

    Raises StorageFailure when a directory cannot be listed: nothing may be concluded about it.
    """
    with placement.directories() as directories:
        stack: list[tuple[bytes, Names]] = [(b"", _names(placement, directories, b""))]
        while stack:
            path, names = stack[-1]
            prefix = path + b"/" if path else b""
            for name, is_folder in names:
                below = prefix + name
                if is_folder:
                    stack.append((below, _names(placement, directories, below)))
                    break
                yield below, below
            else:
                stack.pop()
                yield path, path


def _names(placement: Placement, directories: Directories, path: bytes) -> Names:
    """Return the names in one directory, ascending; nothing of it stays open."""
    with storage_errors(path):
        directories.trim()
        rows = _rows(placement, directories.get(path))
        first = list(islice(rows, MAX_NAMES_IN_MEMORY))
        if len(first) < MAX_NAMES_IN_MEMORY:
            first.sort()
            return _joined(iter(first))
        return _spilled(first, rows)


def _spilled(first: list[bytes], rest: Iterator[bytes]) -> Names:
    folder = tempfile.mkdtemp(prefix="mirrorkeep-names-")
    rows = SpilledSort(folder)
    for row in first:
        rows.add(row)
    first.clear()
    for row in rest:
        rows.add(row)
    return _read_spilled(rows, folder)


def _read_spilled(rows: SpilledSort, folder: str) -> Names:
    try:
        yield from _joined(iter(rows))
    finally:
        rows.close()
        os.rmdir(folder)


def _joined(rows: Iterator[bytes]) -> Names:
    """Make one name of the rows of its data and its sidecar; a folder's row comes first."""
    last = b""
    for row in rows:
        name = row[:-_SUFFIX_BYTES]
        if name != last:
            yield name, row.endswith(_FOLDER)
            last = name


def _rows(placement: Placement, directory: Directory) -> Iterator[bytes]:
    """Yield a row for each data name and each sidecar: the true name, NUL, what it is."""
    with os.scandir(directory.fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            folder = entry.is_dir(follow_symlinks=False)
            if name[:1] == b"." and is_own_name(name):
                continue
            if is_replaced_name(name):
                true = _true_name(placement, directory, name)
                if true is not None:
                    yield true + (_FOLDER if folder else _OTHER)
            else:
                yield name + (_FOLDER if folder else _OTHER)
    try:
        hidden = directory.open_hidden(make=False)
    except FileNotFoundError:
        return
    for entry_name in os.listdir(hidden):
        name = os.fsencode(entry_name)
        if name[:1] == b"." and is_own_name(name):
            continue
        true = _true_name(placement, directory, name) if is_replaced_name(name) else name
        if true is not None:
            yield true + _OTHER


def _true_name(placement: Placement, directory: Directory, native: bytes) -> bytes | None:
    """Return the name that only the sidecar knows; None when it is lost, and its entry with it."""
    try:
        record = record_of(placement.read_sidecar(directory, native))
    except (MalformedSidecar, OSError):
        return None
    return record.path.rpartition(b"/")[2] if record is not None else None
