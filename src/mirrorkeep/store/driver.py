"""What a pool stands on, seen through one protocol of ten methods, with capabilities as data.

Answers for: the contract that ``tests/contract/test_driver.py`` holds every driver to, and for choosing
one.  Trees are directories named by absolute native paths inside the pool.

Not here: what trees mean (``volume``), when snapshots are made (``runs``), the drivers themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from mirrorkeep.errors import BadUsage, EngineMissing


@dataclass(frozen=True)
class Capabilities:
    """What a driver can do, for callers that want to know before they ask."""

    needs_root: bool
    immutable_snapshots: bool
    """Writing into a snapshot fails in the kernel (EROFS), not by convention."""
    shares_blocks: bool
    """A changed file shares its unchanged blocks with the snapshots (SNP-08)."""
    shares_inodes: bool
    """Tip and snapshots share inodes: every change must break the link first (design 10.11)."""
    reports_changes: bool
    """``changed_between`` answers by the storage's own account."""


@dataclass(frozen=True)
class Usage:
    """Room of a pool in bytes; ``free_bytes`` is what may still be written before 507."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


class Driver(Protocol):
    """Storage of one pool.  Calls may come from several threads and processes at once.

    Every method raises StorageFailure or NoSpace when the storage refuses, EngineMissing when a tool or
    right is absent; a failed call leaves no half-made tree under the name that was asked for.
    """

    name: ClassVar[str]
    capabilities: Capabilities

    def create(self, size_bytes: int | None) -> dict[str, Any]:
        """Make the storage, once a pool; return settings to keep in ``store.json``.  Does not attach."""

    def attach(self) -> None:
        """Make the pool's directory usable (mount).  Repeatable; takes over what a killed service left."""

    def detach(self, *, unmount: bool = True) -> None:
        """Undo :meth:`attach`; without ``unmount`` only let go of what this object holds, the pool stays
        usable for others.  Repeatable.  Raises StorageFailure while something uses the pool."""

    def create_tree(self, path: str) -> None:
        """Make ``path`` (parent exists) a tree: an empty one when nothing is there; a plain folder turns
        into one with what it holds, at once for whoever looks.  Repeatable: a tree stays as it is."""

    def snapshot(self, tree: str, target: str) -> None:
        """Freeze ``tree`` as ``target`` (parent exists); atomic: the whole snapshot or none, durable on
        return.  The caller holds writers off.  Raises AlreadyExists."""

    def delete_tree(self, path: str) -> None:
        """Delete a tree, a snapshot, or a folder of such, wholly.  Repeatable."""

    def make_durable(self, path: str) -> None:
        """Make every write made below ``path`` so far durable.  Raises StorageFailure when any write
        since the last call, in whatever file, could not be brought to the disk."""

    def changed_between(self, old: str, new: str) -> Iterator[bytes] | None:
        """Paths (relative, of ``new`` or, when gone, of ``old``) that differ between two snapshots of one
        tree by the storage's own account, each perhaps more than once; None when it cannot tell."""

    def usage(self, path: str) -> Usage:
        """Room of the pool."""

    def generation(self, tree: str) -> int | None:
        """A number that grows whenever the (durable) tree changes and is equal for a tree and its fresh
        snapshot; None when the storage keeps none."""

    def taken_ns(self, snapshot: str) -> int | None:
        """When a snapshot was taken, by the storage's own note (ns); None when it keeps none."""


NAMES: Final = ("btrfs", "zfs", "cephfs", "dir")


def open_driver(data: str, settings: Mapping[str, Any]) -> Driver:
    """Return the driver that ``store.json`` names; nothing is attached.  Raises BadUsage."""
    from mirrorkeep.store.drivers.btrfs import BtrfsDriver
    from mirrorkeep.store.drivers.dir import DirDriver

    match settings["driver"]:
        case "btrfs":
            return BtrfsDriver(data, settings)
        case "dir":
            return DirDriver(data, settings)
        case name if name in NAMES:
            raise EngineMissing(what=f"the {name} driver", remedy="this build has btrfs and dir")
        case name:
            raise BadUsage(detail=f"unknown driver {name!r}; known: {', '.join(NAMES)}")


def choose_driver(data: str) -> str:
    """Return the best driver for a store at ``data`` on this machine (what ``auto`` means)."""
    from mirrorkeep.store.drivers import btrfs

    return "dir" if btrfs.missing_for(os.path.abspath(data)) else "btrfs"
