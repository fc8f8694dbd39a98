"""Compare two native trees byte by byte and attribute by attribute, with the standard library alone.

Answers for: naming every difference that a user of the files could see.  It is deliberately no part of the
product and shares no code with it, so that it can judge it.

Not here: access and change times (reading changes them), birth times (nothing can set them), the second
name under which XFS lists access lists, and the places of holes (a file with holes must read the same and
may not take much more room, see ``ROOM``).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_BYTES = 1 << 20
ROOM = 1 << 20
"""A copy may take this much more room on disk than its original before its holes count as lost."""


@dataclass(frozen=True)
class Difference:
    """What differs at ``path`` (relative, bytes): ``kind`` is one word, ``detail`` for people."""

    path: bytes
    kind: str
    detail: str

    def __str__(self) -> str:
        shown = os.fsdecode(self.path).encode("utf-8", "backslashreplace").decode()
        return f"{shown or '.'}: {self.kind}: {self.detail}"


@dataclass
class Tally:
    """What was compared."""

    entries: int = 0
    files: int = 0
    size_bytes: int = 0


def _names(folder: bytes, skip: frozenset[bytes]) -> list[bytes]:
    return sorted(name for name in os.listdir(folder) if name not in skip)


def _same_content(left: bytes, right: bytes) -> int | None:
    """Return the first offset where two files differ, or None."""
    offset = 0
    with open(left, "rb", buffering=0) as a, open(right, "rb", buffering=0) as b:
        while True:
            x, y = a.read(CHUNK_BYTES), b.read(CHUNK_BYTES)
            if x != y:
                return offset + next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), 0)
            if not x:
                return None
            offset += len(x)


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        return {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if not name.startswith(("security.selinux", "btrfs.", "trusted.SGI_ACL_"))
        }
    except OSError:  # a file system without extended attributes
        return {}


def _differing_attributes(
    left: os.stat_result, right: os.stat_result, *, owner: bool
) -> Iterator[tuple[str, str]]:
    if stat.S_IMODE(left.st_mode) != stat.S_IMODE(right.st_mode):
        yield "mode", f"{stat.S_IMODE(left.st_mode):o} and {stat.S_IMODE(right.st_mode):o}"
    if owner and (left.st_uid, left.st_gid) != (right.st_uid, right.st_gid):
        yield "owner", f"{left.st_uid}:{left.st_gid} and {right.st_uid}:{right.st_gid}"
    if left.st_mtime_ns != right.st_mtime_ns:
        yield "mtime", f"{left.st_mtime_ns} and {right.st_mtime_ns} ns"
    device = stat.S_ISCHR(left.st_mode) or stat.S_ISBLK(left.st_mode)
    if device and left.st_rdev != right.st_rdev:
        yield "device", f"{left.st_rdev} and {right.st_rdev}"
    if stat.S_ISREG(left.st_mode):
        if left.st_size != right.st_size:
            yield "size", f"{left.st_size} and {right.st_size} bytes"
        sparse = left.st_blocks * 512 < left.st_size
        if sparse and right.st_blocks * 512 > left.st_blocks * 512 + ROOM:
            yield "holes", f"{left.st_blocks * 512} and {right.st_blocks * 512} bytes of disk"


class Comparer:
    """Compare ``left`` with ``right``; entries called as one of ``skip`` are not looked at, at any depth."""

    def __init__(
        self,
        left: str | bytes,
        right: str | bytes,
        *,
        skip: tuple[bytes, ...] = (),
        owner: bool | None = None,
    ) -> None:
        self.left, self.right = os.fsencode(left), os.fsencode(right)
        self.skip = frozenset(skip)
        self.owner = os.geteuid() == 0 if owner is None else owner
        self.tally = Tally()
        self._groups: dict[tuple[int, int], tuple[int, int]] = {}

    def differences(self) -> Iterator[Difference]:
        """Yield every difference, walking both trees once."""
        yield from self._entry(b"")

    def _entry(self, path: bytes) -> Iterator[Difference]:
        left, right = (os.path.join(top, path) if path else top for top in (self.left, self.right))
        a, b = os.lstat(left), os.lstat(right)
        self.tally.entries += 1
        if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
            yield Difference(path, "type", f"{stat.filemode(a.st_mode)} and {stat.filemode(b.st_mode)}")
            return
        for kind, detail in _differing_attributes(a, b, owner=self.owner):
            yield Difference(path, kind, detail)
        if (x := _xattrs(left)) != (y := _xattrs(right)):
            names = sorted(name for name in x.keys() | y.keys() if x.get(name) != y.get(name))
            yield Difference(path, "xattr", ", ".join(names))
        if stat.S_ISDIR(a.st_mode):
            yield from self._directory(path, left, right)
        elif stat.S_ISLNK(a.st_mode):
            if os.readlink(left) != os.readlink(right):
                yield Difference(path, "link", f"{os.readlink(left)!r} and {os.readlink(right)!r}")
        elif stat.S_ISREG(a.st_mode):
            yield from self._file(path, a, b)

    def _directory(self, path: bytes, left: bytes, right: bytes) -> Iterator[Difference]:
        ours, theirs = _names(left, self.skip), _names(right, self.skip)
        there = set(theirs)
        for name in ours:
            child = path + b"/" + name if path else name
            if name in there:
                yield from self._entry(child)
            else:
                yield Difference(child, "missing", "only in the first tree")
        for name in theirs:
            if name not in set(ours):
                yield Difference(path + b"/" + name if path else name, "extra", "only in the second tree")

    def _file(self, path: bytes, a: os.stat_result, b: os.stat_result) -> Iterator[Difference]:
        self.tally.files += 1
        self.tally.size_bytes += a.st_size
        if a.st_size == b.st_size:
            left, right = os.path.join(self.left, path), os.path.join(self.right, path)
            if (offset := _same_content(left, right)) is not None:
                yield Difference(path, "content", f"differs from byte {offset} on")
        if a.st_nlink > 1 or b.st_nlink > 1:
            key, twin = (a.st_dev, a.st_ino), (b.st_dev, b.st_ino)
            if self._groups.setdefault(key, twin) != twin:
                yield Difference(path, "hard link", "the names do not share one file in both trees")


def main(argv: list[str]) -> int:
    """``python -m rig.compare LEFT RIGHT [SKIPPED_NAME...]``: exit 1 and a line each when they differ."""
    comparer = Comparer(argv[0], argv[1], skip=tuple(os.fsencode(name) for name in argv[2:]))
    found = 0
    for difference in comparer.differences():
        found += 1
        print(difference)
    tally = comparer.tally
    print(f"{tally.entries} entries, {tally.size_bytes} bytes compared, {found} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
