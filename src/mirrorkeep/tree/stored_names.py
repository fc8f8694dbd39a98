"""The names in one directory of a stored tree, in order, whatever their number.

Answers for naming everything that is there, data or sidecar, by its true name: two directory listings, and
one small read for each entry whose name the storage does not hold as it is (``layout.stored_name``).  A
directory beyond ``MAX_NAMES_IN_MEMORY`` names is sorted in spilled runs (MAN-39).

Not here: what an entry is (``stored_read``), walking down (``stored_read``, ``store.presence``).
Spilled runs lie in a temporary folder that is removed at the end; a crash leaves it to the system's own
tidying.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Final

from mirrorkeep.errors import MalformedManifest, MalformedSidecar, PathRefused
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.manifest.spill import SpilledSort
from mirrorkeep.tree.layout import (
    FILE_SYSTEM_FOLDER,
    HIDDEN,
    Directories,
    Directory,
    is_own_name,
    is_replaced_name,
    storage_errors,
    stored_name,
)
from mirrorkeep.tree.placement import Placement

MAX_NAMES_IN_MEMORY: Final = 50_000

_FOLDER: Final = b"\x00d"
_OTHER: Final = b"\x00o"
_SUFFIX_BYTES: Final = 2

Names = Iterator[tuple[bytes, bool]]
"""True name, and whether it is a directory to look into."""


def list_names(
    placement: Placement, directories: Directories, path: bytes, *, skip_unreadable: bool = False
) -> Names:
    """Return the true names in the directory at ``path``, ascending; nothing of it stays open.

    An entry whose true name is lost does not exist, nor does the folder that a file system has in its root.
    One whose true name cannot be read just now is left out with ``skip_unreadable``, else it is an error.
    Raises NotFound, PathRefused, StorageFailure.
    """
    with storage_errors(path):
        directories.trim()
        directory = directories.get(path)
        left_out = b"" if path else _own_folder(placement, directory)
        rows = _rows(placement, directory, skip_unreadable, left_out)
        first = list(islice(rows, MAX_NAMES_IN_MEMORY))
        if len(first) < MAX_NAMES_IN_MEMORY:
            first.sort()
            return _joined(iter(first))
        return _spilled(first, rows)


def true_name(placement: Placement, directory: Directory, native: bytes) -> bytes | None:
    """Return the name an entry has outside; None when only a lost sidecar knew it: nothing exists then.

    A sidecar that names what would be stored elsewhere counts as lost: no request could reach its entry.
    Raises OSError.
    """
    if not is_replaced_name(native):
        return native
    try:
        sidecar = placement.read_sidecar(directory, native)
        if sidecar is None or not sidecar.line:
            return None
        name = parse_record(sidecar.line).path.rpartition(b"/")[2]
        return name if stored_name(name) == native else None
    except (MalformedSidecar, MalformedManifest, PathRefused):
        return None


def _spilled(first: list[bytes], rest: Iterator[bytes]) -> Names:
    folder = tempfile.mkdtemp(prefix="mirrorkeep-names-")
    rows = SpilledSort(folder, max_rows_in_memory=MAX_NAMES_IN_MEMORY)
    try:
        for row in first:
            rows.add(row)
        first.clear()
        for row in rest:
            rows.add(row)
    except BaseException:
        rows.close()
        os.rmdir(folder)
        raise
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


def _own_folder(placement: Placement, root: Directory) -> bytes:
    """Return the name in the root that belongs to the file system: nothing was stored at it or in it."""
    try:
        recorded = placement.read_sidecar(root, FILE_SYSTEM_FOLDER) is not None
    except MalformedSidecar:
        recorded = True
    if recorded or os.access(FILE_SYSTEM_FOLDER + b"/" + HIDDEN, os.F_OK, dir_fd=root.fd):
        return b""
    return FILE_SYSTEM_FOLDER


def _rows(
    placement: Placement, directory: Directory, skip_unreadable: bool, left_out: bytes
) -> Iterator[bytes]:
    """Yield a row for each data name and each sidecar: the true name, NUL, what it is."""
    with os.scandir(directory.fd) as entries:
        for entry in entries:
            name = _outside(placement, directory, os.fsencode(entry.name), skip_unreadable)
            is_folder = entry.is_dir(follow_symlinks=False)
            if name is not None and not (is_folder and name == left_out):
                yield name + (_FOLDER if is_folder else _OTHER)
    try:
        hidden = directory.open_hidden(make=False)
    except FileNotFoundError:
        return
    with os.scandir(hidden) as sidecars:
        for sidecar in sidecars:
            name = _outside(placement, directory, os.fsencode(sidecar.name), skip_unreadable)
            if name is not None:
                yield name + _OTHER


def _outside(
    placement: Placement, directory: Directory, native: bytes, skip_unreadable: bool
) -> bytes | None:
    if native[:1] != b".":
        return native
    if is_own_name(native):
        return None
    try:
        return true_name(placement, directory, native)
    except OSError:
        if skip_unreadable:
            return None
        raise
