"""Several names of one file, of which one is damaged, lost, refused, or written to in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorkeep.errors import NotFound, SourceChanged, StorageFailure
from mirrorkeep.manifest.record import Record
from mirrorkeep.store.findings import unknown_record, write_partial
from mirrorkeep.store.local_copy import validate_directory
from mirrorkeep.sync.late import LatePhases
from mirrorkeep.sync.local import LocalSession
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Frame
from mirrorkeep.tree.stored_apply import Application
from mirrorkeep.tree.stored_kept import KeptContent
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.compare import Comparer
from tests.property.sync.loop import Loop

NAMES = ("a", "f/b", "z")
SIZES = pytest.mark.parametrize("size", [2000, SMALL_FILE_BYTES + 1], ids=["small", "large"])


def make(folder: Path, size: int = 2000) -> Loop:
    """Make a source with one file of three names and others around it, long unchanged."""
    loop = Loop(folder)
    (loop.source / "f").mkdir(parents=True)
    (loop.source / "other").write_bytes(b"other")
    first = loop.source / NAMES[0]
    first.write_bytes(os.urandom(size))
    os.utime(first, (1_600_000_000, 1_600_000_000))
    for name in NAMES[1:]:
        os.link(first, loop.source / name)
    return loop


def differences(loop: Loop, copy: Path | None = None) -> list[str]:
    comparer = Comparer(str(loop.source), str(copy or loop.copy), skip=(b".mirrorkeep",))
    return [str(one) for one in comparer.differences()]


def damage(path: Path) -> None:
    """Change a byte in place; size and time stay."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(bytes([path.read_bytes()[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- damage -----------------------------------------------------------------------------------------------


@SIZES
@pytest.mark.parametrize("named", NAMES)
def test_damage_that_was_found_under_one_name_is_repaired_under_all(
    tmp_path: Path, named: str, size: int
) -> None:
    loop = make(tmp_path, size)
    loop.sync()
    damage(loop.copy / named)
    assert len({(loop.copy / name).stat().st_ino for name in NAMES}) == 1
    patch = os.fsdecode(LocalSession(os.fspath(loop.copy)).patch_path)
    write_partial(patch, [unknown_record(named.encode())])
    assert loop.sync().status == "complete"
    assert differences(loop) == []
    loop.check_unchanged()


# --- names that are all others ----------------------------------------------------------------------------


@SIZES
def test_a_file_whose_folder_was_renamed_is_not_sent_again(tmp_path: Path, size: int) -> None:
    loop = make(tmp_path, size)
    os.link(loop.source / "a", loop.source / "f" / "c")
    loop.sync()
    for name in ("a", "z"):
        (loop.source / name).unlink()
    loop.sync()
    (loop.source / "f").rename(loop.source / "g")
    result = loop.sync()
    assert (result.status, result.moved, result.removed) == ("complete", 1, 1)
    assert result.bytes_sent < 2000
    assert os.path.samefile(loop.copy / "g" / "b", loop.copy / "g" / "c")
    assert differences(loop) == []
    loop.check()
    loop.check_unchanged()


@SIZES
def test_a_file_whose_names_were_all_renamed_and_taken_is_not_sent_again(tmp_path: Path, size: int) -> None:
    loop = make(tmp_path, size)
    loop.sync()
    for number, name in enumerate(NAMES):
        (loop.source / name).rename(loop.source / f"new {number}")
        (loop.source / name).write_bytes(b"another")
    result = loop.sync()
    assert (result.status, result.moved) == ("complete", 1)
    assert result.bytes_sent < 2000
    assert differences(loop) == []
    loop.check()
    loop.check_unchanged()


@pytest.mark.parametrize("stays", NAMES)
def test_names_that_move_while_one_stays_are_its_links_again(tmp_path: Path, stays: str) -> None:
    loop = make(tmp_path, SMALL_FILE_BYTES + 1)
    loop.sync()
    for number, name in enumerate(NAMES):
        if name != stays:
            (loop.source / name).rename(loop.source / f"new {number}")
    result = loop.sync()
    assert (result.status, result.removed) == ("complete", 0)
    assert result.bytes_sent < 2000
    assert not [name for name in os.listdir(loop.copy) if name.startswith(".mirrorkeep-part-")]
    assert differences(loop) == []
    loop.check_unchanged()


def test_content_that_changed_with_its_names_is_sent(tmp_path: Path) -> None:
    """Size and time are as they were: only the digest tells."""
    loop = make(tmp_path)
    loop.sync()
    for number, name in enumerate(NAMES):
        (loop.source / name).rename(loop.source / f"new {number}")
    damage(loop.source / "new 0")
    assert loop.sync().moved == 0
    assert differences(loop) == []
    loop.check_unchanged()


# --- leaders that are none --------------------------------------------------------------------------------


@SIZES
def test_names_whose_leader_the_mirror_has_lost_are_brought_over(tmp_path: Path, size: int) -> None:
    loop = make(tmp_path, size)
    os.link(loop.source / "a", loop.source / "f" / "c")
    loop.sync()
    (loop.copy / "a").unlink()
    (loop.copy / ".mirrorkeep" / "a").unlink()
    (loop.source / "f").rename(loop.source / "g")
    result = loop.sync()
    assert (result.status, result.failures) == ("complete", [])
    names = [loop.copy / "g" / name for name in ("b", "c")]
    assert [path.read_bytes() for path in names] == [(loop.source / "a").read_bytes()] * 2
    assert os.path.samefile(*names)
    found: list[bytes] = []
    validate_directory(str(loop.copy), lambda one: found.append(one[0]))
    assert found == [b"a"]
    assert loop.sync().status == "complete"
    assert differences(loop) == []


def test_what_is_refused_for_something_missing_on_the_mirror_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the source has no more may be passed over in silence."""
    loop = make(tmp_path)
    put = Application._put

    def refuse(application: Application, record: Record, frame: Frame) -> None:
        if record.path == b"other":
            raise NotFound(what="something")
        put(application, record, frame)

    with monkeypatch.context() as patch:
        patch.setattr(Application, "_put", refuse)
        result = loop.sync()
    assert (result.status, [one[:2] for one in result.failures]) == ("partial", [(b"other", "not_found")])
    assert loop.sync().status == "complete"
    assert differences(loop) == []


@SIZES
def test_a_leader_that_cannot_be_read_once_leaves_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    loop = make(tmp_path, size)
    describe = NativeTree.describe
    read = NativeTree._read_settled

    def unsettled(tree: NativeTree, path: bytes, *arguments: object) -> object:
        if path == b"a":
            raise SourceChanged(path=path)
        return (describe if not arguments else read)(tree, path, *arguments)  # type: ignore[call-arg]

    with monkeypatch.context() as patch:
        patch.setattr(NativeTree, "describe", unsettled)
        patch.setattr(NativeTree, "_read_settled", unsettled)
        result = loop.sync()
    assert (result.status, [one[:2] for one in result.failures]) == ("partial", [(b"a", "source_changed")])
    assert os.path.samefile(loop.copy / "f" / "b", loop.copy / "z")
    assert loop.sync().status == "complete"
    assert differences(loop) == []
    assert loop.restore(tmp_path / "restored").status == "complete"
    assert differences(loop, tmp_path / "restored") == []
    loop.check_unchanged()


def test_a_changed_leader_that_cannot_be_read_leaves_no_old_content_under_new_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make(tmp_path)
    loop.sync()
    (loop.source / "a").write_bytes(os.urandom(2000))
    read = NativeTree._read_settled

    def unsettled(tree: NativeTree, path: bytes, *arguments: object) -> object:
        if path == b"a":
            raise SourceChanged(path=path)
        return read(tree, path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(NativeTree, "_read_settled", unsettled)
        assert loop.sync().status == "partial"
    assert (loop.copy / "z").read_bytes() == (loop.source / "z").read_bytes()
    assert loop.sync().status == "complete"
    assert differences(loop) == []
    loop.check_unchanged()


def test_links_that_are_refused_whatever_leads_are_sent_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make(tmp_path)

    def refuse(*_: object) -> None:
        raise StorageFailure(detail="too many links")

    with monkeypatch.context() as patch:
        patch.setattr(KeptContent, "_hard_link", refuse)
        assert loop.sync().status == "complete"
    assert {(loop.copy / name).read_bytes() for name in NAMES} == {(loop.source / "a").read_bytes()}
    assert loop.sync().status == "complete"
    assert differences(loop) == []
    loop.check_unchanged()


@pytest.mark.parametrize("validated", [True, False])
def test_a_file_that_is_written_to_between_its_names_is_brought_over_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: bool
) -> None:
    loop = make(tmp_path)
    link = LatePhases._link

    def write_first(late: LatePhases, links: object) -> None:
        with (loop.source / "a").open("r+b") as stream:
            stream.write(os.urandom(2000))
        link(late, links)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LatePhases, "_link", write_first)
        assert loop.sync().status == "complete"
    found: list[object] = []
    if validated:
        validate_directory(str(loop.copy), found.append)
    assert found == []
    result = loop.sync()
    assert (result.status, result.failures) == ("complete", [])
    assert differences(loop) == []
    loop.check_unchanged()


# --- names that were something else -----------------------------------------------------------------------


@SIZES
def test_names_that_were_links_become_names_of_one_file(tmp_path: Path, size: int) -> None:
    loop = make(tmp_path, size)
    for name in ("one", "two"):
        (loop.source / name).symlink_to("nowhere")
    loop.sync()
    for name in ("one", "two"):
        (loop.source / name).unlink()
    (loop.source / "one").write_bytes(os.urandom(size))
    os.link(loop.source / "one", loop.source / "two")
    result = loop.sync()
    assert (result.status, result.bytes_read) == ("complete", size)
    assert differences(loop) == []
    assert loop.manifest()[b"two"][b"hard_link"] == b"one"
