"""SIGKILL of the client or of the whole server at random instants of a run that is alive.

After each kill the store starts again, a run completes, the tip equals the source, the validation of all
content is clean, and every earlier snapshot is what it was, byte for byte.  ``MIRRORKEEP_KILLS`` says how
many (20; ``scripts/soak`` says 1,000), shared out among the cases; ``MIRRORKEEP_SEED`` repeats a failure: the
seed is printed.
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
LOOK_EVERY = 5
"""So many kills go between two validations of all content."""


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
        self.away = 0
        """Kills of runs that a folder was away for."""

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
        if self.kill_one_run() and self.rng.random() < 0.5:
            self.churn.step(4)
        self.finish_and_learn()

    def kill_client_while_away(self) -> None:
        """A folder is away for the run that is killed and is back, unchanged, before the next one: in a third
        of the cases before another one that is killed."""
        put_back = self.churn.take_out()
        killed = self.kill_one_run()
        if put_back is not None:
            put_back()
            self.away += killed
        if killed and self.rng.random() < 0.3:
            self.kill_one_run()
        if killed and self.rng.random() < 0.3:
            self.churn.step(4)
        self.finish_and_learn()

    def kill_one_run(self) -> bool:
        """Start a run and kill its client; False when the run ended before that."""
        run = self.start_run()
        if not self.wait_alive(run):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        self.kills += run.returncode == -signal.SIGKILL
        return run.returncode == -signal.SIGKILL

    def finish_and_learn(self) -> None:
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
    make_served: Callable[..., Served],
    folder: Path,
    kills: int,
    sides: tuple[str, ...],
    *,
    driver: str = "btrfs",
) -> None:
    seed = chosen_seed()
    print(f"MIRRORKEEP_SEED={seed}")
    rng = random.Random(seed)
    size = f"{4 + kills // 25}G" if driver == "btrfs" else None  # 4 GB were full before 400 kills
    # Three seconds a kill are usual.
    served = make_served(driver=driver, size=size, limit_s=600 + 20 * kills)
    churn = Churn(folder / "source", rng, files=250)
    killer = Killer(Mirrored(served, folder, "--commit-interval", "0.15"), churn, rng)
    attempts = 0
    while killer.kills < kills:
        attempts += 1
        assert attempts < 3 * kills + 10, "runs end before they can be killed"
        churn.step(25)
        rng.choice([getattr(killer, f"kill_{side}") for side in sides])()
        assert killer.mirrored.differences() == [], f"after {killer.kills} kills, MIRRORKEEP_SEED={seed}"
        if killer.kills % LOOK_EVERY == 0:
            killer.mirrored.check_verdict()
    killer.mirrored.check_verdict()
    killer.mirrored.check_snapshots()
    print(
        f"{killer.kills} kills, {killer.away} of them with a folder away, {killer.missed} runs were quicker,"
        f" {len(killer.mirrored.known)} snapshots"
    )


@pytest.mark.btrfs
@pytest.mark.timeout(0)
def test_the_client_is_killed(make_served: Callable[..., Served], tmp_path: Path, kill_count: int) -> None:
    run_kills(make_served, tmp_path, kill_count * 4 // 10, ("client",))


@pytest.mark.btrfs
@pytest.mark.timeout(0)
def test_the_client_is_killed_while_a_folder_is_away(
    make_served: Callable[..., Served], tmp_path: Path, kill_count: int
) -> None:
    run_kills(make_served, tmp_path, kill_count // 5, ("client_while_away",))


@pytest.mark.btrfs
@pytest.mark.timeout(0)
def test_the_server_is_killed(make_served: Callable[..., Served], tmp_path: Path, kill_count: int) -> None:
    run_kills(make_served, tmp_path, kill_count * 3 // 10, ("server",))


@pytest.mark.timeout(0)
def test_both_are_killed_on_the_dir_driver(
    make_served: Callable[..., Served], tmp_path: Path, kill_count: int
) -> None:
    kills = kill_count - kill_count * 9 // 10
    sides = ("client", "client_while_away", "server")
    run_kills(make_served, tmp_path, kills, sides, driver="dir")
