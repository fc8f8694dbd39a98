"""What the stored tree's tests share: frames as a client would send them, and a look at what lies there."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.protocol import Frame, Op

MTIME = b"1700000000.123456789"
MTIME_NS = 1_700_000_000_123_456_789


def file_fields(content: bytes, **changes: bytes) -> dict[bytes, bytes]:
    fields = {
        keys.TYPE: keys.FILE,
        keys.HASH: hashlib.sha256(content).hexdigest().encode(),
        keys.SIZE: b"%d" % len(content),
        keys.MODE: b"100640",
        keys.MTIME: MTIME,
        keys.UID: b"%d" % os.getuid(),
        keys.GID: b"%d" % os.getgid(),
        keys.LINKS: b"1",
    }
    return {**fields, **{name.encode(): value for name, value in changes.items()}}


def file_line(path: bytes, content: bytes, **changes: bytes) -> bytes:
    return format_record(path, file_fields(content, **changes))


def put(path: bytes, content: bytes, **changes: bytes) -> Frame:
    return Frame(Op.PUT, file_line(path, content, **changes), content)


def line(path: bytes, kind: bytes, **changes: bytes) -> bytes:
    fields = {keys.TYPE: kind, keys.MTIME: MTIME}
    if kind == keys.DIRECTORY:
        fields[keys.MODE] = b"40750"
    return format_record(path, {**fields, **{name.encode(): value for name, value in changes.items()}})


def directory(path: bytes, **changes: bytes) -> Frame:
    return Frame(Op.STAMP, line(path, keys.DIRECTORY, **changes))


def link(path: bytes, target: bytes) -> Frame:
    return Frame(Op.LINK, line(path, keys.LINK, link_target=target))


def delete(path: bytes, kind: bytes = keys.FILE) -> Frame:
    return Frame(Op.DELETE, line(path, kind))


def look(root: Path) -> dict[str, tuple[str, bytes, int]]:
    """Return everything natively below ``root``, staging left out: type, content, mtime of files."""
    found: dict[str, tuple[str, bytes, int]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if ".mirrorkeep.staging" in name:
            continue
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[name] = ("link", os.fsencode(path.readlink()), 0)
        elif stat.S_ISREG(status.st_mode):
            found[name] = ("file", path.read_bytes(), status.st_mtime_ns)
        else:
            found[name] = ("directory", b"", 0)
    return found


def staged(root: Path) -> list[str]:
    folder = root / ".mirrorkeep" / ".mirrorkeep.staging"
    return sorted(os.listdir(folder)) if folder.exists() else []
