"""A source and the volume that it is mirrored to, watched from outside: equal, verified, history unchanged.

Answers for: running ``sync`` and ``validate``, comparing source and tip, and remembering what each snapshot
was when it was made, to compare it with what it is later.

Not here: what is done to either side.  Nothing is left behind but what the commands leave.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from rig.compare import Comparer
from rig.served import Result, Served, ServedError, Volume, checked, command

HIDDEN = b".mirrorkeep"


def fingerprint(root: Path) -> dict[bytes, str]:
    """Return what every entry below ``root`` is, hidden ones too: kind, mode, owner, time, content."""
    top = os.fsencode(root)
    found: dict[bytes, str] = {}
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in [b"", *folders, *files] if folder == top else [*folders, *files]:
            path = os.path.join(folder, name) if name else folder
            found[os.path.relpath(path, top)] = _describe(path)
    return found


def _describe(path: bytes) -> str:
    status = os.lstat(path)
    content = b""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as stream:
            content = hashlib.file_digest(stream, "blake2b").digest()
    # A staging folder's time moves with what start-up takes out of it, nobody sees it.
    facts = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content.hex())
    return repr(facts)


class Mirrored:
    """``folder/source`` mirrored to ``volume`` (a new one) of a store; ``options`` go to every run."""

    def __init__(self, served: Served, folder: Path, *options: str, volume: Volume | None = None) -> None:
        self.served = served
        self.source = folder / "source"
        self.state = folder / "state"
        self.options = options
        self.volume = volume or served.create_volume("vol")
        self.known: dict[str, dict[bytes, str]] = {}
        """What each snapshot was when it was made."""

    def sync_arguments(self, *more: str) -> list[str]:
        state = ["--state", str(self.state), "--json", "--allow-deletes"]
        return ["sync", str(self.source), self.volume.url, *state, *self.options, *more]

    def sync(self, *more: str) -> dict[str, Any]:
        """Run to the end; raises ServedError unless it exits with 0."""
        row = checked(*self.sync_arguments(*more), environment=self.volume.environment).last
        self.note_snapshot(row["snapshot"])
        return row

    def try_sync(self, *more: str) -> Result:
        """Run to whatever end."""
        return command(*self.sync_arguments(*more), environment=self.volume.environment)

    def snapshot_root(self, name: str) -> Path:
        return self.served.data / "pool" / "volumes" / self.volume.name / "snapshots" / name

    def tip(self) -> Path:
        return self.served.data / "pool" / "volumes" / self.volume.name / "tip"

    def note_snapshot(self, name: str) -> None:
        self.known[name] = fingerprint(self.snapshot_root(name))

    def differences(self) -> list[str]:
        """Return what differs between source and tip."""
        comparer = Comparer(str(self.source), str(self.tip()), skip=(HIDDEN,))
        return [str(one) for one in comparer.differences()]

    def check_verdict(self, *options: str) -> None:
        """Have all content read; raises ServedError unless the verdict is clean."""
        argv = ("validate", self.volume.url, "--full", "--wait", "--json", *options)
        row = checked(*argv, environment=self.volume.environment).last
        if row["verdict"] not in ("verified", "repaired"):
            raise ServedError(f"verdict {row}")

    def check_snapshots(self) -> None:
        """Raise ServedError unless every snapshot is what it was when it was made."""
        for name, was in self.known.items():
            now = fingerprint(self.snapshot_root(name))
            if now != was:
                changed = sorted(path for path in was.keys() | now.keys() if was.get(path) != now.get(path))
                raise ServedError(f"snapshot {name} changed: {changed[:10]}")
