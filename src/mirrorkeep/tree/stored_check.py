"""Comparing one stored entry with one manifest line: what validation asks for every entry.

The native state is what counts; the sidecar must say the same as the line.  With ``content`` every byte
is read and hashed.  What the file system could not hold (noted in the sidecar when it was stored), and
owners where the server may not set them, are compared with the record only.

Not here: walking, verdicts, repair (``store``, ``sync``).  Nothing here writes.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Mapping
from dataclasses import dataclass

from mirrorkeep.errors import (
    MalformedManifest,
    MalformedSidecar,
    MirrorkeepError,
    NotFound,
    PathRefused,
    printable,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.tree.digest import hash_open_file, same_digest
from mirrorkeep.tree.layout import ROOT_SIDECAR, Directories, Directory, split_path
from mirrorkeep.tree.placement import READ_FILE, Placement, is_node
from mirrorkeep.tree.sidecar import RECORDED_ONLY, Sidecar
from mirrorkeep.tree.stored_read import StoredEntry, native_kind

_IGNORED_ATTRIBUTES = (b"security.selinux", b"security.ima", b"security.evm", b"btrfs.")
_UNSTABLE = frozenset((keys.ATIME, keys.INODE_CTIME, keys.INODE, keys.LINKS, keys.BIRTH_TIME))


@dataclass(slots=True, frozen=True)
class Finding:
    """One difference: ``kind`` is one of content, size, mtime, mode, owner, xattr, acl, link, hard_link,
    type, missing, extra, unreadable, sidecar, metadata."""

    path: bytes
    kind: str
    detail: str


def check_entry(
    placement: Placement, directories: Directories, path: bytes, line: bytes, *, content: bool
) -> list[Finding]:
    """Return how what is stored at ``path`` differs from ``line``; an empty list: not at all.

    Raises MalformedManifest when ``line`` is no record; what cannot be read is a finding.
    """
    record = parse_record(line)
    try:
        return _check(placement, directories, path, record, line, content)
    except FileNotFoundError:
        return [Finding(path, "missing", "its directory is not there")]
    except (NotADirectoryError, PathRefused):
        return [Finding(path, "missing", "something else stands in its path")]
    except OSError as error:
        return [Finding(path, "unreadable", error.strerror or str(error))]


def _check(
    placement: Placement,
    directories: Directories,
    path: bytes,
    record: Record,
    line: bytes,
    content: bool,
) -> list[Finding]:
    parent, name = split_path(path)
    directory = directories.get(parent)
    sidecar, findings = _check_sidecar(placement, directory, name or ROOT_SIDECAR, path, record, line)
    kind = record.kind
    if is_node(kind):
        return findings + _check_node(directory, name, path, sidecar)
    recorded_only = sidecar.entries.get(RECORDED_ONLY, b"").split(b"\0") if sidecar is not None else []
    fd = -1
    try:
        if kind == keys.FILE:
            try:
                fd = os.open(name, READ_FILE, dir_fd=directory.fd)
                native = os.fstat(fd)
            except FileNotFoundError:
                return [*_without_sidecar(findings), Finding(path, "missing", "the file is not there")]
            except OSError:
                native = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                if native_kind(native) == keys.FILE:
                    raise
        else:
            try:
                native = os.stat(name or b".", dir_fd=directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                return [*_without_sidecar(findings), Finding(path, "missing", "it is not there")]
        findings += compare_status(placement, path, native, record, recorded_only)
        if findings and findings[-1].kind == "type":
            return findings
        if kind == keys.LINK:
            findings += _check_link(directory, name, path, record)
        if kind == keys.FILE and keys.HARD_LINK in record.fields:
            findings += _check_hard_link(placement, directories, path, native, record)
        fields = placement.native_fields(record.fields, kind)
        findings += _check_attributes(directory, name, path, fd, fields, recorded_only)
        if content and kind == keys.FILE and native.st_size == record.size and record.hash:
            actual = hash_open_file(fd, record.fields)
            if actual != record.hash:
                detail = f"expected {record.hash.decode('ascii', 'replace')}, got {actual.decode()}"
                findings.append(Finding(path, "content", detail))
        return findings
    finally:
        if fd >= 0:
            os.close(fd)


def _without_sidecar(findings: list[Finding]) -> list[Finding]:
    """Leave out that a missing entry has no sidecar either."""
    return [finding for finding in findings if finding.detail != _NO_SIDECAR]


_NO_SIDECAR = "it has no sidecar"


def _check_sidecar(
    placement: Placement, directory: Directory, name: bytes, path: bytes, record: Record, line: bytes
) -> tuple[Sidecar | None, list[Finding]]:
    try:
        sidecar = placement.read_sidecar(directory, name)
    except MalformedSidecar as problem:
        return None, [Finding(path, "sidecar", str(problem))]
    if sidecar is None:
        return None, [Finding(path, "sidecar", _NO_SIDECAR)]
    if sidecar.line == line:
        return sidecar, []
    try:
        known = parse_record(sidecar.line)
    except MalformedManifest as problem:
        return sidecar, [Finding(path, "sidecar", str(problem))]
    differing = sorted(
        key
        for key in known.fields.keys() | record.fields.keys()
        if key not in _UNSTABLE and known.fields.get(key) != record.fields.get(key)
    )
    if not differing:
        return sidecar, []
    names = b", ".join(differing).decode("utf-8", "replace")
    return sidecar, [Finding(path, "metadata", f"the sidecar differs in {names}")]


def _check_node(directory: Directory, name: bytes, path: bytes, sidecar: Sidecar | None) -> list[Finding]:
    try:
        native = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return [] if sidecar is not None else [Finding(path, "missing", "its sidecar is not there")]
    kind = native_kind(native).decode()
    return [Finding(path, "type", f"a {kind} stands where only a sidecar should be")]


def compare_status(
    placement: Placement,
    path: bytes,
    native: os.stat_result,
    record: Record,
    recorded_only: list[bytes],
) -> list[Finding]:
    """Return how ``native`` differs from the record in type, size, time, mode and owner."""
    kind, fields = record.kind, record.fields
    actual_kind = native_kind(native)
    if actual_kind != kind:
        return [Finding(path, "type", f"expected a {kind.decode()}, found a {actual_kind.decode()}")]
    findings: list[Finding] = []
    if kind == keys.FILE and native.st_size != record.size:
        findings.append(Finding(path, "size", f"expected {record.size} bytes, found {native.st_size}"))
    if keys.MTIME in fields and native.st_mtime_ns != record.mtime_ns and keys.MTIME not in recorded_only:
        detail = f"expected {record.mtime_ns} ns, found {native.st_mtime_ns} ns"
        findings.append(Finding(path, "mtime", detail))
    if kind != keys.LINK and keys.MODE in fields:
        expected = placement.native_mode(fields, kind)
        actual = stat_module.S_IMODE(native.st_mode)
        if expected != actual and not (fields.get(keys.ACL_ACCESS) and (expected ^ actual) & ~0o070 == 0):
            findings.append(Finding(path, "mode", f"expected {expected:o}, found {actual:o}"))
    if placement.set_owner:
        owner = (fields.get(keys.UID), fields.get(keys.GID))
        actual_owner = (b"%d" % native.st_uid, b"%d" % native.st_gid)
        if any(want is not None and want != have for want, have in zip(owner, actual_owner, strict=True)):
            detail = f"expected {owner}, found {actual_owner}"
            findings.append(Finding(path, "owner", detail.replace("b'", "'")))
    return findings


def _check_link(directory: Directory, name: bytes, path: bytes, record: Record) -> list[Finding]:
    target = os.readlink(name, dir_fd=directory.fd)
    expected = record.fields.get(keys.LINK_TARGET, b"")
    return [] if target == expected else [Finding(path, "link", f"expected {expected!r}, found {target!r}")]


def _check_hard_link(
    placement: Placement, directories: Directories, path: bytes, native: os.stat_result, record: Record
) -> list[Finding]:
    """Find a name that is no longer one of its leader's file.

    Where the leader is recorded with other content, a run could bring over the leader and not this name: the
    manifest itself says then that they are two files, and the next run looks at this name again.
    """
    leader = record.fields[keys.HARD_LINK]
    try:
        parent, name = split_path(leader)
        directory = directories.get(parent)
        if os.path.samestat(os.stat(name, dir_fd=directory.fd, follow_symlinks=False), native):
            return []
        known = placement.read_sidecar(directory, name)
        if known is not None and not same_digest(parse_record(known.line).fields, record.fields):
            return []
    except (NotFound, FileNotFoundError):
        return []  # a missing leader is a finding of its own, whose repair looks at all names of the file
    except (MirrorkeepError, OSError):
        pass
    return [Finding(path, "hard_link", f"no name of the same file as {printable(leader)}")]


def _check_attributes(
    directory: Directory,
    name: bytes,
    path: bytes,
    fd: int,
    fields: Mapping[bytes, bytes],
    recorded_only: list[bytes],
) -> list[Finding]:
    """Compare extended attributes and ACLs; one system call when there are none."""
    opened = -1
    where: int | bytes = fd
    if fd < 0:
        opened = os.open(name or b".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        where = b"/proc/self/fd/%d" % opened
    try:
        expected = {
            key: value
            for key, value in fields.items()
            if (key[:6] == keys.XATTR_PREFIX or key[:9] == b"posix_acl")
            and key not in recorded_only
            and not _is_of_the_system(key)
        }
        if not expected and not _has_attributes(where):
            return []
        from mirrorkeep.tree.metadata import posix

        actual = {
            key: value for key, value in posix.read_attributes(where).items() if not _is_of_the_system(key)
        }
    finally:
        if opened >= 0:
            os.close(opened)
    findings = []
    for key in sorted(expected.keys() | actual.keys()):
        if expected.get(key) != actual.get(key) and key not in recorded_only:
            kind = "xattr" if key.startswith(keys.XATTR_PREFIX) else "acl"
            findings.append(Finding(path, kind, f"{key.decode('utf-8', 'replace')} differs"))
    return findings


def _is_of_the_system(key: bytes) -> bool:
    """Whether the attribute is one that each system gives its own files: the store keeps it in the record."""
    return key[6:].startswith(_IGNORED_ATTRIBUTES)


def _has_attributes(where: int | bytes) -> bool:
    try:
        return bool(os.listxattr(where))
    except OSError:
        return False


def compare_native(placement: Placement, entry: StoredEntry, record: Record) -> list[Finding]:
    """Return how an entry's native status differs from its own record (no attributes, no content)."""
    if is_node(record.kind):
        return [] if entry.native is None else [Finding(entry.path, "type", "it is no node")]
    if entry.native is None:
        return [Finding(entry.path, "missing", "only its sidecar is there")]
    notes = entry.sidecar.entries.get(RECORDED_ONLY, b"").split(b"\0") if entry.sidecar is not None else []
    return compare_status(placement, entry.path, entry.native, record, notes)
