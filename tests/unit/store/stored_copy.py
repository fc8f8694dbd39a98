"""A stored copy of a native tree with its manifest, made without a server: what validation looks at."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Frame
from mirrorkeep.tree.stored import StoredTree


def make_source(root: Path) -> None:
    """Make a small tree of every usual kind, with times in the past so that damage shows."""
    for folder in ("docs/deep", "empty", "media"):
        (root / folder).mkdir(parents=True)
    (root / "docs" / "a.txt").write_bytes(b"alpha" * 100)
    (root / "docs" / "b.txt").write_bytes(b"")
    (root / "docs" / "deep" / "c.bin").write_bytes(bytes(range(256)) * 64)
    (root / "media" / "film").write_bytes(os.urandom(600_000))
    (root / "link").symlink_to("docs/a.txt")
    Path(os.fsdecode(bytes(root) + b"/bad-\xff-name\n")).write_bytes(b"odd name")
    (root / ".mirrorkeepish").write_bytes(b"a name that looks like the server's")
    os.mkfifo(root / "pipe")
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files + folders:
            os.utime(os.path.join(folder, name), ns=(10**18, 10**18 + 123_456_789), follow_symlinks=False)
    os.utime(root, ns=(10**18, 10**18))


def copy_stored(source: Path, target: Path) -> str:
    """Copy ``source`` to a stored tree at ``target``, manifest included; return the manifest's digest."""
    paths = [b""]
    for folder, folders, files in os.walk(bytes(source)):
        inside = os.path.relpath(folder, bytes(source))
        prefix = b"" if inside == b"." else inside + b"/"
        paths += [prefix + name for name in folders + files]
    paths.sort(key=order_key)
    target.mkdir(parents=True, exist_ok=True)
    with StoredTree(str(target)) as stored:
        frames = [frame for frame in NativeTree(str(source)).frames(paths) if isinstance(frame, Frame)]
        assert len(frames) == len(paths)
        assert stored.apply(frames) == []
    return write_manifest(target, [frame.line for frame in frames])


def write_manifest(target: Path, lines: list[bytes], part: bytes = b"") -> str:
    """Put a manifest of ``lines`` in place; return its digest."""
    path = target / ".mirrorkeep" / ".mirrorkeep.manifest"
    path.unlink(missing_ok=True)  # snapshots may share the old one
    with path.open("wb") as stream:
        writer = ManifestWriter(stream, {b"part": part})
        writer.add_many(lines)
        writer.finish()
    return hashlib.sha256(path.read_bytes()).hexdigest()
