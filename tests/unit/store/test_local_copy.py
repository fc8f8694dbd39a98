"""A local copy is validated by its own manifest, and the next run repairs what was found (VAL-16)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorkeep.errors import ForeignManifest
from mirrorkeep.store.local_copy import Outcome, validate_directory
from mirrorkeep.sync import close
from mirrorkeep.sync.local import LocalSession
from mirrorkeep.sync.state import StateBusy
from tests.property.sync.loop import Cut, CutAfter, Loop
from tests.unit.store.stored_copy import copy_stored, make_source

HIDDEN = ".mirrorkeep"
PATCH = f"{HIDDEN}/.mirrorkeep.patch"


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    made = Loop(tmp_path)
    make_source(made.source)
    made.sync()
    return made


def look(root: Path, *, content: bool = True) -> tuple[list[tuple[str, str]], Outcome]:
    found: list[tuple[str, str]] = []
    outcome = validate_directory(
        os.fspath(root), lambda one: found.append((os.fsdecode(one[0]), one[1])), content=content
    )
    assert outcome.findings == len(found)
    return found, outcome


def damage(copy: Path) -> None:
    """Damage an entry of each kind behind the back of all records, times kept where times are kept."""
    for name in ("docs/a.txt", "media/film"):
        path = copy / name
        times = path.stat()
        with path.open("r+b") as stream:
            stream.seek(100)
            stream.write(b"rot")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(copy / "docs" / "deep" / "c.bin", ns=(1, 1))
    (copy / "docs" / "b.txt").unlink()
    (copy / "empty" / "extra").write_bytes(b"nobody sent this")


DAMAGED = [
    ("docs/a.txt", "content"),
    ("docs/b.txt", "missing"),
    ("docs/deep/c.bin", "mtime"),
    ("empty/extra", "extra"),
    ("media/film", "content"),
]


def test_a_copy_that_is_as_it_was_written_is_verified_and_left_alone(loop: Loop) -> None:
    found, outcome = look(loop.copy)
    assert (found, outcome.dirty) == ([], False)
    assert outcome.tally.content_bytes == outcome.tally.bytes > 600_000
    assert not (loop.copy / PATCH).exists()
    loop.check_unchanged()


def test_what_is_damaged_is_named_and_repaired_by_the_next_run(loop: Loop) -> None:
    damage(loop.copy)
    found, outcome = look(loop.copy)
    assert [one for one in found if one in DAMAGED] == DAMAGED
    assert {path for path, _ in found} == {path for path, _ in DAMAGED}
    assert outcome.repairable
    result = loop.sync()
    assert (result.status, result.failures) == ("complete", [])
    assert result.unchanged == result.entries - result.new - result.changed > 0
    assert not (loop.copy / PATCH).exists()
    loop.check()
    assert look(loop.copy)[0] == []
    loop.check_unchanged()


def test_without_a_validation_a_run_believes_the_manifest(loop: Loop) -> None:
    """What makes the repair is the findings, not the run."""
    damage(loop.copy)
    assert loop.sync().bytes_sent == 0
    assert look(loop.copy)[0] != []


def test_a_validation_of_metadata_adds_to_what_was_found_and_a_full_one_replaces_it(loop: Loop) -> None:
    damage(loop.copy)
    look(loop.copy)
    os.utime(loop.copy / "media", ns=(1, 1))
    found, _ = look(loop.copy, content=False)
    assert ("media", "mtime") in found
    assert ("media/film", "content") not in found
    loop.sync()
    loop.check()
    os.utime(loop.copy / "media", ns=(1, 1))
    look(loop.copy, content=False)
    os.utime(loop.copy / "media", ns=(10**18, 10**18 + 123_456_789))
    assert (loop.copy / PATCH).exists()
    assert look(loop.copy)[0] == []
    assert not (loop.copy / PATCH).exists()


def test_runs_and_validations_of_a_copy_keep_each_other_away(loop: Loop) -> None:
    session = LocalSession(os.fspath(loop.copy))
    session.begin("/home", {})
    with pytest.raises(StateBusy, match=str(os.getpid())):
        look(loop.copy)
    session.release()
    held = LocalSession(os.fspath(loop.copy))
    with held.held(), pytest.raises(StateBusy):
        loop.sync()
    loop.sync()


def test_findings_survive_a_run_that_is_cut_off(loop: Loop) -> None:
    damage(loop.copy)
    look(loop.copy)
    (loop.source / "docs" / "a.txt").write_bytes(b"newer")
    with pytest.raises(Cut), CutAfter(1):
        loop.sync()
    assert look(loop.copy)[1].dirty
    assert loop.sync().status == "complete"
    loop.check()
    assert look(loop.copy)[0] == []


def test_a_close_that_was_decided_is_finished_before_a_validation(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the finished close would take the patch away that the validation has left."""
    (loop.source / "docs" / "a.txt").write_bytes(b"newer")
    with monkeypatch.context() as patched:
        patched.setattr(LocalSession, "_roll_forward", lambda self, known: known)
        loop.sync()
    damage(loop.copy)
    found, outcome = look(loop.copy)
    assert ("docs/a.txt", "size") in found  # as the new manifest has it: five bytes became 103
    assert not outcome.dirty
    loop.sync()
    loop.check()


@pytest.mark.parametrize("lost", [False, True])
def test_a_damaged_manifest_is_named_and_written_anew(loop: Loop, lost: bool) -> None:
    manifest = loop.copy / HIDDEN / ".mirrorkeep.manifest"
    if lost:
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes().replace(b"film", b"folm"))
    with pytest.raises(ForeignManifest):
        look(loop.copy)
    result = loop.sync()
    assert (result.status, result.bytes_sent) == ("complete", 0)
    assert look(loop.copy)[0] == []
    loop.check()
    loop.check_unchanged()


@pytest.mark.parametrize("damage", ["flip", "cut off", "gone"])
def test_a_difference_to_a_damaged_manifest_is_of_no_use_and_the_whole_is_written(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(close, "FULL_MANIFEST_BYTES", 0)
    manifest = loop.copy / HIDDEN / ".mirrorkeep.manifest"
    whole = manifest.read_bytes()
    (loop.source / "docs" / "a.txt").write_bytes(b"newer")
    if damage == "gone":
        manifest.unlink()
    else:
        manifest.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage == "flip" else whole[:10])
    assert loop.sync().status == "complete"
    assert look(loop.copy)[0] == []
    loop.check()


def test_a_manifest_that_is_gone_is_written_anew_though_nothing_changed(loop: Loop) -> None:
    (loop.copy / HIDDEN / ".mirrorkeep.manifest").unlink()
    assert loop.sync().status == "complete"
    assert look(loop.copy)[0] == []


@contextmanager
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(self: LocalSession, source: str) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(LocalSession, "_acquire", refuse)
        yield


def test_a_copy_that_cannot_be_written_to_is_examined_all_the_same(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(loop.copy)
    with unwritable(monkeypatch):
        found, outcome = look(loop.copy)
    assert {path for path, _ in found} == {path for path, _ in DAMAGED}
    assert not outcome.repairable
    assert not (loop.copy / PATCH).exists()


def test_a_stored_tree_that_is_no_copy_is_examined_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    make_source(tmp_path / "source")
    copy_stored(tmp_path / "source", tmp_path / "stored")
    (tmp_path / "stored" / "docs" / "b.txt").unlink()
    found, outcome = look(tmp_path / "stored")
    assert (found, outcome.repairable) == ([("docs/b.txt", "missing")], False)
    assert not (tmp_path / "stored" / PATCH).exists()
