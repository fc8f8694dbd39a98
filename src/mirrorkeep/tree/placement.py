"""Putting one entry in its place: data and sidecar together, or neither.

The rules of a stored tree in one class (design, traps 1, 2 and 11).  A regular file exists when its
sidecar does.  A new one may be created in place, data first, sidecar last; whatever replaces something
is staged beside and renamed, data then sidecar, and an error between the two puts the old data back.
What the file system can hold is also set natively; owners only where the process may.

Not here: which operations there are (``stored_apply``, ``stored_plain``, ``transaction``).
A crash between data and sidecar leaves new data under an old or no sidecar: the pair does not match,
the entry counts as unverified, and the run, which had not committed it, sends it again.
"""

from __future__ import annotations

import fcntl
import os
import stat as stat_module
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from mirrorkeep.errors import AlreadyExists, GenerationConflict, MalformedSidecar, ReadOnly
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import kind_of
from mirrorkeep.manifest.record import parse_time_ns
from mirrorkeep.tree.layout import HIDDEN, OPEN_DIRECTORY, Directories, Directory, storage_errors, strip_acl
from mirrorkeep.tree.sidecar import RECORD, RECORDED_ONLY, Sidecar, decode_sidecar, encode_sidecar
from mirrorkeep.tree.staging import NEW_FILE, Staging, copy_content, write_all

READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FIRST_READ_BYTES: Final = 8192
_LAST_PLAIN_NS: Final = 2**31 * 1_000_000_000
_NODES: Final = frozenset((keys.FIFO, keys.SOCKET, keys.CHAR_DEVICE, keys.BLOCK_DEVICE))


def is_node(kind: bytes) -> bool:
    """Say whether entries of ``kind`` live in their sidecars only."""
    return kind in _NODES


_full_stamp_shapes: dict[tuple[bytes, ...], bool] = {}
_SHAPES_KEPT: Final = 1024


def needs_full_stamp(fields: Mapping[bytes, bytes]) -> bool:
    """Say whether the record has metadata beyond mode, owner and times (asked for every file)."""
    shape = tuple(fields)
    known = _full_stamp_shapes.get(shape)
    if known is None:
        if len(_full_stamp_shapes) >= _SHAPES_KEPT:
            _full_stamp_shapes.clear()
        known = any(key.startswith((keys.XATTR_PREFIX, b"posix_acl", keys.FLAGS)) for key in fields)
        _full_stamp_shapes[shape] = known
    return known


def _has_more(fd: int) -> bool:
    """Say whether an open entry has access lists, attributes or flags."""
    from mirrorkeep.tree.metadata import posix

    return not (posix.has_attributes(fd, {}) and posix.has_flags(fd, {}))


def next_generation(replaced: int = 0) -> int:
    """Return a generation greater than the one replaced; by the clock where the clock allows."""
    now = time.time_ns()
    return now if now > replaced else replaced + 1


def _read_umask() -> int:
    try:
        with open("/proc/self/status", "rb") as status:
            for row in status:
                if row.startswith(b"Umask:"):
                    return int(row.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class Placement:
    """One stored tree's root, its rules, and the two renames that publish.  Safe for threads and forks."""

    def __init__(
        self,
        root: str | bytes,
        *,
        read_only: bool = False,
        set_owner: bool | None = None,
    ) -> None:
        """Open the tree at ``root``; raises NotFound.  ``set_owner=None``: as root only."""
        self.root = os.fsencode(root)
        self._kept = threading.local()
        with storage_errors(self.root):
            self.root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.staging = Staging(self.root_fd)
        self.read_only = read_only
        self.set_owner = os.geteuid() == 0 if set_owner is None else set_owner
        self.umask = _read_umask()
        self.uid = os.geteuid()
        self.privileged = self.uid == 0

    def close(self) -> None:
        """Close the tree's descriptors."""
        kept: Directories | None = getattr(self._kept, "directories", None)
        if kept is not None:
            kept.close()
        self.staging.close()
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def __del__(self) -> None:
        # Trees of snapshots are opened for a request and dropped; their descriptors must not pile up.
        if hasattr(self, "root_fd"):
            self.close()

    def check_writable(self, path: bytes = b"") -> None:
        """Raise ReadOnly when this tree refuses writes."""
        if self.read_only:
            raise ReadOnly(path=path or b"/", detail="snapshots and read-only trees refuse writes")

    @contextmanager
    def directories(self) -> Iterator[Directories]:
        """Yield a cache of open directories for one call; a read-only tree keeps one for each thread."""
        if self.read_only:
            kept: Directories | None = getattr(self._kept, "directories", None)
            if kept is None:
                kept = self._kept.directories = Directories(self.root_fd)
            yield kept
            kept.trim()
            return
        self.staging.renew()
        directories = Directories(self.root_fd)
        try:
            yield directories
        finally:
            directories.close()

    # --- what the file system is told --------------------------------------------------------

    def native_mode(self, fields: Mapping[bytes, bytes], kind: bytes) -> int:
        """Return the permission bits that the stored entry gets.

        Without root the server must stay able to read what it keeps, and nothing may run under its
        name: owner bits are added, set-id bits dropped.  The record keeps the true mode.
        """
        text = fields.get(keys.MODE)
        if kind == keys.DIRECTORY:
            mode = int(text, 8) & 0o7777 if text else 0o755
            return mode if self.privileged else mode & 0o1777 | 0o700
        mode = int(text, 8) & 0o7777 if text else 0o644
        return mode if self.privileged else mode & 0o777 | 0o600

    def native_fields(self, fields: Mapping[bytes, bytes], kind: bytes) -> Mapping[bytes, bytes]:
        """Return ``fields`` with the access lists that the stored entry gets, see :meth:`native_mode`.

        A list's entry of the owner is the mode's; a default list is what is made below a folder begins with.
        """
        if self.privileged or not (keys.ACL_ACCESS in fields or keys.ACL_DEFAULT in fields):
            return fields
        from mirrorkeep.tree.metadata.acl import with_owner

        wanted = dict(fields)
        for key, permissions in (
            (keys.ACL_ACCESS, 7 if kind == keys.DIRECTORY else 6),
            (keys.ACL_DEFAULT, 7),
        ):
            if key in wanted:
                wanted[key] = with_owner(wanted[key], permissions)
        return wanted

    def stamp(
        self, fd: int, fields: Mapping[bytes, bytes], kind: bytes, created_mode: int, created_gid: int
    ) -> bytes:
        """Set mode, owner, times and the rest on an open entry; times last.

        ``created_mode`` and ``created_gid`` are what a new entry, which has nothing else, was made with, so
        that it mostly costs one call.  -1: it may have been here before, and loses the access lists,
        attributes and flags that the record does not have.
        Returns the NUL-joined record keys that the file system refused.  Raises OSError.
        """
        mode = self.native_mode(fields, kind)
        if needs_full_stamp(fields) or (created_mode < 0 and _has_more(fd)):
            from mirrorkeep.tree.metadata import posix

            wanted = {**self.native_fields(fields, kind), keys.MODE: b"%o" % mode}
            missed = posix.stamp(-1, b"", wanted, owner=self.set_owner, fd=fd, protect=False)
            return b"\0".join(sorted(key for key in missed if key != keys.MODE and key in fields))
        chowned = False
        if self.set_owner:
            uid = int(fields.get(keys.UID, b"-1"))
            gid = int(fields.get(keys.GID, b"-1"))
            if created_mode < 0 or uid not in (-1, self.uid) or gid not in (-1, created_gid):
                os.fchown(fd, uid, gid)
                chowned = True
        if mode != created_mode or (mode & 0o6000 and (chowned or kind == keys.FILE)):
            os.fchmod(fd, mode)  # writing and changing the owner clear set-id bits
        mtime = fields.get(keys.MTIME)
        if mtime is not None:
            mtime_ns = parse_time_ns(mtime)
            atime = fields.get(keys.ATIME)
            os.utime(fd, ns=(mtime_ns if atime is None else parse_time_ns(atime), mtime_ns))
            if not 0 <= mtime_ns < _LAST_PLAIN_NS and os.fstat(fd).st_mtime_ns != mtime_ns:
                return keys.MTIME  # the file system kept the nearest time that it can hold
        return b""

    # --- sidecars ----------------------------------------------------------------------------

    def read_sidecar(self, directory: Directory, name: bytes) -> Sidecar | None:
        """Return the sidecar of ``name``, None when there is none; raises MalformedSidecar, OSError."""
        try:
            fd = os.open(name, READ_FILE, dir_fd=directory.open_hidden(make=False))
        except FileNotFoundError:
            return None
        try:
            data = os.read(fd, _FIRST_READ_BYTES)
            if len(data) == _FIRST_READ_BYTES:
                parts = [data]
                while part := os.read(fd, 1 << 20):
                    parts.append(part)
                data = b"".join(parts)
        finally:
            os.close(fd)
        return decode_sidecar(data)

    def read_replaced(self, directory: Directory, name: bytes) -> Sidecar:
        """Return the sidecar that is about to be replaced; a missing or damaged one counts as empty."""
        try:
            return self.read_sidecar(directory, name) or Sidecar(0)
        except MalformedSidecar:
            return Sidecar(0)

    def create_sidecar(self, directory: Directory, name: bytes, data: bytes) -> bool:
        """Create a sidecar that is not there yet; False when it is.  Nothing stays behind on OSError."""
        hidden = directory.open_hidden(make=True)
        try:
            fd = os.open(name, NEW_FILE, 0o600, dir_fd=hidden)
        except FileExistsError:
            return False
        try:
            try:
                write_all(fd, data)
            finally:
                os.close(fd)
        except OSError:
            os.unlink(name, dir_fd=hidden)
            raise
        return True

    def replace_sidecar(
        self, directory: Directory, name: bytes, data: bytes, *, durable: bool = False
    ) -> None:
        """Put ``data`` in place of the sidecar of ``name``, which may be missing; raises OSError."""
        hidden = directory.open_hidden(make=True)
        staged = self.staging.write(data, durable=durable)
        try:
            os.rename(staged, name, src_dir_fd=self.staging.fd, dst_dir_fd=hidden)
        except OSError:
            self.staging.discard(staged)
            raise
        if durable:
            os.fsync(hidden)

    @contextmanager
    def locked(self, directory: Directory) -> Iterator[None]:
        """Hold the compare-and-set lock of the entries in ``directory``, across threads and processes."""
        fd = os.open(b".", OPEN_DIRECTORY, dir_fd=directory.open_hidden(make=True))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # --- publishing --------------------------------------------------------------------------

    def publish(
        self,
        directory: Directory,
        name: bytes,
        staged: bytes,
        entries: Mapping[bytes, bytes],
        *,
        path: bytes,
        expected: int | None = None,
        generation: int | None = None,
        durable: bool = False,
    ) -> int:
        """Publish the staged data with a sidecar and return the new generation.

        ``entries`` go over those of the replaced sidecar (dead properties survive a new content; what the
        server noted about the old content does not).  ``expected`` is the generation that must be there
        (0: none); the caller then holds :meth:`locked`.  On any error the old pair stays and ``staged`` is
        left to the caller.  Durable, data included, only with ``durable``.
        Raises GenerationConflict, AlreadyExists (a full directory is in the way), OSError.
        """
        old = self.read_replaced(directory, name)
        if expected is not None and old.generation != expected:
            raise GenerationConflict(path=path)
        kept = {key: value for key, value in old.entries.items() if key not in (RECORD, RECORDED_ONLY)}
        fresh = next_generation(old.generation) if generation is None else generation
        sidecar = self.staging.write(encode_sidecar(fresh, {**kept, **entries}), durable=durable)
        try:
            self._clear_directory(directory, name, path)
            self._swap_pair(directory, name, staged, sidecar)
        except BaseException:
            self.staging.discard(sidecar)
            raise
        if durable:
            os.fsync(directory.fd)
            os.fsync(directory.open_hidden(make=True))
        return fresh

    def _swap_pair(self, directory: Directory, name: bytes, staged: bytes, sidecar: bytes) -> None:
        hidden = directory.open_hidden(make=True)
        replaced = self.staging.swap_in(staged, directory.fd, name)
        try:
            os.rename(sidecar, name, src_dir_fd=self.staging.fd, dst_dir_fd=hidden)
        except OSError:
            self.staging.swap_out(replaced, directory.fd, name)
            raise
        if replaced:
            self.staging.discard(replaced)

    def _clear_directory(self, directory: Directory, name: bytes, path: bytes) -> None:
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat_module.S_ISDIR(status.st_mode):
            self.remove_directory(directory, name, path)

    def remove_directory(self, directory: Directory, name: bytes, path: bytes) -> None:
        """Remove the empty directory ``name`` with its hidden folder; AlreadyExists when it is not empty.

        Sidecars without an entry go with it; those of nodes *are* entries.
        """
        inside = Directory(os.open(name, OPEN_DIRECTORY, dir_fd=directory.fd))
        try:
            if any(native != HIDDEN for native in map(os.fsencode, os.listdir(inside.fd))):
                raise AlreadyExists(what=path + b"/, which is not empty,")
            orphans = self._orphans(inside, path)
            for orphan in orphans:
                os.unlink(orphan, dir_fd=inside.hidden)
            if inside.hidden >= 0:
                os.rmdir(HIDDEN, dir_fd=inside.fd)
            os.rmdir(name, dir_fd=directory.fd)
        finally:
            inside.close()

    def _orphans(self, inside: Directory, path: bytes) -> Sequence[bytes]:
        try:
            hidden = inside.open_hidden(make=False)
        except FileNotFoundError:
            return ()
        found = [os.fsencode(name) for name in os.listdir(hidden)]
        for name in found:
            kind = kind_of(self.read_replaced(inside, name).line)
            if is_node(kind):
                raise AlreadyExists(what=path + b"/, which is not empty,")
        return found

    def stage_copy(self, source_fd: int, mode: int = 0o600) -> tuple[bytes, int]:
        """Stage a copy of an open file, sharing its blocks where possible; returns name and descriptor."""
        name, fd = self.staging.create(mode)
        try:
            copy_content(source_fd, fd, os.fstat(source_fd).st_size)
        except BaseException:
            os.close(fd)
            self.staging.discard(name)
            raise
        return name, fd

    def strip_inherited(self, directory: Directory, fd: int, mode: int) -> None:
        """Take off what a new entry inherited from its directory's default ACL."""
        if directory.inherits:
            strip_acl(fd, mode)
