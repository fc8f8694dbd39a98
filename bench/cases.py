"""The order of events: which command of which tool is timed when, and on what.

Every run of a scenario starts with fresh file systems for all tools.  Within it the tools take turns at each
step, in an order that rotates from run to run, so that all of them see the same source in the same state
and none always goes first.  Before each timing dirty pages are written out and Mirrorkeep's pending
validation is over, and memory has been touched.  The source is warm in the page cache for everybody.

A crash leaves mounts; they lie below the benchmark's folder and ``rig.scratch.discard`` takes them away.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import trees
from bench.measure import CommandFailed, Measured, measure, spare_memory_bytes, touch_memory
from bench.peers import Borg, Mirrorkeep, Peer, Place, Restic, Rsync
from rig import scratch

HIDDEN = ".mirrorkeep"
SMALL_CASES = ("first", "same", "changed", "restore", "validate-small")
LARGE_CASES = ("large-first", "large-edited", "validate-large")
TITLES = {
    "first": "first copy, small files",
    "same": "nothing changed",
    "changed": "1 % of the files changed",
    "restore": "restore, small files",
    "validate-small": "validation, small files",
    "large-first": "first copy, large file",
    "large-edited": "1 % of the large file edited",
    "validate-large": "validation, large file",
    "wan-large": "large file, slow and distant",
    "wan-small": "10,000 small files, slow and distant",
    "scale-first": "first copy, many entries",
    "scale-same": "nothing changed, many entries",
    "described-close": "close with a manifest of many entries",
    "described-found": "validation that finds nothing of it",
    "described-emptied": "run that removes all of it",
    "described-settled": "validation of what is left",
}


@dataclass(frozen=True)
class Sample:
    """One timing: ``tool`` is a peer's name, or ``sha256sum`` beside a validation."""

    case: str
    tool: str
    run: int
    seconds: float
    cpu_s: float
    client_peak_bytes: int
    server_peak_bytes: int
    sent_bytes: int | None
    link_share: float | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What to measure, where, how large and how often."""

    folder: Path
    shape: trees.Shape
    runs: int
    cases: tuple[str, ...]
    tools: tuple[str, ...]
    driver: str
    pool_size: float
    """Size of the file systems that are copied to, in multiples of what may be written to them."""
    say: Callable[[str], None]

    def wants(self, *cases: str) -> bool:
        return any(case in self.cases for case in cases)


def _make_peers(plan: Plan) -> list[Peer]:
    known: dict[str, Callable[[], Peer]] = {
        "mirrorkeep": lambda: Mirrorkeep(driver=plan.driver),
        "rsync": Rsync,
        "restic": Restic,
        "borg": Borg,
    }
    return [known[tool]() for tool in plan.tools]


class Round:
    """One run of one scenario: fresh file systems, a source, the peers, and the samples taken."""

    def __init__(self, plan: Plan, number: int, *, data_bytes: int, files: int) -> None:
        self.plan, self.number, self.data_bytes = plan, number, data_bytes
        self.folder = plan.folder / f"round{number}"
        # A restic or Borg repository holds both states; ours the snapshots and sidecars too.
        self.written_bytes = max(1 << 30, 3 * data_bytes + files * 12_000)
        # A pool is made over most of a disk where nothing else is said.  One with little room to spare makes
        # btrfs write early, for fear of running out of it: that costs a fifteenth of a first copy.
        self.pool_bytes = int(plan.pool_size * self.written_bytes)
        # The edited large file is written beside the old one, and restic's cache lies there as well.
        self.room_bytes = max(1 << 29, 3 * data_bytes + files * 8_000)
        self.samples: list[Sample] = []
        self.peers = _make_peers(plan)

    def open(self) -> None:
        self.client = scratch.make(
            self.folder,
            "client",
            kind="ext4",
            size_bytes=self.room_bytes,
            preallocated_bytes=self.room_bytes,
            direct=True,
        )
        self.source = self.client / "source"
        self.source.mkdir()
        for peer in self.peers:
            place = Place(self.folder / peer.name, self.client, self.pool_bytes, self.written_bytes)
            peer.open(place)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        scratch.discard(self.folder)

    def settle(self) -> None:
        """Have nothing going on, nothing to be written, and memory at hand for all that a tool will fill."""
        for peer in self.peers:
            peer.settle()
        os.sync()
        touch_memory(min(4 * self.data_bytes, spare_memory_bytes() // 2))

    def note(self, case: str, tool: str, measured: Measured) -> None:
        self.plan.say(
            f"{TITLES.get(case, case):30} run {self.number + 1}  {tool:10} {measured.seconds:8.2f} s"
        )
        self.samples.append(
            Sample(
                case,
                tool,
                self.number,
                round(measured.seconds, 4),
                round(measured.cpu_s, 3),
                measured.client_peak_bytes,
                measured.server_peak_bytes,
                measured.sent_bytes,
                measured.link_share,
            )
        )

    def in_turn(self) -> Sequence[Peer]:
        first = self.number % len(self.peers)
        return [*self.peers[first:], *self.peers[:first]]

    def copy(self, case: str) -> None:
        trees.warm(str(self.source))
        for peer in self.in_turn():
            self.settle()
            self.note(case, peer.name, peer.copy(str(self.source)))
        self.settle()

    def restore(self, case: str) -> None:
        for peer in self.in_turn():
            self.settle()
            name = f"restored-{peer.name}"
            target = scratch.make(
                self.folder / name,
                "files",
                kind="ext4",
                size_bytes=self.room_bytes,
                preallocated_bytes=self.room_bytes,
                direct=True,
            )
            (target / "tree").mkdir()
            self.note(case, peer.name, peer.restore(str(target / "tree")))
            os.sync()
            scratch.discard(self.folder / name)

    def validate(self, case: str) -> None:
        """Compare our validation with two sha256sum over the very same files, both from a warm cache."""
        for peer in self.peers:
            if isinstance(peer, Mirrorkeep):
                self.settle()
                native = peer.newest()
                trees.warm(str(native))
                self.note(case, "sha256sum", hash_all(native, self.folder / "sha256sum.log"))
                self.note(case, peer.name, peer.validate())


def hash_all(top: Path, output: Path) -> Measured:
    """Time ``sha256sum`` over all files below ``top`` but the hidden ones, two processes at a time."""
    find = f"find . -name {HIDDEN} -prune -o -type f -print0 | xargs -0 -r -n 64 -P 2 sha256sum >/dev/null"
    return measure(["sh", "-c", find], cwd=str(top), output=output)


@contextmanager
def opened(one: Round) -> Iterator[Round]:
    try:
        one.open()
        yield one
    finally:
        one.close()


def small_files(plan: Plan, number: int) -> list[Sample]:
    """Run the scenario of many small files once."""
    shape = plan.shape
    expected = shape.files * trees.MEAN_BYTES
    with opened(Round(plan, number, data_bytes=expected, files=shape.files)) as one:
        made = trees.make_small_files(str(one.source), shape.files, seed=number + 1)
        plan.say(f"{shape.files} small files, {made / 1e6:.0f} MB")
        one.copy("first")
        if plan.wants("same", "changed", "restore"):
            one.copy("same")
        if plan.wants("changed", "restore"):
            trees.change_small_files(str(one.source), shape.files, shape.changed_share, seed=number + 100)
            one.copy("changed")
        if plan.wants("restore"):
            one.restore("restore")
        if plan.wants("validate-small"):
            one.validate("validate-small")
    return one.samples


def large_file(plan: Plan, number: int) -> list[Sample]:
    """Run the scenario of one large file once."""
    shape = plan.shape
    with opened(Round(plan, number, data_bytes=shape.large_bytes, files=100)) as one:
        path = str(one.source / "large.bin")
        trees.make_large_file(path, shape.large_bytes, seed=number + 1)
        plan.say(f"one file of {shape.large_bytes / 1e6:.0f} MB")
        one.copy("large-first")
        if plan.wants("large-edited"):
            trees.edit_large_file(path, shape.changed_share, seed=number + 100)
            one.copy("large-edited")
        if plan.wants("validate-large"):
            one.validate("validate-large")
    return one.samples


def run(plan: Plan) -> list[Sample]:
    """Run what ``plan`` asks for; a tool that fails ends the benchmark (CommandFailed)."""
    samples: list[Sample] = []
    try:
        for number in range(plan.runs):
            if plan.wants(*SMALL_CASES):
                samples += small_files(plan, number)
            if plan.wants(*LARGE_CASES):
                samples += large_file(plan, number)
    except subprocess.SubprocessError as error:
        raise CommandFailed(str(error)) from error
    return [sample for sample in samples if sample.case in plan.cases]
