"""Reading ``btrfs send --no-data``: which paths differ between two snapshots, by the storage's own account.

Answers for: a strict parse of the stream (magic, version, lengths, CRC-32C of every command, end mark) and
for following names: new inodes appear under temporary names, directories are moved away and back, so
every path of a command is translated to where it ends up.  What is not understood makes the whole answer
None ("cannot tell"), never a shorter list; so do more than ``MAX_NAMES`` names, for they are held in memory.

Not here: running the tool (``btrfs``).
Source: the kernel's ``fs/btrfs/send.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

_MAGIC: Final = b"btrfs-stream\0"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<IHI")
_ATTRIBUTE: Final = struct.Struct("<HH")
_MAX_COMMAND_BYTES: Final = 16 * 1024 * 1024
MAX_NAMES: Final = 100_000
"""Files and sidecars that a stream may speak of; after larger changes both manifests are compared instead."""

_SUBVOL, _SNAPSHOT, _END = 1, 2, 21
_CREATE: Final = frozenset((3, 4, 5, 6, 7, 8))
"""mkfile, mkdir, mknod, mkfifo, mksock, symlink."""
_RENAME, _LINK = 9, 10
_REMOVE: Final = frozenset((11, 12))
"""unlink, rmdir."""
_CHANGE: Final = frozenset((13, 14, 15, 16, 17, 18, 19, 20, 22))
"""set_xattr, remove_xattr, write, clone, truncate, chmod, chown, utimes, update_extent."""
_PATH, _PATH_TO, _PATH_LINK = 15, 16, 17


class _Unreadable(Exception):
    """The stream is damaged, cut off, too much, or says something this parser does not know."""


@dataclass(frozen=True)
class Difference:
    """What a stream says: ``changed`` paths of the new snapshot, ``moved`` ones among them that keep an
    old identity under a new name (with everything inside), and ``gone`` names of the old snapshot."""

    changed: list[bytes]
    moved: list[bytes]
    gone: list[bytes]


def read_difference(stream: IO[bytes]) -> Difference | None:
    """Read a whole stream; None when it cannot be understood as a whole."""
    names = _Names()
    try:
        for command, attributes in _commands(stream):
            _apply(names, command, attributes)
        if stream.read(1):  # waits for the sender's end, too: a pipe closed before that makes it fail
            return None
    except _Unreadable:
        return None
    return names.difference()


def _commands(stream: IO[bytes]) -> Iterator[tuple[int, dict[int, bytes]]]:
    head = _exactly(stream, len(_MAGIC) + 4)
    if head[: len(_MAGIC)] != _MAGIC or int.from_bytes(head[-4:], "little") != _VERSION:
        raise _Unreadable
    while True:
        length, command, crc = _HEAD.unpack(_exactly(stream, _HEAD.size))
        if length > _MAX_COMMAND_BYTES:
            raise _Unreadable
        body = _exactly(stream, length)
        if crc32c(body, crc32c(_HEAD.pack(length, command, 0))) != crc:
            raise _Unreadable
        if command == _END:
            return
        yield command, _attributes(body)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise _Unreadable
    return data


def _attributes(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position < len(body):
        if position + _ATTRIBUTE.size > len(body):
            raise _Unreadable
        kind, length = _ATTRIBUTE.unpack_from(body, position)
        position += _ATTRIBUTE.size
        if position + length > len(body):
            raise _Unreadable
        found[kind] = body[position : position + length]
        position += length
    return found


def _apply(names: _Names, command: int, attributes: dict[int, bytes]) -> None:
    if command in (_SUBVOL, _SNAPSHOT):
        return
    path = _required(attributes, _PATH)
    if command in _CHANGE:
        names.touch(path)
    elif command in _CREATE:
        names.create(path)
    elif command == _RENAME:
        names.rename(path, _required(attributes, _PATH_TO))
    elif command == _LINK:
        names.create(path)
        names.touch(_required(attributes, _PATH_LINK))
    elif command in _REMOVE:
        names.remove(path)
    else:
        raise _Unreadable


def _required(attributes: dict[int, bytes], kind: int) -> bytes:
    if kind not in attributes:
        raise _Unreadable
    return attributes[kind]


class _Node:
    """A directory entry that the stream speaks of; ``origin`` is its path in the old snapshot."""

    __slots__ = ("children", "origin", "touched")

    def __init__(self, origin: bytes | None) -> None:
        self.children: dict[bytes, _Node] = {}
        self.origin = origin
        self.touched = False


class _Names:
    """The part of the tree that a stream speaks of, as it stands after the commands so far.

    An entry that is seen for the first time is one of the old snapshot, under its parent's old path.  The
    names that a stream invents (``o257-7-0``) belong to entries without origin or lead back to one, so
    that they leave no trace.
    """

    def __init__(self) -> None:
        self._root = _Node(b"")
        self._lost: set[bytes] = set()
        self._count = 0

    def touch(self, path: bytes) -> None:
        node = self._root
        if path:
            parent, name = self._parent(path)
            node = self._child(parent, name)
        node.touched = True

    def create(self, path: bytes) -> None:
        node = self._new(None)
        node.touched = True
        self._put(path, node)

    def remove(self, path: bytes) -> None:
        self._lose(self._take(path))

    def rename(self, old: bytes, new: bytes) -> None:
        node = self._take(old)
        self._lose(node)
        node.touched = True
        self._put(new, node)

    def difference(self) -> Difference:
        changed: list[bytes] = []
        moved: list[bytes] = []
        stack = [(self._root, b"")]
        while stack:
            node, path = stack.pop()
            if node.touched:
                changed.append(path)
            if node.origin == path:
                self._lost.discard(path)
            elif node.origin is not None:
                moved.append(path)
            stack.extend((child, _join(path, name)) for name, child in node.children.items())
        return Difference(sorted(changed), sorted(moved), sorted(self._lost))

    def _put(self, path: bytes, node: _Node) -> None:
        parent, name = self._parent(path)
        replaced = parent.children.get(name)
        if replaced is not None:
            self._lose(replaced)
        parent.children[name] = node

    def _take(self, path: bytes) -> _Node:
        parent, name = self._parent(path)
        node = self._child(parent, name)
        del parent.children[name]
        return node

    def _new(self, origin: bytes | None) -> _Node:
        self._count += 1
        if self._count > MAX_NAMES:
            raise _Unreadable
        return _Node(origin)

    def _lose(self, node: _Node) -> None:
        if node.origin is not None:
            self._lost.add(node.origin)

    def _parent(self, path: bytes) -> tuple[_Node, bytes]:
        folder, _, name = path.rpartition(b"/")
        if not name:
            raise _Unreadable
        node = self._root
        for step in folder.split(b"/") if folder else ():
            node = self._child(node, step)
        return node, name

    def _child(self, node: _Node, name: bytes) -> _Node:
        child = node.children.get(name)
        if child is None:
            child = self._new(None if node.origin is None else _join(node.origin, name))
            node.children[name] = child
        return child


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE: Final = _crc_table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """Return the Castagnoli CRC as the stream has it: started with 0, not inverted."""
    table = _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc
