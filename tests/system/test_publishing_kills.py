"""A worker of the store is killed between the data and the sidecar of what it publishes; the run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.served import Served, checked

KILLER = """
import os, signal
mark, rename = os.environ["KILL_MARK"], os.rename

def killed(source, target, **folders):
    if target == b"f" and folders.get("dst_dir_fd") is not None and os.path.exists(mark):
        os.unlink(mark)
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, **folders)

os.rename = killed
"""
"""What every process of the store loads first."""
DRIVERS = ["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_file_whose_worker_was_killed_is_the_new_one_and_history_stays(
    make_served: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(KILLER)
    known = os.environ.get("PYTHONPATH", "")
    mark, source = tmp_path / "mark", tmp_path / "source"
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hook"), *([known] if known else [])]))
        patch.setenv("KILL_MARK", str(mark))
        served = make_served(driver=driver)
    volume = served.create_volume("v")
    argv = ("sync", str(source), volume.url, "--json", "--state", str(tmp_path / "state"))
    source.mkdir()
    old, new = os.urandom(3 * SMALL_FILE_BYTES), os.urandom(3 * SMALL_FILE_BYTES)
    (source / "f").write_bytes(old)
    os.utime(source / "f", (1_600_000_000, 1_600_000_000))
    first = checked(*argv, environment=volume.environment).last["snapshot"]
    (source / "f").write_bytes(new)
    mark.touch()
    done = checked(*argv, "--wait", environment=volume.environment).last
    assert not mark.exists()
    assert (done["status"], done["verdict"]) == ("complete", "verified")
    assert (served.native_path("v") / "f").read_bytes() == new
    before = served.native_path("v", first) / "f"
    assert (before.read_bytes(), before.stat().st_mtime) == (old, 1_600_000_000)
