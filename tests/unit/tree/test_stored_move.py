"""A move that was cut off, or failed, and what was written to either place since."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorkeep.errors import MirrorkeepError, NotFound
from mirrorkeep.tree import stored_move
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredTree
from tests.unit.tree.stored_trial import line, put, staged


class Killed(BaseException):
    """The process ends here."""


def write(tree: StoredTree, path: bytes, content: bytes) -> None:
    file = tree.stage(path)
    file.write(content)
    file.publish()
    file.abandon()


def read(tree: StoredTree, path: bytes) -> bytes | None:
    try:
        fd, _ = tree.open_read(path)
    except NotFound:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read()


def cut_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> Iterator[Path]:
    """Yield trees in which moving ``a`` to ``b`` was killed at one call after the other."""
    for cut in range(60):
        root = tmp_path / f"root{cut}"
        root.mkdir()
        left = cut

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*arguments: object, **named: object) -> object:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return call(*arguments, **named)

            return wrapped

        with StoredTree(str(root)) as tree:
            write(tree, b"a", b"first")
            if overwrite:
                write(tree, b"b", b"in the way")
            with monkeypatch.context() as patch:
                for name in ("rename", "unlink", "fsync", "write"):
                    patch.setattr(os, name, dying(getattr(os, name)))
                patch.setattr(stored_move, "_undo", lambda *_: None)
                patch.setattr(type(tree.placement.staging), "discard", lambda *_: None)
                try:
                    tree.move(b"a", b"b", True)
                    died = False
                except Killed:
                    died = True
        yield root
        if not died:
            return
    raise AssertionError("the move never came to its end")


def restart(root: Path) -> StoredTree:
    tree = StoredTree(str(root))
    tree.recover()
    tree.empty_staging()
    assert staged(root) == []
    return tree


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_what_was_written_since_a_move_was_cut_off_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, repeated: bool
) -> None:
    for root in cut_moves(tmp_path, monkeypatch, overwrite):
        with StoredTree(str(root)) as tree:
            if repeated:
                try:
                    tree.move(b"a", b"b", True)
                except NotFound:
                    pass
            write(tree, b"a", b"a week later")
            write(tree, b"b", b"edited for a week")
        with restart(root) as tree:
            assert read(tree, b"a") == b"a week later", root
            assert read(tree, b"b") == b"edited for a week", root


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_repeated_move_is_not_made_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    for root in cut_moves(tmp_path, monkeypatch, overwrite):
        with StoredTree(str(root)) as tree:
            try:
                tree.move(b"a", b"b", True)
                tree.update_sidecar(b"b", lambda rows: rows.update({b"dav:p": b"since"}))
                repeated = True
            except NotFound:
                repeated = False
            write(tree, b"a", b"a week later")
        with restart(root) as tree:
            assert read(tree, b"a") == b"a week later", root
            assert read(tree, b"b") == b"first", root
            assert not repeated or tree.read_sidecar(b"b").entries[b"dav:p"] == b"since", root


def test_a_source_that_was_written_since_leaves_the_target_as_it_was_or_as_it_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in cut_moves(tmp_path, monkeypatch, True):
        with StoredTree(str(root)) as tree:
            write(tree, b"a", b"a week later")
        with restart(root) as tree:
            assert read(tree, b"a") == b"a week later", root
            assert read(tree, b"b") in (b"in the way", b"first"), root


def test_a_target_that_was_written_since_leaves_the_source_unless_it_took_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in cut_moves(tmp_path, monkeypatch, True):
        with StoredTree(str(root)) as tree:
            there = read(tree, b"a")
            write(tree, b"b", b"edited for a week")
        with restart(root) as tree:
            assert (read(tree, b"a"), read(tree, b"b")) == (there, b"edited for a week"), root


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("source", [b"file", b"node"])
def test_a_move_that_fails_leaves_what_it_was_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: bytes, failing: int
) -> None:
    with StoredTree(str(tmp_path)) as tree:
        assert tree.apply([put(b"file", b"1"), put(b"b", b"2"), Frame(Op.NODE, line(b"node", b"fifo"))]) == []
        call, calls = os.rename, 0

        def fail_once(*arguments: object, **named: object) -> None:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise OSError(errno.EIO, "no")
            call(*arguments, **named)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", fail_once)
            try:
                tree.move(source, b"b", True)
            except MirrorkeepError:
                assert read(tree, b"b") == b"2"
                assert read(tree, b"file") == b"1"
                assert tree.stat(b"node").kind == b"fifo"


@pytest.mark.root
@pytest.mark.btrfs
def test_a_tree_that_is_open_finds_the_move_that_another_process_left(
    btrfs_mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = btrfs_mount / "root"
    root.mkdir()
    with StoredTree(str(root)) as here:
        write(here, b"c", b"other")
        assert here.recover() == 0
        with StoredTree(str(root)) as other, monkeypatch.context() as patch:
            write(other, b"a", b"first")

            def dying(*_: object, **_named: object) -> None:
                raise Killed

            patch.setattr(stored_move, "_undo", lambda *_: None)
            patch.setattr(type(other.placement.staging), "discard", lambda *_: None)
            patch.setattr(os, "unlink", dying)
            with pytest.raises(Killed):
                other.move(b"a", b"b", True)
        assert here.recover() == 1
        assert (read(here, b"a"), read(here, b"b")) == (None, b"first")
