"""btrfs subvolumes by ioctl: made, frozen, destroyed and dated without forking a tool (20 to 50 us).

Answers for: the ABI of ``linux/btrfs.h``.  Each call is atomic in the kernel: after a crash the subvolume is
there or not.  A snapshot is durable when the call returns, because the kernel commits a transaction
for it; a new or destroyed subvolume is durable after the next flush.

Not here: what subvolumes are used for (``btrfs``).
"""

from __future__ import annotations

import array
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from typing import Final

_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_DESTROY: Final = 0x5000940F
_SNAP_CREATE_V2: Final = 0x50009417
_TREE_SEARCH: Final = 0xD0009411
_INO_LOOKUP: Final = 0xD0009412

_ARGS: Final = struct.Struct("<q4088s")
_ARGS_V2: Final = struct.Struct("<qQQ32s4040s")
_SEARCH_KEY: Final = struct.Struct("<7Q4I4Q")
_SEARCH_HEAD: Final = struct.Struct("<3Q2I")
_READ_ONLY: Final = 1 << 1
_SEARCH_BYTES: Final = 4096
_LOOKUP_BYTES: Final = 4096

_ROOT_TREE: Final = 1
_ROOT_ITEM: Final = 132
_GENERATION_OFFSET: Final = 160
"""Of ``btrfs_root_item``: behind the inode item, the transaction that last changed the tree."""
_MADE_OFFSET: Final = 339
"""Of the same: ``otime``, seconds and nanoseconds."""
_TIME: Final = struct.Struct("<QI")
_TOP_INODE: Final = 256
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX: Final = (1 << 64) - 1


def is_subvolume(path: str) -> bool:
    """Whether ``path`` (on btrfs) is the top of a subvolume.  Raises OSError."""
    found = os.lstat(path)
    return found.st_ino == _TOP_INODE and stat.S_ISDIR(found.st_mode)


def create(path: str) -> None:
    """Make an empty subvolume.  Raises OSError (EEXIST)."""
    _call_in_parent(path, _SUBVOL_CREATE, lambda name: _ARGS.pack(0, name))
    os.chmod(path, 0o755)  # whatever the process's mask made of it


def snapshot(tree: str, target: str) -> None:
    """Make ``target`` a read-only snapshot of the subvolume ``tree``.  Raises OSError (EEXIST)."""
    source = os.open(tree, _DIRECTORY)
    try:
        pack = _ARGS_V2.pack
        _call_in_parent(target, _SNAP_CREATE_V2, lambda name: pack(source, 0, _READ_ONLY, b"", name))
    finally:
        os.close(source)


def destroy(path: str) -> None:
    """Remove the subvolume, read-only or not; its blocks come free in the background.

    Raises OSError: ENOTEMPTY while it holds another subvolume.
    """
    _call_in_parent(path, _SNAP_DESTROY, lambda name: _ARGS.pack(0, name))


def _call_in_parent(path: str, request: int, pack: Callable[[bytes], bytes]) -> None:
    parent, name = os.path.split(os.fsencode(path.rstrip("/")))
    fd = os.open(parent, _DIRECTORY)
    try:
        fcntl.ioctl(fd, request, bytearray(pack(name)))  # a bytes argument may have 1 KiB at most
    finally:
        os.close(fd)


def identity(fd: int) -> int:
    """Return the id of the subvolume that holds the descriptor.  Raises OSError."""
    buffer = array.array("B", struct.pack("<QQ", 0, _TOP_INODE).ljust(_LOOKUP_BYTES, b"\0"))
    fcntl.ioctl(fd, _INO_LOOKUP, buffer, True)
    (tree_id,) = struct.unpack_from("<Q", buffer, 0)
    return int(tree_id)


def generation(path: str) -> int:
    """Return the transaction that last changed the subvolume, as far as it is on disk (root only).

    A snapshot and the tree it was taken of are equal in this number until either changes.
    Raises OSError.
    """
    (number,) = struct.unpack_from("<Q", _root_item(path), _GENERATION_OFFSET)
    return int(number)


def made_ns(path: str) -> int:
    """Return when the subvolume that holds ``path`` was made, a snapshot: taken (ns; root only).

    Raises OSError.
    """
    seconds, ns = _TIME.unpack_from(_root_item(path), _MADE_OFFSET)
    return int(seconds) * 1_000_000_000 + int(ns)


def _root_item(path: str) -> bytes:
    fd = os.open(path, _DIRECTORY)
    try:
        return _search_root_item(fd, identity(fd))
    finally:
        os.close(fd)


def _search_root_item(fd: int, tree_id: int) -> bytes:
    # A root item's key is (id, ROOT_ITEM, transaction of its creation): search every third part.
    key = _SEARCH_KEY.pack(
        _ROOT_TREE, tree_id, tree_id, 0, _MAX, 0, _MAX, _ROOT_ITEM, _ROOT_ITEM, 1, 0, 0, 0, 0, 0
    )
    buffer = array.array("B", key.ljust(_SEARCH_BYTES, b"\0"))
    fcntl.ioctl(fd, _TREE_SEARCH, buffer, True)
    found = struct.unpack_from("<I", buffer, 64)[0]
    if not found:
        raise FileNotFoundError(2, "the subvolume has no root item")
    return bytes(buffer[_SEARCH_KEY.size + _SEARCH_HEAD.size :])
