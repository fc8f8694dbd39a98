"""Many entries without a tree of them: does memory stay where it was, whatever a manifest says?

The case ``described`` makes up a manifest of ``--entries`` files and takes it through everything that handles
manifests whole: a run is closed with it (sent, checked, placed), the snapshot is validated (every entry is
missing: findings and patch name them all), and a run of a source that holds one file begins from it, removes
everything, and closes with the difference.  What it costs to copy as many files is ``scale``'s business.

``python -m bench.described close|wait URL [MANIFEST]`` are the client's steps that no command does alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Plan, Sample
from bench.measure import CommandFailed, Measured, measure
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.session import Session
from mirrorkeep.tree.client import StoreClient
from rig import scratch
from rig.served import COMMAND, Served, Volume

FILES_IN_FOLDER = 1000
CLOSED, FOUND, EMPTIED, SETTLED = (
    "described-close",
    "described-found",
    "described-emptied",
    "described-settled",
)


def records(entries: int, size_bytes: int = 12345) -> Iterator[bytes]:
    """Yield ``entries`` lines, folders and root included, in manifest order; as a run would write them."""
    common = {
        keys.MTIME: b"1353369600.25",
        keys.INODE_CTIME: b"1353369600.25",
        keys.LINKS: b"1",
        keys.UID: b"1000",
        keys.GID: b"1000",
        keys.OWNER_NAME: b"someone",
        keys.GROUP_NAME: b"someone",
    }
    folder = {**common, keys.TYPE: keys.DIRECTORY, keys.MODE: b"40755", keys.SIZE: b"4096"}
    files = {**common, keys.TYPE: keys.FILE, keys.MODE: b"100644", keys.SIZE: b"%d" % size_bytes}
    for number in range(entries - 1):
        top, inside = divmod(number, FILES_IN_FOLDER)
        inode = b"%d" % (number + 100)
        if inside == FILES_IN_FOLDER - 1:
            yield format_record(b"folder-%06d" % top, {**folder, keys.INODE: inode})
            continue
        digest = hashlib.sha256(inode).hexdigest().encode()
        path = b"folder-%06d/some file %04d" % (top, inside)
        yield format_record(path, {**files, keys.INODE: inode, keys.HASH: digest})
    yield format_record(b"", {**folder, keys.INODE: b"99"})


def write_manifest(path: Path, entries: int, size_bytes: int = 12345) -> str:
    """Write a made-up manifest of files of that size and return its digest."""
    with path.open("wb") as stream:
        writer = ManifestWriter(stream, {b"part": b"", b"source": b"nowhere"})
        for line in records(entries, size_bytes):
            writer.add(line)
        return writer.finish().digest


# --- the client's steps ---------------------------------------------------------------------------


def close(url: str, manifest: str) -> None:
    """Close a run of an empty tip with a manifest that describes something else."""
    with open(manifest, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    session = Session(StoreClient.from_target(url))
    session.begin("nowhere", {})
    session.close(form="full", base=None, digest=digest, body=manifest, snapshot=True)


def wait(url: str) -> None:
    """Return once the newest snapshot has a verdict."""
    client = StoreClient.from_target(url)
    while True:
        newest = client.get_json(f"volumes/{client.volume}/snapshots")["snapshots"][-1]
        if newest["verdict"] != "pending":
            return
        time.sleep(0.2)


# --- the measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of the case and what it took."""

    case: str
    measured: Measured


def steps(folder: Path, entries: int, *, driver: str, size: str | None = None) -> Iterator[Step]:
    """Do everything once, in ``folder``; raises CommandFailed."""
    manifest, source = folder / "manifest", folder / "source"
    write_manifest(manifest, entries)
    source.mkdir()
    (source / "only").write_bytes(b"one")
    served = Served(folder / "data", driver, size, workers=1, limit_s=4 * 3600)
    served.create()
    try:
        served.start()
        volume = served.create_volume("bench")
        ours = (sys.executable, "-m", "bench.described")
        yield Step(CLOSED, _run(served, volume, *ours, "close", volume.url, str(manifest)))
        yield Step(FOUND, _run(served, volume, *ours, "wait", volume.url))
        argv = (*COMMAND, "sync", str(source), volume.url, "--state", str(folder / "state"))
        emptied = _run(served, volume, *argv, "--allow-deletes", "--json")
        done = json.loads(emptied.output.splitlines()[-1])
        if done["failed"] or not entries - 2 <= done["removed"] <= entries:
            raise CommandFailed(f"not everything was removed: {done}")
        yield Step(EMPTIED, emptied)
        yield Step(SETTLED, _run(served, volume, *ours, "wait", volume.url))
    finally:
        served.stop()
        scratch.release(served.data)


def _run(served: Served, volume: Volume, *argv: str) -> Measured:
    log = served.data.parent / "command.log"
    return measure(argv, environment=volume.environment, servers=served.pids, output=log)


def run(plan: Plan, entries: int) -> list[Sample]:
    """Take a manifest of so many entries through everything once."""
    folder = plan.folder / "described"
    folder.mkdir(parents=True)
    samples = []
    for step in steps(folder, entries, driver=plan.driver, size="4G"):
        one = step.measured
        plan.say(
            f"{step.case} of {entries} entries: {one.seconds:.1f} s,"
            f" client {one.client_peak_bytes / 1e6:.0f} MB, server {one.server_peak_bytes / 1e6:.0f} MB"
        )
        peaks = (one.client_peak_bytes, one.server_peak_bytes)
        samples.append(Sample(step.case, "mirrorkeep", 0, one.seconds, one.cpu_s, *peaks, None))
    return samples


if __name__ == "__main__":
    if sys.argv[1] == "close":
        close(*sys.argv[2:4])
    else:
        wait(sys.argv[2])
