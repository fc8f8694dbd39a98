"""Killed at any call, what publishes is repeated by another process: right content, and history as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import PatchTargetMissing
from mirrorkeep.store.drivers.reflink import copy_tree
from mirrorkeep.tree import staging as staging_module
from mirrorkeep.tree import transaction as transaction_module
from mirrorkeep.tree.protocol import Frame, Op, Segment
from mirrorkeep.tree.stored import StoredTransaction, StoredTree
from mirrorkeep.tree.transaction import segment_digest
from tests.unit.tree.stored_trial import file_line, put

CALLS = ("open", "write", "pwrite", "ftruncate", "fchmod", "utime", "link", "rename", "unlink", "close")
KILLED = 9
OLD, NEW = b"old" * 3000, b"newer" * 5000
OTHER = b"NEWER" * 5000


def killed(step: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a child that dies before its ``step``-th storage call; False: it came to its end."""
    child = os.fork()
    if not child:
        left = step

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                if not left:
                    os._exit(KILLED)
                left -= 1
                return call(*arguments, **named)

            return counted

        try:
            for name in CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            staging_module.exchange = deadly(staging_module.exchange)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def shared(root: Path) -> StoredTree:
    root.mkdir(parents=True, exist_ok=True)
    return StoredTree(str(root))


def freeze(root: Path) -> Path:
    """Make the snapshot that shares its inodes, as a store on a plain folder has them."""
    snapshot = root.with_name("snapshot")
    copy_tree(str(root), str(snapshot), link_files=True, skip=frozenset((".mirrorkeep.staging",)))
    return snapshot


def states(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()
    }


def begin(tree: StoredTree, line: bytes, content: bytes) -> StoredTransaction:
    transaction = tree.begin(line, on_base=False)
    whole = Segment(0, len(content))
    transaction.write(whole, content, delta=False, digest=segment_digest(content))
    return transaction


@pytest.mark.parametrize("before", [None, OLD, NEW], ids=["new", "replaced", "the same again"])
def test_a_repeated_finish_publishes_what_was_sent_or_nothing(tmp_path: Path, before: bytes | None) -> None:
    line = file_line(b"f", NEW)
    whole = [Segment(0, len(NEW))]
    answers = set()
    for step in range(200):
        root = tmp_path / str(step) / "tip"
        with shared(root) as tree:
            tree.apply([put(b"f", before)] if before is not None else [])
            snapshot = freeze(root)
            history = states(snapshot)
            name = begin(tree, line, NEW).id

            def finish(name: str = name, root: Path = root) -> None:
                with shared(root) as another:
                    another.resume(name).finish(line, whole)

            died = killed(step, finish)
            if before is not None:
                assert (root / "f").read_bytes() in (before, NEW)
            try:
                finish()
                generation = tree.stat(b"f").generation
                finish()
                assert tree.stat(b"f").generation == generation
                answers.add("published")
            except PatchTargetMissing:  # what was sent is sent again
                answers.add("over")
                begin(tree, line, NEW).finish(line, whole)
            assert tree.check(b"f", line, content=True) == []
            assert states(snapshot) == history
        if not died:
            assert answers == {"published", "over"}
            return
    raise AssertionError("the transaction never came to its end")


def test_a_repeated_place_takes_what_was_held_or_nothing(tmp_path: Path) -> None:
    lines = {b"a": file_line(b"a", OTHER), b"b": file_line(b"b", NEW)}  # they swap places
    places = [Frame(Op.PLACE, lines[b"a"], b"02"), Frame(Op.PLACE, lines[b"b"], b"01")]
    contents = {b"a": OTHER, b"b": NEW}
    for step in range(200):
        root = tmp_path / str(step) / "tip"
        with shared(root) as tree:
            tree.apply([put(b"a", NEW, st_mtime=b"1"), put(b"b", OTHER, st_mtime=b"2")])
            holds = [
                Frame(Op.HOLD, file_line(b"a", NEW, st_mtime=b"1"), b"01"),
                Frame(Op.HOLD, file_line(b"b", OTHER, st_mtime=b"2"), b"02"),
            ]
            assert tree.apply(holds) == []

            def place(root: Path = root) -> None:
                with shared(root) as another:
                    another.apply(places)

            died = killed(step, place)
            refused = [places[failure.index] for failure in tree.apply(places)]
            for frame in refused:  # the mirror has it no more: it is sent
                path = b"a" if frame is places[0] else b"b"
                assert tree.apply([Frame(Op.PUT, frame.line, contents[path])]) == []
            for path, line in lines.items():
                assert tree.check(path, line, content=True) == []
        if not died:
            assert refused == []
            return
    raise AssertionError("the moves never came to their end")


def test_what_comes_while_a_file_is_published_reaches_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tip"
    with shared(root) as tree:
        tree.apply([put(b"f", OLD)])
        snapshot = freeze(root)
        history = states(snapshot)
        line = file_line(b"f", NEW)
        name = begin(tree, line, NEW).id
        refused = []

        def late() -> None:
            body = b"late" * 100
            with shared(root) as another:
                try:
                    another.resume(name).write(
                        Segment(0, len(body)), body, delta=False, digest=segment_digest(body)
                    )
                except PatchTargetMissing as error:
                    refused.append(error)

        rename = os.rename
        twin = threading.Thread(target=late)

        def renamed(source: bytes, target: bytes, **folders: int) -> None:
            if target == b"f":  # its sidecar, and the data is in place
                monkeypatch.undo()
                twin.start()
                twin.join(0.3)
            rename(source, target, **folders)

        monkeypatch.setattr(os, "rename", renamed)
        tree.resume(name).finish(line, [Segment(0, len(NEW))])
        twin.join()
        assert states(snapshot) == history
        assert tree.check(b"f", line, content=True) == []
        assert len(refused) == 1


def test_a_file_is_published_when_nobody_writes_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two equal requests is slow, and the client has the answer to the second."""
    root = tmp_path / "tip"
    writing, go = threading.Event(), threading.Event()
    write = transaction_module._write_at

    def slowly(fd: int, pieces: Any, offset: int) -> None:
        if threading.current_thread() is slow:
            writing.set()
            go.wait(5)
        write(fd, pieces, offset)

    with shared(root) as tree:
        line, whole = file_line(b"f", NEW), Segment(0, len(NEW))
        transaction = begin(tree, line, NEW)
        sending = tree.resume(transaction.id)
        slow = threading.Thread(
            target=sending.write, args=(whole, NEW), kwargs={"delta": False, "digest": segment_digest(NEW)}
        )
        monkeypatch.setattr(transaction_module, "_write_at", slowly)
        slow.start()
        assert writing.wait(5)
        transaction.write(whole, NEW, delta=False, digest=segment_digest(NEW))
        finishing = threading.Thread(target=transaction.finish, args=(line, [whole]))
        finishing.start()
        finishing.join(0.2)
        assert not (root / "f").exists()
        go.set()
        slow.join()
        finishing.join()
        assert tree.check(b"f", line, content=True) == []
