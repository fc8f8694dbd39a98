"""Volumes and their parts: where trees, snapshots and records lie, and who holds them right now.

Answers for: finding the part that owns a path, making parts (they never nest), the part's state record and
its barrier.  A part is made in this order: its tree, then its folder of records, renamed into place; a
crash before the rename leaves a plain folder, which the next attempt takes over.

Not here: runs (``runs``), what a stored tree is (``tree.stored``), rights (``registry``).
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from mirrorkeep.errors import NotFound, PartNesting, PathRefused, printable
from mirrorkeep.store import locks
from mirrorkeep.store.drivers.system import make_folder, storage_errors
from mirrorkeep.store.history import History, SnapshotInfo
from mirrorkeep.store.open_trees import TipTree
from mirrorkeep.store.records import RecordCache, write_record
from mirrorkeep.tree.durability import flush_directory
from mirrorkeep.tree.layout import HIDDEN, MANIFEST

if TYPE_CHECKING:
    from mirrorkeep.store.pool import Store
    from mirrorkeep.tree.stored import StoredTree

ROOT_KEY: Final = "="
_MAX_KEY: Final = 240
_FRESH_S: Final = 0.05
_SHOWN_PARTS: Final = 10


@dataclass(frozen=True)
class PartState:
    """What is durable about a part between requests (``state.json``).

    ``run``: the open run as ``{"id", "epoch", "source", "begun", "patch"}``; ``commits``: the last two
    commits as ``{"run", "commit", "position"}``, newest last; ``manifest``: of the last closed run as
    ``{"digest", "entries", "bytes"}``, with ``"damaged"`` once its file in the tip was found to be another;
    ``closing``: a close that is to be rolled forward; ``closed``: the answer to the last close.  ``dirty``:
    the tip may differ from ``manifest``.  ``durable_ns``: when the last flush began (None: not known),
    ``doubted``: see ``doubt``.
    """

    epoch: int = 0
    run: dict[str, Any] | None = None
    commits: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] | None = None
    dirty: bool = False
    sequence: int = 0
    closing: dict[str, Any] | None = None
    closed: dict[str, Any] | None = None
    durable_ns: int | None = None
    doubted: list[list[int]] = field(default_factory=list)

    @property
    def manifest_digest(self) -> str:
        """Digest of the manifest in the tip, "" when there is none."""
        return self.manifest["digest"] if self.manifest else ""


class Volume:
    """One volume: a tip, its snapshots, and the parts that own places in it."""

    def __init__(self, store: Store, name: str, identity: str = "") -> None:
        """``identity`` is the registry's, "" while the volume is being made."""
        self.store = store
        self.name = name
        self.identity = identity
        self.folder = os.path.join(store.pool, "volumes", name)
        self.tip = os.path.join(self.folder, "tip")
        self.snapshots = os.path.join(self.folder, "snapshots")
        self._records = os.path.join(self.folder, "parts")
        self._known: tuple[int, frozenset[str]] = (-1, frozenset())
        self._parts: dict[bytes, Part] = {}
        self._plain = TipTree(store.open_trees, self.tip)
        self._making = threading.Lock()

    def part(self, path: bytes, create: bool = False) -> Part:
        """Return the part that is exactly at ``path``, made on demand when ``create`` is given.

        Raises NotFound; PartNesting and PathRefused when it cannot be made there.
        """
        key = part_key(path)
        if key not in self._keys():
            if not create:
                raise NotFound(what=f"part /{printable(path)} of volume {self.name}{self._parts_in(path)}")
            with self._making, self.exclusive():
                if not os.path.exists(os.path.join(self._records, key)):
                    self._create_part(path, key)
        if create:
            with storage_errors(self._records):
                flush_directory(self._records)  # who made it may have been killed before that
        part = self._parts.get(path)
        if part is None:
            part = self._parts.setdefault(path, Part(self, path, key))
        return part

    def part_for(self, path: bytes) -> Part | None:
        """Return the part that owns ``path``, None where the volume has plain folders (about 4 us)."""
        keys = self._keys()
        if not keys:
            return None
        if ROOT_KEY in keys:
            return self.part(b"")
        names = path.split(b"/")
        for count in range(1, len(names) + 1):
            prefix = b"/".join(names[:count])
            if prefix and quote_from_bytes(prefix, safe="") in keys:
                return self.part(prefix)
        return None

    def _parts_in(self, path: bytes) -> str:
        """Say which parts lie in ``path``: who may look for one there may know of them."""
        inside = path + b"/" if path else b""
        names = [
            f"/{printable(one)}" for one in sorted(map(key_path, self._keys())) if one.startswith(inside)
        ]
        more = [f"and {len(names) - _SHOWN_PARTS} more"] if len(names) > _SHOWN_PARTS else []
        return f"; its parts are {', '.join([*names[:_SHOWN_PARTS], *more])}" if names else ""

    def parts(self) -> list[Part]:
        """Return all parts, ordered by path."""
        return [self.part(path) for path in sorted(map(key_path, self._keys()))]

    def plain_tree(self) -> StoredTree:
        """Return the tree of the plain folders; callers look at :meth:`part_for` first."""
        return self._plain.get()

    def publishing(self) -> locks.Held:
        """Hold off the making of parts while a plain folder is written; look at ``part_for`` inside."""
        return locks.shared(os.path.join(self.folder, "lock"))

    def exclusive(self) -> locks.Held:
        """Hold off everybody who writes plain folders or makes parts."""
        return locks.exclusive(os.path.join(self.folder, "lock"))

    def close(self) -> None:
        """Close every open tree."""
        for part in list(self._parts.values()):
            part.close()
        self._plain.close()

    def _keys(self) -> frozenset[str]:
        # A part's folder is renamed into place whole, so the directory's mtime tells of every new one.
        try:
            stamp = os.stat(self._records).st_mtime_ns
        except FileNotFoundError:
            raise NotFound(what=f"volume {self.name}") from None
        if self._known[0] == stamp:
            return self._known[1]
        keys = frozenset(name for name in os.listdir(self._records) if not is_in_the_making(name))
        if time.time() - stamp / 1e9 > _FRESH_S:  # else a second change may carry the same time
            self._known = (stamp, keys)
        return keys

    def has_room_for(self, path: bytes) -> bool:
        """Whether no part is at ``path``, in it or around it: one may still be made there."""
        key = part_key(path)
        return key not in self._keys() and self._in_the_way(path) is None

    def _in_the_way(self, path: bytes) -> bytes | None:
        """Return the path of another part that lies in ``path`` or around it (parts never nest)."""
        for other in map(key_path, self._keys()):
            if not path or not other or path.startswith(other + b"/") or other.startswith(path + b"/"):
                return other
        return None

    def _create_part(self, path: bytes, key: str) -> None:
        other = self._in_the_way(path)
        if other is not None:
            raise PartNesting(path=path or b"the volume", other=other or b"that is the whole volume")
        # What lies there was written plainly, and was durable before that was answered.
        state = PartState(dirty=self._create_root(path), durable_ns=time.time_ns())
        making = os.path.join(self._records, f"{ROOT_KEY}{key}")
        shutil.rmtree(making, ignore_errors=True)
        with storage_errors(making):
            for inner in ("snapshots", "verdicts", "findings"):
                make_folder(os.path.join(making, inner), 0o700)
            self.store.driver.make_durable(self.folder)  # no records of a tree that a power cut takes back
            write_record(os.path.join(making, "state.json"), asdict(state))
            os.rename(making, os.path.join(self._records, key))

    def _create_root(self, path: bytes) -> bool:
        """Make the tree of a part; returns whether it holds something that no manifest describes."""
        names = path.split(b"/") if path else []
        for count in range(1, len(names)):
            self._make_plain_folder(b"/".join(names[:count]))
        native = os.path.join(os.fsencode(self.tip), path) if path else os.fsencode(self.tip)
        root = os.fsdecode(native)
        if os.path.lexists(root) and (os.path.islink(root) or not os.path.isdir(root)):
            raise PathRefused(path=path, detail="there is a file of that name")
        self.store.driver.create_tree(root)
        return any(name != os.fsdecode(HIDDEN) for name in os.listdir(root))

    def _make_plain_folder(self, path: bytes) -> None:
        native = os.path.join(os.fsencode(self.tip), path)
        if os.path.islink(native) or (os.path.exists(native) and not os.path.isdir(native)):
            raise PathRefused(path=path, detail="not a folder")
        if not os.path.exists(native):
            self.plain_tree().make_directory(path)


class Part:
    """One part: the tree at ``root``, its history, its state, its barrier.  Safe for several threads."""

    def __init__(self, volume: Volume, path: bytes, key: str) -> None:
        self.volume = volume
        self.path = path
        self.key = key
        self.root = os.path.join(volume.tip, os.fsdecode(path)) if path else volume.tip
        self.folder = os.path.join(volume.folder, "parts", key)
        self.history = History(os.path.join(self.folder, "snapshots"))
        self._state_path = os.path.join(self.folder, "state.json")
        self._lock_path = os.path.join(self.folder, "lock")
        self._turn_path = os.path.join(self.folder, "turn")
        self._cache = RecordCache()
        self._tree = TipTree(volume.store.open_trees, self.root)

    # --- trees ----------------------------------------------------------------------------------

    def tree(self) -> StoredTree:
        """Return the tip's tree, shared by the threads of this process and open while the caller keeps it."""
        return self._tree.get()

    def snapshot_root(self, name: str) -> str:
        """Return the native directory of a snapshot (``latest``: the newest).  Raises NotFound."""
        return self.place_of(self.history.find(name).name)

    def place_of(self, name: str) -> str:
        """Return where a snapshot of that name lies, whether or not it is there."""
        folder = os.path.join(self.volume.snapshots, name)
        return os.path.join(folder, os.fsdecode(self.path)) if self.path else folder

    def snapshot_tree(self, name: str) -> StoredTree:
        """Return a snapshot's tree, newly opened; the caller closes it.  Raises NotFound."""
        from mirrorkeep.tree.stored import StoredTree

        return StoredTree(self.snapshot_root(name), read_only=True)

    def snapshots(self) -> list[SnapshotInfo]:
        """Return all snapshots, oldest first."""
        return self.history.all()

    def snapshot(self, name: str) -> SnapshotInfo:
        """Return one snapshot; ``latest`` is the newest by sequence.  Raises NotFound."""
        return self.history.find(name)

    def manifest_path(self, snapshot: str = "") -> str:
        """Return the manifest's file in a snapshot, or of the last closed run in the tip ("")."""
        root = self.snapshot_root(snapshot) if snapshot else self.root
        return os.path.join(root, os.fsdecode(HIDDEN), os.fsdecode(MANIFEST))

    @property
    def patch_path(self) -> str:
        """Where validation leaves its findings for the next run; often there is none."""
        return os.path.join(self.folder, "patch")

    # --- state ----------------------------------------------------------------------------------

    def state(self) -> PartState:
        """Return the present state.  Raises NotFound when the part was deleted."""
        known = PartState.__dataclass_fields__
        return PartState(**{key: value for key, value in self.raw_state().items() if key in known})

    def raw_state(self) -> dict[str, Any]:
        """Return the state's record, shared and not to be changed (about 3 us)."""
        record = self._cache.read(self._state_path)
        if record is None:
            raise NotFound(what=f"part /{printable(self.path)} of volume {self.volume.name}")
        return record

    def change_state(self, state: PartState, **changes: Any) -> PartState:
        """Record a new state durably and return it; the caller holds :meth:`frozen`."""
        state = replace(state, **changes)
        with storage_errors(self._state_path):
            write_record(self._state_path, asdict(state))
        self._cache.forget(self._state_path)
        return state

    @property
    def mirrored(self) -> bool:
        """Whether a run has ever begun here: then nobody else writes."""
        return bool(self.raw_state()["epoch"])

    def publishing(self) -> locks.Held:
        """Hold the barrier shared, around every change of the tip; check the run inside."""
        return locks.shared(self._lock_path)

    def turn(self) -> locks.Held:
        """Hold the one writer's place; inside :meth:`publishing`.

        Several writers of one file tree are no faster than one, for they wait for the same locks of the file
        system and for each other's caches; and they cost a third more processor time.
        """
        return locks.exclusive(self._turn_path)

    def frozen(self) -> locks.Held:
        """Hold the barrier alone: no change is under way, none begins."""
        return locks.exclusive(self._lock_path)

    def close(self) -> None:
        """Close the tip's tree."""
        self._tree.close()


def part_key(path: bytes) -> str:
    """Return the name of the part's folder of records.  Raises PathRefused for what cannot be a part."""
    if not path:
        return ROOT_KEY
    key = quote_from_bytes(path, safe="")
    for name in path.split(b"/"):
        if name in (b"", b".", b"..") or b"\0" in name or name.startswith(HIDDEN) or len(name) > 255:
            raise PathRefused(path=path, detail="not a place for a part")
    if len(key) > _MAX_KEY:
        raise PathRefused(path=path, detail=f"a part's path has at most {_MAX_KEY} encoded characters")
    return key


def is_in_the_making(name: str) -> bool:
    """Say whether a folder of records is not a part yet: no key but the root's begins like the root's."""
    return name.startswith(ROOT_KEY) and name != ROOT_KEY


def key_path(key: str) -> bytes:
    """Return the path of the part whose folder of records is ``key``."""
    return b"" if key == ROOT_KEY else unquote_to_bytes(key)
