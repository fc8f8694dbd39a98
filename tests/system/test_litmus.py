"""The WebDAV test suite ``litmus``, whole, against a served store on each driver (TX-01, TX-02)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from .dav_store import DavStore, dav_store

__all__ = ["dav_store"]

SUITES = {"basic": 16, "copymove": 13, "props": 30, "locks": 41, "http": 3}


@pytest.mark.engine("litmus")
def test_all_suites_pass_whole(dav_store: DavStore, tmp_path: Path) -> None:
    volume = dav_store.plain
    done = subprocess.run(
        ["litmus", "-k", volume.url + "/", "token", volume.token],
        cwd=tmp_path,  # it writes its logs into the working directory
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    summaries = re.findall(
        r"summary for `(\w+)': of (\d+) tests run: (\d+) passed, (\d+) failed", done.stdout
    )
    assert {name: int(failed) for name, _, _, failed in summaries} == dict.fromkeys(SUITES, 0), done.stdout
    for name, run, passed, _ in summaries:
        assert int(run) == int(passed) >= SUITES[name], done.stdout
    assert done.returncode == 0, done.stdout
