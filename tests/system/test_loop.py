"""The whole loop against a store that serves: any tree onto any other, kills at random instants, restores.

The random trees go through the engine in this process; everything else through the command line alone.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorkeep.sync.restore import SnapshotSource
from mirrorkeep.sync.session import Session
from mirrorkeep.sync.verdicts import wait_for_verdict
from mirrorkeep.tree.client import StoreClient
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.compare import Comparer
from rig.served import COMMAND, END_WITH_PARENT, Served, Volume, checked, command
from tests.property.sync.loop import Cut, CutAfter, Loop
from tests.property.sync.trees import Tree
from tests.property.sync.trees import changes_without_hidden as changes

HIDDEN = b".mirrorkeep"
numbers = itertools.count()
EXAMPLES = settings(
    max_examples=int(os.environ.get("MIRRORKEEP_EXAMPLES", "8")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def volume(store: Served) -> Volume:
    return store.create_volume("loop")


class StoreLoop(Loop):
    """A source and a part of its own on the store."""

    def __init__(self, folder: Path, volume: Volume, part: str) -> None:
        self.client = StoreClient.from_target(f"{volume.url}/{part}", volume.token, volume.ca)
        super().__init__(
            folder,
            open_session=lambda: Session(self.client),
            restore_source=lambda snapshot: SnapshotSource(self.client, snapshot or self.newest()),
        )

    def newest(self) -> str:
        rows = self.client.get_json(f"volumes/{self.client.volume}/snapshots")["snapshots"]
        return str(rows[-1]["name"])


def tip_differences(source: Path, tip: Path) -> list[str]:
    """Return how the native tip differs from the source, save for what a store keeps in sidecars only."""
    return [
        str(one)
        for one in Comparer(str(source), str(tip), skip=(HIDDEN,)).differences()
        if not ((source / os.fsdecode(one.path)).is_fifo() or b".mirrorkeep~" in one.path)
    ]


@EXAMPLES
@given(before=changes, after=changes, cuts=st.lists(st.integers(0, 10), max_size=2), eager=st.booleans())
def test_any_tree_becomes_any_other_on_a_store(
    tmp_path: Path,
    store: Served,
    volume: Volume,
    before: list[Any],
    after: list[Any],
    cuts: list[int],
    eager: bool,
) -> None:
    part = f"part{next(numbers)}"
    folder = tmp_path / part
    folder.mkdir()
    loop = StoreLoop(folder, volume, part)
    tree = Tree(loop.source)
    tree.change(before)
    assert loop.sync().status == "complete"
    tree.change(after)
    options = replace(loop.options, commit_interval_s=0.0 if eager else 20.0)
    for orders in cuts:
        try:
            with CutAfter(orders):
                loop.sync(options)
        except Cut:
            pass
        tree.change(after)
    result = loop.sync(options)
    assert result.status == "complete" and result.snapshot
    loop.check()
    assert tip_differences(loop.source, store.native_path("loop") / part) == []
    loop.check_unchanged()
    assert wait_for_verdict(loop.client, result.snapshot)["verdict"] == "verified"


def test_a_source_folder_called_like_the_hidden_one_comes_back_from_a_store(
    tmp_path: Path, store: Served, volume: Volume
) -> None:
    """Whatever begins like the store's own names is a name like any other: small, large, nested, restored."""
    loop = StoreLoop(tmp_path, volume, "called-like-hidden")
    source, inner = loop.source, loop.source / "below" / ".mirrorkeep" / ".mirrorkeep.staging"
    large = bytearray(random.Random(7).randbytes(3 * SMALL_FILE_BYTES))
    for folder in (source / ".mirrorkeep", inner):
        folder.mkdir(parents=True)
        (folder / "small").write_bytes(b"small")
        (folder / "large").write_bytes(large)
        (folder / ".mirrorkeep.root").write_bytes(b"no sidecar of ours")
        (folder / "link").symlink_to("/etc/passwd")
    (source / ".mirrorkeep.manifest").write_bytes(large[::-1])
    (source / ".mirrorkeep~0123456789abcdef0123456789abcdef").write_bytes(b"an id")
    (source / ".MirrorKeep").write_bytes(b"capitals")
    assert loop.sync().status == "complete"
    assert restored_differences(loop) == []

    large[1_000_000:1_000_000] = b"inserted"
    (source / ".mirrorkeep" / "large").write_bytes(large)
    large[5:6] = b"!"
    (inner / "large").write_bytes(large)
    (inner / "small").rename(source / ".mirrorkeep" / "moved")
    (source / ".mirrorkeep" / "small").unlink()
    edited = loop.sync()
    assert edited.status == "complete" and edited.snapshot
    assert edited.bytes_sent < SMALL_FILE_BYTES, "large files travel as deltas"
    assert restored_differences(loop) == []
    loop.check_unchanged()
    assert wait_for_verdict(loop.client, edited.snapshot)["verdict"] == "verified"
    tip = store.native_path("loop") / loop.client.part.decode()
    own = tip / ".mirrorkeep" / ".mirrorkeep.manifest"
    assert own.read_bytes() == loop.manifest_path().read_bytes(), "ours is untouched"
    assert {name[:12] for name in os.listdir(tip)} == {".mirrorkeep", ".mirrorkeep~", ".MirrorKeep", "below"}
    for folder in (source, source / ".mirrorkeep", inner):
        path = os.fsencode(folder.relative_to(source)) if folder != source else b""
        assert listed_names(loop.client, path) == {os.fsencode(name) for name in os.listdir(folder)}


def restored_differences(loop: StoreLoop) -> list[str]:
    restored = loop.folder / "restored"
    shutil.rmtree(restored, ignore_errors=True)
    result = loop.restore(restored)
    assert (result.status, result.failed) == ("complete", 0)
    return [str(one) for one in Comparer(str(loop.source), str(restored)).differences()]


def listed_names(client: StoreClient, path: bytes) -> set[bytes]:
    """Return what any WebDAV client sees in a folder of the tip."""
    answer = client.request("PROPFIND", client.url(path), None, {"Depth": "1"})
    hrefs = [
        unquote_to_bytes(href).rstrip(b"/") for href in re.findall(rb"<D:href>(.*?)</D:href>", answer.body)
    ]
    assert hrefs[0] == unquote_to_bytes(client.url(path))
    return {href.rpartition(b"/")[2] for href in hrefs[1:]}


# --- kills ------------------------------------------------------------------------------------------


class Mirror:
    """A source of many files and a volume, by the command line."""

    def __init__(self, store: Served, folder: Path, name: str, *, files: int = 1500) -> None:
        self.store, self.folder, self.name = store, folder, name
        self.source = folder / "source"
        self.volume = store.create_volume(name)
        for number in range(files):
            place = self.source / f"folder{number % 40}" / f"file{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(random.Random(number).randbytes(number % 9000))
        for number in range(3):
            (self.source / f"large{number}").write_bytes(random.Random(number).randbytes(5_000_000))
        os.link(self.source / "large0", self.source / "folder1" / "another name")

    def argv(self, *options: str) -> tuple[str, ...]:
        state = str(self.folder / "state")
        return ("sync", str(self.source), self.volume.url, "--state", state, "--json", *options)

    def kill_after(self, argv: tuple[str, ...], seconds: float) -> bool:
        """Run a command and SIGKILL it after so long; returns whether it was at work."""
        process = subprocess.Popen(
            [*END_WITH_PARENT, *COMMAND, *argv],
            env={**os.environ, **self.volume.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait() < 0

    def kill_at(self, argv: tuple[str, ...], reached: Callable[[], bool]) -> bool:
        """Run a command and SIGKILL it as soon as ``reached`` says so; returns whether it was at work."""
        process = subprocess.Popen(
            [*END_WITH_PARENT, *COMMAND, *argv],
            env={**os.environ, **self.volume.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not reached():
            pass
        process.kill()
        return process.wait() < 0

    def change(self, rng: random.Random) -> None:
        """Edit, rename, remove and add some files, and move a folder."""
        files = sorted(path for path in self.source.rglob("file*") if path.is_file())
        for path in rng.sample(files, 60):
            match rng.randrange(4):
                case 0:
                    path.write_bytes(rng.randbytes(2000))
                case 1:
                    path.rename(path.with_name(f"file-moved{rng.randrange(10**9)}"))
                case 2:
                    path.unlink()
                case 3:
                    path.with_name(f"file-new{rng.randrange(10**9)}").write_bytes(rng.randbytes(500))
        folders = sorted(path for path in self.source.iterdir() if path.is_dir())
        rng.choice(folders).rename(self.source / f"folder-moved{rng.randrange(10**9)}")

    def check(self) -> None:
        done = checked(*self.argv("--wait", "--allow-deletes"), environment=self.volume.environment).last
        assert (done["status"], done["verdict"]) == ("complete", "verified")
        assert tip_differences(self.source, self.store.native_path(self.name)) == []


def kill_often(mirror: Mirror, rounds: int, seed: int) -> int:
    """Kill runs at random instants between changes; every few kills the mirror has to become right."""
    rng = random.Random(seed)
    killed = 0
    for number in range(rounds):
        killed += mirror.kill_after(mirror.argv("--allow-deletes"), rng.uniform(0.1, 1.2))
        mirror.change(rng)
        if number % 4 == 3:
            mirror.check()
    mirror.check()
    return killed


def test_a_client_killed_at_random_instants_resumes(store: Served, tmp_path: Path) -> None:
    mirror = Mirror(store, tmp_path, "killed")
    assert kill_often(mirror, 6, seed=1) > 0


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_client_killed_very_often_resumes(store: Served, tmp_path: Path, kill_count: int) -> None:
    mirror = Mirror(store, tmp_path, "soaked", files=4000)
    assert kill_often(mirror, kill_count, seed=int(time.time())) > 0


def test_a_restore_gives_the_source_back_and_goes_on_after_a_kill(store: Served, tmp_path: Path) -> None:
    mirror = Mirror(store, tmp_path, "restored")
    mirror.check()
    back = tmp_path / "back"
    argv = ("restore", mirror.volume.url, str(back), "--json")

    def there() -> int:
        names = (name for _, _, names in os.walk(back) for name in names)
        return sum(name.startswith("file") for name in names)

    killed = [mirror.kill_at(argv, lambda most=most: there() > most) for most in (0, 300, 600)]
    assert any(killed)
    there_already = there()
    done = checked(*argv, environment=mirror.volume.environment).last
    assert done["unchanged"] >= there_already - 50  # what was whole is not fetched again
    assert done["unchanged"] + done["restored"] == 1503
    assert differences_by_rsync(mirror.source, back) == ""


def differences_by_rsync(one: Path, other: Path) -> str:
    if shutil.which("rsync") is None:
        return "".join(f"{one}\n" for one in Comparer(str(one), str(other)).differences())
    argv = ("rsync", "-naHAXc", "--delete", "--itemize-changes", f"{one}/", f"{other}/")
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


# --- a directory as the target ----------------------------------------------------------------------


def small_source(folder: Path) -> Path:
    source = folder / "source"
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(30):
        (source / "deep" / f"file{number}").write_bytes(b"%d" % number * 100)
    (source / "large").write_bytes(os.urandom(12_000_000))
    os.link(source / "large", source / "deep" / "same")
    (source / "link").symlink_to("deep/file1")
    os.mkfifo(source / "pipe")
    return source


def snapshot_of(*folders: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and times of everything below some folders."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_size, status.st_ctime_ns)
    return found


def test_a_directory_becomes_a_copy_and_gives_everything_back(tmp_path: Path) -> None:
    source, copy, back = small_source(tmp_path), tmp_path / "copy", tmp_path / "back"
    argv = ("sync", str(source), str(copy), "--state", str(tmp_path / "state"), "--json")
    first = checked(*argv).last
    assert (first["status"], first["new"], first["snapshot"]) == ("complete", first["entries"], None)
    assert tip_differences(source, copy) == []
    with (source / "large").open("r+b") as stream:
        stream.seek(6_000_000)
        stream.write(b"edited")
    (source / "deep" / "file3").rename(source / "deep" / "er" / "file3")
    time.sleep(0.1)
    second = checked(*argv).last
    assert second["moved"] == 1
    assert second["bytes_sent"] < 300_000
    assert tip_differences(source, copy) == []
    checked("restore", str(copy), str(back), "--json")
    assert differences_by_rsync(source, back) == ""


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    store: Served, volume: Volume, tmp_path: Path
) -> None:
    source, copy, state = small_source(tmp_path), tmp_path / "copy", tmp_path / "state"
    for target in (str(copy), volume.url + "/planned"):
        argv = ("sync", target, "--state", str(state), "--json")
        argv = (argv[0], str(source), *argv[1:])
        before = snapshot_of(tmp_path)
        planned = checked(*argv, "--dry-run", environment=volume.environment)
        assert snapshot_of(tmp_path) == before
        assert planned.last["new"] == planned.last["entries"] == 37
        checked(*argv, environment=volume.environment)
        (source / "deep" / "file4").write_bytes(b"changed")
        (source / "deep" / "file5").unlink()
        (source / "added").write_bytes(b"added")
        time.sleep(0.1)
        for extra in ((), ("--state", str(tmp_path / "none"))):  # by the state, then by what the target has
            before = snapshot_of(tmp_path)
            planned = checked(*argv, *extra, "--dry-run", environment=volume.environment)
            assert snapshot_of(tmp_path) == before
            told = {(row["action"], row["path"]) for row in planned.rows if row["event"] == "would"}
            assert told == {
                ("changed", "deep/file4"),
                ("changed", "deep"),
                ("removed", "deep/file5"),
                ("new", "added"),
                ("changed", ""),
            }
        (source / "deep" / "file5").write_bytes(b"again")
        (source / "added").unlink()


@pytest.mark.parametrize("target", ["inside", "around", "other"])
def test_a_directory_that_cannot_be_a_copy_is_refused(tmp_path: Path, target: str) -> None:
    source = tmp_path / "outer" / "source"
    source.mkdir(parents=True)
    (source / "file").write_bytes(b"precious")
    place = {"inside": source / "copy", "around": tmp_path / "outer", "other": tmp_path / "other"}[target]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "somebody's").write_bytes(b"precious too")
    before = snapshot_of(tmp_path)
    result = command("sync", str(source), str(place), "--state", str(tmp_path / "state"))
    assert result.status == 2
    assert snapshot_of(tmp_path) == before
    assert command("restore", str(tmp_path / "other"), str(tmp_path / "back")).status == 2


def test_a_local_run_killed_at_random_instants_resumes(
    tmp_path: Path, make_local: Callable[..., Any]
) -> None:
    source, copy, run = make_local(1500)
    rng = random.Random(5)
    killed, longest_s = 0, 0.5
    for _ in range(6):
        hit = run(rng.uniform(0.2 * longest_s, longest_s))
        killed += hit
        longest_s *= 1.0 if hit else 0.6  # a quick machine was done before
        for path in rng.sample(sorted(source.rglob("file*")), 30):
            path.rename(path.with_name(f"file-moved{rng.randrange(10**9)}"))
    assert killed
    run(None)
    assert tip_differences(source, copy) == []


@pytest.fixture
def make_local(tmp_path: Path) -> Callable[[int], Any]:
    """Return ``make(files)``: a source, a copy, and ``run(seconds)``, which is killed after so long."""

    def make(files: int) -> Any:
        source, copy = tmp_path / "many", tmp_path / "copy"
        for number in range(files):
            place = source / f"folder{number % 40}" / f"file{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(random.Random(number).randbytes(number % 9000))
        argv = [
            *END_WITH_PARENT,
            *COMMAND,
            "sync",
            str(source),
            str(copy),
            "--state",
            str(tmp_path / "state"),
        ]

        def run(seconds: float | None) -> bool:
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                _, said = process.communicate(timeout=seconds)
                assert process.returncode == 0, said
            except subprocess.TimeoutExpired:
                process.kill()
            return process.wait() < 0

        return source, copy, run

    return make
