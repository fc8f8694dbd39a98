"""How much goes on at one time between a client and a store, and who does what: seen from outside.

A line that this process can hold, slow and count stands between the two.  Where one time is compared with
another, latency that the line adds makes almost all of both, so that a busy machine changes little.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.tree.wire import SEGMENT_BYTES
from rig.compare import Comparer
from rig.link import Link
from rig.mirrored import HIDDEN
from rig.requests import Request, Requests, overlapping
from rig.served import COMMAND, END_WITH_PARENT, Served, checked

MIB = 1 << 20


STORE = {"workers": 1}


@pytest.fixture
def link(store: Served) -> Iterator[Link]:
    with Link(store.port) as made:
        yield made


@dataclass
class Pair:
    """A source and a volume of its own at the far end of a line."""

    store: Served
    link: Link
    source: Path
    name: str

    def __post_init__(self) -> None:
        self.source.mkdir()
        self.volume = self.store.create_volume(self.name)
        self.requests = Requests(self.store)

    def argv(self, *more: str) -> list[str]:
        url = self.volume.url.replace(f":{self.store.port}/", f":{self.link.port}/")
        return ["sync", str(self.source), url, "--state", f"{self.source}.state", "--json", *more]

    def sync(self, *more: str, under: tuple[str, ...] = ()) -> dict[str, Any]:
        return checked(*self.argv(*more), environment=self.volume.environment, under=under).last

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*END_WITH_PARENT, *COMMAND, *self.argv(*more)],
            env={**os.environ, **self.volume.environment},
            stdout=subprocess.PIPE,
        )

    def differences(self) -> list[str]:
        tip = self.store.native_path(self.name)
        return [str(one) for one in Comparer(str(self.source), str(tip), skip=(HIDDEN,)).differences()]


@pytest.fixture
def pair(store: Served, link: Link, tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-50:].strip("-")
    return Pair(store, link, tmp_path / "source", name)


def make_files(source: Path, count: int, size_bytes: int) -> None:
    """Make files of different sizes: of equal ones a run looks first whether one is a copy of another."""
    for number in range(count):
        (source / f"file{number}").write_bytes(random.Random(number).randbytes(size_bytes + number))


# --- connections (CLI-24, WQ-02) ------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
def test_so_many_connections_carry_content_as_threads_were_asked_for(
    pair: Pair, link: Link, threads: int
) -> None:
    """Each thread is held at its first connection; there is work for twice as many."""
    make_files(pair.source, 4 * max(8, threads), MIB - 100)  # two files fill a bundle
    link.hold()
    run = pair.start("--threads", str(threads))
    assert link.await_waiting(1)  # the coordinator's own, which begins the run and closes it
    link.let_through(1)
    assert link.await_waiting(threads)
    link.release()
    assert run.stdout is not None
    done = json.loads(run.stdout.read().splitlines()[-1])
    assert (run.wait(), done["status"]) == (0, "complete")
    assert link.most == threads + 1
    assert pair.differences() == []


def transfers(requests: list[Request]) -> list[Request]:
    return [one for one in requests if "/file" in one.path or one.method == "BUNDLE-APPLY"]


def test_over_a_distant_line_eight_threads_are_several_times_as_fast_as_one(
    store: Served, link: Link, tmp_path: Path
) -> None:
    """A file over 1 MiB takes several round trips one after the other; of different files they overlap.

    Sixteen files are two rounds of eight: sixteen times the waiting of one, against twice.  A factor of
    eight would be all that there is; four leaves room for whatever else the machine is at.
    """
    seconds: dict[int, float] = {}
    for threads in (1, 8):
        pair = Pair(store, link, tmp_path / f"source{threads}", f"distant-{threads}")
        make_files(pair.source, 16, MIB + 1000)
        pair.requests.new()
        link.slow(round_trip_s=0.1)
        pair.sync("--threads", str(threads), "--no-snapshot")
        link.slow()
        sent = transfers(pair.requests.new())
        assert len(sent) >= 48  # begin, segment, finish
        seconds[threads] = max(one.ended_s for one in sent) - min(one.began_s for one in sent)
        assert pair.differences() == []
    assert seconds[8] * 4 < seconds[1]


def test_segments_of_one_file_are_sent_at_the_same_time(pair: Pair, link: Link) -> None:
    """Each of eight segments carries enough that sending it takes many times as long as beginning it."""
    place = pair.source / "file"
    content = bytearray(random.Random(3).randbytes(7 * SEGMENT_BYTES + MIB))
    place.write_bytes(content)
    pair.sync("--no-snapshot")
    for segment in range(8):
        at = segment * SEGMENT_BYTES + 12_345
        content[at : at + 300_000] = random.Random(segment).randbytes(300_000)
    place.write_bytes(content)
    pair.requests.new()
    link.slow(round_trip_s=0.02, bytes_per_second=3e6)
    pair.sync("--no-snapshot")
    link.slow()
    patches = [one for one in pair.requests.new() if one.method == "PATCH-APPLY"]
    assert len(patches) == 8
    assert overlapping(patches) > 1
    assert sum(one.received_bytes for one in patches) < 8 * 320_000
    assert pair.differences() == []


# --- processors (PERF-12) -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.must_run
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_two_processors_hash_faster_than_one(tmp_path: Path) -> None:
    """Files that were touched are hashed and, being the same, not sent: hashing makes almost all of the time.

    Two processors could halve it.  What is asked for leaves out what one process does alone (it begins, it
    walks), and half of the rest.
    """
    source, files = tmp_path / "source", 3000
    source.mkdir()
    for number in range(files):
        with (source / f"file{number}").open("wb") as stream:
            stream.truncate(MIB)
    seconds: dict[str, float] = {}
    argv = ("sync", str(source), str(tmp_path / "copy"), "--state", str(tmp_path / "state"), "--json")
    checked(*argv)
    for threads in ("1", "2"):
        for number in range(files):
            os.utime(source / f"file{number}")
        time.sleep(0.07)
        row = checked(*argv, "--threads", threads).last
        assert (row["changed"], row["bytes_read"], row["bytes_sent"]) == (files + 1, files * MIB, 0)
        seconds[threads] = row["seconds"]
    assert seconds["2"] < seconds["1"] * 0.8, seconds


# --- memory (WQ-07) -------------------------------------------------------------------------------------


def test_a_run_keeps_within_an_address_space_smaller_than_what_it_brings_over(pair: Pair) -> None:
    """Every process of the client may map so much and no more; one file alone is larger."""
    most_bytes = 448 * MIB
    for number in range(1500):
        (pair.source / f"small{number}").write_bytes(b"%d" % number * 200)
    with (pair.source / "large").open("wb") as stream:
        stream.truncate(600 * MIB)
        for number in range(20):
            stream.seek(number * 30 * MIB)
            stream.write(random.Random(number).randbytes(64 * 1024))
    row = pair.sync(under=("prlimit", f"--as={most_bytes}"))
    assert (row["status"], row["entries"]) == ("complete", 1502)
    assert row["bytes_read"] > most_bytes
    assert pair.differences() == []


# --- who reads and writes what (WQ-09) ------------------------------------------------------------------


class Calls:
    """Reads, writes and seeks in files, with task and place, from a log of system calls."""

    CALL = re.compile(r"^(\d+) +(\w+)\((\d+)<([^>]*)>, .*?(?:, (\d+))?\) += (\d+)$", re.MULTILINE)
    POSITIONED = ("pread64", "pwrite64")

    def __init__(self, log: Path) -> None:
        self._log = log
        calls = "read,pread64,write,pwrite64,lseek"
        self.under = ("strace", "-f", "-y", "-qq", "-s", "0", "-e", f"trace={calls}", "-o", str(log))

    def of(self, ending: str) -> list[tuple[int, str, int]]:
        """Return (task, call, place) for the files whose path ends so, in order; -1: where the last ended."""
        return [tuple(found) for path, *found in self._all() if path.endswith(ending)]

    def below(self, top: Path) -> list[tuple[int, str, int]]:
        """Return the same for files below a folder."""
        return [tuple(found) for path, *found in self._all() if path.startswith(f"{top}/")]

    def _all(self) -> Iterator[tuple[str, int, str, int]]:
        for pid, call, _, path, place, result in self.CALL.findall(self._log.read_text()):
            at = place if call in self.POSITIONED else result if call == "lseek" else ""
            yield path, int(pid), call, int(at or -1)


@pytest.mark.engine("strace")
def test_one_process_reads_the_old_manifest_and_writes_the_new_one_from_front_to_back(
    pair: Pair, tmp_path: Path
) -> None:
    for number in range(6000):
        place = pair.source / f"d{number % 5}" / f"file{number}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"%d" % number)
    pair.sync("--no-snapshot")
    for number in range(0, 6000, 2):
        (pair.source / f"d{number % 5}" / f"file{number}").write_bytes(b"changed")
    calls = Calls(tmp_path / "calls")
    time.sleep(0.07)
    pair.sync("--no-snapshot", "--threads", "3", under=calls.under)
    old = calls.of("/manifest")
    new = calls.of("/walk.manifest")
    walked = {pid for pid, call, _ in old if call == "read"}
    written = {pid for pid, call, _ in new if call == "write"}
    assert len(walked) == 1
    assert walked == written
    assert {place for pid, call, place in old if call == "lseek" and pid in walked} <= {0}  # on opening
    places = [place for _, call, place in old if call == "pread64"]
    # Once for the records that stay, once for the difference that goes to the store.
    assert sum(after < before for before, after in itertools.pairwise(places)) <= 1
    assert {call for _, call, _ in new if call.startswith("pwrite")} == set()
    assert {place for pid, call, place in new if call == "lseek" and pid in walked} <= {0}
    readers = {pid for pid, call, _ in calls.below(pair.source) if call == "read"}
    assert 1 < len(readers) <= 3
    assert walked.isdisjoint(readers)
    assert pair.differences() == []
