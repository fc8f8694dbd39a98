"""Moves and copies inside a native tree, so that renamed content is never sent again.

A move has two phases.  HOLD gives the file a second name in the root, ``.mirrorkeep-part-hold-KEY``
(where hard links are refused it is renamed there); when all are held, PLACE renames each to its new
path.  Swaps and chains need no order.  What is placed or copied is read once and must have the record's
digest: this tree belongs to others too, and they may have written to it.

A crash leaves held names behind; repeating the phases completes the move, and
:func:`NativeTree.empty_staging` removes what nobody asks for again.  The old path keeps its file until
it is deleted or replaced, so nothing is lost in between.
"""

from __future__ import annotations

import errno
import os
import re
import stat as st
from collections.abc import Callable
from typing import Final

from mirrorkeep.errors import MalformedBundle, MirrorkeepError, NotFound, PathRefused
from mirrorkeep.manifest.record import Record
from mirrorkeep.tree.content import check_file, clone
from mirrorkeep.tree.metadata.posix import OPEN_ENTRY
from mirrorkeep.tree.native_case import CaseGuard
from mirrorkeep.tree.native_parents import Parents
from mirrorkeep.tree.native_publish import (
    PART_PREFIX,
    NewFile,
    clean_directory,
    discard,
    rename_over,
    temporary_name,
    unprotected,
)

HOLD_PREFIX: Final = PART_PREFIX + b"hold-"
_KEY: Final = re.compile(rb"[0-9a-f]{1,64}")
_NO_LINK: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class Mover:
    """The operations HOLD, PLACE and COPY of one writer; ``stamp`` sets an entry's metadata."""

    def __init__(
        self, root: bytes, parents: Parents, case: CaseGuard, stamp: Callable[[Record, int, bytes], None]
    ) -> None:
        self._root = root
        self._parents = parents
        self._case = case
        self._stamp = stamp

    def hold(self, record: Record, data: bytes) -> None:
        """Keep the file of ``record`` (the source) under key ``data``."""
        held = _held_name(data)
        root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            dir_fd, name = self._parents.locate(record.path)
            if not _is_file(dir_fd, name):
                if _is_file(root_fd, held):  # the first time renamed it
                    return
                raise NotFound(what=record.path)
            temporary = temporary_name()
            try:
                unprotected(
                    lambda: os.link(
                        name, temporary, src_dir_fd=dir_fd, dst_dir_fd=root_fd, follow_symlinks=False
                    ),
                    dir_fd,
                    name,
                )
            except OSError as error:
                if error.errno == errno.EXDEV:
                    _copy_file(dir_fd, name, root_fd, held)
                    return
                if error.errno not in _NO_LINK:
                    raise
                rename_over(dir_fd, name, root_fd, held)
                return
            os.rename(temporary, held, src_dir_fd=root_fd, dst_dir_fd=root_fd)
            discard(root_fd, temporary)  # renaming a name over another of the same inode does nothing
        finally:
            os.close(root_fd)

    def place(self, record: Record, data: bytes) -> None:
        """Publish what is held under key ``data`` at the record's path."""
        held = _held_name(data)
        dir_fd, name = self._target(record)
        root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _is_file(root_fd, held):
                self._accept_placed(record, dir_fd, name)
                return
            _check_named(record, root_fd, held)
            try:
                rename_over(root_fd, held, dir_fd, name)
                discard(root_fd, held)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy_file(root_fd, held, dir_fd, name)
                discard(root_fd, held)
            self._stamp(record, dir_fd, name)
        finally:
            os.close(root_fd)

    def copy(self, record: Record, data: bytes) -> None:
        """Publish a copy of the file at path ``data`` at the record's path, sharing blocks if possible."""
        sources = Parents(self._root)
        try:
            source_fd, source_name = sources.locate(data)
            dir_fd, name = self._target(record)
            if not _is_file(source_fd, source_name):
                raise NotFound(what=data)
            opened = os.open(source_name, OPEN_ENTRY, dir_fd=source_fd)
            new = NewFile(dir_fd)
            try:
                clone(opened, new.fd)
                check_file(record.path, record.fields, new.fd)
                new.publish(name)
            finally:
                new.close()
                os.close(opened)
            self._stamp(record, dir_fd, name)
        finally:
            sources.close()

    def _target(self, record: Record) -> tuple[int, bytes]:
        if not record.path:
            raise PathRefused(path=record.path, detail="the root of a tree is a directory")
        dir_fd, name = self._parents.locate(record.path, create=True)
        self._case.check(dir_fd, name, record.path)
        return dir_fd, name

    def _accept_placed(self, record: Record, dir_fd: int, name: bytes) -> None:
        """The second time: good when the path holds the record's content already."""
        if not _is_file(dir_fd, name):
            raise NotFound(what=record.path)
        try:
            _check_named(record, dir_fd, name)
        except MirrorkeepError:
            raise NotFound(what=record.path) from None
        self._stamp(record, dir_fd, name)


def empty_staging(root: bytes) -> int:
    """Remove every temporary and held name directly in ``root``; return how many there were."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return clean_directory(fd, b".")
    finally:
        os.close(fd)


def _copy_file(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    opened = os.open(source, OPEN_ENTRY, dir_fd=source_fd)
    new = NewFile(target_fd)
    try:
        clone(opened, new.fd)
        new.publish(target)
    finally:
        new.close()
        os.close(opened)


def _check_named(record: Record, dir_fd: int, name: bytes) -> None:
    fd = os.open(name, OPEN_ENTRY, dir_fd=dir_fd)
    try:
        check_file(record.path, record.fields, fd)
    finally:
        os.close(fd)


def _held_name(key: bytes) -> bytes:
    if not _KEY.fullmatch(key):
        raise MalformedBundle(offset=0, detail="the key of a move is not 1 to 64 hex digits")
    return HOLD_PREFIX + key


def _is_file(dir_fd: int, name: bytes) -> bool:
    try:
        return st.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
