"""The WebDAV test suite ``litmus``, whole, against a served store on each driver (TX-01, TX-02)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from rig.served import Volume

from .dav_store import DavStore, dav_store

__all__ = ["dav_store"]

SUITES = {"basic": 16, "copymove": 13, "props": 30, "locks": 41, "http": 3}


def run_litmus(
    volume: Volume, folder: Path
) -> tuple[subprocess.CompletedProcess[str], list[tuple[str, ...]]]:
    """Return how ``litmus`` ended, and of each suite its name, its tests, those passed and those failed."""
    done = subprocess.run(
        ["litmus", "-k", volume.url + "/", "token", volume.token],
        cwd=folder,  # it writes its logs into the working directory
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    pattern = r"summary for `(\w+)': of (\d+) tests run: (\d+) passed, (\d+) failed"
    return done, re.findall(pattern, done.stdout)


@pytest.mark.engine("litmus")
def test_all_suites_pass_whole(dav_store: DavStore, tmp_path: Path) -> None:
    volume = dav_store.plain
    done, summaries = run_litmus(volume, tmp_path)
    said = f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert {name: int(failed) for name, _, _, failed in summaries} == dict.fromkeys(SUITES, 0), said
    for name, run, passed, _ in summaries:
        assert int(run) == int(passed) >= SUITES[name], done.stdout
    assert done.returncode == 0, done.stdout
