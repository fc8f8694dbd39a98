"""Whatever went wrong with a run or with what it left, the next one, told nothing, makes the mirror right.

And the two ways of using one difference: applied to the mirror, or only told.  Through the command line, with
a line between client and store that can be cut.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rig.compare import Comparer
from rig.link import Link
from rig.mirrored import HIDDEN, fingerprint
from rig.served import COMMAND, END_WITH_PARENT, Result, Served, checked, command

MIB = 1 << 20


@dataclass
class Machine:
    """A source that is mirrored by one and the same command, again and again."""

    store: Served
    link: Link
    folder: Path
    name: str

    def __post_init__(self) -> None:
        self.source, self.state = self.folder / "source", self.folder / "state"
        self.volume = self.store.create_volume(self.name)
        for number in range(400):
            place = self.source / f"d{number % 8}" / f"file{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(random.Random(number).randbytes(2000 + number))
        (self.source / "large").write_bytes(random.Random(1).randbytes(12 * MIB))

    @property
    def argv(self) -> list[str]:
        url = self.volume.url.replace(f":{self.store.port}/", f":{self.link.port}/")
        return [
            "sync",
            str(self.source),
            url,
            "--state",
            str(self.state),
            "--json",
            "--commit-interval",
            "0.05",
        ]

    def change(self) -> None:
        """Edit, add, remove and rename."""
        for number in range(0, 400, 5):
            (self.source / f"d{number % 8}" / f"file{number}").write_bytes(b"edited %d" % number * 50)
        (self.source / "d1" / "file1").unlink()
        (self.source / "d2" / "file2").rename(self.source / "d3" / "from d2")
        (self.source / "new").mkdir()
        for number in range(60):
            (self.source / "new" / f"f{number}").write_bytes(random.Random(-number).randbytes(100_000))
        with (self.source / "large").open("r+b") as stream:
            stream.write(random.Random(9).randbytes(6 * MIB))
        time.sleep(0.07)

    def run(self) -> Result:
        return command(*self.argv, environment=self.volume.environment)

    def heal(self) -> dict[str, Any]:
        """Run once as always, and check that everything is right."""
        row = checked(*self.argv, "--wait", environment=self.volume.environment).last
        assert (row["status"], row["failed"], row["verdict"]) == ("complete", 0, "verified")
        assert self.differences() == []
        return row

    def differences(self) -> list[str]:
        comparer = Comparer(str(self.source), str(self.tip), skip=(HIDDEN,))
        return [str(one) for one in comparer.differences()]

    def verdicts(self) -> dict[str, str]:
        """Return the verdict of each snapshot."""
        argv = ("snapshots", self.volume.url, "--json")
        rows = checked(*argv, environment=self.volume.environment).rows
        return {row["name"]: row["verdict"] for row in rows if "verdict" in row}

    @property
    def tip(self) -> Path:
        return self.store.native_path(self.name)

    @property
    def own(self) -> Path:
        """Return the folder of what the client remembers."""
        return next(self.state.iterdir())


@pytest.fixture
def machine(store: Served, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    name = "".join(one if one.isalnum() else "-" for one in request.node.name.lower())[-50:].strip("-")
    with Link(store.port) as link:
        yield Machine(store, link, tmp_path, name)


# --- faults (GEN-08) ------------------------------------------------------------------------------------


def kill_in_the_middle(machine: Machine) -> None:
    """The line is slow, so that a run that has sent so much has not sent everything.

    Some of the new files have come to the store by then, and when the next run looks they are gone.
    """
    machine.link.slow(bytes_per_second=5e6)
    before = machine.link.up.passed_bytes
    run = subprocess.Popen(
        [*END_WITH_PARENT, *COMMAND, *machine.argv],
        env={**os.environ, **machine.volume.environment},
        stdout=subprocess.DEVNULL,
    )
    assert machine.link.await_passed(before + 9 * MIB)
    run.kill()
    assert run.wait() < 0
    assert (machine.tip / "new").exists()
    shutil.rmtree(machine.source / "new")
    machine.link.slow()


def cut_the_line_for_good(machine: Machine) -> None:
    """Bytes are lost with the line; nobody answers at the other end until the next run."""
    kill_in_the_middle(machine)
    machine.link.cut()


def forget_everything(machine: Machine) -> None:
    shutil.rmtree(machine.state)


def garble(name: str) -> Callable[[Machine], None]:
    def damage(machine: Machine) -> None:
        place = machine.own / name
        data = bytearray(place.read_bytes())
        for position in range(len(data) // 3, len(data), 997):
            data[position] ^= 0x20
        place.write_bytes(data)

    return damage


def truncate(name: str) -> Callable[[Machine], None]:
    def damage(machine: Machine) -> None:
        place = machine.own / name
        os.truncate(place, place.stat().st_size // 2)

    return damage


def leave_another_machines_state(machine: Machine) -> None:
    """A restored image of the machine remembers an older run than the store does."""
    kept = machine.folder / "kept"
    shutil.copytree(machine.state, kept)
    (machine.source / "d7" / "file7").write_bytes(b"seen by a run that nobody remembers")
    time.sleep(0.07)
    checked(*machine.argv, environment=machine.volume.environment)
    shutil.rmtree(machine.state)
    kept.rename(machine.state)


FAULTS: dict[str, Callable[[Machine], None]] = {
    "the run was killed": kill_in_the_middle,
    "the line was lost": cut_the_line_for_good,
    "the state was lost": forget_everything,
    "the state is an older one": leave_another_machines_state,
    "the manifest is damaged": garble("manifest"),
    "the manifest is cut off": truncate("manifest"),
    "the index is damaged": garble("index"),
    "the index is cut off": truncate("index"),
    "the note of the run is damaged": garble("state.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_next_run_heals_unaided(machine: Machine, fault: str) -> None:
    checked(*machine.argv, environment=machine.volume.environment)
    machine.change()
    FAULTS[fault](machine)
    planned = checked(*machine.argv, "--dry-run", environment=machine.volume.environment).last
    assert planned["new"] and planned["changed"], "what is damaged here hides nothing from a plan"
    machine.heal()
    again = machine.heal()
    assert (again["unchanged"], again["bytes_sent"]) == (again["entries"], 0)


def test_a_run_goes_on_when_its_line_breaks_and_comes_back(machine: Machine) -> None:
    machine.link.slow(bytes_per_second=8e6)
    run = subprocess.Popen(
        [*END_WITH_PARENT, *COMMAND, *machine.argv],
        env={**os.environ, **machine.volume.environment},
        stdout=subprocess.PIPE,
    )
    for part in range(1, 4):
        assert machine.link.await_passed(part * MIB)
        machine.link.cut()
    assert run.stdout is not None
    row = json.loads(run.stdout.read().splitlines()[-1])
    assert (run.wait(), row["status"], row["failed"]) == (0, "complete", 0)
    machine.link.slow()
    machine.heal()


def test_a_source_that_was_not_mounted_takes_nothing_away_and_the_next_run_is_as_ever(
    machine: Machine,
) -> None:
    checked(*machine.argv, environment=machine.volume.environment)
    away = machine.folder / "mounted elsewhere"
    machine.source.rename(away)
    machine.source.mkdir()
    there = sorted(path for path in machine.tip.rglob("*") if HIDDEN not in os.fsencode(path))
    assert machine.run().status == 6
    assert sorted(path for path in machine.tip.rglob("*") if HIDDEN not in os.fsencode(path)) == there
    machine.source.rmdir()
    away.rename(machine.source)
    machine.change()
    machine.heal()


def test_what_broke_on_the_store_is_found_there_and_repaired_by_the_next_run(machine: Machine) -> None:
    machine.heal()
    (machine.tip / "d4" / "file4").unlink()
    hurt = machine.tip / "d5" / "file5"
    status = hurt.stat()
    hurt.write_bytes(bytes(status.st_size))
    os.utime(hurt, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(machine.differences()) > 1
    asked = command(
        "validate", machine.volume.url, "--wait", "--json", environment=machine.volume.environment
    )
    assert asked.status == 4
    assert {row["path"] for row in asked.rows if "kind" in row} == {"d4/file4", "d5/file5"}
    row = checked(*machine.argv, "--wait", environment=machine.volume.environment).last
    assert (row["status"], row["verdict"]) == ("complete", "repaired")
    assert machine.differences() == []


# --- applied, or only told (GEN-12, GEN-15) --------------------------------------------------------------


def newer_than(mark: Path, *tops: Path) -> list[str]:
    """Return what was written after ``mark`` was made."""
    argv = ["find", *map(str, tops), "-newer", str(mark)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


def test_one_difference_is_told_without_writing_validated_without_writing_and_applied(
    machine: Machine,
) -> None:
    machine.heal()
    machine.change()
    before = fingerprint(machine.tip)
    mark = machine.folder / "mark"
    mark.touch()
    time.sleep(0.05)
    planned = checked(*machine.argv, "--dry-run", environment=machine.volume.environment)
    argv = ("validate", machine.volume.url, "--wait", "--json")
    verdict = checked(*argv, environment=machine.volume.environment).last
    assert verdict["verdict"] == "verified"  # of what was read then, not of what the source is now
    assert newer_than(mark, machine.tip, machine.state) == []
    assert fingerprint(machine.tip) == before
    differing = {one.split(": ")[0] for one in machine.differences()}
    told = {row["path"] or "." for row in planned.rows if row["event"] == "would"}
    children = {path for path in told if path.startswith("new/")}
    assert told - children == differing  # the comparer names a folder that is missing, not what is in it
    assert len(children) == 60
    machine.heal()
    assert newer_than(mark, machine.tip) != []


def test_validation_keeps_to_its_hours_and_is_done_at_once_when_somebody_asks(
    store: Served, machine: Machine
) -> None:
    hour = time.localtime().tm_hour
    policy = store.data / "validation.json"
    policy.write_text(json.dumps({"hours": [(hour + 8) % 24, (hour + 9) % 24]}))
    try:
        first, second = (
            checked(*machine.argv, environment=machine.volume.environment).last["snapshot"] for _ in range(2)
        )
        for _ in range(3):  # whoever answers looks for other work in between, and there is some
            asked = ("validate", machine.volume.url, "--snapshot", second, "--wait", "--json")
            assert checked(*asked, environment=machine.volume.environment).last["verdict"] == "verified"
        verdicts = machine.verdicts()
        assert (verdicts[first], verdicts[second]) == ("pending", "verified")
        waiting = checked(*machine.argv, "--wait", environment=machine.volume.environment).last
        assert waiting["verdict"] == "verified"
        assert machine.verdicts()[first] == "pending"
    finally:
        policy.unlink()
