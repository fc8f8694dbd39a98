"""Operations of a bundle on content that the server already has: stamps, hard links, moves, copies.

None of them may turn an assumption into a record: before an entry gets a new line, its content is known
to be what the line says, by the sidecar and an untouched file, or by reading it.

Not here: new content (``stored_apply``).  A crash leaves whole operations, or a pair that does not match.
"""

from __future__ import annotations

import os
import re
import stat as stat_module
from collections.abc import Collection, Mapping
from typing import Final

from mirrorkeep.errors import DigestMismatch, MalformedManifest, MalformedRequest, NotFound
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record, parse_time_ns
from mirrorkeep.tree.digest import hash_open_file, same_digest
from mirrorkeep.tree.layout import Directory, split_path
from mirrorkeep.tree.placement import READ_FILE, is_node
from mirrorkeep.tree.protocol import Frame
from mirrorkeep.tree.sidecar import RECORDED_ONLY, Sidecar
from mirrorkeep.tree.staging import HELD, new_name
from mirrorkeep.tree.stored_places import EntryPlaces

_KEY: Final = re.compile(rb"[0-9a-f]{1,64}")
_DIGEST: Final = re.compile(rb"[0-9a-f]{1,128}")


class KeptContent(EntryPlaces):
    """The operations that send no content."""

    # --- stamps of files ---------------------------------------------------------------------

    def _stamp_file(self, record: Record, frame: Frame) -> None:
        placement, fields = self._placement, record.fields
        directory, name = self._parent(record.path)
        old = placement.read_sidecar(directory, name)
        fd = os.open(name, READ_FILE, dir_fd=directory.fd)
        try:
            status = os.fstat(fd)
            if old is None or not stat_module.S_ISREG(status.st_mode):
                raise NotFound(what=record.path)
            self._check_kept(fd, status, old, record)
            if keys.HARD_LINK in fields and not self._is_leaders(status, fields[keys.HARD_LINK]):
                self._hard_link(record, frame)  # the leader was just given an inode of its own
                return
            if status.st_nlink > 1:
                self._stamp_shared(fd, status, directory, name, record, frame.line, old)
                return
            try:
                notes = placement.stamp(fd, fields, keys.FILE, -1, -1)
                self._sidecar_now(directory, name, frame.line, notes, old.generation)
            except BaseException:
                restore_status(fd, status)
                raise
        finally:
            os.close(fd)

    def _is_leaders(self, status: os.stat_result, leader: bytes) -> bool:
        """Say whether an inode is that of the group's leader (or there is no leader to ask)."""
        parent, name = split_path(leader)
        try:
            above = self._directories.get(parent)
            return os.path.samestat(os.stat(name, dir_fd=above.fd, follow_symlinks=False), status)
        except FileNotFoundError:
            return True

    def _check_kept(self, fd: int, status: os.stat_result, old: Sidecar, record: Record) -> None:
        """Raise DigestMismatch unless the stored content is what ``record`` says.

        Believed without reading when the sidecar names the same digest and nobody touched the file.
        """
        if status.st_size != record.size:
            raise DigestMismatch(path=record.path, expected=record.hash, actual=b"another size")
        try:
            known = parse_record(old.line, check=False)
            if same_digest(known.fields, record.fields) and known.mtime_ns == status.st_mtime_ns:
                return
        except (MalformedManifest, IndexError):
            pass
        actual = hash_open_file(fd, record.fields)
        if actual != record.hash:
            raise DigestMismatch(path=record.path, expected=record.hash, actual=actual)

    def _stamp_shared(
        self,
        fd: int,
        status: os.stat_result,
        directory: Directory,
        name: bytes,
        record: Record,
        line: bytes,
        old: Sidecar,
    ) -> None:
        """Stamp an entry whose inode has other names, which no change may reach: it gets an inode of its own.

        Nobody here knows which of them are still one file at the source; some may be snapshots.  Those that
        are come after their leader, as further names of what it is then.
        """
        known, refused = _known_of(old, record.fields)
        if self._has_status(fd, status, record.fields, known, refused):
            self._sidecar_now(directory, name, line, b"\0".join(refused), old.generation)
        else:
            self._restage(fd, directory, name, record, line, old.generation)

    # --- hard links --------------------------------------------------------------------------

    def _hard_link(self, record: Record, frame: Frame) -> None:
        leader_path = record.fields.get(keys.HARD_LINK)
        if not leader_path:
            raise MalformedRequest(detail="the record names no leader of its hard links")
        directory, name = self._parent(record.path)
        leader_parent, leader_name = split_path(leader_path)
        leader_directory = self._directories.get(leader_parent)
        leader = self._placement.read_sidecar(leader_directory, leader_name)
        if leader is None:
            raise NotFound(what=leader_path)
        known = parse_record(leader.line, check=False)
        if known.kind == keys.FILE and not same_digest(known.fields, record.fields):
            raise DigestMismatch(path=record.path, expected=record.hash, actual=known.hash)
        if is_node(known.kind):
            self._node(record, frame)
            return
        staged = new_name()
        os.link(
            leader_name,
            staged,
            src_dir_fd=leader_directory.fd,
            dst_dir_fd=self._staging.fd,
            follow_symlinks=False,
        )
        try:
            notes = leader.entries.get(RECORDED_ONLY, b"")
            self._publish(directory, name, staged, record, frame.line, notes, leader.generation)
        except BaseException:
            self._staging.discard(staged)
            raise

    # --- moves and copies --------------------------------------------------------------------

    def _open_verified(self, path: bytes, wanted: Mapping[bytes, bytes]) -> int:
        """Open the stored file at ``path`` if sidecar, size and time vouch for the wanted content."""
        parent, name = split_path(path)
        directory = self._directories.get(parent)
        sidecar = self._placement.read_sidecar(directory, name)
        if sidecar is None:
            raise NotFound(what=path)
        known = parse_record(sidecar.line, check=False)
        fd = os.open(name, READ_FILE, dir_fd=directory.fd)
        status = os.fstat(fd)
        if (
            not stat_module.S_ISREG(status.st_mode)
            or not same_digest(known.fields, wanted)
            or status.st_size != known.size
            or status.st_mtime_ns != known.mtime_ns
        ):
            os.close(fd)
            raise DigestMismatch(path=path, expected=wanted.get(keys.HASH, b""), actual=known.hash)
        return fd

    def _hold(self, record: Record, frame: Frame) -> None:
        held = held_name(bytes(frame.data), record)
        fd = self._open_verified(record.path, record.fields)
        try:
            try:
                os.stat(held, dir_fd=self._staging.fd, follow_symlinks=False)
                return  # held before
            except FileNotFoundError:
                pass
            parent, name = split_path(record.path)
            try:
                os.link(
                    name,
                    held,
                    src_dir_fd=self._directories.get(parent).fd,
                    dst_dir_fd=self._staging.fd,
                    follow_symlinks=False,
                )
            except FileExistsError:
                pass
        finally:
            os.close(fd)

    def _place(self, record: Record, frame: Frame) -> None:
        held = held_name(bytes(frame.data), record)
        directory, name = self._parent(record.path)
        try:
            fd = os.open(held, READ_FILE, dir_fd=self._staging.fd)
        except FileNotFoundError:
            try:  # placed before, if what is there is what was asked for
                os.close(self._open_verified(record.path, record.fields))
            except DigestMismatch:
                raise NotFound(what=b"what was held for " + record.path) from None
            self._stamp_file(record, frame)
            return
        try:
            status = os.fstat(fd)
            if status.st_size != record.size:
                raise DigestMismatch(path=record.path, expected=record.hash, actual=b"another size")
            if status.st_nlink == 1:
                notes = self._placement.stamp(fd, record.fields, keys.FILE, -1, -1)
                self._publish(directory, name, held, record, frame.line, notes)
            elif self._has_status(fd, status, record.fields):
                self._publish(directory, name, held, record, frame.line, b"")
            else:
                self._restage(fd, directory, name, record, frame.line, None)
                self._staging.discard(held)
        finally:
            os.close(fd)

    def _has_status(
        self,
        fd: int,
        status: os.stat_result,
        fields: Mapping[bytes, bytes],
        known: Mapping[bytes, bytes] | None = None,
        refused: Collection[bytes] = (),
    ) -> bool:
        """Say whether an inode that others share has all the metadata of the record already.

        ``known`` are the fields of its record so far, where it has one; ``refused`` are keys that have the
        same value in both and that the file system did not take.
        """
        from mirrorkeep.tree.metadata import posix

        placement = self._placement
        owner = (b"%d" % status.st_uid, b"%d" % status.st_gid)
        if (
            stat_module.S_IMODE(status.st_mode) != placement.native_mode(fields, keys.FILE)
            or (
                keys.MTIME not in refused
                and status.st_mtime_ns != parse_time_ns(fields.get(keys.MTIME, b"0"))
            )
            or (placement.set_owner and owner != (fields.get(keys.UID), fields.get(keys.GID)))
            or not posix.has_attributes(fd, placement.native_fields(fields, keys.FILE), refused)
        ):
            return False
        # Some file systems set flags by themselves: those of a record that stays the same are not looked at.
        same_flags = known is not None and known.get(keys.FLAGS) == fields.get(keys.FLAGS)
        return same_flags or posix.has_flags(fd, fields)

    def _copy(self, record: Record, frame: Frame) -> None:
        directory, name = self._parent(record.path)
        fd = self._open_verified(bytes(frame.data), record.fields)
        try:
            self._restage(fd, directory, name, record, frame.line, None)
        finally:
            os.close(fd)


def _known_of(old: Sidecar, fields: Mapping[bytes, bytes]) -> tuple[Mapping[bytes, bytes], list[bytes]]:
    """Return the fields of a sidecar's record, and the keys of ``fields`` that the file system refused."""
    try:
        known = parse_record(old.line, check=False).fields
    except (MalformedManifest, IndexError):
        return {}, []
    noted = old.entries.get(RECORDED_ONLY, b"").split(b"\0")
    return known, [key for key in noted if key in fields and fields[key] == known.get(key)]


def held_name(key: bytes, record: Record) -> bytes:
    """Return the staged name for the key of HOLD and PLACE and the content that both name.

    So PLACE finds what HOLD has verified under the same digest, or nothing.  Raises MalformedRequest.
    """
    if not _KEY.fullmatch(key):
        raise MalformedRequest(detail="the key of a move is not 1-64 lowercase hexadecimal digits")
    if not _DIGEST.fullmatch(record.hash):
        raise MalformedRequest(detail="the record of a move names no digest")
    return HELD + key + b"." + record.hash


def restore_status(fd: int, status: os.stat_result) -> None:
    """Give an open file back the mode, owner and times it had; a failure here changes nothing more."""
    try:
        now = os.fstat(fd)
        if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, stat_module.S_IMODE(status.st_mode))
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError:
        pass
