"""Power cuts: whatever the disk holds at any instant is a store that starts and has all that was promised.

The pool's disk logs writes and flushes (``rig.blocklog``).  Runs are made on it: a first copy, changed
trees, one whose client is killed.  Then, for many instants, the image that a power cut would have left is
mounted and served: every snapshot that was acknowledged by then is there, byte for byte, and validates; the
next run makes the tip equal to the source.  ``MIRRORKEEP_CUTS`` says how many instants (12; the long tier
takes ten times as many), ``MIRRORKEEP_SEED`` repeats a failure.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirrorkeep.sync.state import State
from rig import blocklog, scratch
from rig.churn import Churn
from rig.mirrored import Mirrored, fingerprint
from rig.served import COMMAND, END_WITH_PARENT, Served, Volume

CUTS = int(os.environ.get("MIRRORKEEP_CUTS", "12"))
pytestmark = [pytest.mark.root, pytest.mark.btrfs, pytest.mark.engine("fusermount3")]


@dataclass
class History:
    """Runs on a logged disk: what was promised by when."""

    folder: Path
    log: Path
    base: Path
    mirrored: Mirrored
    promised: list[tuple[int, str]] = field(default_factory=list)
    """(length of the log, snapshot) when a run was answered."""
    states: list[tuple[int, Path]] = field(default_factory=list)
    """(length of the log, copy of the client's state) between runs."""

    def note(self, snapshot: str | None) -> None:
        length = self.log.stat().st_size
        if snapshot:
            self.promised.append((length, snapshot))
        place = self.folder / f"state{len(self.states)}"
        shutil.copytree(self.mirrored.state, place)
        self.states.append((length, place))


def make_history(folder: Path, rng: random.Random) -> History:
    """Make a store on a logged disk and run on it; everything is unmounted when this returns."""
    served = Served(folder / "data", driver="btrfs", size="256M")
    served.create()
    scratch.release(served.data)
    disk = folder / "blocks"
    disk.mkdir()
    image = served.data / "pool.img"
    shutil.copyfile(image, disk / "disk")
    base = folder / "base.img"
    image.rename(base)
    blocklog.mount(disk, folder / "fuse")
    image.symlink_to(folder / "fuse" / "disk")
    try:
        served.start()
        churn = Churn(folder / "source", rng, files=120, large=1)
        history = History(folder, disk / "log", base, Mirrored(served, folder, "--commit-interval", "0.2"))
        for _ in range(2):
            history.note(history.mirrored.sync()["snapshot"])
            churn.step(25)
        kill_one(history, rng)
        history.note(history.mirrored.sync()["snapshot"])
        history.note(history.mirrored.sync()["snapshot"])
        churn.step(25)
        kill_one(history, rng)
    finally:
        served.stop()
        scratch.release(served.data)
        scratch.release(folder / "fuse")
    return history


def kill_one(history: History, rng: random.Random) -> None:
    """Begin a run and kill its client."""
    run = subprocess.Popen(
        [*END_WITH_PARENT, *COMMAND, *history.mirrored.sync_arguments()],
        env={**os.environ, **history.mirrored.volume.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(0.35 + 0.2 * rng.random())
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(0.2)
    history.note(None)


@pytest.fixture
def power_folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    scratch.release(tmp_path)


def check_cut(history: History, image: Path, length: int, place: Path) -> None:
    """Serve the image that a cut left and check all that was promised by then."""
    known, volume = history.mirrored.known, history.mirrored.volume
    data = place / "data"
    skip = shutil.ignore_patterns("pool", "pool.img")
    shutil.copytree(history.folder / "data", data, ignore=skip)
    (data / "pool").mkdir()
    image.rename(data / "pool.img")
    served = Served(data, driver="btrfs", workers=1)
    served.start()
    url = f"{served.url}/volumes/{volume.name}"
    address = Volume(volume.name, url, volume.token, str(data / "keys" / "ca.pem"))
    again = Mirrored(served, history.folder, volume=address)
    again.state = place / "state"
    promised = [name for end, name in history.promised if end <= length]
    for name in promised:
        assert fingerprint(again.snapshot_root(name)) == known[name], f"snapshot {name}"
    for name in promised[-1:]:
        again.check_verdict("--snapshot", name)
    states = [state for end, state in history.states if end <= length]
    if states:
        shutil.copytree(states[-1], again.state)
        # The state belongs to a source and a target; the target has another port now.
        (folder,) = [one for one in again.state.iterdir() if one.is_dir()]
        State(str(again.state), str(again.source), url).close()
        (fresh,) = [one for one in again.state.iterdir() if one.is_dir() and one != folder]
        shutil.rmtree(fresh)
        folder.rename(fresh)
    again.sync()
    assert again.differences() == []
    again.check_verdict()
    for name in promised:
        assert fingerprint(again.snapshot_root(name)) == known[name], f"snapshot {name} after the next run"
    served.stop()


def run_cuts(folder: Path, cuts: int) -> None:
    seed = int(os.environ.get("MIRRORKEEP_SEED") or random.SystemRandom().randrange(10**9))
    print(f"MIRRORKEEP_SEED={seed}")
    rng = random.Random(seed)
    history = make_history(folder, rng)
    replay = blocklog.Replay(history.log, history.base)
    total = len(replay.events)
    flushes = sum(event.is_flush for event in replay.events)
    print(f"{total} writes and flushes, of them {flushes} flushes, {history.log.stat().st_size >> 20} MiB")
    first = next(i for i, event in enumerate(replay.events) if event.end >= history.states[0][0]) // 2
    lost = 0
    for number, after in enumerate(sorted(rng.sample(range(first, total), min(cuts, total - first)))):
        place = folder / f"cut{number}"
        place.mkdir()
        lost_now = replay.cut(after, place / "image", rng)
        lost += lost_now
        try:
            check_cut(history, place / "image", replay.events[after - 1].end, place)
        except BaseException:
            print(f"cut after {after} of {total}, {lost_now} pages lost")
            raise
        finally:
            scratch.discard(place)
    print(f"{number + 1} cuts, {lost} pages lost")


@pytest.mark.timeout(0)
def test_power_cuts(power_folder: Path) -> None:
    run_cuts(power_folder, CUTS)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_power_cuts(power_folder: Path) -> None:
    run_cuts(power_folder, 20 * CUTS)
