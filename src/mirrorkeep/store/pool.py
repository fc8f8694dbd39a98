"""The store at one place on disk: its settings, its pool, its volumes, and the service that runs on it.

Answers for: ``DATA`` as docs/architecture.md lays it out; making it, opening it (mounting when needed, taking
over what a killed service left), making and deleting volumes, room for writers.

Not here: what happens inside a volume (``volume``, ``runs``), serving (``server``).  ``create`` writes
``store.json`` last: without it there is no store, and what an interrupted ``create`` left is named.  A
volume is in the registry only when its trees are there.  Deleting one is decided in the registry; what a
crash leaves of it goes with the next start, or when a volume of that name is made.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from mirrorkeep.errors import AlreadyExists, BadUsage, MirrorkeepError, NoSpace, NotFound
from mirrorkeep.store import keys
from mirrorkeep.store.driver import Driver, Usage, choose_driver, open_driver
from mirrorkeep.store.drivers.system import make_folder, storage_errors
from mirrorkeep.store.open_trees import OpenTrees
from mirrorkeep.store.queue import Queue
from mirrorkeep.store.records import (
    RecordCache,
    make_durable_folder,
    read_record,
    write_record,
)
from mirrorkeep.store.registry import Registry
from mirrorkeep.store.volume import Volume
from mirrorkeep.tree.durability import flush_directory, flush_file_system

FORMAT: Final = 1
_USAGE_AGE_S: Final = 0.5
_WRITE_MARGIN_BYTES: Final = 4 * 1024 * 1024
_REQUESTS_AT_ONCE: Final = 8
"""So many writers may be let in on one reading of the room that is left."""


class Store:
    """An open store.  Any number of processes may have it open; threads share one object."""

    def __init__(self, data: str, settings: dict[str, Any], clock: Callable[[], float] = time.time) -> None:
        self.data = os.path.abspath(data)
        self.settings = settings
        self.clock = clock
        self.pool = os.path.join(self.data, "pool")
        self.keys_folder = os.path.join(self.data, "keys")
        self.queue = Queue(os.path.join(self.data, "queue"))
        self.registry = Registry(self.data)
        self.driver: Driver = open_driver(self.data, settings)
        self.open_trees = OpenTrees()
        self._records = RecordCache()
        self._volumes: dict[str, Volume] = {}
        self._volumes_lock = threading.Lock()
        self._usage: tuple[float, Usage] = (float("-inf"), Usage(0, 0, 0))
        self._unflushed_bytes = 0

    # --- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        data: str,
        driver: str = "auto",
        size_bytes: int | None = None,
        *,
        hosts: Iterable[str] = (),
        device: str | None = None,
        encryption: str = "unencrypted",
    ) -> Store:
        """Make a store at ``data`` (missing or empty) and open it.

        ``auto`` takes the best driver that this machine has.  Raises AlreadyExists, EngineMissing,
        NoSpace, StorageFailure.
        """
        data = os.path.abspath(data)
        if os.path.exists(os.path.join(data, "store.json")):
            raise AlreadyExists(what=f"a store at {data}")
        if os.path.isdir(data) and os.listdir(data):
            raise AlreadyExists(what=f"{data} is not empty; it")
        with storage_errors(data):
            make_durable_folder(data, 0o777)
            for folder in ("keys", "registry", "queue", "run", "log"):
                make_durable_folder(os.path.join(data, folder))
        settings = _create_pool(data, choose_driver(data) if driver == "auto" else driver, size_bytes, device)
        keys.create_keys(os.path.join(data, "keys"), hosts)
        store = cls(data, settings)
        store.registry.prepare()
        store.driver.attach()
        with storage_errors(data):
            for folder in ("volumes", "deleted"):
                # Modes inside are those of other machines: this one's users have no business there.
                os.makedirs(os.path.join(store.pool, folder), mode=0o700, exist_ok=True)
            _refuse_folding(store.pool)
            store.driver.make_durable(store.pool)
            settings["encryption"] = encryption
            write_record(os.path.join(data, "store.json"), settings)
        return store

    @classmethod
    def open(cls, data: str, *, clock: Callable[[], float] = time.time) -> Store:
        """Open the store at ``data``, mounting its pool when it is not.  Raises NotFound, StorageFailure."""
        settings = read_record(os.path.join(data, "store.json"))
        if settings is None:
            raise NotFound(what=f"a store at {data} (make one with: mirrorkeep store init {data})")
        if settings.get("format") != FORMAT:
            raise BadUsage(detail=f"{data} was made by a newer version (format {settings.get('format')})")
        store = cls(data, settings, clock)
        store.driver.attach()
        _refuse_folding(store.pool)
        return store

    def close(self, *, detach: bool = False) -> None:
        """Let go of everything; ``detach`` also unmounts the pool (StorageFailure: in use)."""
        for volume in list(self._volumes.values()):
            volume.close()
        self._volumes.clear()
        self.driver.detach(unmount=detach)

    def recover(self) -> None:
        """Put in order what a crash left, once, before anybody is served: closes are rolled forward, moves
        replayed, staging emptied, deleted volumes removed.  Repeatable."""
        from mirrorkeep.store.recovery import recover_store

        recover_store(self)

    # --- the service ----------------------------------------------------------------------------

    @property
    def incarnation(self) -> str:
        """Id of the running service (about 2 us); runs of another one resume from their last commit."""
        record = self._records.read(self._incarnation_path)
        return record["incarnation"] if record else "none"

    @property
    def started_ns(self) -> int:
        """When the incarnation began, in nanoseconds since 1970; 0 when that is not known."""
        record = self._records.read(self._incarnation_path)
        return int(record.get("started_ns", 0)) if record else 0

    def start_incarnation(self) -> str:
        """Begin a new incarnation: on start, and after the storage lost a write.  Returns it."""
        incarnation = secrets.token_hex(8)
        record = {"incarnation": incarnation, "pid": os.getpid(), "started_ns": time.time_ns()}
        write_record(self._incarnation_path, record)
        self._records.forget(self._incarnation_path)
        return incarnation

    @property
    def _incarnation_path(self) -> str:
        return os.path.join(self.data, "run", "incarnation")

    def certificate(self, hosts: Iterable[str] = ()) -> tuple[str, str]:
        """Return the paths of the certificate and key to serve with: configured ones, else our own, which is
        issued anew when it ends soon or lacks one of ``hosts``."""
        if self.settings.get("certificate"):
            return self.settings["certificate"], self.settings["key"]
        keys.renew_certificate(self.keys_folder, hosts)
        return keys.server_certificate(self.keys_folder)

    def address(self) -> str:
        """Return ``HOST:PORT`` that the store serves on, or served on last."""
        record = self._records.read(os.path.join(self.data, "run", "listen"))
        return record["address"] if record else "127.0.0.1:8443"

    def remember_address(self, address: str) -> None:
        """Keep the address (the real port, not 0) for ``volume create``, which prints URLs."""
        host = address.rpartition(":")[0].strip("[]")
        shown = address
        if host in ("", "0.0.0.0", "::"):
            shown = f"{socket.gethostname()}:{address.rpartition(':')[2]}"
        record = {"address": shown, "listen": address, "pid": os.getpid()}
        write_record(os.path.join(self.data, "run", "listen"), record)

    # --- volumes --------------------------------------------------------------------------------

    def volume(self, name: str) -> Volume:
        """Return the volume.  Raises NotFound.

        A volume that was deleted, and one of the same name made since, by whatever process, is noticed here:
        what this process had open of the old one is let go as soon as nobody uses it any more.
        """
        identity = self.registry.volume_identity(name)
        volume = self._volumes.get(name)
        if volume is not None and volume.identity == identity:
            return volume
        with self._volumes_lock:
            identity, volume = self.registry.volume_identity(name), self._volumes.get(name)
            if identity is None:
                self._volumes.pop(name, None)
                raise NotFound(what=f"volume {name}")
            if volume is None or volume.identity != identity:
                volume = self._volumes[name] = Volume(self, name, identity)
            return volume

    def volumes(self) -> list[Volume]:
        """Return all volumes by name."""
        return [self.volume(name) for name in self.registry.volumes()]

    def create_volume(self, name: str) -> Volume:
        """Make a volume with an empty tip.  Raises AlreadyExists, BadUsage, NoSpace."""
        self.finish_deletion(name)
        with self.registry.changing():
            self.registry.refuse_existing(name)
            self.ensure_room(0)
            volume = Volume(self, name)
            if os.path.isdir(volume.snapshots) and os.listdir(volume.snapshots):
                raise AlreadyExists(what=f"unregistered storage with snapshots at {volume.folder}; it")
            with storage_errors(volume.folder):
                for folder in ("snapshots", "parts"):
                    make_folder(os.path.join(volume.folder, folder))
                self.driver.create_tree(volume.tip)
                self.driver.make_durable(volume.folder)
            self.registry.create_volume(name)
            return self.volume(name)

    def delete_volume(self, name: str) -> None:
        """Delete a volume with its whole history and its tokens, for ever.  Raises NotFound.

        Asked for again after a crash, it goes on with what was decided.
        """
        with self.registry.changing():
            if not self.registry.is_being_deleted(name):
                with storage_errors(self.data):
                    self.registry.decide_deletion(name)
        with self._volumes_lock:
            volume = self._volumes.pop(name, None)
        if volume is not None:
            volume.close()
        self.finish_deletion(name)

    def finish_deletion(self, name: str) -> None:
        """Remove what is left of a volume whose deletion was decided, if one was.  Repeatable."""
        aside = os.path.join(self.pool, "deleted", f"{name}.{secrets.token_hex(4)}")
        with self.registry.changing():
            if not self.registry.is_being_deleted(name):
                return
            folder = Volume(self, name).folder
            with storage_errors(folder):
                with suppress(FileNotFoundError):
                    os.rename(folder, aside)
                # Else a power cut may bring the folder back when nobody knows any more that it has to go.
                flush_directory(os.path.dirname(folder))
                self.registry.delete_volume(name)
        self.driver.delete_tree(aside)

    # --- room -----------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """Room of the pool, at most half a second old."""
        now = time.monotonic()
        if now - self._usage[0] > _USAGE_AGE_S:
            self._usage = (now, self.driver.usage(self.pool))
        return self._usage[1]

    def ensure_room(self, incoming_bytes: int) -> None:
        """Raise NoSpace when ``incoming_bytes`` more do not fit well before the storage is really full.

        What was let in since the last flush may not be counted by the storage yet: when that could matter,
        everything is flushed before the room is measured.
        """
        self._unflushed_bytes += incoming_bytes
        needed = _REQUESTS_AT_ONCE * incoming_bytes + _WRITE_MARGIN_BYTES
        if self.usage().free_bytes >= needed + _REQUESTS_AT_ONCE * self._unflushed_bytes:
            return
        self._flush_quietly()
        self._unflushed_bytes = incoming_bytes
        self._usage = (float("-inf"), self._usage[1])
        free = self.usage().free_bytes
        if free < needed:
            raise NoSpace(detail=f"{free >> 20} MiB may still be written")

    def _flush_quietly(self) -> None:
        """Write everything to the disk; an error is for the commit to report, by its own descriptor."""
        with suppress(OSError):
            fd = os.open(self.pool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                flush_file_system(fd)
            finally:
                os.close(fd)


def _refuse_folding(pool: str) -> None:
    """Raise BadUsage when the storage takes different names for one and the same.

    There ``.MIRRORKEEP`` would lead into the hidden folders, and two entries of a source be one.
    """
    true = os.stat(os.path.join(pool, "volumes"))
    for other in ("VOLUMES", "\uff56olumes"):
        with suppress(OSError):
            if os.path.samestat(true, os.stat(os.path.join(pool, other))):
                raise BadUsage(
                    detail=f"{pool}: this storage does not tell capitals or kinds of letters apart"
                )


def _create_pool(data: str, name: str, size_bytes: int | None, device: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"format": FORMAT, "driver": name, "id": secrets.token_hex(16)}
    if device:
        settings["device"] = device
    try:
        return settings | open_driver(data, settings).create(size_bytes)
    except MirrorkeepError:
        for folder in ("keys", "registry", "queue", "run", "log"):
            with suppress(OSError):
                os.rmdir(os.path.join(data, folder))
        raise
