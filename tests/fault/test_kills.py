"""SIGKILL of the client or of the whole server at random instants of a run that is alive.

After each kill the store starts again, a run completes, the tip equals the source, the validation of all
content is clean, and every earlier snapshot is what it was, byte for byte.  ``MIRRORKEEP_KILLS`` says how
many (20; ``scripts/soak`` says 1,000), ``MIRRORKEEP_SEED`` repeats a failure: the seed is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.churn import Churn
from rig.mirrored import Mirrored
from rig.served import COMMAND, END_WITH_PARENT, Served

pytestmark = pytest.mark.soak
TAKE_OUT = int(os.environ.get("MIRRORKEEP_KILLS", "20")) > 20
"""In the long tier, folders are away for the run that is killed."""


def chosen_seed() -> int:
    return int(os.environ.get("MIRRORKEEP_SEED") or random.SystemRandom().randrange(10**9))


class Killer:
    """Kills one side of a run at a random instant of it, and learns how long runs take."""

    def __init__(self, mirrored: Mirrored, churn: Churn, rng: random.Random) -> None:
        self.mirrored = mirrored
        self.churn = churn
        self.rng = rng
        self.usual_s = 0.35
        self.kills = 0
        self.missed = 0

    def start_run(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*END_WITH_PARENT, *COMMAND, *self.mirrored.sync_arguments()],
            env={**os.environ, **self.mirrored.volume.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_alive(self, run: subprocess.Popen[str]) -> bool:
        """Wait for a random instant; False when the run ended before it."""
        wait_s = 0.2 + self.rng.random() * self.usual_s
        try:
            run.wait(wait_s)
        except subprocess.TimeoutExpired:
            return True
        self.usual_s = max(0.2, self.usual_s * 0.8)
        self.missed += 1
        self.finish(run)
        return False

    def finish(self, run: subprocess.Popen[str]) -> None:
        output, errors = run.communicate(timeout=100)
        assert run.returncode == 0, (
            f"exit {run.returncode}: {output}{errors}{self.mirrored.served.last_words()}"
        )
        self.mirrored.note_snapshot(json.loads(output.splitlines()[-1])["snapshot"])

    def kill_client(self) -> None:
        put_back = self.churn.take_out() if TAKE_OUT and self.rng.random() < 0.3 else lambda: None
        run = self.start_run()
        if not self.wait_alive(run):
            put_back()
            self.finish(self.start_run())
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        if run.returncode == -signal.SIGKILL:
            self.kills += 1
        put_back()
        if self.rng.random() < 0.5:
            self.churn.step(4)
        began = time.monotonic()
        self.finish(self.start_run())
        self.usual_s = 0.5 * self.usual_s + 0.5 * min(2.0, time.monotonic() - began)

    def kill_server(self) -> None:
        run = self.start_run()
        if not self.wait_alive(run):
            return
        self.mirrored.served.kill()
        self.kills += 1
        if self.rng.random() < 0.3:  # both at once
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
            self.mirrored.served.start()
            self.finish(self.start_run())
            return
        self.mirrored.served.start()
        self.finish(run)


def run_kills(
    served: Served, folder: Path, kills: int, sides: tuple[str, ...], *, look_every: int = 5
) -> None:
    seed = chosen_seed()
    print(f"MIRRORKEEP_SEED={seed}")
    rng = random.Random(seed)
    churn = Churn(folder / "source", rng, files=250)
    killer = Killer(Mirrored(served, folder, "--commit-interval", "0.15"), churn, rng)
    attempts = 0
    while killer.kills < kills:
        attempts += 1
        assert attempts < 3 * kills + 10, "runs end before they can be killed"
        churn.step(25)
        {"client": killer.kill_client, "server": killer.kill_server}[rng.choice(sides)]()
        assert killer.mirrored.differences() == [], f"after {killer.kills} kills, MIRRORKEEP_SEED={seed}"
        if killer.kills % look_every == 0:
            killer.mirrored.check_verdict()
    killer.mirrored.check_verdict()
    killer.mirrored.check_snapshots()
    print(f"{killer.kills} kills, {killer.missed} runs were quicker, {len(killer.mirrored.known)} snapshots")


@pytest.mark.btrfs
@pytest.mark.timeout(0)
def test_the_client_is_killed(make_served: Callable[..., Served], tmp_path: Path, kill_count: int) -> None:
    run_kills(make_served(driver="btrfs", size="4G"), tmp_path, kill_count * 6 // 10, ("client",))


@pytest.mark.btrfs
@pytest.mark.timeout(0)
def test_the_server_is_killed(make_served: Callable[..., Served], tmp_path: Path, kill_count: int) -> None:
    run_kills(make_served(driver="btrfs", size="4G"), tmp_path, kill_count * 3 // 10, ("server",))


@pytest.mark.timeout(0)
def test_both_are_killed_on_the_dir_driver(
    make_served: Callable[..., Served], tmp_path: Path, kill_count: int
) -> None:
    run_kills(make_served(driver="dir"), tmp_path, kill_count - kill_count * 9 // 10, ("client", "server"))
