"""``sync`` as people use it: what a dry run says, and what is said of a verdict."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(60):
        place = tmp_path / "src" / f"d{number % 3}" / f"f{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number)
        os.utime(place, ns=(10**18 + number, 10**18 + number))
    return tmp_path / "src"


def sync(source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    place = source.parent
    words = ["sync", str(source), str(place / "copy"), "--state", str(place / "state"), "--json", *options]
    command = [sys.executable, "-m", "mirrorkeep.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def test_a_dry_run_says_that_the_guard_would_stop_the_run(source: Path) -> None:
    sync(source)
    shutil.rmtree(source / "d0")
    shutil.rmtree(source / "d1")
    planned, stopped = sync(source, "--dry-run"), sync(source)
    assert planned.returncode == stopped.returncode == 6
    assert last(planned) == last(stopped) and last(planned)["code"] == "deletion_guard"
    meant = sync(source, "--dry-run", "--allow-deletes")
    assert meant.returncode == 0 and last(meant)["removed"] == 42


def test_a_dry_run_does_not_take_renames_for_deletions(source: Path) -> None:
    sync(source)
    for name in ("d0", "d1", "d2"):
        (source / name).rename(source / f"new-{name}")
    assert sync(source, "--dry-run").returncode == sync(source).returncode == 0


def test_a_dry_run_of_new_files_in_the_place_of_others_is_stopped_as_the_run_is(source: Path) -> None:
    sync(source)
    for place in sorted(source.rglob("f*")):
        place.unlink()
    for number in range(60):
        (source / f"other{number}").write_bytes(b"another %d" % number)
    planned, stopped = sync(source, "--dry-run"), sync(source)
    assert planned.returncode == stopped.returncode == 6
    assert last(planned) == last(stopped)


def test_a_dry_run_counts_what_is_gone_and_not_what_is_replaced_by_another(source: Path) -> None:
    sync(source)
    shutil.rmtree(source / "d1")
    shutil.rmtree(source / "d2")
    files = sorted((source / "d0").iterdir(), reverse=True)
    for place, next_one in zip(files, [source / "d0" / "last", *files], strict=False):
        place.rename(next_one)
    planned, stopped = sync(source, "--dry-run"), sync(source)
    assert planned.returncode == stopped.returncode == 6
    assert last(planned) == last(stopped)


def test_rules_from_a_file_come_after_the_others_wherever_they_stand(source: Path) -> None:
    (source.parent / "rules").write_text("!f3\n")
    done = sync(source, "--exclude-from", str(source.parent / "rules"), "--exclude", "f*")
    assert last(done)["new"] == 5  # f3 and the folders


def test_it_is_said_why_a_local_copy_has_no_verdict(source: Path) -> None:
    done = sync(source, "--wait")
    assert done.returncode == 0
    assert done.stderr == (
        "mirrorkeep: no verdict: a local copy has no snapshots;"
        f" to prove it: mirrorkeep validate {source.parent / 'copy'}\n"
    )


def test_a_client_that_sigterm_ends_says_so_and_ends_by_the_signal(source: Path) -> None:
    script = (
        "import os, signal, sys; from mirrorkeep.cli import main, snapshots; "
        "snapshots.open_client = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        "sys.argv = ['mirrorkeep', 'snapshots', 'https://h/volumes/v']; main.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == "mirrorkeep: ended by SIGTERM; what was committed is kept\n"
