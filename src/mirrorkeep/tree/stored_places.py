"""What the operations of a bundle share: finding an entry's place, and publishing into it.

Not here: the operations (``stored_apply``, ``stored_kept``), how a pair is replaced (``placement``).
A crash leaves what ``placement`` says, or a place that was cleared for what did not follow.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import time

from mirrorkeep.errors import MalformedRequest, PathRefused
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record
from mirrorkeep.tree.layout import Directories, Directory, split_path
from mirrorkeep.tree.placement import Placement, is_node, next_generation
from mirrorkeep.tree.protocol import Frame
from mirrorkeep.tree.sidecar import RECORD, RECORDED_ONLY, encode_record_sidecar, encode_sidecar
from mirrorkeep.tree.staging import copy_content


class EntryPlaces:
    """One tree and the directories that are open while a bundle is applied."""

    def __init__(self, placement: Placement, directories: Directories) -> None:
        self._placement = placement
        self._directories = directories
        self._staging = placement.staging

    def _parent(self, path: bytes) -> tuple[Directory, bytes]:
        """Return the directory that holds ``path``, made when missing, and the entry's stored name.

        A file or link where a directory must be is out of date (the record says that something lies
        below it) and is removed.
        """
        if not path:
            raise PathRefused(path=b"/", detail="the root of a tree can only be stamped")
        parent, stored = split_path(path)
        try:
            return self._directories.get(parent, make=True), stored
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        self._clear_way(parent)
        return self._directories.get(parent, make=True), stored

    def _clear_way(self, path: bytes) -> None:
        names = path.split(b"/")
        for depth in range(1, len(names) + 1):
            above, name = self._parent(b"/".join(names[:depth]))
            try:
                status = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
            except FileNotFoundError:
                return
            if not stat_module.S_ISDIR(status.st_mode):
                self._remove_pair(above, name)
                return

    def _remove_pair(self, directory: Directory, name: bytes) -> None:
        """Remove sidecar and data of anything but a directory; missing ones are fine."""
        try:
            os.unlink(name, dir_fd=directory.open_hidden(make=False))
        except FileNotFoundError:
            pass
        try:
            os.unlink(name, dir_fd=directory.fd)
        except FileNotFoundError:
            pass

    def _sidecar_now(
        self, directory: Directory, name: bytes, line: bytes, notes: bytes = b"", generation: int = 0
    ) -> None:
        """Give the entry a sidecar with ``line``, keeping generation and properties of the one it had."""
        if not notes and self._placement.create_sidecar(
            directory, name, encode_record_sidecar(generation or time.time_ns(), line)
        ):
            return
        old = self._placement.read_replaced(directory, name)
        entries = {key: value for key, value in old.entries.items() if key != RECORDED_ONLY}
        entries[RECORD] = line
        if notes:
            entries[RECORDED_ONLY] = notes
        fresh = generation or old.generation or next_generation()
        if fresh == old.generation and entries == old.entries:
            return  # a folder whose times alone have to be set again
        self._placement.replace_sidecar(directory, name, encode_sidecar(fresh, entries))

    def _publish(
        self,
        directory: Directory,
        name: bytes,
        staged: bytes,
        record: Record,
        line: bytes,
        notes: bytes,
        generation: int | None = None,
    ) -> None:
        entries = {RECORD: line, RECORDED_ONLY: notes} if notes else {RECORD: line}
        self._directories.forget(record.path)  # an empty directory that is in the way goes
        self._placement.publish(directory, name, staged, entries, path=record.path, generation=generation)

    def _restage(
        self,
        source: int,
        directory: Directory,
        name: bytes,
        record: Record,
        line: bytes,
        generation: int | None,
    ) -> None:
        """Publish a stamped copy of the open file ``source`` at the record's place."""
        placement = self._placement
        mode = placement.native_mode(record.fields, keys.FILE)
        staged, fd = self._staging.create(mode)
        try:
            try:
                copy_content(source, fd, os.fstat(source).st_size)
                notes = placement.stamp(fd, record.fields, keys.FILE, mode & ~placement.umask, -1)
            finally:
                os.close(fd)
            self._publish(directory, name, staged, record, line, notes, generation)
        except BaseException:
            self._staging.discard(staged)
            raise

    def _node(self, record: Record, frame: Frame) -> None:
        if not is_node(record.kind):
            raise MalformedRequest(detail="the record is not that of a FIFO, socket or device")
        directory, name = self._parent(record.path)
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            self._sidecar_now(directory, name, frame.line)
            return
        if stat_module.S_ISDIR(status.st_mode):
            self._placement.remove_directory(directory, name, record.path)
            self._directories.forget(record.path)
        self._sidecar_now(directory, name, frame.line)
        if not stat_module.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory.fd)
