"""WebDAV's operations on a stored tree: look, open, stage and publish, make, delete, change properties.

Each is durable before it returns unless ``durable=False``, and compares and sets by generation under the
lock of the entry's directory, so that several workers may serve the same file.  Parents are never made:
a missing one is NotFound (RFC 4918 wants 409 there).

Not here: moving and copying (``stored_move``); properties' and locks' meaning (``server``).
A crash leaves the old state or the new one; a deletion that was cut short may leave a directory's
sidecar without its directory, which nobody sees, and the deleted tree in the staging folder.
"""

from __future__ import annotations

import os
import stat as stat_module
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from mirrorkeep.errors import (
    AlreadyExists,
    DigestMismatch,
    GenerationConflict,
    LengthMismatch,
    NotFound,
    PathRefused,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, format_time_ns
from mirrorkeep.tree.digest import hash_open_file
from mirrorkeep.tree.layout import ROOT_SIDECAR, Directories, Directory, split_path, storage_errors
from mirrorkeep.tree.placement import READ_FILE, Placement, is_node, next_generation
from mirrorkeep.tree.sidecar import RECORD, RECORDED_ONLY, Sidecar, encode_record_sidecar, encode_sidecar
from mirrorkeep.tree.staging import DELETED, new_name, write_all
from mirrorkeep.tree.stored_read import StoredEntry, exists, find_entry, list_entries, look_at

PLAIN_FILE_MODE: Final = 0o644
PLAIN_DIRECTORY_MODE: Final = 0o755
_OPEN_TRIES: Final = 50
_TRY_AGAIN_S: Final = 0.002


def stat_entry(placement: Placement, path: bytes) -> StoredEntry:
    """Return the entry at ``path``; raises NotFound, PathRefused."""
    with placement.directories() as directories:
        return find_entry(placement, directories, path)


def list_directory(placement: Placement, path: bytes) -> Iterator[StoredEntry]:
    """Yield what exists in the directory at ``path``, by name; raises NotFound when it is none."""
    with placement.directories() as directories:
        if find_entry(placement, directories, path).kind != keys.DIRECTORY:
            raise NotFound(what=path + b"/")
        for entry in list_entries(placement, directories, path):
            if exists(entry):
                yield entry


def open_read(placement: Placement, path: bytes) -> tuple[int, StoredEntry]:
    """Return a descriptor of the file at ``path`` and the entry that describes exactly these bytes.

    A file that is just being replaced is waited for, at most a tenth of a second.  The caller closes the
    descriptor.  Raises NotFound, PathRefused (not a regular file), StorageFailure.
    """
    parent, name = split_path(path)
    for attempt in range(_OPEN_TRIES):
        if attempt:
            time.sleep(_TRY_AGAIN_S)
        with placement.directories() as directories:
            entry = find_entry(placement, directories, path)
            if entry.kind != keys.FILE:
                raise PathRefused(path=path, detail="not a regular file")
            with storage_errors(path):
                fd = os.open(name, READ_FILE, dir_fd=directories.get(parent).fd)
            status = os.fstat(fd)
            again = look_at(placement, directories.get(parent), name, path)
        settled = again is not None and again.native is not None and os.path.samestat(again.native, status)
        same = again is not None and again.generation == entry.generation
        if settled and same and (_describes(entry, status) or attempt == _OPEN_TRIES - 1):
            entry.size, entry.mtime_ns, entry.native = status.st_size, status.st_mtime_ns, status
            return fd, entry
        os.close(fd)
    raise GenerationConflict(path=path)


def _describes(entry: StoredEntry, status: os.stat_result) -> bool:
    """Say whether the record belongs to these bytes, as far as size and time tell."""
    record = entry.record
    return record is None or (record.size == status.st_size and record.mtime_ns == status.st_mtime_ns)


# --- writing files ----------------------------------------------------------------------------


class StagedFile:
    """A file that is being uploaded, beside the one it may replace; unseen before :meth:`publish`."""

    def __init__(self, placement: Placement, path: bytes) -> None:
        """Stage a file for ``path``; raises NotFound (no parent), AlreadyExists (a directory), ReadOnly."""
        placement.check_writable(path)
        self.path = path
        self.size_bytes = 0
        self._placement = placement
        with storage_errors(path), placement.directories() as directories:
            self._find_place(directories)
        with storage_errors(path):
            self._name, self._fd = placement.staging.create(PLAIN_FILE_MODE)

    def _find_place(self, directories: Directories) -> tuple[Directory, bytes]:
        directory, name = open_parent(directories, self.path)
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return directory, name
        if stat_module.S_ISDIR(status.st_mode):
            raise AlreadyExists(what=self.path + b"/")
        return directory, name

    def write(self, chunk: bytes | memoryview) -> None:
        """Append ``chunk``; raises NoSpace, StorageFailure."""
        with storage_errors(self.path):
            write_all(self._fd, chunk)
        self.size_bytes += len(chunk)

    def publish(
        self,
        record_fields: Mapping[bytes, bytes] | None = None,
        *,
        if_generation: int | None = None,
        durable: bool = True,
    ) -> StoredEntry:
        """Publish the file and return it as an entry; the staged file is gone afterwards.

        ``record_fields`` are the sender's (checked: size and hash, which is read back; stamped: times,
        mode and the rest); None makes a record of what the file system says, without a hash.
        ``if_generation`` must be what is there, 0 for nothing.  Raises DigestMismatch, LengthMismatch,
        GenerationConflict, AlreadyExists, NoSpace, StorageFailure: then the old file stays, and the
        caller abandons this one.
        """
        placement = self._placement
        with storage_errors(self.path):
            entries = self._make_entries(record_fields)
            if durable:
                os.fsync(self._fd)
            with placement.directories() as directories:
                directory, name = self._find_place(directories)
                with placement.locked(directory):
                    self._find_place(directories)
                    placement.publish(
                        directory,
                        name,
                        self._name,
                        entries,
                        path=self.path,
                        expected=if_generation,
                        durable=durable,
                    )
                    entry = look_at(placement, directory, name, self.path)
        self._close()
        if entry is None:
            raise NotFound(what=self.path)
        return entry

    def _make_entries(self, given: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
        if given is None:
            status = os.fstat(self._fd)
            fields = {
                keys.TYPE: keys.FILE,
                keys.SIZE: b"%d" % status.st_size,
                keys.MTIME: format_time_ns(status.st_mtime_ns),
                keys.MODE: b"%o" % status.st_mode,
            }
            return {RECORD: format_record(self.path, fields)}
        expected = given.get(keys.SIZE)
        if expected is not None and int(expected) != self.size_bytes:
            raise LengthMismatch(path=self.path, expected=int(expected), actual=self.size_bytes)
        if given.get(keys.HASH):
            actual = hash_open_file(self._fd, given)
            if actual != given[keys.HASH]:
                raise DigestMismatch(path=self.path, expected=given[keys.HASH], actual=actual)
        notes = self._placement.stamp(self._fd, given, keys.FILE, -1, -1)
        line = format_record(self.path, given)
        return {RECORD: line, RECORDED_ONLY: notes} if notes else {RECORD: line}

    def abandon(self) -> None:
        """Drop what was written; the old file was never touched.  May be called again."""
        if self._fd >= 0:
            self._close()
            self._placement.staging.discard(self._name)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


def open_parent(directories: Directories, path: bytes) -> tuple[Directory, bytes]:
    """Return the directory that holds ``path`` and the stored name; NotFound when it is not there."""
    if not path:
        raise PathRefused(path=b"/", detail="the root of a tree cannot be replaced")
    parent, name = split_path(path)
    try:
        return directories.get(parent), name
    except FileNotFoundError as error:
        raise NotFound(what=parent + b"/") from error


# --- directories and deletion -----------------------------------------------------------------


def make_directory(placement: Placement, path: bytes, *, durable: bool = True) -> StoredEntry:
    """Make the directory at ``path``; raises AlreadyExists, NotFound (no parent), NoSpace."""
    placement.check_writable(path)
    if not path:
        raise AlreadyExists(what=b"/")
    with storage_errors(path), placement.directories() as directories:
        directory, name = open_parent(directories, path)
        with placement.locked(directory):
            there = look_at(placement, directory, name, path)
            if there is not None and exists(there):
                raise AlreadyExists(what=path)
            os.mkdir(name, PLAIN_DIRECTORY_MODE, dir_fd=directory.fd)
            try:
                fields = {keys.TYPE: keys.DIRECTORY, keys.MODE: b"%o" % (0o40000 | PLAIN_DIRECTORY_MODE)}
                made = directories.get(path)
                placement.strip_inherited(directory, made.fd, PLAIN_DIRECTORY_MODE)
                os.fchmod(made.fd, PLAIN_DIRECTORY_MODE)
                generation = next_generation(there.generation if there is not None else 0)
                data = encode_record_sidecar(generation, format_record(path, fields))
                placement.replace_sidecar(directory, name, data, durable=durable)
            except BaseException:
                directories.forget(path)
                os.rmdir(name, dir_fd=directory.fd)
                _unlink(name, directory.open_hidden(make=True))
                raise
            if durable:
                os.fsync(directory.fd)
            return find_entry(placement, directories, path)


def delete(
    placement: Placement, path: bytes, *, if_generation: int | None = None, durable: bool = True
) -> None:
    """Remove the entry at ``path``, a directory with all that is in it.

    The entry is gone at once; what was in a directory is then removed from the staging folder.
    Raises NotFound, GenerationConflict, StorageFailure.
    """
    placement.check_writable(path)
    with storage_errors(path), placement.directories() as directories:
        directory, name = open_parent(directories, path)
        entry = find_entry(placement, directories, path)
        with placement.locked(directory):
            if if_generation is not None:
                entry = find_entry(placement, directories, path)
                if entry.generation != if_generation:
                    raise GenerationConflict(path=path)
            directories.forget(path)
            doomed = remove_entry(placement, directory, name, entry)
            if durable:
                os.fsync(directory.fd)
                os.fsync(directory.open_hidden(make=True))
    if doomed:
        placement.staging.remove_whole(doomed)


def remove_entry(placement: Placement, directory: Directory, name: bytes, entry: StoredEntry) -> bytes:
    """Take an entry out of its directory; returns the staged name of a directory to be removed, or b""."""
    hidden = directory.open_hidden(make=True)
    if entry.kind == keys.DIRECTORY and entry.native is not None:
        doomed = new_name(DELETED)
        os.rename(name, doomed, src_dir_fd=directory.fd, dst_dir_fd=placement.staging.fd)
        _unlink(name, hidden)
        return doomed
    _unlink(name, hidden)
    if not is_node(entry.kind):
        _unlink(name, directory.fd)
    return b""


def _unlink(name: bytes, dir_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


# --- sidecars ---------------------------------------------------------------------------------


def read_sidecar(placement: Placement, path: bytes) -> Sidecar:
    """Return the sidecar of an existing entry (an empty one where a directory has none yet)."""
    with placement.directories() as directories:
        return find_entry(placement, directories, path).sidecar or Sidecar(0)


def update_sidecar(
    placement: Placement,
    path: bytes,
    change: Callable[[dict[bytes, bytes]], None],
    *,
    if_generation: int | None = None,
    durable: bool = True,
) -> int:
    """Let ``change`` edit the entries of a sidecar, under the lock; returns the generation of the data.

    The generation stays: it counts contents.  With ``if_generation`` a result that was computed on an
    older content is refused (META-13).  What ``change`` raises leaves the sidecar as it was.
    Raises NotFound, GenerationConflict, NoSpace, StorageFailure.
    """
    placement.check_writable(path)
    with storage_errors(path), placement.directories() as directories:
        parent, stored = split_path(path)
        name = stored or ROOT_SIDECAR
        entry = find_entry(placement, directories, path)
        directory = directories.get(parent)
        with placement.locked(directory):
            sidecar = placement.read_sidecar(directory, name)
            if sidecar is None:
                if entry.kind != keys.DIRECTORY:
                    raise NotFound(what=path)
                sidecar = Sidecar(next_generation())
            elif if_generation is not None and sidecar.generation != if_generation:
                raise GenerationConflict(path=path)
            before = dict(sidecar.entries)
            change(sidecar.entries)
            if sidecar.entries != before:
                data = encode_sidecar(sidecar.generation, sidecar.entries)
                placement.replace_sidecar(directory, name, data, durable=durable)
            return sidecar.generation
