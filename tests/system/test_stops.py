"""Runs that are stopped, with or without warning, go on from what they had committed (MAN-47).

A run is stopped once it has committed something, and before it is done: the line is slow enough for that.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rig.link import Link
from rig.mirrored import Mirrored
from rig.served import COMMAND, END_WITH_PARENT, Served, descendants

FILES = 2500
WAIT_S = 60
SLOW = 6_000_000
"""Bytes a second; the many bundles of what is to be sent take some five seconds."""


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
    with Link(served_store.port) as link:
        straight = served_store.create_volume("stopped")
        url = straight.url.replace(f":{served_store.port}/", f":{link.port}/")
        options = ("--commit-interval", "0.05", "--threads", "1", "--compress", "never")
        mirrored = Mirrored(served_store, tmp_path, *options, volume=replace(straight, url=url))
        check_a_stop(mirrored, link, stop)


def check_a_stop(mirrored: Mirrored, link: Link, stop: str) -> None:
    for number in range(FILES):
        place = mirrored.source / f"folder{number % 40:02}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number * 3500)
    link.slow(bytes_per_second=SLOW)
    run = start(mirrored)
    STOPS[stop](run.pid)
    said, errors = run.communicate(timeout=WAIT_S)
    link.slow()
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
