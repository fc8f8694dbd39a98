"""ENOSPC and EIO: at every storage call of begin, commit and close; a pool that is full; a disk that breaks.

Each time: old files and old snapshots stay as they were, the client hears what is wrong, and once there is
room again, or another disk, the next run completes.  The same for every call of a stored tree is in
``tests/unit/tree/test_stored_faults.py``.
"""

from __future__ import annotations

import errno
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import StoreRestarted
from mirrorkeep.store import runs
from mirrorkeep.store.pool import Store
from mirrorkeep.store.volume import Part
from rig import blocklog, scratch
from rig.faults import FailingCalls
from rig.mirrored import Mirrored, fingerprint
from rig.served import Served
from tests.unit.store.part_at_work import close, make_store, manifest_of

MANIFEST = manifest_of([b"a", b"b/c"])


@pytest.fixture(params=[errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def failing(request: pytest.FixtureRequest) -> Iterator[FailingCalls]:
    with pytest.MonkeyPatch.context() as patch:
        yield FailingCalls(patch, request.param)


@pytest.fixture(params=["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data", request.param)
    made.create_volume("laptop")
    yield made
    made.close(detach=True)


def open_run(store: Store, path: bytes) -> tuple[Part, runs.RunInfo]:
    """A part with a snapshot and an open run with a new file."""
    part = store.volume("laptop").part(path, create=True)
    close(part, runs.begin_run(part, "", {}), manifest_of([b"old"]))
    run = runs.begin_run(part, "", {})
    Path(part.root, "file").write_text("content")
    return part, run


def close_anyhow(part: Part, run: runs.RunInfo) -> None:
    """Do what a client does after an error: the same again, and a new run when the store says so."""
    try:
        close(part, run, MANIFEST)
    except StoreRestarted:
        close(part, runs.begin_run(part, "", {}), MANIFEST)


def every_fault(store: Store, failing: FailingCalls, action: Callable[[Part, runs.RunInfo], object]) -> int:
    """Let each storage call of ``action`` fail once; afterwards a close must work.  Returns how many."""
    call = 0
    while True:
        call += 1
        part, run = open_run(store, b"part%d" % call)
        before = {info.name: fingerprint(Path(part.place_of(info.name))) for info in part.snapshots()}
        happened = failing.happens_in(lambda part=part, run=run: action(part, run), call)
        for name, was in before.items():
            assert fingerprint(Path(part.place_of(name))) == was, f"call {call}"
        close_anyhow(part, run)
        infos = part.snapshots()
        assert [info.sequence for info in infos][-1] in (2, 3), f"call {call}"
        root = Path(part.place_of(infos[-1].name))
        assert (root / "file").read_text() == "content"
        assert (root / ".mirrorkeep" / ".mirrorkeep.manifest").read_bytes() == MANIFEST
        state = part.state()
        assert (state.run, state.closing, state.dirty) == (None, None, False), f"call {call}"
        if not happened:
            return call - 1


def test_a_close_fails_at_every_call(store: Store, failing: FailingCalls) -> None:
    assert every_fault(store, failing, lambda part, run: close(part, run, MANIFEST)) > 20


def test_a_commit_fails_at_every_call(store: Store, failing: FailingCalls) -> None:
    def commit(part: Part, run: runs.RunInfo) -> None:
        runs.commit_run(part, run.run, run.epoch, run.incarnation, 1)

    assert every_fault(store, failing, commit) > 5


def test_a_begin_fails_at_every_call(store: Store, failing: FailingCalls) -> None:
    def begin(part: Part, run: runs.RunInfo) -> None:
        runs.begin_run(part, "", {})

    def close_new(part: Part, run: runs.RunInfo) -> None:
        begin(part, run)

    call = 0
    happened = True
    while happened:
        call += 1
        part, _ = open_run(store, b"part%d" % call)
        happened = failing.happens_in(lambda part=part: begin(part, None), call)  # type: ignore[arg-type]
        close_anyhow(part, runs.begin_run(part, "", {}))
        assert [info.sequence for info in part.snapshots()] == [1, 2]
    assert call > 5


# --- a pool that is full --------------------------------------------------------------------------


@pytest.mark.btrfs
def test_a_full_pool(make_served: Callable[..., Served], tmp_path: Path) -> None:
    served = make_served(driver="btrfs", size="300M")
    mirrored = Mirrored(served, tmp_path)
    source = mirrored.source
    (source / "small").mkdir(parents=True)
    rng = random.Random(1)
    for number in range(200):
        (source / "small" / f"{number}").write_bytes(rng.randbytes(5_000))
    (source / "large").write_bytes(rng.randbytes(12_000_000))
    mirrored.sync()
    for number in range(40):
        (source / f"more{number:02}").write_bytes(rng.randbytes(9_000_000))
    for number in range(100):
        (source / "small" / f"{number}").write_bytes(rng.randbytes(6_000))
    failed = mirrored.try_sync()
    assert failed.status in (1, 3), failed.errors
    assert "no space" in failed.errors + failed.output
    assert "no_space" in failed.output
    tip = mirrored.tip()
    for number in range(100, 200):
        name = f"small/{number}"
        assert (tip / name).read_bytes() == (source / name).read_bytes()
    mirrored.check_snapshots()
    for number in range(40):
        (source / f"more{number:02}").unlink()
    mirrored.sync()
    assert mirrored.differences() == []
    mirrored.check_verdict()
    mirrored.check_snapshots()


# --- a disk that breaks ---------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.btrfs
@pytest.mark.engine("fusermount3")
def test_a_disk_that_breaks_under_a_run(tmp_path: Path) -> None:
    served = Served(tmp_path / "data", driver="btrfs", size="256M")
    served.create()
    scratch.release(served.data)
    disk, image = tmp_path / "blocks", served.data / "pool.img"
    disk.mkdir()
    image.rename(disk / "disk")
    blocklog.mount(disk, tmp_path / "fuse")
    image.symlink_to(tmp_path / "fuse" / "disk")
    try:
        served.start()
        mirrored = Mirrored(served, tmp_path, "--commit-interval", "0.1")
        mirrored.source.mkdir()
        for number in range(100):
            (mirrored.source / f"{number}").write_bytes(random.Random(number).randbytes(9_000))
        first = mirrored.sync()["snapshot"]
        time.sleep(0.5)
        shutil.rmtree(mirrored.source)
        mirrored.source.mkdir()
        for number in range(100):
            (mirrored.source / f"{number}").write_bytes(random.Random(-number).randbytes(30_000))
        (disk / "broken").touch()
        failed = mirrored.try_sync()
        assert failed.status == 1, failed.output + failed.errors
        assert "storage failure" in failed.errors
        served.kill()
        scratch.release(served.data)
        (disk / "broken").unlink()
        served.start()
        assert fingerprint(mirrored.snapshot_root(first)) == mirrored.known[first]
        mirrored.sync()
        assert mirrored.differences() == []
        mirrored.check_verdict()
        mirrored.check_snapshots()
    finally:
        served.stop()
        scratch.release(tmp_path)
