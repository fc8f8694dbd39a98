"""How each tool copies a tree and brings it back, on a fresh file system of its own.

rsync talks to its daemon over plain TCP on loopback; restic and Borg write a repository on a local mount
(their usual way, without a network); Mirrorkeep talks TLS to its own server on loopback.  All four write to
a btrfs on a loop image of the same size, those of the others preallocated as far as they will be written.

A crash leaves processes that end with their parent, and mounts that ``rig.scratch.release`` takes away.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.measure import CommandFailed, Measured, measure
from rig import scratch
from rig.served import COMMAND, END_WITH_PARENT, Served, Volume, checked, free_port


@dataclass
class Place:
    """Where a tool works: ``folder`` for images and logs, ``client`` (a mount) for its local state.

    ``pool_bytes`` is the size of the file system that it copies to, ``written_bytes`` what it may write.
    """

    folder: Path
    client: Path
    pool_bytes: int
    written_bytes: int

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


class Peer(Protocol):
    """A tool under measurement.  ``open`` and ``close`` are not timed."""

    name: str

    def open(self, place: Place) -> None:
        """Make a fresh destination."""

    def copy(self, source: str) -> Measured:
        """Bring the destination to the state of ``source``."""

    def restore(self, target: str) -> Measured:
        """Bring everything back into the empty folder ``target``."""

    def settle(self) -> None:
        """Return when the tool does nothing in the background any more."""

    def close(self) -> None:
        """End its server and give its file systems back."""


class Mirrorkeep:
    name = "mirrorkeep"

    def __init__(self, *, driver: str = "btrfs", workers: int = 2) -> None:
        self.driver, self.workers = driver, workers

    def open(self, place: Place) -> None:
        self.place = place
        place.folder.mkdir(parents=True, exist_ok=True)
        size = f"{place.pool_bytes >> 20}M"
        self.served = Served(place.folder / "data", self.driver, size, self.workers, limit_s=4 * 3600)
        self.served.create()
        self.served.start()
        self.volume: Volume = self.served.create_volume("bench")
        self.target = self.volume.url
        self.filled = False

    def _measure(self, *argv: str, accept: tuple[int, ...] = (0,)) -> Measured:
        return measure(
            [*COMMAND, *argv],
            environment=self.volume.environment,
            servers=self.served.pids,
            output=self.place.log("command"),
            accept=accept,
        )

    def copy(self, source: str) -> Measured:
        state = str(self.place.client / "mirrorkeep-state")
        measured = self._measure("sync", source, self.target, "--state", state, "--json")
        rows = [json.loads(line) for line in measured.output.splitlines() if line.startswith("{")]
        measured.sent_bytes = int(rows[-1]["bytes_sent"])
        self.filled = True
        if rows[-1]["failed"]:
            raise CommandFailed(f"{rows[-1]['failed']} entries were not mirrored")
        return measured

    def restore(self, target: str) -> Measured:
        return self._measure("restore", self.target, target, "--json")

    def validate(self) -> Measured:
        """Have the server read everything back and compare; raises CommandFailed on a difference."""
        return self._measure("validate", self.volume.url, "--full", "--wait", "--json")

    def newest(self) -> Path:
        """Return the native directory of the newest snapshot: the files that a validation reads."""
        return self.served.native_path("bench", "latest")

    def settle(self) -> None:
        if not self.filled:
            return
        deadline = time.monotonic() + 600
        environment = self.volume.environment
        while time.monotonic() < deadline:
            rows = checked("snapshots", self.volume.url, "--json", environment=environment).rows
            if not rows or rows[-1]["verdict"] != "pending":
                return
            time.sleep(0.2)
        raise CommandFailed("validation was still pending after ten minutes")

    def close(self) -> None:
        if hasattr(self, "served"):
            self.served.stop()
            scratch.release(self.served.data)


@dataclass
class Rsync:
    name: str = "rsync"
    port: int = 0
    """Port to talk to, when it is not the daemon's own (a proxy's)."""
    daemon: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def open(self, place: Place) -> None:
        self.place = place
        self.mount = scratch.make(
            place.folder,
            "rsync",
            size_bytes=place.pool_bytes,
            preallocated_bytes=place.written_bytes,
            direct=True,
        )
        self.own_port = free_port()
        configuration = place.folder / "rsyncd.conf"
        configuration.write_text(
            f"address = 127.0.0.1\nport = {self.own_port}\nuse chroot = no\nuid = 0\ngid = 0\n"
            f"log file = /dev/null\n[bench]\npath = {self.mount}\nread only = no\n"
        )
        argv = ["rsync", "--daemon", "--no-detach", f"--config={configuration}"]
        self.daemon = subprocess.Popen([*END_WITH_PARENT, *argv], stdin=subprocess.DEVNULL)
        await_port(self.own_port)

    def _measure(self, *argv: str) -> Measured:
        servers = [self.daemon.pid] if self.daemon else []
        return measure(["rsync", "-aHAX", *argv], servers=servers, output=self.place.log("command"))

    @property
    def target(self) -> str:
        return f"rsync://127.0.0.1:{self.port or self.own_port}/bench/tree/"

    def copy(self, source: str) -> Measured:
        measured = self._measure("--delete", "--stats", source + "/", self.target)
        if found := re.search(r"Total bytes sent: ([\d,.]+)", measured.output):
            measured.sent_bytes = int(re.sub(r"\D", "", found[1]))
        return measured

    def restore(self, target: str) -> Measured:
        return self._measure(self.target, target + "/")

    def settle(self) -> None:
        return

    def close(self) -> None:
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait()
        scratch.release(self.place.folder)


class Restic:
    name = "restic"

    def open(self, place: Place) -> None:
        self.place = place
        mount = scratch.make(
            place.folder,
            "restic",
            size_bytes=place.pool_bytes,
            preallocated_bytes=place.written_bytes,
            direct=True,
        )
        cache = place.client / "restic-cache"
        shutil.rmtree(cache, ignore_errors=True)
        self.environment = {
            "RESTIC_REPOSITORY": str(mount / "repository"),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(cache),
        }
        self._measure("init")

    def _measure(self, *argv: str, cwd: str | None = None) -> Measured:
        log = self.place.log("command")
        return measure(["restic", "-q", *argv], environment=self.environment, output=log, cwd=cwd)

    def copy(self, source: str) -> Measured:
        return self._measure("backup", ".", cwd=source)

    def restore(self, target: str) -> Measured:
        return self._measure("restore", "latest", "--target", target)

    def settle(self) -> None:
        return

    def close(self) -> None:
        scratch.release(self.place.folder)


class Borg:
    name = "borg"

    def open(self, place: Place) -> None:
        self.place, self.archives = place, 0
        mount = scratch.make(
            place.folder,
            "borg",
            size_bytes=place.pool_bytes,
            preallocated_bytes=place.written_bytes,
            direct=True,
        )
        base = place.client / "borg-base"
        shutil.rmtree(base, ignore_errors=True)
        self.environment = {
            "BORG_REPO": str(mount / "repository"),
            "BORG_PASSPHRASE": "benchmark",
            "BORG_BASE_DIR": str(base),
        }
        self._measure("init", "-e", "repokey-blake2")

    def _measure(self, *argv: str, cwd: str | None = None) -> Measured:
        log = self.place.log("command")
        return measure(["borg", *argv], environment=self.environment, output=log, cwd=cwd, accept=(0, 1))

    def copy(self, source: str) -> Measured:
        self.archives += 1
        return self._measure("create", f"::bench{self.archives}", ".", cwd=source)

    def restore(self, target: str) -> Measured:
        return self._measure("extract", f"::bench{self.archives}", cwd=target)

    def settle(self) -> None:
        return

    def close(self) -> None:
        scratch.release(self.place.folder)


def await_port(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise CommandFailed(f"nothing listens on port {port}")
