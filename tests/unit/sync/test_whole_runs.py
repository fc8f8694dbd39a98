"""What only a whole run shows: workers that die, several targets of one source, how far a walk runs ahead."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import MirrorkeepError, NoSpace, NotFound, PatchTargetMissing
from mirrorkeep.store.examine import Found
from mirrorkeep.store.local_copy import validate_directory
from mirrorkeep.sync.dispatch import Dispatcher
from mirrorkeep.sync.journal import Item, Journal
from mirrorkeep.sync.local import LocalSession, LocalTransaction
from mirrorkeep.sync.orders import Order, Report, Send, SendLarge
from mirrorkeep.sync.transfer import Transfer
from mirrorkeep.tree.protocol import Segment
from mirrorkeep.tree.wire import SMALL_FILE_BYTES
from rig.compare import Comparer
from tests.property.sync.loop import Cut, CutAfter, Loop
from tests.unit.tree.deep import make_deep, remove_deep


def differences(source: Path, copy: Path) -> list[str]:
    return [str(one) for one in Comparer(str(source), str(copy), skip=(b".mirrorkeep",)).differences()]


def new_loop(folder: Path) -> Loop:
    loop = Loop(folder)
    loop.source.mkdir()
    return loop


def make_files(loop: Loop, count: int) -> None:
    for number in range(count):
        place = loop.source / f"d{number % 3}" / f"f{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number)


# --- workers that die (GEN-17) ------------------------------------------------------------------------


def holds(order: Order, path: bytes) -> bool:
    wanted = (
        order.wanted if isinstance(order, Send) else [order.wanted] if isinstance(order, SendLarge) else []
    )
    return any(one.path == path for one in wanted)


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, Path | None], None]:
    """Have a worker killed that has carried out the order with a path, once if there is a mark to leave."""
    carry_out = Transfer.__call__

    def arm(path: bytes, mark: Path | None) -> None:
        def die(transfer: Transfer, order: Order) -> Report:
            report = carry_out(transfer, order)
            if holds(order, path) and (mark is None or not mark.exists()):
                if mark is not None:
                    mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return report

        monkeypatch.setattr(Transfer, "__call__", die)

    return arm


@pytest.mark.parametrize("path", [b"d1/f1", b"large"])
@pytest.mark.parametrize("first", [True, False], ids=["first run", "later run"])
def test_a_worker_that_is_killed_costs_a_retry_and_not_the_run(
    tmp_path: Path, deadly: Callable[[bytes, Path | None], None], path: bytes, first: bool
) -> None:
    loop = Loop(tmp_path)
    make_files(loop, 1200)
    (loop.source / "large").write_bytes(os.urandom(SMALL_FILE_BYTES + 5))
    if not first:
        loop.sync()
        for name in ("d1/f1", "large", "d2/f2"):
            (loop.source / name).write_bytes(os.urandom(SMALL_FILE_BYTES + 9 if name == "large" else 9))
    mark = tmp_path / "killed"
    deadly(path, mark)
    result = loop.sync()
    assert mark.exists()
    assert (result.status, result.failures) == ("complete", [])
    assert differences(loop.source, loop.copy) == []
    loop.check_unchanged()


def test_a_worker_that_is_killed_while_it_places_a_file_leaves_no_other_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    for number, name in enumerate(("a", "b")):
        (loop.source / name).write_bytes(b"of " + name.encode())
        os.utime(loop.source / name, (number, number))
    loop.sync()
    for old, new in (("a", "t"), ("b", "a"), ("t", "b")):
        (loop.source / old).rename(loop.source / new)
    mark, coordinator, rename = tmp_path / "killed", os.getpid(), os.rename

    def killed(source: bytes, target: bytes, **folders: int) -> None:
        """The data has taken its place, and the sidecar is about to."""
        if target == b"a" and os.getpid() != coordinator and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", killed)
    result = loop.sync()
    assert mark.exists()
    assert (result.status, result.failures) == ("complete", [])
    assert differences(loop.source, loop.copy) == []
    loop.check_unchanged()


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(
    "error", [NotFound(what="transaction 1"), PatchTargetMissing(path=b"f", detail="over")]
)
def test_a_large_file_whose_transaction_is_lost_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: MirrorkeepError, published: bool
) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "large").write_bytes(os.urandom(2 * SMALL_FILE_BYTES))
    loop.sync()
    with (loop.source / "large").open("r+b") as stream:
        stream.write(b"changed")
    mark, finish = tmp_path / "lost", LocalTransaction.finish

    def lose(transaction: LocalTransaction, line: bytes, segments: Sequence[Segment]) -> None:
        if mark.exists():
            return finish(transaction, line, segments)
        mark.touch()
        if published:
            finish(transaction, line, segments)
        raise error

    monkeypatch.setattr(LocalTransaction, "finish", lose)
    result = loop.sync()
    assert mark.exists()
    assert (result.status, result.changed, result.failures) == ("complete", 2, [])
    assert differences(loop.source, loop.copy) == []
    loop.check_unchanged()


def test_what_kills_every_worker_fails_by_name_and_the_rest_is_brought_over(
    tmp_path: Path, deadly: Callable[[bytes, Path | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path)
    make_files(loop, 1200)
    (loop.source / "large").write_bytes(os.urandom(SMALL_FILE_BYTES + 5))
    deadly(b"large", None)
    result = loop.sync()
    assert (result.status, [failure[:2] for failure in result.failures]) == (
        "partial",
        [(b"large", "worker_lost")],
    )
    monkeypatch.undo()
    assert loop.sync().status == "complete"
    assert differences(loop.source, loop.copy) == []


# --- several targets (CHG-10) -------------------------------------------------------------------------


def test_each_target_of_a_source_is_compared_with_a_manifest_of_its_own(tmp_path: Path) -> None:
    one, other = Loop(tmp_path), Loop(tmp_path)
    other.copy, other.target = tmp_path / "other copy", "other target"
    other._open_session = lambda: LocalSession(os.fspath(other.copy))
    make_files(one, 30)
    assert one.sync().new == one.sync().entries
    (one.source / "d0" / "f0").write_bytes(b"edited")
    (one.source / "d1" / "f1").rename(one.source / "d1" / "moved")
    assert other.sync().new == 34
    first = one.sync()
    assert (first.new, first.changed - first.moved, first.moved, first.removed) == (0, 2, 1, 0)
    (one.source / "d2" / "f2").unlink()
    for loop in (other, one):
        assert loop.sync().removed == 1
        assert differences(loop.source, loop.copy) == []
        again = loop.sync()
        assert (again.unchanged, again.bytes_sent) == (again.entries, 0)
    assert len(list((tmp_path / "state").glob("*/manifest"))) == 2


# --- a store without room -----------------------------------------------------------------------------


@pytest.mark.parametrize("cut_again", [False, True])
def test_after_a_run_without_room_what_goes_makes_room_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_again: bool
) -> None:
    """The changed file stands before the one that goes: in the usual order no run gets to the deletion."""
    loop = Loop(tmp_path)
    make_files(loop, 12)
    (loop.source / "zz in the way").write_bytes(b"takes the room")
    loop.sync()
    (loop.source / "zz in the way").unlink()
    for name in ("d0/f0", "d1/new"):
        (loop.source / name).write_bytes(b"needs room")
    carry_out = Transfer.__call__

    def no_room(transfer: Transfer, order: Order) -> Report:
        if (loop.copy / "zz in the way").exists() and (holds(order, b"d0/f0") or holds(order, b"d1/new")):
            raise NoSpace(detail="full")
        return carry_out(transfer, order)

    monkeypatch.setattr(Transfer, "__call__", no_room)
    with pytest.raises(NoSpace):
        loop.sync()
    if cut_again:
        with pytest.raises(Cut), CutAfter(0):
            loop.sync()
    result = loop.sync()
    assert (result.status, result.removed, result.failures) == ("complete", 1, [])
    assert differences(loop.source, loop.copy) == []
    loop.check_unchanged()


# --- flow control (WQ-05) -----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1100, 1500])
def test_the_walk_waits_while_too_many_entries_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The worker that has the first entries keeps them until the coordinator can but wait."""
    loop = Loop(tmp_path)
    make_files(loop, 4000)
    gate, release = os.pipe()
    carry_out, collect, add = Transfer.__call__, Dispatcher.collect, Journal.add
    peak, waited_at = [0], [0]

    def held(transfer: Transfer, order: Order) -> Report:
        os.read(gate, 1)
        return carry_out(transfer, order)

    def watch(dispatcher: Dispatcher, timeout_s: float | None) -> None:
        if timeout_s is None:
            waited_at[0] = waited_at[0] or peak[0]
            os.write(release, b"go")
        collect(dispatcher, timeout_s)

    def count(journal: Journal, item: Item) -> None:
        add(journal, item)
        peak[0] = max(peak[0], len(journal))

    for owner, name, patched in (
        (Transfer, "__call__", held),
        (Dispatcher, "collect", watch),
        (Journal, "add", count),
    ):
        monkeypatch.setattr(owner, name, patched)
    options: dict[str, Any] = {"threads": 1, "max_entries_in_core": most}
    assert loop.sync(replace(loop.options, **options)).status == "complete"
    assert waited_at == [most + 1]
    assert peak == [most + 1]
    monkeypatch.undo()
    assert differences(loop.source, loop.copy) == []
    for fd in (gate, release):
        os.close(fd)


# --- times and attributes out of the ordinary ---------------------------------------------------------


@pytest.mark.must_run
def test_times_that_64_bits_of_nanoseconds_do_not_hold_are_mirrored_and_recognised(tmp_path: Path) -> None:
    loop = new_loop(tmp_path)
    make_files(loop, 6)
    seconds = 13_570_000_000  # in the year 2400
    for place in (loop.source / "d0" / "f0", loop.source / "d1"):
        os.utime(place, ns=(0, seconds * 1_000_000_000 + 7))
    if (loop.source / "d1").stat().st_mtime_ns != seconds * 1_000_000_000 + 7:
        pytest.skip("the file system does not know the year 2400")
    assert loop.sync().status == "complete"
    assert differences(loop.source, loop.copy) == []
    again = loop.sync()
    assert (again.status, again.changed, again.new, again.bytes_read) == ("complete", 0, 0, 0)


@pytest.mark.parametrize("free_blocks", [0, 1_000_000])
def test_an_attribute_too_large_for_the_store_is_kept_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_blocks: int
) -> None:
    loop = new_loop(tmp_path)
    make_files(loop, 3)
    os.setxattr(loop.source / "d0" / "f0", "user.large", b"v" * 3000)
    set_attribute = os.setxattr

    def refuse(where: int | bytes, name: str, value: bytes) -> None:
        if len(value) > 2000:
            raise OSError(errno.ENOSPC, "no room in the block of attributes")
        set_attribute(where, name, value)

    def room(where: int | bytes) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 2_000_000, free_blocks, free_blocks, 9, 9, 9, 0, 255))

    with monkeypatch.context() as small:
        small.setattr(os, "setxattr", refuse)
        small.setattr(os, "statvfs", room)
        if not free_blocks:
            with pytest.raises(NoSpace):
                loop.sync()
            return
        assert loop.sync().status == "complete"
    found: list[Any] = []
    validate_directory(os.fspath(loop.copy), found.append)
    assert found == []
    loop.restore(loop.folder / "back")
    assert os.getxattr(loop.folder / "back" / "d0" / "f0", "user.large") == b"v" * 3000


# --- trees of any depth -------------------------------------------------------------------------------


def test_a_folder_deeper_than_calls_nest_is_mirrored_validated_restored_and_removed(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    make_files(loop, 30)
    try:
        deep = make_deep(loop.source / "someone", 1100)
        result = loop.sync()
        assert (result.status, result.failed, result.new) == ("complete", 0, 30 + 3 + deep + 2)
        loop.check_unchanged()
        found: list[Found] = []
        assert validate_directory(os.fspath(loop.copy), found.append).tally.entries == result.entries
        assert found == []
        restored = loop.restore(tmp_path / "restored")
        assert (restored.status, restored.failed) == ("complete", 0)
        assert loop.listing().keys() == loop.manifest().keys()
        remove_deep(loop.source)
        make_files(loop, 30)
        assert loop.sync().removed == deep + 1
        assert differences(loop.source, loop.copy) == []
    finally:
        remove_deep(tmp_path)


# --- damage that moves --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3000, SMALL_FILE_BYTES + 1], ids=["small", "large"])
@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "a folder now"])
def test_damage_that_was_found_is_not_taken_along_when_the_file_gets_another_name(
    tmp_path: Path, size: int, replaced: bool
) -> None:
    loop = Loop(tmp_path)
    make_files(loop, 3)
    (loop.source / "old name").write_bytes(os.urandom(size))
    loop.sync()
    hurt = loop.copy / "old name"
    status = hurt.stat()
    hurt.write_bytes(bytes(size))
    os.utime(hurt, ns=(status.st_atime_ns, status.st_mtime_ns))
    validate_directory(str(loop.copy), lambda found: None)
    (loop.source / "old name").rename(loop.source / "d1" / "new name")
    if replaced:
        (loop.source / "old name").mkdir()
    assert loop.sync().status == "complete"
    assert differences(loop.source, loop.copy) == []
    loop.check_unchanged()
