"""What a run asks of the store, opens and sends when this or that changed: counted from outside.

Through the command line against a store that serves.  Requests are those of the store's access log, opened
files those that the system calls name, and what the store reads is what the kernel counts for its processes.
No validation runs of itself meanwhile: its hours are others.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.measure import Measured, measure
from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.sync.session import Session
from mirrorkeep.tree.client import StoreClient
from rig.mirrored import Mirrored
from rig.requests import Request, Requests
from rig.served import COMMAND, Served, checked

MIB = 1 << 20
RUN = re.compile(r"/api/v1/runs/[^/]+")
ENTRY_BYTES = 700
"""What the record of an entry takes on the wire at most, in the trees of these tests."""
SAMPLE_EVERY_S = 0.01
"""A run that finds nothing changed takes two tenths of a second."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("detection") / "data", driver="dir", workers=1, limit_s=900)
    served.create()
    hour = time.localtime().tm_hour
    hours = {"hours": [(hour + 8) % 24, (hour + 9) % 24]}
    (served.data / "validation.json").write_text(json.dumps(hours))
    served.start()
    yield served
    served.stop()


class Watched(Mirrored):
    """A source and its mirror, and the requests that each run makes."""

    def __init__(self, served: Served, folder: Path, name: str) -> None:
        super().__init__(served, folder, volume=served.create_volume(name))
        self.asked: list[Request] = []
        self._requests = Requests(served)

    def sync(self, *more: str, under: tuple[str, ...] = ()) -> dict[str, Any]:
        time.sleep(0.07)  # the times of what was just written lie behind the clock's granularity
        self._requests.new()
        argv = self.sync_arguments(*more)
        row = checked(*argv, environment=self.volume.environment, under=under).last
        self.asked = self._requests.new()
        return row

    def measured_sync(self, output: Path) -> Measured:
        """Run without a snapshot, and return what the client took; what it printed goes to a file."""
        self._requests.new()
        argv = [*COMMAND, *self.sync_arguments("--no-snapshot")]
        taken = measure(
            argv, environment=self.volume.environment, output=output, sample_every_s=SAMPLE_EVERY_S
        )
        self.asked = self._requests.new()
        return taken

    def kinds(self) -> list[tuple[str, str]]:
        """Return method and kind of place of each request of the last run."""
        return [(one.method, RUN.sub("RUN", one.path)) for one in self.asked]

    def sent_content(self) -> int:
        """Return the bytes of requests that may carry content."""
        return sum(one.received_bytes for one in self.asked if one.method in ("BUNDLE-APPLY", "PATCH-APPLY"))

    def listed(self, snapshot: str) -> list[bytes]:
        """Return the lines that the store lists: its last manifest, or what it actually has."""
        path = self.state.parent / f"listed {snapshot}"
        self.session().fetch_manifest(snapshot, str(path))
        with path.open("rb") as stream:
            return [line for _, line in ManifestReader(stream).lines()]

    def session(self) -> Session:
        return Session(StoreClient.from_target(self.volume.url, self.volume.token, self.volume.ca))

    def manifest(self) -> Path:
        return next(self.state.glob("*/manifest"))


@pytest.fixture
def watched(store: Served, tmp_path: Path, request: pytest.FixtureRequest) -> Watched:
    made = Watched(store, tmp_path, re.sub(r"[^a-z0-9]", "-", request.node.name.lower())[-60:].strip("-"))
    made.source.mkdir()
    return made


def write(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


def fill(source: Path, files: int, *, size_bytes: int = 500, seed: int = 1) -> None:
    rng = random.Random(seed)
    for number in range(files):
        write(source / f"d{number % 7}" / f"e{number % 3}" / f"f{number}", rng.randbytes(size_bytes))


NOTHING = [("POST", "/api/v1/runs"), ("POST", "RUN/close")]
"""The requests of a run that finds nothing."""


# --- the whole tree (CHG-01, CHG-06, CHG-07) ------------------------------------------------------------


def found(top: Path) -> set[bytes]:
    """Return what ``find`` finds below a folder, the store's own names aside."""
    argv = [
        "find",
        str(top),
        "-mindepth",
        "1",
        "-name",
        ".mirrorkeep*",
        "-prune",
        "-o",
        "-printf",
        r"%y %P\0",
    ]
    return set(subprocess.run(argv, check=True, capture_output=True).stdout.split(b"\0")) - {b""} - {b"d "}


def test_every_entry_of_the_tree_is_mirrored_and_what_is_gone_goes(watched: Watched) -> None:
    source = watched.source
    fill(source, 300)
    for name in ("empty", "deep/" + "/".join("abcdefghij" * 3), "going/away/now"):
        (source / name).mkdir(parents=True)
    for name in ("file with spaces", "line\nbreak", "deep/a/b/=,&", "deep/\u00e9\u00e8"):
        write(source / name, b"named")
    write(source / os.fsdecode(b"not \xff utf-8"), b"named")
    (source / "link").symlink_to("nowhere")
    watched.sync()
    for change in (lambda: None, lambda: rework(source)):
        change()
        watched.sync()
        assert found(watched.tip()) == found(source)
        with watched.manifest().open("rb") as stream:
            paths = {record.path for record in ManifestReader(stream)}
        assert paths == {line[2:] for line in found(source)} | {b""}
        assert watched.differences() == []


def rework(source: Path) -> None:
    """Remove files, a folder with all that is in it and an empty one; make others, empty ones too."""
    for number in range(0, 300, 9):
        (source / f"d{number % 7}" / f"e{number % 3}" / f"f{number}").unlink()
    subprocess.run(["rm", "-r", source / "going", source / "d3", source / "empty"], check=True)
    (source / "empty too" / "and below").mkdir(parents=True)
    write(source / "d4" / "new folder" / "new file", b"new")
    write(source / "empty", b"a file where a folder was")


# --- by manifest or by listing (CHG-02, CHG-03, CHG-08, CHG-15) -----------------------------------------


def read_bytes(served: Served) -> int:
    """Return how much the processes of a store have read, from disks, caches and the network."""
    total = 0
    for pid in served.pids:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            total += int(line[7:]) if line.startswith("rchar: ") else 0
    return total


def test_a_run_that_finds_nothing_asks_for_nothing_between_begin_and_close(
    watched: Watched,
) -> None:
    fill(watched.source, 1500)
    watched.sync()
    assert ("BUNDLE-APPLY", f"/volumes/{watched.volume.name}") in watched.kinds()
    row = watched.sync()
    assert (row["unchanged"], row["bytes_read"], row["bytes_sent"]) == (row["entries"], 0, 0)
    assert watched.kinds() == NOTHING
    assert sum(one.received_bytes for one in watched.asked) < 1000


def test_a_listing_and_the_manifest_tell_the_same_differences_at_another_price(
    watched: Watched, store: Served, tmp_path: Path
) -> None:
    """One run has the client's manifest; the other has to ask a store that cannot vouch for its last one."""
    fill(watched.source, 1500)
    watched.sync()
    assert watched.listed("actual") == watched.listed("latest")
    twin = Watched(store, tmp_path / "twin", watched.volume.name + "-twin")
    twin.source = watched.source
    twin.state.mkdir(parents=True)
    twin.sync()

    rework_some(watched.source)
    folders = 1 + sum(path.is_dir() for path in watched.source.rglob("*"))
    told: list[dict[str, Any]] = []
    read: list[int] = []
    for one in (watched, twin):
        if one is twin:
            one.state = tmp_path / "no state"
            one.session().begin("a run that never closes: the store's tip may be anything", {})
        before = read_bytes(store)
        told.append(one.sync())
        read.append(read_bytes(store) - before)
    counts = ("entries", "new", "moved", "removed", "failed", "bytes_read")
    assert [told[0][key] for key in counts] == [told[1][key] for key in counts]
    assert (told[0]["new"], told[0]["moved"], told[0]["removed"]) == (1, 1, 2)
    # A listing does not vouch for the times of folders: those are stamped again, and nothing else is.
    assert [row["changed"] for row in told] == [2 + 7, 2 + folders]
    listing = ("GET", f"/api/v1/volumes/{twin.volume.name}/manifest")
    assert listing in twin.kinds()
    assert [method for method, _ in watched.kinds() if method == "GET"] == []
    # The store looked into 1,500 sidecars for the one, and none for the other.
    assert read[1] > read[0] + 1500 * 250
    assert watched.differences() == twin.differences() == []
    assert watched.listed("actual") == watched.listed("latest")


def rework_some(source: Path) -> None:
    write(source / "d1" / "e1" / "f1", b"changed")
    write(source / "d1" / "new", b"new")
    (source / "d2" / "e2" / "f2").unlink()
    (source / "d3" / "e0" / "f3").unlink()
    (source / "d4" / "e1" / "f4").chmod(0o600)
    (source / "d5" / "e2" / "f5").rename(source / "d5" / "moved")


def test_what_a_store_reads_for_a_run_does_not_follow_what_it_holds(watched: Watched, store: Served) -> None:
    """Metadata come from the client's manifest: no sidecar is looked at, however many there are."""
    read: list[int] = []
    for files in (300, 2400):
        fill(watched.source, files)
        watched.sync()
        before = read_bytes(store)
        watched.sync()
        assert watched.kinds() == NOTHING
        read.append(read_bytes(store) - before)
    assert read[1] < read[0] + 2100 * 50  # the last manifest may be read; a sidecar has some 500 bytes


# --- which files (CHG-05, CHG-09, CHG-11, CHG-16, CLI-23) -----------------------------------------------


class Opened:
    """Which files below some folders a command and its children opened, by its system calls."""

    # A call that another thread's cuts in two is counted at its beginning.
    CALL = re.compile(
        rb'open(?:at)?\((?:[^<"]*<([^>]*)>, )?"((?:[^"\\]|\\.)*)"[^)\n]*(?:\) += \d+|<unfinished)'
    )

    def __init__(self, log: Path) -> None:
        self._log = log
        self.under = ("strace", "-f", "-y", "-qq", "-s", "4096", "-e", "trace=open,openat", "-o", str(log))

    def files(self, top: Path) -> set[str]:
        """Return the files (no folders) below ``top`` that were opened, relative to it."""
        opened = set()
        for folder, name in self.CALL.findall(self._log.read_bytes()):
            path = os.path.join(os.fsdecode(folder), os.fsdecode(name))
            if path.startswith(f"{top}/") and os.path.isfile(path):
                opened.add(os.path.relpath(path, top))
        return opened


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path / "calls")


@pytest.mark.engine("strace")
def test_only_changed_files_are_opened_and_only_their_signatures(watched: Watched, opened: Opened) -> None:
    source = watched.source
    fill(source, 400)
    for number in range(4):
        write(source / f"large{number}", random.Random(number).randbytes(3 * MIB))
    watched.sync()
    await_signatures(watched, 4)
    watched.sync(under=opened.under)
    assert opened.files(source) == set()
    assert signatures_of(watched, opened) == set()
    write(source / "d1" / "e1" / "f1", b"changed")
    write(source / "d1" / "e1" / "added", b"added")
    (source / "d2" / "e2" / "f2").unlink()
    edit(source / "large2", MIB, b"edited")
    row = watched.sync(under=opened.under)
    assert (row["new"], row["removed"]) == (1, 1)
    assert opened.files(source) == {"d1/e1/f1", "d1/e1/added", "large2"}
    assert signatures_of(watched, opened) == {"large2"}
    assert watched.differences() == []


def edit(place: Path, at: int, content: bytes) -> None:
    with place.open("r+b") as stream:
        stream.seek(at)
        stream.write(content)


def signature_files(watched: Watched) -> dict[str, str]:
    """Return the name of the signature of each large file, and the large file."""
    cache = SignatureCache(str(watched.manifest().parent / "signatures"))
    return {
        os.path.relpath(cache.signature_file(os.fsencode(one.name)), watched.state): one.name
        for one in sorted(watched.source.glob("large*"))
    }


def signatures_of(watched: Watched, opened: Opened) -> set[str]:
    names = signature_files(watched)
    return {names.get(path, path) for path in opened.files(watched.state) if path.endswith(".sig")}


def await_signatures(watched: Watched, count: int) -> None:
    """Wait for what is made behind a run."""
    deadline = time.monotonic() + 60
    while len(list(watched.state.glob("*/signatures/*/*.base"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


Change = Callable[[Path], object]
TABLE: list[tuple[str, Change, int, int, int]] = [
    # what is done to the source; new; changed, a folder that is stamped again too; content that may be sent
    ("nothing", lambda source: None, 0, 0, 0),
    ("a new file", lambda source: write(source / "d0/new", bytes(range(256)) * 200), 1, 1, 51_200),
    ("a small file changed", lambda source: write(source / "d0/e0/f0", b"!" * 400), 0, 2, 400),
    ("a large file changed", lambda source: edit(source / "large", 2 * MIB, b"edited"), 0, 2, 20_000),
    ("a small file was touched", lambda source: os.utime(source / "d0/e0/f0"), 0, 2, 0),
    ("a large file was touched", lambda source: os.utime(source / "large"), 0, 2, 0),
    ("a small file has another mode", lambda source: (source / "d1/e1/f1").chmod(0o640), 0, 2, 0),
    ("a large file has another mode", lambda source: (source / "large").chmod(0o604), 0, 2, 0),
    ("a folder has another mode", lambda source: (source / "d1").chmod(0o750), 0, 1, 0),
]


def test_new_is_sent_same_is_ignored_and_of_what_changed_only_the_change_travels(watched: Watched) -> None:
    source = watched.source
    fill(source, 60, size_bytes=5000)
    write(source / "large", random.Random(2).randbytes(6 * MIB))
    watched.sync()
    await_signatures(watched, 1)
    for what, change, new, changed, content_bytes in TABLE:
        change(source)
        row = watched.sync()
        assert (row["new"], row["changed"], row["removed"], row["failed"]) == (new, changed, 0, 0), what
        assert row["unchanged"] == row["entries"] - new - changed, what
        # A record that travels takes its bytes; what is measured is that no content goes with it.
        assert watched.sent_content() <= content_bytes + (new + changed) * ENTRY_BYTES, what
        assert (watched.kinds() == NOTHING) == (what == "nothing"), what
        assert [method for method, _ in watched.kinds() if method == "GET"] == [], what
        assert watched.differences() == [], what


def test_the_fingerprints_of_what_was_sent_are_on_this_machine_and_save_asking_the_store(
    watched: Watched,
) -> None:
    source, sent = watched.source, []
    for name in ("large0", "large1"):
        write(source / name, random.Random(7).randbytes(6 * MIB) + name.encode())
    watched.sync()
    await_signatures(watched, 2)
    assert {str(path.relative_to(watched.state)) for path in watched.state.rglob("*.sig")} == set(
        signature_files(watched)
    )
    for round_number in range(2):
        if round_number:
            for path in watched.state.rglob("*.sig"):
                path.unlink()
        edit(source / "large1", 3 * MIB, b"round %d" % round_number)
        watched.sync()
        sent.append(watched.sent_content())
        await_signatures(watched, 2)
        asked = [path for method, path in watched.kinds() if method == "GET"]
        assert asked == ([f"/volumes/{watched.volume.name}/large1"] if round_number else [])
        assert watched.differences() == []
    assert max(sent) < 20_000


# --- how much (CHG-12, CHG-14) --------------------------------------------------------------------------


def test_of_files_two_per_cent_of_which_changed_only_the_changed_bytes_travel(watched: Watched) -> None:
    """2 % of the small files, and 2 % of the blocks of 4 KiB of each large one, at random."""
    source, rng = watched.source, random.Random(14)
    fill(source, 1000, size_bytes=6000)
    for number in range(2):
        write(source / f"large{number}", rng.randbytes(8 * MIB))
    watched.sync()
    await_signatures(watched, 2)
    changed_bytes = 0
    for number in rng.sample(range(1000), 20):
        write(source / f"d{number % 7}" / f"e{number % 3}" / f"f{number}", rng.randbytes(6000))
        changed_bytes += 6000
    for number in range(2):
        for block in rng.sample(range(8 * MIB // 4096), 8 * MIB // 4096 // 50):
            edit(source / f"large{number}", 4096 * block, rng.randbytes(4096))
            changed_bytes += 4096
    row = watched.sync()
    assert (row["new"], row["removed"], row["bytes_read"]) == (0, 0, 20 * 6000 + 16 * MIB)
    overhead_bytes = row["changed"] * ENTRY_BYTES + changed_bytes // 10
    assert watched.sent_content() <= changed_bytes + overhead_bytes
    manifest_bytes = sum(one.received_bytes for one in watched.asked if one.path.endswith("/close"))
    assert manifest_bytes < 50_000  # of 1,000 records
    assert watched.differences() == []


def test_a_tree_forty_times_as_large_that_did_not_change_costs_no_more_requests_or_memory(
    watched: Watched, store: Served, tmp_path: Path
) -> None:
    """Nothing but the walk follows the number of entries: neither requests, nor memory, nor processes."""
    cost: list[tuple[list[tuple[str, str]], int, int]] = []
    for files in (500, 20_000):
        for number in range(files):
            place = watched.source / f"d{number // 250}" / f"some file {number}"
            if number % 250 == 0:
                place.parent.mkdir(exist_ok=True)
            place.touch()
        watched.sync("--no-snapshot")
        watched.sync("--no-snapshot")
        peak = 0
        for _ in range(5):  # a run this short may end before all that it used was looked at
            taken = watched.measured_sync(tmp_path / "out")
            peak = max(peak, taken.client_peak_bytes)
        wire = sum(one.received_bytes + one.sent_bytes for one in watched.asked)
        cost.append((watched.kinds(), wire, peak))
        assert json.loads((tmp_path / "out").read_text().splitlines()[-1])["unchanged"] > files
    assert cost[0][0] == cost[1][0] == NOTHING
    assert abs(cost[1][1] - cost[0][1]) < 200
    # The index that the walk is compared with has 90 bytes an entry, read through a window of 1 MiB, and the
    # allocator's rest differs from run to run; objects for so many entries would be more than twice this.
    assert cost[1][2] < cost[0][2] + 6 * MIB
    assert cost[1][2] < 60 * MIB


# --- a folder of very many names (MAN-39) ---------------------------------------------------------------


@pytest.mark.slow
def test_one_folder_of_very_many_names_is_mirrored_in_little_memory(watched: Watched, tmp_path: Path) -> None:
    """More than twice what the walk sorts in memory: the names are spilled, and come back in order."""
    peaks = []
    for files in (30_000, 120_000):
        top = watched.source / f"of {files}"
        top.mkdir()
        for number in random.Random(files).sample(range(10**7), files):
            (top / f"{number} is the name of a file").touch()
        taken = watched.measured_sync(tmp_path / "out")
        peaks.append(taken.client_peak_bytes)
        row = json.loads((tmp_path / "out").read_text().splitlines()[-1])
        assert (row["status"], row["new"]) == ("complete", files + 1)
        with watched.manifest().open("rb") as stream:
            paths = [record.path for record in ManifestReader(stream)]
        inside = [path for path in paths if path.startswith(os.fsencode(top.name) + b"/")]
        assert len(inside) == files
        assert inside == sorted(inside)
    assert peaks[1] < 150 * MIB
    # What 50,000 names in memory take and 30,000 do not; the other 70,000 would be 20 MB more.
    assert peaks[1] < peaks[0] + 24 * MIB
