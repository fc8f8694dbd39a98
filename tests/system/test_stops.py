"""Runs that are stopped, with or without warning, go on from what they had committed (MAN-47).

A run is stopped once it has committed something, and before it is done: its source is slow enough for that
because every file is sent and committed at short intervals.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.mirrored import Mirrored
from rig.served import COMMAND, END_WITH_PARENT, Served, descendants

FILES = 2500
WAIT_S = 60


def out_of_memory(pid: int) -> None:
    """Let neither the run nor its workers have any memory that they do not have yet."""
    for one in descendants(pid):
        try:
            size_bytes = int(Path(f"/proc/{one}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(one, resource.RLIMIT_AS, (size_bytes, size_bytes))
        except (OSError, ProcessLookupError):
            continue


STOPS: dict[str, Callable[[int], None]] = {
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGKILL": lambda pid: os.kill(pid, signal.SIGKILL),
    "RLIMIT_AS": out_of_memory,
}


def committed(mirrored: Mirrored) -> int:
    """Return how many bytes of its manifest the open run has committed."""
    for path in mirrored.state.glob("*/run.json"):
        try:
            return int(json.loads(path.read_bytes())["walk_bytes"])
        except (OSError, ValueError):
            continue
    return 0


def start(mirrored: Mirrored) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [*END_WITH_PARENT, *COMMAND, *mirrored.sync_arguments()],
        env={**os.environ, **mirrored.volume.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + WAIT_S
    while not committed(mirrored) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return run


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_is_stopped_goes_on_from_its_last_commit(
    served_store: Served, tmp_path: Path, stop: str
) -> None:
    mirrored = Mirrored(served_store, tmp_path, "--commit-interval", "0.05", "--threads", "1")
    for number in range(FILES):
        place = mirrored.source / f"folder{number % 40:02}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number * 700)
    run = start(mirrored)
    STOPS[stop](run.pid)
    said, errors = run.communicate(timeout=WAIT_S)
    assert run.returncode != 0, said
    assert committed(mirrored) > 0
    again = mirrored.sync()
    assert (again["status"], again["failed"]) == ("complete", 0), errors
    assert again["new"] + again["changed"] < again["entries"], "what was committed is not sent again"
    assert again["unchanged"] > 0
    assert mirrored.differences() == []
    mirrored.check_verdict()
    final = mirrored.sync()
    assert (final["unchanged"], final["bytes_sent"]) == (final["entries"], 0)
