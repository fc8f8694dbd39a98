"""Reading a stored tree: entries, frames for a restore, and the walk in manifest order.

Not here: content alone (``stored_contents``), the names in a directory (``stored_names``), comparing with a
manifest (``stored_check``), opening for WebDAV clients (``stored_plain``).  Nothing here writes.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mirrorkeep.errors import (
    LengthMismatch,
    MalformedManifest,
    MalformedSidecar,
    MirrorkeepError,
    NotFound,
    TooLarge,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, format_record, format_time_ns, parse_record
from mirrorkeep.tree.layout import (
    ROOT_SIDECAR,
    Directories,
    Directory,
    split_path,
    storage_error,
    storage_errors,
    stored_name,
)
from mirrorkeep.tree.placement import READ_FILE, Placement, is_node
from mirrorkeep.tree.protocol import Failure, Frame, Op
from mirrorkeep.tree.sidecar import Sidecar
from mirrorkeep.tree.stored_names import list_names
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

_KINDS = {
    stat_module.S_IFREG: keys.FILE,
    stat_module.S_IFDIR: keys.DIRECTORY,
    stat_module.S_IFLNK: keys.LINK,
    stat_module.S_IFIFO: keys.FIFO,
    stat_module.S_IFSOCK: keys.SOCKET,
    stat_module.S_IFCHR: keys.CHAR_DEVICE,
    stat_module.S_IFBLK: keys.BLOCK_DEVICE,
}


@dataclass(slots=True)
class StoredEntry:
    """One entry as it is stored.  ``native`` is None for nodes and for lost data, ``sidecar`` for strays.

    ``size`` in bytes; ``generation`` and ``etag`` change whenever the content may have changed.
    """

    path: bytes
    name: bytes
    kind: bytes
    size: int
    mtime_ns: int
    generation: int
    record: Record | None
    sidecar: Sidecar | None
    native: os.stat_result | None

    @property
    def etag(self) -> str:
        return f'"{self.generation:x}"'


def native_kind(status: os.stat_result) -> bytes:
    """Return the manifest's word for the type of a native object."""
    return _KINDS[stat_module.S_IFMT(status.st_mode)]


def record_of(sidecar: Sidecar | None) -> Record | None:
    """Return the sidecar's record, None when it has none or a damaged one."""
    if sidecar is None or not sidecar.line:
        return None
    try:
        return parse_record(sidecar.line)
    except MalformedManifest:
        return None


def look_at(
    placement: Placement, directory: Directory, name: bytes, path: bytes, sidecar_name: bytes | None = None
) -> StoredEntry | None:
    """Return what is stored under a native name, None when neither data nor sidecar is there."""
    try:
        native = os.stat(name or b".", dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        native = None
    try:
        sidecar = placement.read_sidecar(directory, sidecar_name or name)
    except MalformedSidecar:
        sidecar = None
    if native is None and sidecar is None:
        return None
    record = record_of(sidecar)
    if native is not None:
        kind, size, mtime_ns = native_kind(native), native.st_size, native.st_mtime_ns
        if kind == keys.DIRECTORY:
            size = 0
    elif record is not None:
        kind, size, mtime_ns = record.kind, record.size, record.mtime_ns
    else:
        kind, size, mtime_ns = b"", 0, 0
    generation = sidecar.generation if sidecar is not None else 0
    true_name = path.rpartition(b"/")[2]
    return StoredEntry(path, true_name, kind, size, mtime_ns, generation, record, sidecar, native)


def exists(entry: StoredEntry) -> bool:
    """Say whether the entry exists for a client (trap 2): files and links need both halves."""
    if entry.native is None:
        return entry.record is not None and is_node(entry.record.kind)
    return entry.kind == keys.DIRECTORY or entry.sidecar is not None


def find_entry(placement: Placement, directories: Directories, path: bytes) -> StoredEntry:
    """Return the existing entry at ``path``; raises NotFound, PathRefused."""
    parent, name = split_path(path)
    try:
        directory = directories.get(parent)
        entry = look_at(placement, directory, name, path, None if path else ROOT_SIDECAR)
    except NotADirectoryError as error:
        raise NotFound(what=path) from error
    except OSError as error:
        raise storage_error(error, path) from error
    if entry is None or not exists(entry):
        raise NotFound(what=path)
    return entry


# --- frames -----------------------------------------------------------------------------------


def read_frames(placement: Placement, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
    """Yield what would make each entry anew; see ``protocol.Master.frames``."""
    with placement.directories() as directories:
        for index, path in enumerate(paths):
            try:
                yield _frame_of(placement, directories, path)
            except MirrorkeepError as problem:
                yield Failure(index, path, problem.code, str(problem))
            except OSError as error:
                fault = storage_error(error, path)
                yield Failure(index, path, fault.code, str(fault))
            directories.trim()


def _frame_of(placement: Placement, directories: Directories, path: bytes) -> Frame:
    parent, name = split_path(path)
    directory = directories.get(parent)
    sidecar = placement.read_sidecar(directory, name or ROOT_SIDECAR)
    if sidecar is None:
        return _unrecorded(directory, name, path)
    record = parse_record(sidecar.line)
    line = sidecar.line
    if record.path != path:  # its directory was moved
        line = format_record(path, record.fields)
    if record.kind == keys.FILE:
        return Frame(Op.PUT, line, _read_small(directory, name, path, record))
    if record.kind == keys.DIRECTORY:
        return Frame(Op.STAMP, line)
    return Frame(Op.LINK if record.kind == keys.LINK else Op.NODE, line)


def _unrecorded(directory: Directory, name: bytes, path: bytes) -> Frame:
    """A directory needs no sidecar to exist; anything else does."""
    status = os.stat(name or b".", dir_fd=directory.fd, follow_symlinks=False)
    if not stat_module.S_ISDIR(status.st_mode):
        raise NotFound(what=path)
    return Frame(Op.STAMP, format_record(path, native_fields(status)))


def _read_small(directory: Directory, name: bytes, path: bytes, record: Record) -> bytes:
    """Return the content, whose size must be the record's; the receiver checks the digest."""
    size = record.size
    if size > SMALL_FILE_BYTES:
        raise TooLarge(detail=f"{path!r}: {size} bytes do not travel in a bundle")
    fd = os.open(name, READ_FILE, dir_fd=directory.fd)
    try:
        data = os.read(fd, size + 1)
        while len(data) <= size and (more := os.read(fd, size + 1 - len(data))):
            data += more
    finally:
        os.close(fd)
    if len(data) != size:
        actual = len(data) if len(data) < size else f"more than {size}"
        raise LengthMismatch(path=path, expected=size, actual=actual)
    return data


def read_range(placement: Placement, path: bytes, start: int, end: int) -> bytes:
    """Return a range of a stored file; see ``protocol.Master.read_range``."""
    with storage_errors(path), placement.directories() as directories:
        parent, name = split_path(path)
        fd = os.open(name, READ_FILE, dir_fd=directories.get(parent).fd)
        try:
            parts: list[bytes] = []
            while start < end and (part := os.pread(fd, end - start, start)):
                parts.append(part)
                start += len(part)
        finally:
            os.close(fd)
    return parts[0] if len(parts) == 1 else b"".join(parts)


# --- the walk ---------------------------------------------------------------------------------


def native_fields(status: os.stat_result) -> dict[bytes, bytes]:
    """Return the record fields that ``stat`` alone gives."""
    fields = {
        keys.TYPE: native_kind(status),
        keys.MODE: b"%o" % status.st_mode,
        keys.UID: b"%d" % status.st_uid,
        keys.GID: b"%d" % status.st_gid,
        keys.MTIME: format_time_ns(status.st_mtime_ns),
    }
    if stat_module.S_ISREG(status.st_mode):
        fields[keys.SIZE] = b"%d" % status.st_size
    return fields


def list_entries(placement: Placement, directories: Directories, path: bytes) -> Iterator[StoredEntry]:
    """Yield everything in one directory, strays and lost data included, in order of true names.

    Holds at most ``stored_names.MAX_NAMES_IN_MEMORY`` names of it in memory, and no descriptor of the tree
    between two entries.
    """
    prefix = path + b"/" if path else b""
    for name, _ in list_names(placement, directories, path):
        directories.trim()
        with storage_errors(prefix + name):
            entry = look_at(placement, directories.get(path), stored_name(name), prefix + name)
        if entry is not None:
            yield entry


def walk_tree(placement: Placement, top: bytes = b"") -> Iterator[StoredEntry]:
    """Yield every entry in manifest order: what is below a directory, then the directory.

    Each entry is looked at once and each directory listed once.  Memory is bounded for each directory on the
    way down, whatever it holds; descriptors stay within the cache.  An unreadable directory raises: nothing
    may be concluded about it.
    """
    with placement.directories() as directories:
        with storage_errors(top):
            start = find_entry(placement, directories, top)
        if start.kind != keys.DIRECTORY:
            yield start
            return
        stack = [(start, list_entries(placement, directories, top))]
        while stack:
            here, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                yield here
            elif entry.kind == keys.DIRECTORY and entry.native is not None:
                stack.append((entry, list_entries(placement, directories, entry.path)))
            else:
                yield entry


def actual_records(
    placement: Placement, doubted: Sequence[tuple[int, int]] = ()
) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, line) of what is really stored, in manifest order.

    An entry whose native state agrees with its sidecar has the sidecar's line.  One that disagrees, or
    has no sidecar, is described as it is, without a digest, so that a compare sends it again; so is a file
    whose generation lies in a ``doubted`` span, after its first and up to its second number.  Lost data is
    left out.
    """
    from mirrorkeep.tree.stored_check import compare_native

    for entry in walk_tree(placement):
        record = entry.record
        doubtful = entry.kind == keys.FILE and any(a < entry.generation <= b for a, b in doubted)
        if record is not None and not doubtful and not compare_native(placement, entry, record):
            line = entry.sidecar.line if entry.sidecar is not None else b""
            yield entry.path, line if record.path == entry.path else format_record(entry.path, record.fields)
        elif entry.native is not None:
            yield entry.path, format_record(entry.path, native_fields(entry.native))
