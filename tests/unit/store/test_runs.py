"""Runs: who may write, commits, closes, and what the next run is told."""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.delta.patch import Copy, Literal, build_delta
from mirrorkeep.errors import (
    DigestMismatch,
    ForeignManifest,
    MalformedDelta,
    MalformedManifest,
    MalformedRequest,
    NoSpace,
    NotFound,
    RunSuperseded,
    StorageFailure,
    StoreRestarted,
)
from mirrorkeep.manifest.record import format_record
from mirrorkeep.store import runs
from mirrorkeep.store.driver import Usage
from mirrorkeep.store.intake import distrust_damaged_manifest
from mirrorkeep.store.pool import Store
from mirrorkeep.store.snapshot import snapshot_now, tip_changed_since_snapshot
from mirrorkeep.store.volume import Part
from mirrorkeep.tree.protocol import Segment
from tests.unit.store.part_at_work import close, digest_of, header_of, make_store, manifest_of

SMALL = manifest_of([b"a", b"b/c"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data")
    yield made
    made.close(detach=True)


@pytest.fixture(params=["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data", request.param)
    yield made
    made.close(detach=True)


@pytest.fixture
def part(store: Store) -> Part:
    return store.create_volume("laptop").part(b"", create=True)


# --- begin ---------------------------------------------------------------------------------------


def test_a_begin_says_which_snapshot_it_waits_for_and_makes_it_once_it_can(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tree: str, target: str) -> None:
        raise NotFound(what="tip/odd")  # as the driver says it: of a begin it would mean something else

    run = runs.begin_run(part, "", {})
    with monkeypatch.context() as patch:
        patch.setattr(part.volume.store.driver, "snapshot", refuse)
        for attempt in (lambda: close(part, run, SMALL), lambda: runs.begin_run(part, "", {})):
            with pytest.raises(StorageFailure, match=r"snapshot.*tip/odd"):
                attempt()
    runs.begin_run(part, "", {})
    assert [info.run for info in part.snapshots()] == [run.run]


def test_the_first_begin_finds_nothing_and_makes_the_part_mirrored(part: Part) -> None:
    assert not part.mirrored
    run = runs.begin_run(part, "host:/home", {})
    assert (run.epoch, run.manifest, run.dirty, run.resume, run.patch) == (1, "", False, False, False)
    assert part.mirrored
    assert part.state().dirty


def test_a_part_on_a_folder_with_content_begins_dirty(store: Store) -> None:
    volume = store.create_volume("laptop")
    folder = Path(volume.tip, "folder")
    folder.mkdir()
    (folder / "file").write_text("by somebody")
    run = runs.begin_run(volume.part(b"folder", create=True), "", {})
    assert run.dirty
    assert (folder / "file").read_text() == "by somebody"


def test_a_newer_run_shuts_out_the_older_at_once(part: Part) -> None:
    old = runs.begin_run(part, "", {})
    runs.check_run(part, header_of(old))
    new = runs.begin_run(part, "", {})
    assert new.dirty
    runs.check_run(part, header_of(new))
    with pytest.raises(RunSuperseded):
        runs.check_run(part, header_of(old))
    with pytest.raises(RunSuperseded):
        runs.commit_run(part, old.run, old.epoch, old.incarnation, 1)
    with pytest.raises(RunSuperseded):
        close(part, old, SMALL)
    runs.abandon_run(part, old.run)
    runs.check_run(part, header_of(new))


def test_a_newer_run_removes_what_the_older_ones_had_staged(any_store: Store) -> None:
    part = any_store.create_volume("laptop").part(b"", create=True)
    staging = Path(part.root, ".mirrorkeep", ".mirrorkeep.staging")
    line = format_record(b"large", {b"type": b"file", b"st_size": b"4"})
    for _ in range(3):  # the process that begins has the staging folder open since the first one
        runs.begin_run(part, "", {})
        assert not staging.exists() or list(staging.iterdir()) == []
        old = part.tree().begin(line, on_base=False)
        old.write(Segment(0, 4), b"data", delta=False, digest=None)
    runs.begin_run(part, "", {})
    assert list(staging.iterdir()) == []
    with pytest.raises(NotFound):
        old.finish(line, [Segment(0, 4)])


def test_a_forged_epoch_does_not_pass(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    with pytest.raises(RunSuperseded):
        runs.check_run(part, f"{run.run};epoch={run.epoch + 1};incarnation={run.incarnation}")


@pytest.mark.parametrize(
    "header", ["", "run", "run;epoch=x;incarnation=i", "run;incarnation=i", "run;epoch=1"]
)
def test_a_header_that_is_none_is_a_bad_request(part: Part, header: str) -> None:
    with pytest.raises(MalformedRequest):
        runs.check_run(part, header)


def test_after_a_restart_the_run_goes_on_only_from_its_commit(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    commit = runs.commit_run(part, run.run, run.epoch, run.incarnation, 7)
    part.volume.store.start_incarnation()
    with pytest.raises(StoreRestarted):
        runs.check_run(part, header_of(run))
    with pytest.raises(StoreRestarted):
        runs.commit_run(part, run.run, run.epoch, run.incarnation, 8)
    with pytest.raises(StoreRestarted):
        close(part, run, SMALL)
    again = runs.begin_run(part, "", {"run": run.run, "commit": commit})
    assert again.resume
    assert again.dirty


def test_another_process_sees_a_begin_at_its_next_look(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    opened = Store.open(part.volume.store.data)
    other = opened.volume("laptop").part(b"")
    runs.check_run(other, header_of(run))
    time.sleep(0.06)  # now it is remembered
    runs.check_run(other, header_of(run))
    runs.begin_run(part, "", {})
    with pytest.raises(RunSuperseded):
        runs.check_run(other, header_of(run))
    opened.close()


def test_begin_waits_for_a_publish_that_is_under_way(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    begun = threading.Event()
    thread = threading.Thread(target=lambda: (runs.begin_run(part, "", {}), begun.set()))
    with part.publishing():
        runs.check_run(part, header_of(run))
        thread.start()
        assert not begun.wait(0.1)
        runs.check_run(part, header_of(run))
    thread.join()
    assert begun.is_set()


def test_publishers_do_not_starve_a_commit(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            with part.publishing():
                time.sleep(0.002)

    threads = [threading.Thread(target=publish) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for position in range(5):  # a commit that starves never comes back
            runs.commit_run(part, run.run, run.epoch, run.incarnation, position)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_full_pool_lets_a_run_begin_for_it_may_remove_something(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = part.volume.store
    monkeypatch.setattr(store, "usage", lambda: Usage(1 << 30, 1 << 30, 0))
    assert runs.begin_run(part, "", {}).epoch == 1
    with pytest.raises(NoSpace):
        store.ensure_room(1)


# --- commit --------------------------------------------------------------------------------------


def test_commits_count_up_and_repeating_one_changes_nothing(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    numbers = [
        runs.commit_run(part, run.run, run.epoch, run.incarnation, position) for position in (1, 1, 2, 2, 3)
    ]
    assert numbers == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(("commit", "resumes"), [(1, False), (2, True), (3, True), (4, False), (None, False)])
def test_only_the_newest_commit_resumes_or_the_one_before_if_its_answer_was_lost(
    part: Part, commit: int | None, resumes: bool
) -> None:
    run = runs.begin_run(part, "", {})
    for position in (1, 2, 3):
        runs.commit_run(part, run.run, run.epoch, run.incarnation, position)
    assert runs.begin_run(part, "", {"run": run.run, "commit": commit}).resume is resumes


def test_a_commit_of_another_run_does_not_resume(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    runs.commit_run(part, run.run, run.epoch, run.incarnation, 1)
    assert not runs.begin_run(part, "", {"run": "somebody", "commit": 1}).resume


def test_a_lost_write_commits_nothing_and_sends_every_run_back(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.begin_run(part, "", {})
    first = runs.commit_run(part, run.run, run.epoch, run.incarnation, 1)

    def fail(path: str) -> None:
        raise StorageFailure(detail="write-back failed")

    with monkeypatch.context() as patch:
        patch.setattr(part.volume.store.driver, "make_durable", fail)
        with pytest.raises(StorageFailure):
            runs.commit_run(part, run.run, run.epoch, run.incarnation, 2)
    with pytest.raises(StoreRestarted):
        runs.check_run(part, header_of(run))
    assert runs.begin_run(part, "", {"run": run.run, "commit": first}).resume


# --- close ---------------------------------------------------------------------------------------


def test_a_close_makes_a_snapshot_with_its_manifest_inside(any_store: Store) -> None:
    part = any_store.create_volume("laptop").part(b"", create=True)
    run = runs.begin_run(part, "", {})
    Path(part.root, "file").write_text("content")
    closed = close(part, run, SMALL)
    assert (closed.snapshot, closed.sequence) == ("auto_2026-01-01_120000_UTC", 1)
    root = Path(part.snapshot_root("latest"))
    assert (root / "file").read_text() == "content"
    assert (root / ".mirrorkeep" / ".mirrorkeep.manifest").read_bytes() == SMALL
    assert Path(part.manifest_path("latest")).read_bytes() == SMALL
    info = part.snapshot("latest")
    assert (info.manifest, info.entries, info.bytes, info.run) == (digest_of(SMALL), 2, 20, run.run)
    state = part.state()
    assert (state.dirty, state.run, state.manifest_digest) == (False, None, digest_of(SMALL))
    assert any_store.queue.holds(closed.validation or "")
    with pytest.raises(RunSuperseded):
        runs.check_run(part, header_of(run))


def test_names_within_one_second_are_distinct_and_latest_goes_by_sequence(any_store: Store) -> None:
    part = any_store.create_volume("laptop").part(b"", create=True)
    names = []
    for number in range(3):
        any_store.clock = lambda at=number: 1_767_268_800.0 - (at == 2) * 3600  # the clock goes back
        run = runs.begin_run(part, "", {})
        names.append(close(part, run, SMALL).snapshot)
    assert names == [
        "auto_2026-01-01_120000_UTC",
        "auto_2026-01-01_120000_UTC_2",
        "auto_2026-01-01_110000_UTC",
    ]
    assert [info.sequence for info in part.snapshots()] == [1, 2, 3]
    assert part.snapshot("latest").name == "auto_2026-01-01_110000_UTC"


def test_a_repeated_close_gets_the_same_answer_and_makes_nothing(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    first = close(part, run, SMALL)
    assert close(part, run, SMALL) == first
    part.volume.store.start_incarnation()
    assert close(part, run, SMALL) == first
    assert len(part.snapshots()) == 1


def test_the_next_run_is_told_the_manifest_and_may_close_with_the_same(part: Part) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    run = runs.begin_run(part, "", {})
    assert (run.manifest, run.dirty, run.resume) == (digest_of(SMALL), False, False)
    closed = close(part, run, SMALL, form="same", body=b"", base=run.manifest)
    assert closed.sequence == 2
    assert part.snapshot("latest").entries == 2
    assert Path(part.manifest_path("latest")).read_bytes() == SMALL


@pytest.mark.parametrize("packed", [False, True])
def test_a_manifest_comes_as_a_delta_against_the_last(part: Part, packed: bool) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    wanted = manifest_of([b"a", b"b/c", b"d"])
    common = SMALL.index(b"\n") + 1  # the header line
    delta = build_delta([Copy(0, common), Literal(wanted[common:])])
    run = runs.begin_run(part, "", {})
    body = gzip.compress(delta) if packed else delta
    close(part, run, wanted, form="delta", base=run.manifest, body=body)
    assert Path(part.manifest_path("latest")).read_bytes() == wanted
    assert part.snapshot("latest").entries == 3


@pytest.mark.parametrize(
    ("form", "base", "body", "error"),
    [
        ("same", "", b"", ForeignManifest),
        ("delta", "0" * 64, b"rs\x026\x00", ForeignManifest),
        ("full", "", b"not a manifest", DigestMismatch),
        ("full", "", SMALL[:-1], DigestMismatch),
        ("full", "", gzip.compress(SMALL)[:-3], MalformedRequest),
        ("full", "", gzip.compress(SMALL) + b"more", MalformedRequest),
    ],
)
def test_a_wrong_manifest_leaves_the_run_open_as_it_was(
    part: Part, form: str, base: str, body: bytes, error: type[Exception]
) -> None:
    close(part, runs.begin_run(part, "", {}), manifest_of([b"old"]))
    run = runs.begin_run(part, "", {})
    with pytest.raises(error):
        close(part, run, SMALL, form=form, base=base, body=body)
    runs.check_run(part, header_of(run))
    assert list(Path(part.root, ".mirrorkeep", ".mirrorkeep.staging").iterdir()) == []
    assert close(part, run, SMALL).sequence == 2


@pytest.mark.parametrize("damage", ["flip", "cut off", "gone"])
def test_a_delta_on_a_damaged_manifest_is_refused_so_that_the_whole_is_sent(part: Part, damage: str) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    wanted = manifest_of([b"a", b"b/c", b"d"])
    common = SMALL.index(b"\n") + 1
    delta = build_delta([Copy(0, common), Literal(wanted[common:])])
    run = runs.begin_run(part, "", {})
    damage_file(Path(part.manifest_path()), damage)
    with pytest.raises(ForeignManifest):
        close(part, run, wanted, form="delta", base=run.manifest, body=delta)
    assert close(part, run, wanted).sequence == 2
    assert Path(part.manifest_path("latest")).read_bytes() == wanted


def damage_file(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage == "flip" else whole[:10])


def test_a_delta_that_is_wrong_itself_is_refused_as_such(part: Part) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    run = runs.begin_run(part, "", {})
    for body, error in ((build_delta([Literal(b"x")]), DigestMismatch), (b"x", MalformedDelta)):
        with pytest.raises(error):
            close(part, run, manifest_of([b"d"]), form="delta", base=run.manifest, body=body)


@pytest.mark.parametrize("damage", ["flip", "cut off", "gone"])
def test_a_manifest_that_was_found_damaged_has_to_come_whole_once(part: Part, damage: str) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    distrust_damaged_manifest(part)
    close(part, runs.begin_run(part, "", {}), SMALL, form="same", body=b"")
    damage_file(Path(part.manifest_path()), damage)
    distrust_damaged_manifest(part)
    run = runs.begin_run(part, "", {})
    known = "" if damage == "gone" else digest_of(SMALL)  # where it is gone, what is there is listed
    assert (run.manifest, run.dirty) == (known, False)
    for form in ("same", "delta"):
        with pytest.raises(ForeignManifest):
            close(part, run, SMALL, form=form, base=digest_of(SMALL), body=b"")
    close(part, run, SMALL)
    assert Path(part.manifest_path("latest")).read_bytes() == SMALL
    close(part, runs.begin_run(part, "", {}), SMALL, form="same", body=b"")


def test_a_malformed_manifest_with_the_right_digest_is_refused(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    with pytest.raises(MalformedManifest):
        close(part, run, SMALL.replace(b"=a,", b"=x,"))
    assert part.state().manifest is None


def test_a_close_without_snapshot_keeps_the_manifest(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    path = Path(part.volume.store.data, "upload")
    path.write_bytes(SMALL)
    closed = runs.close_run(
        part,
        run.run,
        run.epoch,
        run.incarnation,
        form="full",
        digest=digest_of(SMALL),
        body_path=str(path),
        snapshot=False,
    )
    assert closed == runs.Closed(None, 0, None)
    assert part.snapshots() == []
    assert runs.begin_run(part, "", {}).manifest == digest_of(SMALL)


def test_what_nobody_finished_is_not_frozen(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    staged = part.tree().stage(b"large")
    staged.write(b"x" * 1000)
    close(part, run, SMALL)
    staging = Path(part.snapshot_root("latest"), ".mirrorkeep", ".mirrorkeep.staging")
    assert not staging.exists() or list(staging.iterdir()) == []


def test_the_patch_that_a_run_was_given_goes_with_its_close(part: Part) -> None:
    patch = Path(part.patch_path)
    patch.write_bytes(b"findings")
    run = runs.begin_run(part, "", {})
    assert run.patch
    close(part, run, SMALL)
    assert not patch.exists()
    assert part.snapshot("latest").patched


def test_a_patch_that_came_in_between_stays_for_the_next_run(part: Part) -> None:
    patch = Path(part.patch_path)
    run = runs.begin_run(part, "", {})
    patch.write_bytes(b"findings")
    close(part, run, SMALL)
    assert patch.exists()
    assert not part.snapshot("latest").patched
    assert runs.begin_run(part, "", {}).patch


def test_a_manifest_that_somebody_removed_is_not_counted_on(part: Part) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    os.unlink(part.manifest_path())
    run = runs.begin_run(part, "", {})
    assert run.manifest == ""
    close(part, run, SMALL)
    assert runs.begin_run(part, "", {}).manifest == digest_of(SMALL)


def test_an_abandoned_run_leaves_its_commit_to_the_next(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    commit = runs.commit_run(part, run.run, run.epoch, run.incarnation, 1)
    runs.abandon_run(part, run.run)
    with pytest.raises(RunSuperseded):
        runs.check_run(part, header_of(run))
    assert runs.begin_run(part, "", {"run": run.run, "commit": commit}).resume


def test_an_abandoned_run_leaves_nothing_staged_to_the_next(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    part.tree().begin(format_record(b"large", {b"type": b"file", b"st_size": b"4"}), on_base=False)
    runs.abandon_run(part, run.run)
    runs.begin_run(part, "", {})
    assert list(Path(part.root, ".mirrorkeep", ".mirrorkeep.staging").iterdir()) == []


def test_two_closes_of_one_run_at_once_make_one_snapshot(part: Part) -> None:
    run = runs.begin_run(part, "", {})
    answers: list[runs.Closed] = []
    threads = [threading.Thread(target=lambda: answers.append(close(part, run, SMALL))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert len(part.snapshots()) == 1


def test_a_close_whose_manifest_went_with_that_of_another_has_its_answer(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is through empties the staging folder, where the other's manifest still lies."""
    run = runs.begin_run(part, "", {})
    take, first = runs.receive_manifest, []

    def overtaken(*args: Any, **given: Any) -> Any:
        monkeypatch.setattr(runs, "receive_manifest", take)
        first.append(close(part, run, SMALL))
        raise FileNotFoundError("the staged manifest")

    monkeypatch.setattr(runs, "receive_manifest", overtaken)
    assert close(part, run, SMALL) == first[0]
    assert len(part.snapshots()) == 1


# --- finding, on demand ----------------------------------------------------------------------------


def test_a_run_id_leads_to_its_part(store: Store) -> None:
    volumes = [store.create_volume(name) for name in ("one", "two")]
    parts = [volume.part(path, create=True) for volume in volumes for path in (b"a", b"b/c")]
    for part in parts:
        found = runs.find_part(store, runs.begin_run(part, "", {}).run)
        assert (found.volume.name, found.path) == (part.volume.name, part.path)
    with pytest.raises(NotFound):
        runs.find_part(store, "no such run")


def test_a_snapshot_on_demand_is_bound_to_the_manifest_and_ends_no_run(any_store: Store) -> None:
    part = any_store.create_volume("laptop").part(b"", create=True)
    close(part, runs.begin_run(part, "", {}), SMALL)
    run = runs.begin_run(part, "", {})
    commit = runs.commit_run(part, run.run, run.epoch, run.incarnation, 1)
    Path(part.root, "changed").write_text("by hand")
    info = snapshot_now(part)
    assert (info.sequence, info.manifest, info.run) == (2, digest_of(SMALL), "")
    assert Path(part.snapshot_root(info.name), "changed").exists()
    runs.check_run(part, header_of(run))
    assert runs.commit_run(part, run.run, run.epoch, run.incarnation, 1) == commit
    assert close(part, run, SMALL).sequence == 3


@pytest.mark.btrfs
@pytest.mark.root
def test_btrfs_tells_whether_the_tip_changed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data", "btrfs")
    try:
        part = store.create_volume("laptop").part(b"", create=True)
        assert tip_changed_since_snapshot(part)
        Path(part.root, "file").write_text("content")
        close(part, runs.begin_run(part, "", {}), SMALL)
        assert not tip_changed_since_snapshot(part)
        assert Path(part.root, "file").read_text() == "content"
        assert not tip_changed_since_snapshot(part)
        Path(part.root, "file").write_text("CONTENT")
        assert tip_changed_since_snapshot(part)
        snapshot_now(part)
        assert not tip_changed_since_snapshot(part)
    finally:
        store.close(detach=True)


def test_dir_cannot_tell_and_says_changed(part: Part) -> None:
    close(part, runs.begin_run(part, "", {}), SMALL)
    assert tip_changed_since_snapshot(part)


def test_the_hot_path_looks_twice_and_reads_nothing(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.begin_run(part, "", {})
    header = header_of(run)
    time.sleep(0.06)
    runs.check_run(part, header)  # now it is remembered
    looks: list[object] = []
    stat = os.stat
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "stat", lambda *arguments, **named: looks.append(arguments) or stat(*arguments, **named)
        )
        for name in ("open", "fstat", "listdir", "scandir"):
            patch.delattr(os, name)
        patch.setattr("builtins.open", None)
        runs.check_run(part, header)
    assert len(looks) == 2  # the state, and what tells that storage lost a write
