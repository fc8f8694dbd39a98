"""The dir driver: plain folders on any file system, without root.

Answers for: snapshots as copies that share what the file system lets them share.  With reflinks a copy
shares blocks; without, it shares inodes by hard links, so that a writer of the tip must break the
link before *any* change, a chmod too (``capabilities.shares_inodes``), and damage to a file's blocks
reaches every snapshot that shares them.  Snapshots are read-only by convention: nothing but the store
writes there.

Not here: breaking links (``tree.stored``).  A crash leaves the copy of a snapshot in the making under
a name that no part can have, which the next attempt removes; under its own name a snapshot is whole.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from mirrorkeep.errors import AlreadyExists, StorageFailure
from mirrorkeep.store.driver import Capabilities, Usage
from mirrorkeep.store.drivers.reflink import copy_tree, has_reflinks
from mirrorkeep.store.drivers.system import storage_errors
from mirrorkeep.tree.durability import flush_directory, flush_file_system
from mirrorkeep.tree.layout import HIDDEN, STAGING
from mirrorkeep.tree.removal import remove_tree

_SKIPPED: Final = frozenset((os.fsdecode(STAGING),))
"""Left out of snapshots: files in the making would go on changing inside them."""
_MAX_RESERVE_BYTES: Final = 512 * 1024 * 1024


class DirDriver:
    """A pool of plain folders, see :class:`mirrorkeep.store.driver.Driver` for each method's contract."""

    name: ClassVar[str] = "dir"

    def __init__(self, data: str, settings: Mapping[str, Any]) -> None:
        self._pool = os.path.join(os.path.abspath(data), "pool")
        reflinks = bool(settings.get("reflinks", False))
        self.capabilities = Capabilities(
            needs_root=False,
            immutable_snapshots=False,
            shares_blocks=reflinks,
            shares_inodes=not reflinks,
            reports_changes=False,
        )
        self._flush_fd: int | None = None
        self._flush_lock = threading.Lock()

    def create(self, size_bytes: int | None) -> dict[str, Any]:
        with storage_errors(self._pool):
            os.mkdir(self._pool, 0o755)
            return {"reflinks": has_reflinks(self._pool)}

    def attach(self) -> None:
        with self._flush_lock, storage_errors(self._pool):
            if self._flush_fd is None:
                self._flush_fd = os.open(self._pool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def detach(self, *, unmount: bool = True) -> None:
        with self._flush_lock:
            if self._flush_fd is not None:
                os.close(self._flush_fd)
                self._flush_fd = None

    def create_tree(self, path: str) -> None:
        with storage_errors(path):
            if not os.path.isdir(path):
                os.mkdir(path, 0o755)

    def snapshot(self, tree: str, target: str) -> None:
        if os.path.lexists(target):
            raise AlreadyExists(what=target)
        making = _making_name(target)
        self.delete_tree(making)
        try:
            with storage_errors(target):
                copy_tree(tree, making, link_files=self.capabilities.shares_inodes, skip=_SKIPPED)
                self.make_durable(making)
                os.rename(making, target)
                flush_directory(os.path.dirname(target))
        except BaseException:
            self.delete_tree(making)
            raise

    def delete_tree(self, path: str) -> None:
        try:
            remove_tree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageFailure(detail=f"{path}: {error.strerror or error}") from error

    def make_durable(self, path: str) -> None:
        if self._flush_fd is None:
            raise StorageFailure(detail=f"{self._pool} is not attached")
        with storage_errors(path):
            flush_file_system(self._flush_fd)

    def changed_between(self, old: str, new: str) -> Iterator[bytes] | None:
        # A shared inode that was changed in place differs from neither side, and a file's times can
        # be set back: attributes are no account of the storage's own.
        return None

    def usage(self, path: str) -> Usage:
        with storage_errors(path):
            found = os.statvfs(self._pool)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        reserve = min(total // 100, _MAX_RESERVE_BYTES)
        return Usage(total, total - found.f_bfree * found.f_frsize, max(0, free - reserve))

    def generation(self, tree: str) -> int | None:
        return None

    def taken_ns(self, snapshot: str) -> int | None:
        return None


def _making_name(target: str) -> str:
    """Return where a snapshot is made: beside its place, where another part's snapshot can never lie."""
    folder, name = os.path.split(target)
    digits = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return os.path.join(folder, f"{os.fsdecode(HIDDEN)}.making-{digits}")
