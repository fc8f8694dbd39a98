"""Where an address leads: the tree of a part, of a snapshot, or the plain folders of a volume.

Answers for: finding the part that owns a path, read-only-ness (snapshots and mirrored parts), the shared
lock around every write, and the run that a write belongs to.  Every write of this server goes through
:func:`writing` and nowhere else.

Not here: what is done in the place.  Nothing is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mirrorkeep.errors import BadUsage, GenerationConflict, NotFound, PathRefused, ReadOnly
from mirrorkeep.server.address import Address, quote_path
from mirrorkeep.store import runs
from mirrorkeep.store.pool import Store
from mirrorkeep.store.volume import Part, Volume
from mirrorkeep.tree.stored import StoredEntry, StoredTree


@dataclass(slots=True)
class Place:
    """A path inside a tree.  ``base`` is the URL path of the tree's root, without a trailing slash."""

    volume: Volume
    part: Part | None
    tree: StoredTree
    path: bytes
    base: bytes
    frozen: bool

    @property
    def prefix(self) -> bytes:
        """The path of the tree's root inside the volume."""
        return self.part.path if self.part is not None else b""

    @property
    def name(self) -> bytes:
        """The last name of the URL."""
        return self.path.rpartition(b"/")[2] or self.prefix.rpartition(b"/")[2] or self.volume.name.encode()

    def href(self, path: bytes, *, collection: bool) -> bytes:
        """Return the URL path of a tree path, percent-encoded; collections end with a slash."""
        href = self.base + b"/" + quote_path(path) if path else self.base
        return href + b"/" if collection else href

    def look(self, path: bytes | None = None) -> StoredEntry | None:
        """Return the entry at a tree path (default: the place's own), None when there is none."""
        try:
            return self.tree.stat(self.path if path is None else path)
        except (NotFound, PathRefused):
            return None

    def relative(self, address: Address) -> bytes | None:
        """Return the tree path of another address, None when it lies in another tree."""
        if address.area != "volumes" or self.frozen or address.volume != self.volume.name:
            return None
        if self.volume.part_for(address.path) is not self.part:
            return None
        return inside(address.path, self.prefix)

    def quota(self) -> tuple[int, int]:
        """Return (available, used) in bytes, of the pool that the tree lies in."""
        usage = self.volume.store.driver.usage(self.volume.tip)
        return usage.free_bytes, usage.used_bytes


def inside(path: bytes, prefix: bytes) -> bytes:
    """Return a volume's path relative to a part at ``prefix`` that owns it."""
    return path[len(prefix) + 1 :] if prefix else path


def find_place(store: Store, address: Address) -> Place:
    """Return the place of an address below a volume.  Raises NotFound.

    The tree of a snapshot is opened anew and has to be closed; those of the tip are shared.
    """
    if not address.volume:
        raise NotFound(what="a volume")
    volume = store.volume(address.volume)
    part = volume.part_for(address.path)
    frozen = address.area == "snapshots"
    if frozen:
        if part is None:
            raise NotFound(what=f"snapshot {address.snapshot} of {address.volume}")
        # Opened without the cache of directories that a read-only tree keeps for every thread: the pieces
        # of one answer are read in several threads, and what those kept open nobody would close.
        alike = store.driver.capabilities.immutable_snapshots
        root = part.snapshot_root(address.snapshot)
        twin = part.tree() if alike else None
        tree = StoredTree(root, twin=twin, taken_ns=partial(store.driver.taken_ns, root))
    else:
        tree = part.tree() if part is not None else volume.plain_tree()
    prefix = part.path if part is not None else b""
    base = address.base + (b"/" + quote_path(prefix) if prefix else b"")
    return Place(volume, part, tree, inside(address.path, prefix), base, frozen)


def find_part(store: Store, volume_name: str, path: bytes) -> Part:
    """Return the part that is exactly at ``path``.  Raises NotFound."""
    return store.volume(volume_name).part(path)


@contextlib.contextmanager
def writing(place: Place, run_header: str, incoming_bytes: int = 0) -> Iterator[bool]:
    """Hold the tree's shared lock around a write; yields whether the write must be durable at once.

    With a run header the run is checked under the lock, so that nothing of a superseded run slips in
    behind the run that superseded it, and durability comes with the run's commit.  Without one, the
    write is a plain one: refused in a mirrored part, durable before it is answered elsewhere.
    ``incoming_bytes`` have to fit well before the storage is really full.
    Raises ReadOnly, RunSuperseded, StoreRestarted, NoSpace.
    """
    part = place.part
    if incoming_bytes:
        place.volume.store.ensure_room(incoming_bytes)
    if place.frozen:
        raise ReadOnly(path=place.base, detail="snapshots never change")
    if part is None:
        if run_header:
            raise BadUsage(detail="no part of the volume covers this path")
        with place.volume.publishing():
            _refuse_parts(place)
            yield True
        return
    with part.publishing():
        if run_header:
            runs.check_run(part, run_header)
        elif part.mirrored:
            raise ReadOnly(path=place.base, detail="only the runs of its own system write here")
        yield not run_header


def _refuse_parts(place: Place) -> None:
    """Plain writes neither reach into parts nor move, replace or remove what leads to one."""
    if place.volume.part_for(place.path) is not None:
        raise GenerationConflict(path=place.path)  # made this moment
    refuse_around_parts(place, place.path)


def refuse_around_parts(place: Place, path: bytes) -> None:
    """Raise ReadOnly when a part lies below ``path`` of the plain folders and ``path`` is not the root."""
    if place.part is None and path:
        for part in place.volume.parts():
            if part.path.startswith(path + b"/"):
                raise ReadOnly(path=path, detail="it leads to a mirrored part")
