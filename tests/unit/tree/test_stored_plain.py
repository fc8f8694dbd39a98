"""WebDAV's operations on a stored tree: publish, compare-and-set, delete, move, copy, recover."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import (
    AlreadyExists,
    DigestMismatch,
    GenerationConflict,
    LengthMismatch,
    NotFound,
    PathRefused,
)
from mirrorkeep.tree import stored_move
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredEntry, StoredTree
from tests.unit.tree.stored_trial import MTIME_NS, file_fields, line, link, look, put, staged


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[StoredTree]:
    with StoredTree(str(root)) as opened:
        yield opened


def write(tree: StoredTree, path: bytes, content: bytes, if_generation: int | None = None) -> StoredEntry:
    file = tree.stage(path)
    try:
        file.write(content)
        return file.publish(if_generation=if_generation)
    finally:
        file.abandon()


def read(tree: StoredTree, path: bytes) -> bytes:
    fd, entry = tree.open_read(path)
    with os.fdopen(fd, "rb") as file:
        content = file.read()
    assert len(content) == entry.size
    return content


def names(tree: StoredTree, path: bytes = b"") -> list[bytes]:
    return [entry.name for entry in tree.list(path)]


def test_a_published_file_is_an_entry_without_a_hash_yet(tree: StoredTree, root: Path) -> None:
    entry = write(tree, b"f", b"content")
    assert (entry.kind, entry.size, entry.path, entry.name) == (b"file", 7, b"f", b"f")
    assert entry.etag == f'"{entry.generation:x}"'
    assert entry.record is not None
    assert entry.record.hash == b""
    assert entry.record.mtime_ns == (root / "f").stat().st_mtime_ns
    assert read(tree, b"f") == b"content"
    assert entry.sidecar is not None
    assert tree.check(b"f", entry.sidecar.line, content=True) == []
    assert staged(root) == []


def test_nothing_is_seen_before_publishing_and_nothing_stays_after_abandoning(
    tree: StoredTree, root: Path
) -> None:
    write(tree, b"f", b"old")
    file = tree.stage(b"f")
    file.write(b"half of the n")
    assert read(tree, b"f") == b"old"
    file.abandon()
    file.abandon()
    assert read(tree, b"f") == b"old"
    assert staged(root) == []


def test_a_senders_record_is_checked_and_stamped(tree: StoredTree, root: Path) -> None:
    file = tree.stage(b"f")
    file.write(b"content")
    with pytest.raises(DigestMismatch):
        file.publish(file_fields(b"CONTENT"))
    with pytest.raises(LengthMismatch):
        file.publish(file_fields(b"longer content"))
    entry = file.publish(file_fields(b"content"))
    assert entry.mtime_ns == MTIME_NS
    assert entry.record is not None
    assert entry.record.hash == hashlib.sha256(b"content").hexdigest().encode()


def test_publishing_compares_and_sets(tree: StoredTree) -> None:
    first = write(tree, b"f", b"1", if_generation=0)
    with pytest.raises(GenerationConflict):
        write(tree, b"f", b"2", if_generation=0)
    second = write(tree, b"f", b"2", if_generation=first.generation)
    with pytest.raises(GenerationConflict):
        write(tree, b"f", b"3", if_generation=first.generation)
    assert second.generation > first.generation
    assert read(tree, b"f") == b"2"


def test_generations_grow_even_when_the_clock_goes_back(
    tree: StoredTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(tree, b"f", b"1").generation
    monkeypatch.setattr("mirrorkeep.tree.placement.time.time_ns", lambda: 5)
    assert write(tree, b"f", b"2").generation == before + 1
    assert tree.apply([put(b"f", b"3")]) == []
    assert tree.stat(b"f").generation == before + 2


def test_only_one_of_many_writers_wins_a_generation(tree: StoredTree) -> None:
    start = write(tree, b"f", b"0").generation
    won: list[int] = []

    def attempt(number: int) -> None:
        try:
            write(tree, b"f", b"%d" % number, if_generation=start)
            won.append(number)
        except GenerationConflict:
            pass

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read(tree, b"f") == b"%d" % won[0]


def test_readers_never_see_half_a_replacement(tree: StoredTree) -> None:
    write(tree, b"f", b"0")
    stop = threading.Event()
    wrong: list[object] = []

    def look_often() -> None:
        while not stop.is_set():
            fd, entry = tree.open_read(b"f")
            content = os.pread(fd, 100, 0)
            os.close(fd)
            if len(content) != entry.size or entry.record is None or entry.record.size != entry.size:
                wrong.append((content, entry))

    reader = threading.Thread(target=look_often)
    reader.start()
    for number in range(200):
        file = tree.stage(b"f")
        file.write(b"x" * (number % 50))
        file.publish(durable=False)
    stop.set()
    reader.join()
    assert wrong == []


def test_a_file_needs_its_parent_and_no_directory_in_its_place(tree: StoredTree) -> None:
    tree.make_directory(b"d")
    with pytest.raises(NotFound):
        tree.stage(b"missing/f")
    with pytest.raises(AlreadyExists):
        tree.stage(b"d")
    write(tree, b"f", b"")
    with pytest.raises((NotFound, PathRefused)):
        tree.stage(b"f/below")


def test_directories_are_made_once_below_existing_ones(tree: StoredTree) -> None:
    assert tree.make_directory(b"d").kind == b"directory"
    for taken in (b"d", b""):
        with pytest.raises(AlreadyExists):
            tree.make_directory(taken)
    with pytest.raises(NotFound):
        tree.make_directory(b"missing/d")
    assert names(tree) == [b"d"]


def test_properties_are_set_by_compare_and_set_and_keep_the_etag(tree: StoredTree) -> None:
    entry = write(tree, b"f", b"1")
    generation = tree.update_sidecar(b"f", lambda rows: rows.update({b"dav:colour": b"red"}))
    assert generation == entry.generation == tree.stat(b"f").generation
    with pytest.raises(GenerationConflict):
        tree.update_sidecar(b"f", lambda rows: rows.clear(), if_generation=entry.generation - 1)
    assert tree.read_sidecar(b"f").entries[b"dav:colour"] == b"red"
    write(tree, b"f", b"2")
    assert tree.read_sidecar(b"f").entries[b"dav:colour"] == b"red"


def test_a_late_hash_is_refused_when_the_content_moved_on(tree: StoredTree) -> None:
    old = write(tree, b"f", b"version 1")
    write(tree, b"f", b"version 2")
    with pytest.raises(GenerationConflict):
        tree.update_sidecar(b"f", lambda rows: rows.update(hash=b"of 1"), if_generation=old.generation)


def test_concurrent_updates_lose_nothing(tree: StoredTree) -> None:
    write(tree, b"f", b"1")

    def add(number: int) -> None:
        tree.update_sidecar(b"f", lambda rows: rows.update({b"dav:%d" % number: b""}), durable=False)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(key.startswith(b"dav:") for key in tree.read_sidecar(b"f").entries) == 12


def test_root_and_directories_without_a_sidecar_take_properties(tree: StoredTree, root: Path) -> None:
    (root / "native").mkdir()
    for path in (b"", b"native"):
        assert tree.read_sidecar(path).entries == {}
        tree.update_sidecar(path, lambda rows: rows.update({b"dav:x": b"1"}))
        assert tree.read_sidecar(path).entries == {b"dav:x": b"1"}
    with pytest.raises(NotFound):
        tree.update_sidecar(b"missing", lambda rows: None)


def test_deleting_takes_everything_below(tree: StoredTree, root: Path) -> None:
    tree.apply(
        [put(b"d/e/f", b"x"), link(b"d/l", b"t"), Frame(Op.NODE, line(b"d/n", b"fifo")), put(b"g", b"")]
    )
    tree.delete(b"d")
    tree.delete(b"g")
    assert names(tree) == []
    assert [name for name in look(root) if name != ".mirrorkeep"] == []
    assert staged(root) == []
    for missing in (b"d", b"g", b"d/e/f"):
        with pytest.raises(NotFound):
            tree.delete(missing)
    with pytest.raises(PathRefused):
        tree.delete(b"")


def test_a_deletion_compares_too(tree: StoredTree) -> None:
    old = write(tree, b"f", b"1").generation
    write(tree, b"f", b"2")
    with pytest.raises(GenerationConflict):
        tree.delete(b"f", if_generation=old)
    assert names(tree) == [b"f"]


# --- moves and copies ---------------------------------------------------------------------------


def fill(tree: StoredTree) -> None:
    fifo = Frame(Op.NODE, line(b"d/n", b"fifo"))
    assert tree.apply([put(b"d/e/f", b"deep"), put(b"d/f", b"file"), link(b"d/l", b"t"), fifo]) == []
    tree.update_sidecar(b"d/f", lambda rows: rows.update({b"dav:p": b"1", b"lock:t": b"2"}))
    tree.update_sidecar(b"d", lambda rows: rows.update({b"dav:q": b"1"}))


def everything(tree: StoredTree, top: bytes) -> dict[bytes, bytes]:
    """Return what is below ``top``, by path relative to it: the record without the path."""
    found = {}
    for path, record in tree.actual_records():
        if path == top or path.startswith(top + b"/"):
            found[path[len(top) :]] = record.partition(b",type=")[2].partition(b",_internal")[0]
    return found


def test_moving_a_directory_takes_all_along(tree: StoredTree, root: Path) -> None:
    fill(tree)
    before = everything(tree, b"d")
    assert tree.move(b"d", b"m", False) is True
    assert everything(tree, b"m") == before
    assert names(tree) == [b"m"]
    assert tree.read_sidecar(b"m").entries[b"dav:q"] == b"1"
    assert tree.read_sidecar(b"m/f").entries[b"dav:p"] == b"1"
    frames = {
        frame.line.partition(b",")[0] for frame in tree.frames([b"m/e/f", b"m/n"]) if isinstance(frame, Frame)
    }
    assert frames == {b"=m/e/f", b"=m/n"}
    assert (staged(root), tree.recover()) == ([], 0)


def test_moving_a_file_leaves_its_locks_behind(tree: StoredTree) -> None:
    fill(tree)
    tree.move(b"d/f", b"g", False)
    assert tree.read_sidecar(b"g").entries.keys() >= {b"dav:p", b"record"}
    assert b"lock:t" not in tree.read_sidecar(b"g").entries
    assert read(tree, b"g") == b"file"
    assert b"f" not in names(tree, b"d")


@pytest.mark.parametrize("target", ["file", "directory", "node"])
@pytest.mark.parametrize("source", ["file", "directory", "node", "link"])
def test_what_is_in_the_way_is_replaced(tree: StoredTree, root: Path, source: str, target: str) -> None:
    fill(tree)
    tree.apply(
        [put(b"x/file", b"t"), put(b"x/directory/inside", b"t"), Frame(Op.NODE, line(b"x/node", b"fifo"))]
    )
    path = {"file": b"d/f", "directory": b"d/e", "node": b"d/n", "link": b"d/l"}[source]
    before = everything(tree, path)
    there = b"x/" + target.encode()
    with pytest.raises(AlreadyExists):
        tree.move(path, there, False)
    with pytest.raises(AlreadyExists):
        tree.copy(path, there, False)
    old = tree.stat(there).generation
    assert tree.copy(path, there, True) is False
    assert everything(tree, there) == before
    assert tree.move(path, there, True) is False
    assert everything(tree, there) == before
    assert everything(tree, path) == {}
    assert tree.stat(there).generation > old
    assert staged(root) == []


def test_moves_and_copies_refuse_what_makes_no_sense(tree: StoredTree) -> None:
    fill(tree)
    for act in (tree.move, tree.copy):
        for source, target in ((b"d", b"d"), (b"d", b"d/e/x"), (b"d/e", b"d"), (b"", b"x"), (b"d", b"")):
            with pytest.raises(PathRefused):
                act(source, target, True)
        for source, target in ((b"missing", b"x"), (b"d/f", b"missing/x")):
            with pytest.raises(NotFound):
                act(source, target, True)


def test_a_copy_is_whole_and_independent(tree: StoredTree) -> None:
    fill(tree)
    before = everything(tree, b"d")
    assert tree.copy(b"d", b"c", False) is True
    assert everything(tree, b"c") == before == everything(tree, b"d")
    assert tree.read_sidecar(b"c/f").entries.keys() >= {b"dav:p"}
    assert b"lock:t" not in tree.read_sidecar(b"c/f").entries
    write(tree, b"c/f", b"changed")
    assert read(tree, b"d/f") == b"file"


@pytest.mark.parametrize("depth", [0, "0"])
def test_a_shallow_copy_copies_the_directory_alone(tree: StoredTree, depth: int | str) -> None:
    fill(tree)
    tree.copy(b"d", b"c", False, depth)
    assert names(tree, b"c") == []
    assert tree.read_sidecar(b"c").entries[b"dav:q"] == b"1"


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_move_cut_off_anywhere_is_finished_at_start_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: bool, overwrite: bool
) -> None:
    source = b"d" if directory else b"d/f"
    for cut in range(40):
        root = tmp_path / f"root{cut}"
        root.mkdir()
        left = cut

        def dying(call):  # type: ignore[no-untyped-def]
            def wrapped(*arguments, **named):  # type: ignore[no-untyped-def]
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return call(*arguments, **named)

            return wrapped

        with StoredTree(str(root)) as tree:
            fill(tree)
            if overwrite:
                tree.apply([put(b"m/inside", b"in the way")])
            before, after = everything(tree, b""), everything(tree, source)
            old_target = everything(tree, b"m")
            with monkeypatch.context() as patch:
                for name in ("rename", "unlink", "fsync", "write"):
                    patch.setattr(os, name, dying(getattr(os, name)))
                patch.setattr(stored_move, "_undo", lambda *_: None)
                patch.setattr(type(tree.placement.staging), "discard", lambda *_: None)
                try:
                    tree.move(source, b"m", True)
                    died = False
                except Killed:
                    died = True
        with StoredTree(str(root)) as tree:
            tree.recover()
            tree.empty_staging()
            assert staged(root) == []
            if everything(tree, source):
                assert everything(tree, b"") == before, cut
                assert everything(tree, b"m") == old_target
            else:
                assert everything(tree, b"m") == after, cut
        if not died:
            return
    raise AssertionError("the move never came to its end")


def test_staging_is_emptied_by_age(tree: StoredTree, root: Path) -> None:
    file = tree.stage(b"f")
    transaction = tree.begin(put(b"g", b"x").line, on_base=False)
    assert tree.empty_staging(older_than_s=3600) == 0
    assert len(staged(root)) == 4
    assert tree.empty_staging() == 4
    with pytest.raises(NotFound):
        tree.resume(transaction.id)
    file.abandon()


def test_the_kernel_without_exchange_is_served_too(tree: StoredTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr("mirrorkeep.tree.staging.exchange", refuse)
    write(tree, b"f", b"1")
    write(tree, b"f", b"2")
    assert tree.apply([put(b"f", b"3"), link(b"f", b"t"), put(b"f", b"4")]) == []
    assert read(tree, b"f") == b"4"
