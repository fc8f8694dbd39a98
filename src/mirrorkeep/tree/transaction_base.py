"""What a transaction starts from: the file that is there, cloned and kept, or nothing.

Not here: the transaction itself (``transaction``).  A crash leaves staged files that expire.
"""

from __future__ import annotations

import os
import stat as stat_module
from typing import Final

from mirrorkeep.errors import MalformedManifest, PatchTargetMissing
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import Record, parse_record
from mirrorkeep.tree.digest import same_digest
from mirrorkeep.tree.layout import split_path
from mirrorkeep.tree.placement import READ_FILE, Placement
from mirrorkeep.tree.staging import copy_content

BASE_BYTES: Final = b"base_bytes"
VOUCHED: Final = b"base_vouched"


def stage_base(
    placement: Placement, record: Record, data: bytes, on_base: bool
) -> tuple[int, dict[bytes, bytes]]:
    """Make the staged file; returns the generation to compare at the end, and what to remember."""
    staging = placement.staging
    parent, name = split_path(record.path)
    with placement.directories() as directories:
        try:
            directory = directories.get(parent)
            sidecar = placement.read_replaced(directory, name)
            base = os.open(name, READ_FILE, dir_fd=directory.fd) if on_base else -1
        except FileNotFoundError:
            if on_base:
                raise PatchTargetMissing(path=record.path, detail="there is no such file") from None
            os.close(staging.create(name=data)[1])
            return 0, {}
        fd = -1
        try:
            fd = staging.create(name=data)[1]
            if base < 0:
                return sidecar.generation, {}
            status = os.fstat(base)
            if not sidecar.generation or not stat_module.S_ISREG(status.st_mode):
                raise PatchTargetMissing(path=record.path, detail="there is no such file")
            copy_content(base, fd, status.st_size)
            _keep_base(placement, base, data + b".base", directory.fd, name)
            entries = {BASE_BYTES: b"%d" % status.st_size}
            if _is_vouched(sidecar.line, status, record):
                entries[VOUCHED] = b"1"
            return sidecar.generation, entries
        finally:
            for opened in (fd, base):
                if opened >= 0:
                    os.close(opened)


def _keep_base(placement: Placement, base: int, kept: bytes, dir_fd: int, name: bytes) -> None:
    """Give the base's inode another name; where that cannot be, keep a copy."""
    staging = placement.staging
    try:
        os.link(name, kept, src_dir_fd=dir_fd, dst_dir_fd=staging.fd, follow_symlinks=False)
        status = os.stat(kept, dir_fd=staging.fd, follow_symlinks=False)
        if os.path.samestat(status, os.fstat(base)):
            return
        staging.discard(kept)  # replaced this moment: keep what was cloned
    except PermissionError:
        pass
    fd = staging.create(name=kept)[1]
    try:
        copy_content(base, fd, os.fstat(base).st_size)
    finally:
        os.close(fd)


def _is_vouched(base_line: bytes, status: os.stat_result, believed: Record) -> bool:
    try:
        base = parse_record(base_line)
    except (MalformedManifest, IndexError):
        return False
    wanted = {**believed.fields, keys.SIZE: b"%d" % base.size}  # the opening record has the new size
    return (
        same_digest(base.fields, wanted)
        and base.size == status.st_size
        and base.mtime_ns == status.st_mtime_ns
    )
