"""Carrying out the frames of a bundle on a stored tree: the server's hot path.

One :class:`Application` lives for one call.  Each frame is done or not at all: what fails leaves the old
entry and its sidecar, and becomes a ``Failure``.  Nothing is made durable here; the run's commit is
(one ``syncfs`` for everything since the last).

Not here: content that is there already (``stored_kept``), finding places (``stored_places``), large
files (``transaction``), WebDAV's own operations (``stored_plain``).
A crash leaves whole frames, plus at most one pair of data and sidecar that do not match, which counts
as unverified, and staged files.
"""

from __future__ import annotations

import os
import stat as stat_module
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from operator import attrgetter
from typing import Final

from mirrorkeep.errors import (
    MalformedRequest,
    MirrorkeepError,
    PathRefused,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record, parse_time_ns
from mirrorkeep.tree.content import write_content
from mirrorkeep.tree.digest import check_content
from mirrorkeep.tree.layout import (
    ROOT_SIDECAR,
    Directories,
    Directory,
    split_path,
    storage_error,
)
from mirrorkeep.tree.placement import Placement, is_node, needs_full_stamp, next_generation
from mirrorkeep.tree.protocol import Data, Failure, Frame, Op
from mirrorkeep.tree.sidecar import RECORD, RECORDED_ONLY, encode_record_sidecar, encode_sidecar
from mirrorkeep.tree.staging import NEW_FILE, new_name, write_all
from mirrorkeep.tree.stored_kept import KeptContent

Handler = Callable[[Record, Frame], None]
Turn = AbstractContextManager[object]
"""Held while a tree is written, so that writers of one tree take turns."""

_BAD_FIELD: Final = (ValueError, OverflowError)
_NO_RECORD: Final = Record(b"", {})


class Application(KeptContent):
    """Frames on one tree, with the directories that are open meanwhile."""

    def __init__(self, placement: Placement, directories: Directories) -> None:
        super().__init__(placement, directories)
        self._handlers: dict[Op, Handler] = {
            Op.PUT: self._put,
            Op.STAMP: self._stamp,
            Op.DIRECTORY: self._directory,
            Op.LINK: self._link,
            Op.NODE: self._node,
            Op.HARD_LINK: self._hard_link,
            Op.HOLD: self._hold,
            Op.PLACE: self._place,
            Op.COPY: self._copy,
            Op.DELETE: self._delete,
        }

    def apply(self, frames: Iterable[Frame], turn: Turn) -> list[Failure]:
        """Carry out ``frames`` in order and return those that were not done.

        Everything is parsed and checked against its digest first; ``turn`` is held while the tree is written.
        """
        failures: list[Failure] = []
        checked: list[tuple[int, Record, Frame]] = []
        for index, frame in enumerate(frames):
            record = _NO_RECORD
            try:
                record = parse_record(frame.line)
                if frame.op == Op.PUT:
                    _check_file(record, frame)
                checked.append((index, record, frame))
            except (MirrorkeepError, *_BAD_FIELD) as error:
                failures.append(_failure(index, record.path, error))
        handlers, trim = self._handlers, self._directories.trim
        with turn:
            for index, record, frame in checked:
                try:
                    handlers[frame.op](record, frame)
                except (MirrorkeepError, OSError, *_BAD_FIELD) as error:
                    failures.append(_failure(index, record.path, error))
                trim()
        failures.sort(key=attrgetter("index"))
        return failures

    # --- regular files -----------------------------------------------------------------------

    def _put(self, record: Record, frame: Frame) -> None:
        fields = record.fields
        directory, name = self._parent(record.path)
        placement = self._placement
        mode = placement.native_mode(fields, keys.FILE)
        try:
            fd = os.open(name, NEW_FILE, mode, dir_fd=directory.fd)
        except FileExistsError:
            self._put_over(directory, name, record, frame)
            return
        try:
            try:
                notes = self._fill(fd, directory, fields, frame.data, mode)
            finally:
                os.close(fd)
            self._sidecar_for_new(directory, name, frame.line, notes)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory.fd)
            raise

    def _sidecar_for_new(self, directory: Directory, name: bytes, line: bytes, notes: bytes) -> None:
        if not notes and self._placement.create_sidecar(
            directory, name, encode_record_sidecar(time.time_ns(), line)
        ):
            return
        old = self._placement.read_replaced(directory, name).generation  # of a node, or of lost data
        entries = {RECORD: line, RECORDED_ONLY: notes} if notes else {RECORD: line}
        data = encode_sidecar(next_generation(old), entries)
        self._placement.replace_sidecar(directory, name, data)

    def _put_over(self, directory: Directory, name: bytes, record: Record, frame: Frame) -> None:
        # Never skipped when old and new look the same: repairing damage sends the same record again.
        mode = self._placement.native_mode(record.fields, keys.FILE)
        staged, fd = self._staging.create(mode)
        try:
            try:
                notes = self._fill(fd, None, record.fields, frame.data, mode)
            finally:
                os.close(fd)
            self._publish(directory, name, staged, record, frame.line, notes)
        except BaseException:
            self._staging.discard(staged)
            raise

    def _fill(
        self, fd: int, directory: Directory | None, fields: Mapping[bytes, bytes], data: Data, mode: int
    ) -> bytes:
        """Write and stamp a file that was just created in ``directory`` (None: staged)."""
        placement = self._placement
        if keys.SPARSE in fields:
            write_content(fd, data, fields[keys.SPARSE])
        elif data:
            write_all(fd, data)
        gid = -1
        if directory is not None:
            placement.strip_inherited(directory, fd, mode)
            gid = directory.gid
        return placement.stamp(fd, fields, keys.FILE, mode & ~placement.umask, gid)

    # --- metadata ----------------------------------------------------------------------------

    def _stamp(self, record: Record, frame: Frame) -> None:
        kind = record.kind
        if kind == keys.FILE:
            self._stamp_file(record, frame)
        elif kind == keys.DIRECTORY:
            self._stamp_directory(record, frame)
        elif kind == keys.LINK:
            self._link(record, frame)
        elif is_node(kind):
            self._node(record, frame)
        else:
            raise MalformedRequest(detail=f"{kind!r} is no type of an entry")

    def _stamp_directory(self, record: Record, frame: Frame) -> None:
        placement, fields = self._placement, record.fields
        if record.path:
            self._directory(record, frame)
            above, name = self._parent(record.path)
        else:
            above, name = self._directories.get(b""), ROOT_SIDECAR
        here = self._directories.get(record.path)
        self._sidecar_now(above, name, frame.line)
        # After the sidecar: the root's own may just have made the hidden folder in it.
        notes = placement.stamp(here.fd, fields, keys.DIRECTORY, -1, -1)
        if notes:
            self._sidecar_now(above, name, frame.line, notes)
            placement.stamp(here.fd, fields, keys.DIRECTORY, -1, -1)
        self._directories.forget(record.path)  # its default ACL and group may be others now

    # --- other kinds -------------------------------------------------------------------------

    def _directory(self, record: Record, frame: Frame) -> None:
        if not record.path:
            return
        directory, name = self._parent(record.path)
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is None:
            self._remove_pair(directory, name)  # a node's sidecar, or that of lost data
        elif not stat_module.S_ISDIR(status.st_mode):
            self._remove_pair(directory, name)
        self._directories.get(record.path, make=True)
        # Its sidecar must not be the first in there: a folder made later would change the parent's times.
        directory.open_hidden(make=True)

    def _link(self, record: Record, frame: Frame) -> None:
        placement, fields = self._placement, record.fields
        target = fields.get(keys.LINK_TARGET)
        if not target:
            raise MalformedRequest(detail="a link's record has no target")
        directory, name = self._parent(record.path)
        staged = new_name()
        os.symlink(target, staged, dir_fd=self._staging.fd)
        try:
            if placement.set_owner:
                uid, gid = int(fields.get(keys.UID, b"-1")), int(fields.get(keys.GID, b"-1"))
                os.chown(staged, uid, gid, dir_fd=self._staging.fd, follow_symlinks=False)
            notes = b""
            if needs_full_stamp(fields):
                from mirrorkeep.tree.metadata import posix

                missed = posix.stamp(self._staging.fd, staged, fields, owner=placement.set_owner)
                notes = b"\0".join(sorted(missed))
            if keys.MTIME in fields:
                mtime_ns = parse_time_ns(fields[keys.MTIME])
                times = (mtime_ns, mtime_ns)
                os.utime(staged, ns=times, dir_fd=self._staging.fd, follow_symlinks=False)
            self._publish(directory, name, staged, record, frame.line, notes)
        except BaseException:
            self._staging.discard(staged)
            raise

    def _delete(self, record: Record, frame: Frame) -> None:
        path = record.path
        if not path:
            raise PathRefused(path=b"/", detail="the root of a tree cannot be deleted")
        parent, name = split_path(path)
        try:
            directory = self._directories.get(parent)
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        except NotADirectoryError:
            return  # nothing can be below a file
        if status is not None and stat_module.S_ISDIR(status.st_mode):
            self._directories.forget(path)
            self._placement.remove_directory(directory, name, path)
        try:
            self._remove_pair(self._directories.get(parent), name)
        except FileNotFoundError:
            pass  # the parent is gone as well


def _check_file(record: Record, frame: Frame) -> None:
    """Raise unless the frame's content is what its record says."""
    if record.fields.get(keys.TYPE) != keys.FILE:
        raise MalformedRequest(detail="content came for what is no regular file")
    check_content(record.path, record.fields, frame.data)


def _failure(index: int, path: bytes, error: Exception) -> Failure:
    if isinstance(error, OSError):
        error = storage_error(error, path)
    elif not isinstance(error, MirrorkeepError):
        error = MalformedRequest(detail=f"a record's field cannot be used: {error}")
    return Failure(index, path, error.code, str(error))
