"""Writing the native tree: a restore target, or any folder that is made to agree with records.

Every change is whole or not there: content is checked before anything is written, a new file gets its
metadata before its name, and what is replaced is replaced by one rename.  Directories, and links and
nodes that are right already, are stamped in place, unless names that are not theirs share them.  A restore's
plain files take their names at once where these are free, and are marked until they are whole
(``native_publish.MAKING``).

A crash at any point leaves the old entry or the new one, and at worst names that begin with
``.mirrorkeep-part-`` or a new file so marked (see ``native_publish``, ``native_move``).  Nothing is made
durable here: the caller ends its run with a ``syncfs``.

Not here: large files (``native_transaction``), moves and copies (``native_move``), metadata
(``metadata.posix``).
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final

from mirrorkeep.errors import (
    AlreadyExists,
    DigestMismatch,
    LengthMismatch,
    MalformedBundle,
    MirrorkeepError,
    NewerKept,
    NotAuthorised,
    NotFound,
    PathRefused,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.tree.content import check_file, write_content
from mirrorkeep.tree.digest import check_content
from mirrorkeep.tree.metadata.flags import BEFORE_CONTENT, write_flags
from mirrorkeep.tree.metadata.posix import FORMAT_OF_KIND, OPEN_ENTRY, is_plain, stamp, stamp_flags, stamp_new
from mirrorkeep.tree.native_case import CaseGuard
from mirrorkeep.tree.native_move import Mover
from mirrorkeep.tree.native_parents import Parents
from mirrorkeep.tree.native_publish import (
    MAKING,
    NewFile,
    clean_directory,
    discard,
    is_newer,
    is_shared,
    rename_over,
    temporary_name,
    unprotected,
)
from mirrorkeep.tree.protocol import Failure, Frame, Op

_COARSEST_NS: Final = 2_000_000_000
"""No file system keeps times coarser than this."""
_NODE_KINDS: Final = (keys.FIFO, keys.SOCKET, keys.CHAR_DEVICE, keys.BLOCK_DEVICE)
_DEVICE_KINDS: Final = (keys.CHAR_DEVICE, keys.BLOCK_DEVICE)
_CODE_OF_ERRNO: Final = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "path_refused",
    errno.EACCES: "not_authorised",
    errno.EPERM: "not_authorised",
    errno.EROFS: "read_only",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EEXIST: "already_exists",
    errno.ENOTEMPTY: "already_exists",
    errno.EISDIR: "already_exists",
    errno.ENAMETOOLONG: "path_refused",
}


class NativeWriter:
    """Carries out frames for one call; belongs to one thread.  Use it as a context manager.

    ``shortfalls`` counts, by key, what could not be restored of entries that otherwise were.
    """

    def __init__(
        self,
        root: bytes,
        *,
        set_owner: bool,
        case: CaseGuard,
        in_place: bool = False,
        keep_newer: bool = False,
    ) -> None:
        """``in_place``: new plain files may be made under their own names, marked until they are whole.

        ``keep_newer``: links, nodes and further names take no place of what is newer (files: see ``sync``).
        """
        self._root = root
        self._owner = set_owner
        self._in_place = in_place
        self._keep_newer = keep_newer
        self._case = case
        self._parents = Parents(root)
        self.shortfalls: Counter[bytes] = Counter()
        mover = Mover(root, self._parents, case, self._stamp_entry)
        self._actions: dict[Op, Callable[[Record, bytes], None]] = {
            Op.PUT: self._put,
            Op.STAMP: self._stamp,
            Op.DIRECTORY: self._directory,
            Op.LINK: self._link,
            Op.NODE: self._node,
            Op.HARD_LINK: self._hard_link,
            Op.HOLD: mover.hold,
            Op.PLACE: mover.place,
            Op.COPY: mover.copy,
            Op.DELETE: self._delete,
        }

    def __enter__(self) -> NativeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parents.close()

    def apply(self, frames: Iterable[Frame]) -> list[Failure]:
        """Carry out frames in order; return those that were not done."""
        failures = []
        for index, frame in enumerate(frames):
            try:
                record = parse_record(frame.line)
            except MirrorkeepError as error:
                failures.append(Failure(index, b"", error.code, str(error)))
                continue
            if failure := self._failure(index, self._actions[frame.op], record, bytes(frame.data)):
                failures.append(failure)
        return failures

    def put(self, files: Iterable[tuple[Record, bytes]]) -> list[Failure]:
        """Make regular files with these contents; as :meth:`apply` for records that were parsed before."""
        failures = []
        for index, (record, data) in enumerate(files):
            if failure := self._failure(index, self._put, record, data):
                failures.append(failure)
        return failures

    def _failure(
        self, index: int, action: Callable[[Record, bytes], None], record: Record, data: bytes
    ) -> Failure | None:
        """Carry out one operation; return what went wrong."""
        try:
            opened_before = self._parents.knows(record.path)
            try:
                action(record, data)
            except FileNotFoundError:
                if not opened_before:
                    raise
                # The directory may have been replaced since it was opened: look again, once.
                self._parents.forget(record.path.rpartition(b"/")[0])
                action(record, data)
        except MirrorkeepError as error:
            return Failure(index, record.path, error.code, str(error))
        except OSError as error:
            return failure_of(index, record.path, error)
        except ValueError as error:  # a field that is no number, range or access list
            return Failure(index, record.path, "malformed_manifest", str(error))
        return None

    # --- one method for each operation ------------------------------------------------------

    def _put(self, record: Record, data: bytes) -> None:
        fields = record.fields
        check_content(record.path, fields, data)
        dir_fd, name = self._place(record.path)
        flagged = keys.FLAGS in fields
        plain = is_plain(fields, owner=self._owner) and not self._parents.hands_down(record.path)
        # A record without a mode would never take the mark off.
        in_place = plain and self._in_place and record.mode & 0o7777 not in (0, MAKING)
        new = NewFile(dir_fd, record.mode & 0o777 if plain else 0o600, free_name=name if in_place else None)
        try:
            if flagged:
                write_flags(new.fd, int(fields[keys.FLAGS], 16) & BEFORE_CONTENT)
            write_content(new.fd, data, fields.get(keys.SPARSE))
            if plain:
                self._note(stamp_new(new.fd, fields, owner=self._owner, status=new.status))
            else:
                self._note(stamp(dir_fd, name, fields, owner=self._owner, fd=new.fd, protect=False))
            new.publish(name)
            if flagged:
                stamp_flags(new.fd, fields)
        finally:
            new.close()

    def _stamp(self, record: Record, data: bytes) -> None:
        dir_fd, name = self._parents.locate(record.path)
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        if st.S_IFMT(mode) != FORMAT_OF_KIND.get(record.kind):
            raise AlreadyExists(what=record.path)
        self._stamp_entry(record, dir_fd, name)

    def _directory(self, record: Record, data: bytes) -> None:
        if not record.path:
            os.makedirs(self._root, mode=0o700, exist_ok=True)
            return
        dir_fd, name = self._place(record.path)
        try:
            unprotected(lambda: os.mkdir(name, 0o700, dir_fd=dir_fd), dir_fd)
        except FileExistsError:
            if not st.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                raise AlreadyExists(what=record.path) from None

    def _link(self, record: Record, data: bytes) -> None:
        target = record.fields.get(keys.LINK_TARGET, b"")
        dir_fd, name = self._place(record.path)
        found = _look(dir_fd, name)
        if found is not None:
            if not st.S_ISLNK(found.st_mode) or os.readlink(name, dir_fd=dir_fd) != target:
                self._spare_newer(record, dir_fd, name, found)
            elif not is_shared(found, record.fields):
                self._stamp_entry(record, dir_fd, name)
                return
        temporary = temporary_name()
        unprotected(lambda: os.symlink(target, temporary, dir_fd=dir_fd), dir_fd)
        self._publish_node(record, dir_fd, temporary, name)

    def _node(self, record: Record, data: bytes) -> None:
        if record.kind not in _NODE_KINDS:
            raise MalformedBundle(offset=0, detail=f"{record.kind!r} is no FIFO, socket or device")
        kind, device = FORMAT_OF_KIND[record.kind], 0
        if record.kind in _DEVICE_KINDS:
            major, _, minor = record.fields.get(keys.DEVICE, b"").partition(b":")
            device = os.makedev(int(major), int(minor))
        dir_fd, name = self._place(record.path)
        found = _look(dir_fd, name)
        if found is not None:
            if st.S_IFMT(found.st_mode) != kind or found.st_rdev != device:
                self._spare_newer(record, dir_fd, name, found)
            elif not is_shared(found, record.fields):
                self._stamp_entry(record, dir_fd, name)
                return
        temporary = temporary_name()
        try:
            unprotected(lambda: os.mknod(temporary, kind | 0o600, device, dir_fd=dir_fd), dir_fd)
        except PermissionError as error:
            raise NotAuthorised(detail=f"making a {record.kind.decode()}: {error.strerror}") from error
        self._publish_node(record, dir_fd, temporary, name)

    def _publish_node(self, record: Record, dir_fd: int, temporary: bytes, name: bytes) -> None:
        try:
            self._stamp_entry(record, dir_fd, temporary)
            rename_over(dir_fd, temporary, dir_fd, name)
        except BaseException:
            discard(dir_fd, temporary)
            raise

    def _hard_link(self, record: Record, data: bytes) -> None:
        leader = record.fields.get(keys.HARD_LINK, b"")
        others = Parents(self._root)
        try:
            leader_fd, leader_name = others.locate(leader)
            dir_fd, name = self._place(record.path)
            wanted = os.stat(leader_name, dir_fd=leader_fd, follow_symlinks=False)
            if st.S_ISDIR(wanted.st_mode):
                raise PathRefused(path=leader, detail="a directory has one name only")
            if not _may_be(wanted, record):
                raise NotFound(what=leader)  # another file has that name by now
            found = _look(dir_fd, name)
            if found is not None:
                if os.path.samestat(found, wanted):
                    return
                self._spare_newer(record, dir_fd, name, found)
            temporary = temporary_name()
            unprotected(
                lambda: os.link(
                    leader_name, temporary, src_dir_fd=leader_fd, dst_dir_fd=dir_fd, follow_symlinks=False
                ),
                leader_fd,
                leader_name,
            )
            try:
                rename_over(dir_fd, temporary, dir_fd, name)
            finally:
                discard(dir_fd, temporary)
            if keys.FLAGS in record.fields:
                self._stamp_entry(record, dir_fd, name)
        finally:
            others.close()

    def _delete(self, record: Record, data: bytes) -> None:
        if not record.path:
            raise PathRefused(path=record.path, detail="the root of a tree is not deleted")
        try:
            dir_fd, name = self._parents.locate(record.path)
            if st.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                self._parents.forget(record.path)
                self._remove_directory(dir_fd, name)
            else:
                unprotected(lambda: os.unlink(name, dir_fd=dir_fd), dir_fd, name)
        except (FileNotFoundError, NotADirectoryError):
            pass  # repeated: it is gone, as asked for

    @staticmethod
    def _remove_directory(dir_fd: int, name: bytes) -> None:
        try:
            unprotected(lambda: os.rmdir(name, dir_fd=dir_fd), dir_fd, name)
        except OSError as error:
            # What a crashed write left there is ours; anything else keeps the directory.
            if error.errno != errno.ENOTEMPTY or not clean_directory(dir_fd, name):
                raise
            os.rmdir(name, dir_fd=dir_fd)

    # --- shared steps -----------------------------------------------------------------------

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """Locate a path that is about to be written, refusing the root and collisions of case."""
        if not path:
            raise PathRefused(path=path, detail="the root of a tree is a directory")
        dir_fd, name = self._parents.locate(path, create=True)
        if self._case.folds is not False:
            self._case.check(dir_fd, name, path)
        return dir_fd, name

    def _spare_newer(self, record: Record, dir_fd: int, name: bytes, found: os.stat_result) -> None:
        """Raise NewerKept when what has the name is newer than the record, and may not be replaced.

        A file that holds what the record says is replaced whatever its time is: nothing is lost by that.
        """
        if not self._keep_newer or st.S_ISDIR(found.st_mode) or not is_newer(found, record.mtime_ns):
            return
        if not (record.kind == keys.FILE and st.S_ISREG(found.st_mode) and _holds(record, dir_fd, name)):
            raise NewerKept(path=record.path)

    def _stamp_entry(self, record: Record, dir_fd: int, name: bytes) -> None:
        self._note(stamp(dir_fd, name, record.fields, owner=self._owner))

    def _note(self, missed: list[bytes]) -> None:
        if missed:
            self.shortfalls.update(missed)


def failure_of(index: int, path: bytes, error: OSError) -> Failure:
    """Return what the operating system refused as a failure of frame ``index``."""
    code = _CODE_OF_ERRNO.get(error.errno or 0, "storage_failure")
    detail = os.strerror(error.errno) if error.errno else str(error)
    return Failure(index, path, code, detail)


def _look(dir_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _holds(record: Record, dir_fd: int, name: bytes) -> bool:
    """Say whether the regular file of that name has the record's content."""
    if keys.HASH not in record.fields or keys.SIZE not in record.fields:
        return False
    try:
        fd = os.open(name, OPEN_ENTRY, dir_fd=dir_fd)
    except OSError:
        return False
    try:
        check_file(record.path, record.fields, fd)
    except (DigestMismatch, LengthMismatch):
        return False
    finally:
        os.close(fd)
    return True


def _may_be(status: os.stat_result, record: Record) -> bool:
    """Say whether a file has the size and time of the record, as far as the record has them."""
    fields = record.fields
    if record.kind != keys.FILE or keys.SIZE not in fields or keys.MTIME not in fields:
        return True
    return status.st_size == record.size and abs(status.st_mtime_ns - record.mtime_ns) <= _COARSEST_NS
