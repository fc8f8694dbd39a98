"""The demo tells its whole story and leaves nothing behind, also when it is stopped in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.trees import make_small_files
from rig import scratch

TOP = Path(__file__).parents[2]


def make_source(folder: Path) -> Path:
    source = folder / "some source"
    source.mkdir()
    make_small_files(str(source), 400, mean_bytes=3000)
    (source / "name with é and \n newline").write_text("odd")
    os.symlink("nowhere", source / "dangling")
    return source


def start(source: Path, driver: str, room: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "SRC": str(source), "DRIVER": driver, "TMPDIR": str(room), "NO_COLOR": "1"}
    argv = [sys.executable, "-m", "rig.demo"]
    return subprocess.Popen(
        argv, cwd=TOP, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def processes_that_mention(folder: Path) -> list[str]:
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def assert_clean(room: Path) -> None:
    assert list(room.iterdir()) == []
    assert scratch.mounts_below(room) == []
    assert scratch.loops_below(room) == []
    assert processes_that_mention(room) == []


@pytest.mark.parametrize(
    "driver", ["dir", pytest.param("btrfs", marks=[pytest.mark.root, pytest.mark.btrfs])]
)
def test_the_story_is_told_to_its_end(tmp_path: Path, driver: str) -> None:
    source, room = make_source(tmp_path), tmp_path / "room"
    room.mkdir()
    process = start(source, driver, room)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert "verified again" in said
    assert "both, and nothing else" in said
    assert "byte by byte and attribute by attribute: no difference" in said
    assert said.count("snapshot auto_") >= 3, said
    assert_clean(room)


def test_stopped_in_the_middle_it_leaves_nothing(tmp_path: Path) -> None:
    source, room = make_source(tmp_path), tmp_path / "room"
    room.mkdir()
    process = start(source, "dir", room)
    assert process.stdout is not None
    deadline = time.monotonic() + 500
    for line in process.stdout:
        if "The first mirror" in line:
            break
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 130, said
    assert_clean(room)


def test_a_source_without_enough_files_is_refused_in_words(tmp_path: Path) -> None:
    source, room = tmp_path / "poor", tmp_path / "room"
    source.mkdir()
    room.mkdir()
    (source / "only one").write_text("1")
    process = start(source, "dir", room)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "too few files" in said
    assert "Traceback" not in said
    assert_clean(room)
