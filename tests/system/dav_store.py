"""A served store for the tests with WebDAV clients: one volume to write to, one with a snapshot.

Import ``dav_store`` into a test module to use it: one store a module and driver.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rig import scratch
from rig.served import Served, Volume, checked

DRIVERS = ["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])]
NAMES = ["plain.txt", "with space & more", "ünï-cødé", "deep/er/file.bin", "50%.txt"]


@dataclass
class DavStore:
    """``plain`` is an empty volume; ``mirrored`` was synced from ``source`` and has ``snapshot``."""

    served: Served
    plain: Volume
    mirrored: Volume
    source: Path
    snapshot: str

    @property
    def snapshot_url(self) -> str:
        return f"{self.served.url}/snapshots/{self.snapshot}/{self.mirrored.name}"


def make_files(folder: Path) -> None:
    """Write a few files whose names and sizes are unlike each other."""
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000) * (number * 700 + 1))


def contents(folder: Path) -> dict[str, bytes]:
    """Return path -> content of every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=DRIVERS)
def dav_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DavStore]:
    folder = tmp_path_factory.mktemp("dav")
    served = Served(folder / "data", driver=request.param, size="1G" if request.param == "btrfs" else None)
    try:
        served.create()
        served.start()
        plain, mirrored = served.create_volume("plain"), served.create_volume("mirrored")
        source = folder / "source"
        source.mkdir()
        make_files(source)
        row = checked("sync", str(source), mirrored.url, "--json", environment=mirrored.environment).last
        yield DavStore(served, plain, mirrored, source, row["snapshot"])
    finally:
        served.stop()
        scratch.discard(folder)
