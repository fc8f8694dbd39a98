"""The native tree: files as the operating system shows them, read as a master, written as a slave.

Reading answers for one thing above all: a record describes exactly the bytes beside it.  Each file is
looked at before and after it is read, and read again when it moved in between.  Reading changes nothing,
not even access times where the system allows that (``O_NOATIME``).

Not here: writing (``native_write``, ``native_transaction``), the ordered walk (``walk``), metadata
(``metadata``), comparing (``sync``).  A crash while reading leaves nothing behind; for writing see there.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mirrorkeep.errors import MirrorkeepError, NotFound, SourceChanged, SourceUnreadable, TooLarge
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, format_record
from mirrorkeep.tree.metadata.posix import OPEN_ENTRY, capture_facts
from mirrorkeep.tree.metadata.statx import Facts, StatReader
from mirrorkeep.tree.native_case import CaseGuard
from mirrorkeep.tree.native_line import LineMaker, digest_maker
from mirrorkeep.tree.native_move import empty_staging
from mirrorkeep.tree.native_parents import Parents
from mirrorkeep.tree.native_transaction import NativeTransaction
from mirrorkeep.tree.native_write import NativeWriter
from mirrorkeep.tree.protocol import Failure, Frame, Op, Transaction
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

ATTEMPTS: Final = 3
"""How often a file that moves while it is read is read again before it is given up for this run."""

_NOATIME: Final = getattr(os, "O_NOATIME", 0)
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_OP_OF_KIND: Final = {keys.DIRECTORY: Op.STAMP, keys.LINK: Op.LINK}


class NativeTree:
    """A directory of this machine as master and slave; safe to use from several threads at once.

    ``digest`` names the hash of records read here.  ``set_owner`` says whether writing sets user and
    group; by default it does when this process is root.  ``shortfalls`` counts, by key, what records
    asked for and this system could not hold or may not set.
    """

    def __init__(self, root: str | bytes, *, digest: str = "sha256", set_owner: bool | None = None) -> None:
        self.root: bytes = os.fsencode(root)
        self.digest: str = digest
        self.set_owner: bool = os.geteuid() == 0 if set_owner is None else set_owner
        self.shortfalls: Counter[bytes] = Counter()
        self._case = CaseGuard()
        self._line_of = LineMaker(digest)
        self._hash = digest_maker(digest)

    # --- master -----------------------------------------------------------------------------

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        """Yield, in the order asked for, what would make each entry anew, or why it cannot be read.

        Failure codes: ``not_found`` (vanished), ``source_unreadable``, ``source_changed``, ``too_large``,
        ``path_refused``.
        """
        parents, reader = Parents(self.root), StatReader()
        try:
            for index, path in enumerate(paths):
                try:
                    yield self._read_settled(path, parents, reader)
                except OSError as error:
                    failure = NotFound(what=path) if error.errno in _GONE else _unreadable(path, error)
                    yield Failure(index, path, failure.code, str(failure))
                except MirrorkeepError as error:
                    yield Failure(index, path, error.code, str(error))
        finally:
            parents.close()

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        """Yield the content of each small file; see ``protocol.Master``."""
        for index, path in enumerate(paths):
            try:
                data = self.read_range(path, 0, SMALL_FILE_BYTES + 1)
                if len(data) > SMALL_FILE_BYTES:
                    raise TooLarge(detail=f"{path!r} is more than a frame may hold")
            except MirrorkeepError as error:
                yield Failure(index, path, error.code, str(error))
            else:
                yield data

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive) of the file at ``path``; fewer only at its end.

        Raises NotFound, SourceUnreadable, PathRefused.
        """
        fd = self.open_content(path)
        try:
            chunks, position = [], start
            while position < end and (chunk := os.pread(fd, end - position, position)):
                chunks.append(chunk)
                position += len(chunk)
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except OSError as error:
            raise _unreadable(path, error) from error
        finally:
            os.close(fd)

    def describe(self, path: bytes) -> tuple[dict[bytes, bytes], os.stat_result]:
        """Return every field of the entry's record but ``hash``, and the stat they were made from.

        Raises NotFound, SourceUnreadable, PathRefused, SourceChanged (swapped for another type).
        """
        parents, reader = Parents(self.root), StatReader()
        try:
            dir_fd, name = parents.locate(path)
            facts = reader.by_name(dir_fd, name)
            if not (st.S_ISREG(facts[4]) or st.S_ISDIR(facts[4])):
                stat = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                return capture_facts(None, dir_fd, name, facts), stat
            fd = _open_or_none(dir_fd, name)
            try:
                stat = os.stat(name, dir_fd=dir_fd, follow_symlinks=False) if fd is None else os.fstat(fd)
                if stat.st_ino != facts[5] or stat.st_mode != facts[4]:
                    raise SourceChanged(path=path)
                return capture_facts(fd, dir_fd, name, facts), stat
            finally:
                if fd is not None:
                    os.close(fd)
        except OSError as error:
            raise _reading_error(path, error) from error
        finally:
            parents.close()

    def open_content(self, path: bytes) -> int:
        """Open the regular file at ``path`` for reading and return its descriptor, the caller's to close.

        Raises NotFound, SourceUnreadable (a node is never opened), PathRefused.
        """
        parents = Parents(self.root)
        try:
            dir_fd, name = parents.locate(path)
            if not st.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                raise SourceUnreadable(path=path, detail="not a regular file")
            return open_quietly(dir_fd, name)
        except OSError as error:
            raise _reading_error(path, error) from error
        finally:
            parents.close()

    @staticmethod
    def settled(before: os.stat_result, fd: int) -> bool:
        """Return whether the open file is still what ``before`` saw: same inode, size and times."""
        after = os.fstat(fd)
        return (before.st_ino, before.st_dev, before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_ino,
            after.st_dev,
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )

    def _read_settled(self, path: bytes, parents: Parents, reader: StatReader) -> Frame:
        dir_fd, name = parents.locate(path)
        for _ in range(ATTEMPTS):
            facts = reader.by_name(dir_fd, name)
            kind = st.S_IFMT(facts[4])
            if kind == st.S_IFREG:
                frame = self._read_file(path, dir_fd, name, facts, reader)
            elif kind == st.S_IFDIR:
                frame = _read_directory(path, dir_fd, name, facts, reader)
            else:
                frame = _read_node(path, dir_fd, name, facts, reader)
            if frame is not None:
                return frame
        raise SourceChanged(path=path)

    def _read_file(
        self, path: bytes, dir_fd: int, name: bytes, facts: Facts, reader: StatReader
    ) -> Frame | None:
        size_bytes = facts[6]
        if size_bytes > SMALL_FILE_BYTES:
            raise TooLarge(detail=f"{size_bytes} bytes are more than a frame may hold")
        fd = open_quietly(dir_fd, name)
        try:
            data = os.read(fd, size_bytes + 1)
            if len(data) < size_bytes:
                data = _read_on(fd, data, size_bytes)
            if len(data) != size_bytes:
                return None
            line = self._line_of.file(path, fd, dir_fd, name, facts, self._hash(data).hexdigest())
            after = reader.by_fd(fd)
        finally:
            os.close(fd)
        # Inode, size, then inode change and modification time up to the device: all but access times.
        return Frame(Op.PUT, line, data) if _same(facts, after) else None

    def look(self, path: bytes) -> os.stat_result | None:
        """Return what is at ``path``, of a link the link itself; None when it cannot be looked at."""
        parents = Parents(self.root)
        try:
            dir_fd, name = parents.locate(path)
            return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except (OSError, MirrorkeepError):
            return None
        finally:
            parents.close()

    # --- slave ------------------------------------------------------------------------------

    def apply(self, frames: Iterable[Frame], *, keep_newer: bool = False) -> list[Failure]:
        """Carry out frames in order; a failed frame stops nothing and leaves the old entry.

        With ``keep_newer`` links, nodes and further names do not take the place of what is newer than they
        are (``newer_kept``).
        """
        with NativeWriter(
            self.root, set_owner=self.set_owner, case=self._case, keep_newer=keep_newer
        ) as writer:
            failures = writer.apply(frames)
            self.shortfalls.update(writer.shortfalls)
            return failures

    def put(self, files: Iterable[tuple[Record, bytes]]) -> list[Failure]:
        """Make regular files with these contents, as :meth:`apply` does with frames that are PUT.

        New ones may have their names before they are whole; a crash then leaves them with the mode
        ``native_publish.MAKING``, whatever is in them.
        """
        with NativeWriter(self.root, set_owner=self.set_owner, case=self._case, in_place=True) as writer:
            failures = writer.put(files)
            self.shortfalls.update(writer.shortfalls)
            return failures

    def begin(self, line: bytes, *, on_base: bool) -> Transaction:
        """Open a transaction for the file of record ``line``, on a clone of what is there or on nothing."""
        return NativeTransaction(
            self.root,
            line,
            on_base=on_base,
            set_owner=self.set_owner,
            case=self._case,
            shortfalls=self.shortfalls,
        )

    def empty_staging(self) -> int:
        """Remove what crashed moves left in the root; return how many.  Only while nothing is running."""
        return empty_staging(self.root)


def open_quietly(dir_fd: int, name: bytes) -> int:
    """Open a regular file or directory for reading, without touching its access time if allowed."""
    if _NOATIME:
        try:
            return os.open(name, OPEN_ENTRY | _NOATIME, dir_fd=dir_fd)
        except PermissionError as error:
            if error.errno != errno.EPERM:  # EPERM: somebody else's file; EACCES: not readable at all
                raise
    return os.open(name, OPEN_ENTRY, dir_fd=dir_fd)


def _open_or_none(dir_fd: int, name: bytes) -> int | None:
    try:
        return open_quietly(dir_fd, name)
    except PermissionError:
        return None


def _read_on(fd: int, data: bytes, size_bytes: int) -> bytes:
    """Go on after a short read (network file systems, signals)."""
    while len(data) <= size_bytes and (more := os.read(fd, size_bytes + 1 - len(data))):
        data += more
    return data


def _read_directory(path: bytes, dir_fd: int, name: bytes, facts: Facts, reader: StatReader) -> Frame | None:
    fd = _open_or_none(dir_fd, name)
    try:
        fields = capture_facts(fd, dir_fd, name, facts)
        after = reader.by_name(dir_fd, name) if fd is None else reader.by_fd(fd)
    finally:
        if fd is not None:
            os.close(fd)
    return Frame(Op.STAMP, format_record(path, fields)) if _same(facts, after) else None


def _read_node(path: bytes, dir_fd: int, name: bytes, facts: Facts, reader: StatReader) -> Frame | None:
    try:
        fields = capture_facts(None, dir_fd, name, facts)
    except OSError as error:
        if error.errno == errno.EINVAL:  # readlink of something that is no link any more
            return None
        raise
    op = _OP_OF_KIND.get(fields[keys.TYPE], Op.NODE)
    return Frame(op, format_record(path, fields)) if _same(facts, reader.by_name(dir_fd, name)) else None


def _same(before: Facts, after: Facts) -> bool:
    return before[4:7] == after[4:7] and before[12:] == after[12:]


def _reading_error(path: bytes, error: OSError) -> MirrorkeepError:
    return NotFound(what=path) if error.errno in _GONE else _unreadable(path, error)


def _unreadable(path: bytes, error: OSError) -> SourceUnreadable:
    return SourceUnreadable(path=path, detail=os.strerror(error.errno) if error.errno else str(error))
