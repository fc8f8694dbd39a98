"""The btrfs driver: a pool in a sparse image on a loop device, on a block device, or on the host's btrfs.

Answers for: trees as subvolumes, snapshots that the kernel keeps read-only and that share blocks, changes
between snapshots from ``btrfs send --no-data``.  Settings in ``store.json``: ``backing`` is ``image``,
``device`` (then ``device`` names it) or ``host`` (DATA lies on btrfs; the pool is a subvolume there).

An image is sparse.  ``usage`` therefore counts the host's room too, less a reserve, so that writers get
507 long before the host is full and the image would fail in the middle of a transaction.

Not here: when snapshots are made (``runs``).  A crash, SIGKILL included, leaves the pool mounted or not;
``attach`` takes either.  The loop device frees itself with the last unmount (autoclear).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final

from mirrorkeep.errors import AlreadyExists, BadUsage, EngineMissing, NoSpace, StorageFailure
from mirrorkeep.store.driver import Capabilities, Usage
from mirrorkeep.store.drivers import subvolume
from mirrorkeep.store.drivers.reflink import copy_tree
from mirrorkeep.store.drivers.send_stream import Difference, read_difference
from mirrorkeep.store.drivers.system import (
    exchange,
    find_tool,
    run_tool,
    storage_errors,
)
from mirrorkeep.tree.descent import Descent
from mirrorkeep.tree.durability import flush_directory, flush_file_system
from mirrorkeep.tree.layout import OPEN_DIRECTORY
from mirrorkeep.tree.removal import folders_in, remove_tree

MOUNT_OPTIONS: Final = "nosuid,nodev,noexec,noatime,discard=async,commit=120"
"""Nothing in a pool is ever run or a device.  Runs flush by themselves, so that the periodic commit
(30 s by default) would only add work; discard gives freed room back to the host."""
_MIN_IMAGE_BYTES: Final = 128 * 1024 * 1024
_SHARE_OF_HOST: Final = 0.8
_MAX_RESERVE_BYTES: Final = 2 * 1024 * 1024 * 1024
_MIN_POOL_RESERVE_BYTES: Final = 16 * 1024 * 1024


def missing_for(data: str) -> list[str]:
    """Return what this machine lacks for a btrfs pool at ``data``, with remedies; empty: nothing."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root rights (run as root, or use the dir driver)")
    if "btrfs" not in _known_file_systems() and not os.path.isdir("/sys/fs/btrfs"):
        missing.append("btrfs in the kernel (modprobe btrfs)")
    if find_tool("btrfs") is None:
        missing.append("the btrfs tools (apt install btrfs-progs)")
    if file_system_of(data) == "btrfs":
        return missing
    if find_tool("mkfs.btrfs") is None:
        missing.append("mkfs.btrfs (apt install btrfs-progs)")
    if not os.path.exists("/dev/loop-control") or find_tool("losetup") is None:
        missing.append("loop devices (modprobe loop; in a container, pass /dev/loop-control)")
    return missing


def _known_file_systems() -> list[str]:
    with open("/proc/filesystems", encoding="ascii") as stream:
        return [line.split()[-1] for line in stream]


class BtrfsDriver:
    """One btrfs pool, see :class:`mirrorkeep.store.driver.Driver` for the contract of each method."""

    name: ClassVar[str] = "btrfs"
    capabilities = Capabilities(
        needs_root=True,
        immutable_snapshots=True,
        shares_blocks=True,
        shares_inodes=False,
        reports_changes=True,
    )

    def __init__(self, data: str, settings: Mapping[str, Any]) -> None:
        self._data = os.path.abspath(data)
        self._settings = settings
        self._pool = os.path.join(self._data, "pool")
        self._image = os.path.join(self._data, "pool.img")
        self._flush_fd: int | None = None
        self._flush_lock = threading.Lock()

    # --- the pool -------------------------------------------------------------------------------

    def create(self, size_bytes: int | None) -> dict[str, Any]:
        device = self._settings.get("device")
        missing = missing_for(self._data)
        if missing:
            raise EngineMissing(what="the btrfs driver", remedy="; ".join(missing))
        with storage_errors(self._data):
            if device:
                run_tool("mkfs.btrfs", "-q", str(device))
                os.mkdir(self._pool, 0o755)
                return {"backing": "device", "device": device}
            if file_system_of(self._data) == "btrfs":
                subvolume.create(self._pool)
                return {"backing": "host", "size_bytes": size_bytes}
            size_bytes = self._make_image(size_bytes)
            os.mkdir(self._pool, 0o755)
        return {"backing": "image", "size_bytes": size_bytes}

    def _make_image(self, size_bytes: int | None) -> int:
        if os.path.exists(self._image):
            raise AlreadyExists(what=self._image)
        if size_bytes is not None and size_bytes < _MIN_IMAGE_BYTES:
            raise BadUsage(detail=f"--size: a btrfs pool needs at least {_MIN_IMAGE_BYTES >> 20} MiB")
        if size_bytes is None:
            size_bytes = int(shutil.disk_usage(self._data).free * _SHARE_OF_HOST) & ~0xFFFFF
        if size_bytes < _MIN_IMAGE_BYTES:
            raise NoSpace(detail=f"a btrfs pool needs at least {_MIN_IMAGE_BYTES >> 20} MiB")
        try:
            with open(self._image, "xb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.truncate(size_bytes)
            run_tool("mkfs.btrfs", "-q", "-K", self._image)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(self._image)
            raise
        return size_bytes

    def attach(self) -> None:
        if self._settings["backing"] == "host":
            with storage_errors(self._pool):
                os.stat(self._pool)
        elif not self._is_attached():
            with self._attaching():
                if not self._is_attached():
                    self._mount()
        with self._flush_lock, storage_errors(self._pool):
            if self._flush_fd is None:
                # Open before any write of this process, so that it sees every later write-back error.
                self._flush_fd = os.open(self._pool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _is_attached(self) -> bool:
        try:
            inside = os.stat(self._pool)
        except OSError as error:
            raise StorageFailure(detail=f"{self._pool}: {error.strerror}") from error
        return inside.st_dev != os.stat(self._data).st_dev

    @contextmanager
    def _attaching(self) -> Iterator[None]:
        # Two commands that start at once must not mount twice: the kernel would stack the mounts.
        fd = os.open(
            os.path.join(self._data, "run", "attach.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _mount(self) -> None:
        if self._settings["backing"] == "device":
            run_tool("mount", "-t", "btrfs", "-o", MOUNT_OPTIONS, self._settings["device"], self._pool)
            return
        device = self._loop_device()
        try:
            run_tool("mount", "-t", "btrfs", "-o", MOUNT_OPTIONS, device, self._pool)
        finally:
            # In use, it is freed by the last unmount; not in use (mount failed), it is freed now.
            with suppress(StorageFailure):
                run_tool("losetup", "--detach", device)

    def _loop_device(self) -> str:
        if not os.path.exists(self._image):
            raise StorageFailure(detail=f"{self._image} is gone")
        for direct in (("--direct-io=on",), ()):
            try:
                return run_tool("losetup", *direct, "--find", "--nooverlap", "--show", self._image).strip()
            except StorageFailure:
                if not direct:
                    raise
        raise AssertionError("unreachable")

    def detach(self, *, unmount: bool = True) -> None:
        with self._flush_lock:
            if self._flush_fd is not None:
                os.close(self._flush_fd)
                self._flush_fd = None
        mounted = self._settings["backing"] != "host" and os.path.isdir(self._pool) and self._is_attached()
        if unmount and mounted:
            run_tool("umount", self._pool)

    # --- trees ----------------------------------------------------------------------------------

    def create_tree(self, path: str) -> None:
        with storage_errors(path):
            if not os.path.lexists(path):
                subvolume.create(path)
            elif not subvolume.is_subvolume(path):
                self._turn_into_tree(path)

    def _turn_into_tree(self, path: str) -> None:
        # Beside the folder: the exchange needs one subvolume around both; the name is never shown.
        making = os.path.join(os.path.dirname(path), ".mirrorkeep.making")
        self.delete_tree(making)
        subvolume.create(making)
        copy_tree(path, making, link_files=False)
        flush_directory(making)
        exchange(making, path)
        self.delete_tree(making)

    def snapshot(self, tree: str, target: str) -> None:
        if os.path.lexists(target):  # else the kernel would snapshot *into* an existing directory's name
            raise AlreadyExists(what=target)
        with storage_errors(target):
            subvolume.snapshot(tree, target)

    def delete_tree(self, path: str) -> None:
        try:
            if subvolume.is_subvolume(path):
                self._destroy(path)
            else:
                self._delete_folder(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageFailure(detail=f"{path}: {error.strerror or error}") from error

    def _destroy(self, path: str) -> None:
        try:
            subvolume.destroy(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._destroy_inner(path)
            subvolume.destroy(path)

    def _destroy_inner(self, path: str) -> None:
        """Destroy the subvolumes inside ``path``; ordinary files go with their subvolume at once."""
        with Descent(os.open(path, OPEN_DIRECTORY)) as descent:
            pending = [folders_in(descent.fd)]
            while True:
                if pending[-1]:
                    folder = pending[-1].pop()
                    if not self._destroy_in(descent.fd, folder):
                        pending.append(folders_in(descent.enter(folder)))
                elif len(pending) > 1:
                    pending.pop()
                    descent.leave()
                else:
                    return

    def _destroy_in(self, dir_fd: int, name: str) -> bool:
        """Destroy the folder ``name`` if it is a subvolume; returns whether it was one."""
        path = f"/proc/self/fd/{dir_fd}/./{name}"  # the whole path may be longer than a path can be
        if not subvolume.is_subvolume(path):
            return False
        self._destroy(path)
        return True

    def _delete_folder(self, path: str) -> None:
        remove_tree(path, whole=self._destroy_in)

    # --- accounts -------------------------------------------------------------------------------

    def make_durable(self, path: str) -> None:
        if self._flush_fd is None:
            raise StorageFailure(detail=f"{self._pool} is not attached")
        with storage_errors(path):
            flush_file_system(self._flush_fd)

    def changed_between(self, old: str, new: str) -> Iterator[bytes] | None:
        tool = find_tool("btrfs")
        if tool is None or not (subvolume.is_subvolume(old) and subvolume.is_subvolume(new)):
            return None
        command = [tool, "send", "--quiet", "--no-data", "-p", old, new]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            difference = read_difference(process.stdout)
        finally:
            process.stdout.close()  # a sender that is not read to the end stops at its next write
            failed = process.wait() != 0
        return None if difference is None or failed else _differing(difference, old, new)

    def usage(self, path: str) -> Usage:
        with storage_errors(path):
            pool = os.statvfs(self._pool)
            total, free = pool.f_blocks * pool.f_frsize, pool.f_bavail * pool.f_frsize
            used = total - pool.f_bfree * pool.f_frsize
            free -= max(_MIN_POOL_RESERVE_BYTES, min(total // 50, _MAX_RESERVE_BYTES))
            if self._settings["backing"] == "image":
                host = os.statvfs(self._data)
                reserve = min(host.f_blocks * host.f_frsize // 20, _MAX_RESERVE_BYTES)
                free = min(free, host.f_bavail * host.f_frsize - reserve)
        limit = self._settings.get("size_bytes") if self._settings["backing"] == "host" else None
        if limit:
            free, total = min(free, limit - used), min(total, limit)
        return Usage(total, used, max(0, free))

    def generation(self, tree: str) -> int | None:
        with storage_errors(tree):
            return subvolume.generation(tree)

    def taken_ns(self, snapshot: str) -> int | None:
        with storage_errors(snapshot):
            return subvolume.made_ns(snapshot)


def file_system_of(path: str) -> str:
    """Return the type of the file system that holds ``path`` (or its nearest existing parent)."""
    path = os.path.realpath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    best, kind = -1, ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            fields = line.split(" ")
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
            above = path == point or path.startswith(point.rstrip("/") + "/")
            if above and len(point) >= best:  # of mounts on one point, the last listed is on top
                best, kind = len(point), fields[fields.index("-") + 1]
    return kind


def _differing(difference: Difference, old: str, new: str) -> Iterator[bytes]:
    """Yield all paths of a difference; what lies inside a moved directory has another path, too."""
    yield from difference.changed
    yield from difference.gone
    for paths, snapshot in ((difference.moved, new), (difference.gone, old)):
        for path in paths:
            yield from _inside(os.path.join(os.fsencode(snapshot), path), path)


def _inside(native: bytes, path: bytes) -> Iterator[bytes]:
    if not os.path.isdir(native) or os.path.islink(native):
        return
    stack = [path]
    top = native[: len(native) - len(path)]
    while stack:
        folder = stack.pop()
        with os.scandir(top + folder) as entries:
            for entry in entries:
                inner = folder + b"/" + entry.name
                yield inner
                if entry.is_dir(follow_symlinks=False):
                    stack.append(inner)
