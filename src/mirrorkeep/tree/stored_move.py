"""Moving and copying entries of a stored tree, for WebDAV.

A move is four renames (what is in the way, the data, its sidecar, and the old sidecar's removal), so it
is logged first: the log in the staging folder says everything that :func:`recover` needs to finish it
(design, trap 5), and what was at both places, so that nothing that came there since is touched.

Records name the full path, but only the moved entry's own is rewritten; below a moved directory a record's
last name still holds, and readers put the real path in front of it.

Not here: locks above source and target, answers to clients (``server``).
A crash leaves the old state, or a move that was begun and that start-up finishes, unless either place was
written to since; of a copied directory, a part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from mirrorkeep.errors import AlreadyExists, MalformedSidecar, NotFound, PathRefused
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.layout import Directories, Directory, storage_errors
from mirrorkeep.tree.placement import READ_FILE, Placement, is_node, next_generation
from mirrorkeep.tree.sidecar import LOCK_PREFIX, RECORD, decode_sidecar, encode_sidecar
from mirrorkeep.tree.staging import DELETED, MOVE_LOG, copy_content, new_name, sync_file_system
from mirrorkeep.tree.stored_plain import PLAIN_FILE_MODE, delete, make_directory, open_parent
from mirrorkeep.tree.stored_read import StoredEntry, exists, find_entry, list_entries, look_at

_SOURCE, _TARGET, _DOOMED, _SIDECAR, _BEFORE = b"source", b"target", b"doomed", b"sidecar", b"before"
_REPLACED_AT_ONCE = {keys.FILE, keys.LINK}


class _Place(NamedTuple):
    """What is at a path: inode of the data, generation of the sidecar; 0 for none.

    No two contents have the same generation, and a name is given to other data only with another one.
    """

    inode: int
    generation: int


@dataclass(slots=True)
class _Move:
    """A logged move: paths, what was there, where what is in the way goes, the sidecar for the target."""

    source: bytes
    target: bytes
    before: tuple[_Place, _Place]
    doomed: bytes
    sidecar: bytes
    published: bool = False


def _check_pair(source: bytes, target: bytes) -> None:
    if not source or not target:
        raise PathRefused(path=b"/", detail="the root of a tree stays where it is")
    if source == target or (target + b"/").startswith(source + b"/"):
        raise PathRefused(path=target, detail="the target lies inside the source")
    if (source + b"/").startswith(target + b"/"):
        raise PathRefused(path=target, detail="the source lies inside the target")


def _fresh_entries(entry: StoredEntry, path: bytes) -> dict[bytes, bytes]:
    """Return what the sidecar at the new path holds: everything but locks, the record renamed."""
    known = entry.sidecar.entries if entry.sidecar is not None else {}
    entries = {key: value for key, value in known.items() if not key.startswith(LOCK_PREFIX)}
    fields = entry.record.fields if entry.record is not None else {keys.TYPE: entry.kind}
    entries[RECORD] = format_record(path, fields)
    return entries


def move(
    placement: Placement, source: bytes, target: bytes, *, overwrite: bool, durable: bool = True
) -> bool:
    """Move an entry, with all that is below it; returns True when nothing was at ``target``.

    Raises NotFound (no source, no parent of the target), AlreadyExists, PathRefused, NoSpace,
    StorageFailure: then everything is where it was, or at the target, but not known to be durable.
    """
    placement.check_writable(target)
    _check_pair(source, target)
    staging = placement.staging
    with storage_errors(target), placement.directories() as directories, ExitStack() as stack:
        find_entry(placement, directories, source)  # NotFound comes before any lock
        stack.enter_context(_locked_parents(placement, directories, source, target))
        entry = find_entry(placement, directories, source)
        directory, name = open_parent(directories, target)
        there = look_at(placement, directory, name, target)
        created = there is None or not exists(there)
        if not created and not overwrite:
            raise AlreadyExists(what=target)
        generation = next_generation(max(entry.generation, there.generation if there is not None else 0))
        sidecar = encode_sidecar(generation, _fresh_entries(entry, target))
        logged = _Move(source, target, (_place_of(entry), _place_of(there)), new_name(DELETED), sidecar)
        log = staging.write(_pack(logged), new_name(MOVE_LOG), durable=durable)
        if durable:
            os.fsync(staging.fd)
        try:
            _carry_out(placement, directories, logged, durable)
        except BaseException:
            if not logged.published:
                _undo(placement, directories, logged)
                staging.discard(log)
            raise  # else the log stays: start-up takes away what is left of the source
        staging.discard(log)
    staging.remove_whole(logged.doomed)
    return created


@contextmanager
def _locked_parents(
    placement: Placement, directories: Directories, source: bytes, target: bytes
) -> Iterator[None]:
    """Hold the locks of both parents, always taken in the same order."""
    with ExitStack() as stack:
        for parent in sorted({path.rpartition(b"/")[0] for path in (source, target)}):
            above, _ = open_parent(directories, parent + b"/-" if parent else b"-")
            stack.enter_context(placement.locked(above))
        yield


def _place_of(entry: StoredEntry | None) -> _Place:
    if entry is None:
        return _Place(0, 0)
    return _Place(entry.native.st_ino if entry.native is not None else 0, entry.generation)


def _pack(move_: _Move) -> bytes:
    source, target = move_.before
    entries = {
        _SOURCE: move_.source,
        _TARGET: move_.target,
        _BEFORE: b"%d %d %d %d" % (*source, *target),
        _DOOMED: move_.doomed,
        _SIDECAR: move_.sidecar,
    }
    return encode_sidecar(0, entries)


def _carry_out(placement: Placement, directories: Directories, move_: _Move, durable: bool) -> None:
    """Move the data, then the sidecar; what a crash has left of that, when nothing else changed."""
    staging = placement.staging
    target_directory, target_name = open_parent(directories, move_.target)
    source_directory, source_name = open_parent(directories, move_.source)
    directories.forget(move_.source)
    directories.forget(move_.target)
    if _is_there(target_name, target_directory.fd) and not _is_there(move_.doomed, staging.fd):
        os.rename(target_name, move_.doomed, src_dir_fd=target_directory.fd, dst_dir_fd=staging.fd)
    if move_.before[0].inode:
        os.rename(source_name, target_name, src_dir_fd=source_directory.fd, dst_dir_fd=target_directory.fd)
    _move_sidecar(placement, directories, move_, durable)


def _move_sidecar(
    placement: Placement,
    directories: Directories,
    move_: _Move,
    durable: bool,
    *,
    write: bool = True,
    remove: bool = True,
) -> None:
    staging = placement.staging
    target_directory, target_name = open_parent(directories, move_.target)
    source_directory, source_name = open_parent(directories, move_.source)
    target_hidden = target_directory.open_hidden(make=True)
    source_hidden = source_directory.open_hidden(make=True)
    if write:
        sidecar = staging.write(move_.sidecar, durable=durable)
        os.rename(sidecar, target_name, src_dir_fd=staging.fd, dst_dir_fd=target_hidden)
        move_.published = True
    if remove and _is_there(source_name, source_hidden):
        os.unlink(source_name, dir_fd=source_hidden)
    if durable:
        for fd in (source_directory.fd, source_hidden, target_directory.fd, target_hidden):
            os.fsync(fd)


def _undo(placement: Placement, directories: Directories, move_: _Move) -> None:
    """Put data back after an error; sidecars change last, so they still are where they were."""
    staging = placement.staging
    try:
        target_directory, target_name = open_parent(directories, move_.target)
        source_directory, source_name = open_parent(directories, move_.source)
        old_sidecar_there = _is_there(source_name, source_directory.open_hidden(make=True))
        moved = move_.before[0].inode and not _is_there(source_name, source_directory.fd)
        if old_sidecar_there and moved:
            os.rename(
                target_name, source_name, src_dir_fd=target_directory.fd, dst_dir_fd=source_directory.fd
            )
        if _is_there(move_.doomed, staging.fd) and not _is_there(target_name, target_directory.fd):
            os.rename(move_.doomed, target_name, src_dir_fd=staging.fd, dst_dir_fd=target_directory.fd)
    except OSError:
        pass


def _is_there(name: bytes, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def recover(placement: Placement) -> int:
    """Finish every logged move that was begun; returns how many logs there were.

    For start-up, before anything is served, or while nobody writes.
    """
    staging = placement.staging
    if not staging.exists():
        return 0
    logs = [name for name in staging.names() if name.startswith(MOVE_LOG)]
    for log in sorted(logs):
        logged = _read_log(staging.fd, log)
        if logged is not None:
            with storage_errors(logged.target), placement.directories() as directories:
                try:
                    _finish(placement, directories, logged)
                except NotFound:
                    pass  # a parent was removed since: there is nothing left to move
            staging.remove_whole(logged.doomed)
        staging.discard(log)
    return len(logs)


def _finish(placement: Placement, directories: Directories, move_: _Move) -> None:
    """Do what is left of a move that a crash cut off; leave what came to either place since as it is.

    A move may have been repeated, and both places been written to for weeks.  One that was not begun stays
    undone: nobody was told that it was done.
    """
    source, target = move_.before
    fresh = decode_sidecar(move_.sidecar).generation
    here = _look(placement, directories, move_.source)
    there = _look(placement, directories, move_.target)
    known = there.generation in (target.generation, fresh)
    if here == source and known and there.inode in (0, target.inode):
        if there.generation == fresh or (target.inode and not there.inode):
            _carry_out(placement, directories, move_, durable=True)
    elif source.inode and there.inode == source.inode != here.inode and known:
        write, remove = there.generation != fresh, here == _Place(0, source.generation)
        _move_sidecar(placement, directories, move_, True, write=write, remove=remove)
    elif there == _Place(0, target.generation) and _is_there(move_.doomed, placement.staging.fd):
        _put_back(placement, directories, move_)  # what was to replace it is no longer there


def _look(placement: Placement, directories: Directories, path: bytes) -> _Place:
    directory, name = open_parent(directories, path)
    return _place_of(look_at(placement, directory, name, path))


def _put_back(placement: Placement, directories: Directories, move_: _Move) -> None:
    directory, name = open_parent(directories, move_.target)
    os.rename(move_.doomed, name, src_dir_fd=placement.staging.fd, dst_dir_fd=directory.fd)
    os.fsync(directory.fd)


def _read_log(dir_fd: int, name: bytes) -> _Move | None:
    """Return a logged move; None for one that was cut off, which was then not begun."""
    fd = os.open(name, READ_FILE, dir_fd=dir_fd)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
    finally:
        os.close(fd)
    try:
        entries = decode_sidecar(b"".join(parts)).entries
        numbers = [int(number) for number in entries[_BEFORE].split()]
        before = _Place(*numbers[:2]), _Place(*numbers[2:])
        return _Move(entries[_SOURCE], entries[_TARGET], before, entries[_DOOMED], entries[_SIDECAR])
    except (MalformedSidecar, KeyError, ValueError, TypeError):
        return None


# --- copying ----------------------------------------------------------------------------------


def copy(
    placement: Placement,
    source: bytes,
    target: bytes,
    *,
    overwrite: bool,
    depth: int | str | None = None,
    durable: bool = True,
) -> bool:
    """Copy an entry; returns True when nothing was at ``target``.

    ``depth`` 0 copies a directory without what is in it, anything else all of it.  Properties go along,
    locks do not.  Blocks are shared where the file system can.  Raises NotFound, AlreadyExists,
    PathRefused, NoSpace, StorageFailure; what a directory's copy got to by then stays.
    """
    placement.check_writable(target)
    _check_pair(source, target)
    with storage_errors(target), placement.directories() as directories:
        entry = find_entry(placement, directories, source)
        directory, name = open_parent(directories, target)
        there = look_at(placement, directory, name, target)
        created = there is None or not exists(there)
        if not created and not overwrite:
            raise AlreadyExists(what=target)
        if not created and there is not None and not {there.kind, entry.kind} <= _REPLACED_AT_ONCE:
            delete(placement, target, durable=False)
            directories.forget(target)
        _copy_one(placement, directories, entry, target, durable=durable and entry.kind != keys.DIRECTORY)
        if entry.kind == keys.DIRECTORY:
            if depth not in (0, "0"):
                _copy_below(placement, directories, source, target)
            if durable:
                sync_file_system(placement.root_fd)
    return created


def _copy_below(placement: Placement, directories: Directories, source: bytes, target: bytes) -> None:
    pending = [(source, target)]
    while pending:
        here, there = pending.pop()
        for entry in list_entries(placement, directories, here):
            if not exists(entry):
                continue
            path = there + b"/" + entry.name
            _copy_one(placement, directories, entry, path, durable=False)
            if entry.kind == keys.DIRECTORY:
                pending.append((entry.path, path))


def _copy_one(
    placement: Placement, directories: Directories, entry: StoredEntry, target: bytes, *, durable: bool
) -> None:
    entries = _fresh_entries(entry, target)
    if entry.kind == keys.DIRECTORY:
        made = make_directory(placement, target, durable=durable)
        directory, name = open_parent(directories, target)
        placement.replace_sidecar(directory, name, encode_sidecar(made.generation, entries), durable=durable)
        return
    directory, name = open_parent(directories, target)
    if is_node(entry.kind):
        with placement.locked(directory):
            old = placement.read_replaced(directory, name).generation
            data = encode_sidecar(next_generation(old), entries)
            placement.replace_sidecar(directory, name, data, durable=durable)
        return
    staged = _stage_link(placement, directories, entry) or _stage_file(placement, directories, entry, durable)
    try:
        with placement.locked(directory):
            placement.publish(directory, name, staged, entries, path=target, durable=durable)
    except BaseException:
        placement.staging.discard(staged)
        raise


def _open_source(directories: Directories, entry: StoredEntry) -> tuple[Directory, bytes]:
    return open_parent(directories, entry.path)


def _stage_link(placement: Placement, directories: Directories, entry: StoredEntry) -> bytes:
    if entry.kind != keys.LINK:
        return b""
    directory, name = _open_source(directories, entry)
    staged = new_name()
    os.symlink(os.readlink(name, dir_fd=directory.fd), staged, dir_fd=placement.staging.fd)
    times = (entry.mtime_ns, entry.mtime_ns)
    os.utime(staged, ns=times, dir_fd=placement.staging.fd, follow_symlinks=False)
    return staged


def _stage_file(placement: Placement, directories: Directories, entry: StoredEntry, durable: bool) -> bytes:
    """Stage a stamped copy of a file."""
    directory, name = _open_source(directories, entry)
    source = os.open(name, READ_FILE, dir_fd=directory.fd)
    try:
        staged, fd = placement.staging.create(PLAIN_FILE_MODE)
        try:
            copy_content(source, fd, os.fstat(source).st_size)
            fields = entry.record.fields if entry.record is not None else {}
            placement.stamp(fd, fields, keys.FILE, -1, -1)
            if durable:
                os.fsync(fd)
        except BaseException:
            placement.staging.discard(staged)
            raise
        finally:
            os.close(fd)
    finally:
        os.close(source)
    return staged
