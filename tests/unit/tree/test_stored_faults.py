"""Every write, rename and open fails once, in turn: old or new is whole, never something between."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import MirrorkeepError, NoSpace, StorageFailure
from mirrorkeep.tree.protocol import Frame, Op, Segment
from mirrorkeep.tree.stored import StoredTree
from mirrorkeep.tree.transaction import segment_digest
from rig.faults import FailingCalls
from tests.unit.tree.stored_trial import delete, directory, file_line, link, look, put, staged


@pytest.fixture(params=[errno.ENOSPC, errno.EIO])
def faults(request: pytest.FixtureRequest) -> Iterator[FailingCalls]:
    with pytest.MonkeyPatch.context() as patch:
        yield FailingCalls(patch, request.param)


OLD = [put(b"d/f", b"old content"), put(b"d/g", b"other"), link(b"d/l", b"old"), directory(b"d")]
ATTRIBUTES = {"xattr:user.one": b"1", "xattr:user.two": b"2"}
OPERATIONS: dict[str, list[Frame]] = {
    "new": [put(b"d/new", b"new")],
    "new directory": [put(b"e/new", b"new")],
    "replace": [put(b"d/f", b"new content")],
    "new with attributes": [put(b"d/new", b"new", **ATTRIBUTES)],
    "attributes": [Frame(Op.STAMP, file_line(b"d/f", b"old content", **ATTRIBUTES))],
    "attributes of a directory": [directory(b"d", **ATTRIBUTES)],
    "stamp": [Frame(Op.STAMP, file_line(b"d/f", b"old content", st_mode=b"100777", st_mtime=b"5"))],
    "stamp directory": [directory(b"d", st_mode=b"40700")],
    "link": [link(b"d/l", b"new")],
    "hard link": [Frame(Op.HARD_LINK, file_line(b"d/m", b"old content", hard_link=b"d/f"))],
    "copy": [Frame(Op.COPY, file_line(b"d/g", b"old content"), b"d/f")],
    "delete": [delete(b"d/f")],
    "move": [
        Frame(Op.HOLD, file_line(b"d/f", b"old content"), b"01"),
        Frame(Op.PLACE, file_line(b"d/g", b"old content"), b"01"),
    ],
}


def fresh(root: Path, frames: list[Frame]) -> StoredTree:
    root.mkdir()
    tree = StoredTree(str(root))
    assert tree.apply(frames) == []
    return tree


IN_PLACE = {"attributes", "attributes of a directory", "stamp", "stamp directory"}
"""What is stamped in place is not taken back when it fails in between: record and file may then disagree in
metadata, which counts as damage, until the same is sent again."""
STAMPED = {"acl", "mode", "owner", "xattr"}


def state(tree: StoredTree, *, passed_over: Collection[str] = ()) -> dict[bytes, Any]:
    """Return what exists, checked against its own sidecar: content, link target, line."""
    found: dict[bytes, Any] = {}
    for entry in tree.walk():
        if entry.sidecar is None or entry.path == b"":
            continue
        line = entry.sidecar.line
        findings = tree.check(entry.path, line, content=True)
        findings = [one for one in findings if one.kind not in passed_over]
        if entry.kind == b"directory":  # its times are stamped by the run, after its children
            findings = [one for one in findings if one.kind != "mtime"]
        assert findings == [], entry.path
        found[entry.path] = line
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failing_call_leaves_old_or_new(tmp_path: Path, faults: FailingCalls, operation: str) -> None:
    frames = OPERATIONS[operation]
    with fresh(tmp_path / "done", [*OLD, *frames]) as done:
        after = state(done)
    for calls in range(1, 100):
        root = tmp_path / f"root{calls}"
        with fresh(root, OLD) as tree:
            before = state(tree)
            faults.arm(calls)
            failures = tree.apply(frames)
            happened = faults.disarm()
            now = state(tree, passed_over=STAMPED if failures and operation in IN_PLACE else ())
            for path in before.keys() | after.keys() | now.keys():
                assert now.get(path) in (before.get(path), after.get(path)), (calls, path)
            if not happened:
                assert (failures, now) == ([], after)
                assert staged(root) == []
                break
            codes = {failure.code for failure in failures}
            assert codes <= {NoSpace.code, StorageFailure.code, "not_found"}
            assert tree.apply(frames) == []  # the same again, once there is room
            assert state(tree) == after
    else:
        raise AssertionError("the operation never came to its end")


def replace_durably(tree: StoredTree) -> None:
    file = tree.stage(b"d/f")
    try:
        file.write(b"new ")
        file.write(b"content")
        file.publish()
    finally:
        file.abandon()


def write_large(tree: StoredTree) -> None:
    content = b"of two segments"
    transaction = tree.begin(file_line(b"d/large", b""), on_base=False)
    spans = [Segment(0, 6), Segment(6, len(content))]
    for span in spans:
        piece = content[span.start : span.end]
        transaction.write_pieces(span, [piece[:2], piece[2:]], digest=segment_digest(piece))
    transaction.finish(file_line(b"d/large", content, **ATTRIBUTES), spans, durable=True)


def patch(tree: StoredTree) -> None:
    transaction = tree.begin(file_line(b"d/f", b""), on_base=True)
    transaction.write(Segment(0, 3), b"NEW", delta=False, digest=segment_digest(b"NEW"))
    transaction.finish(file_line(b"d/f", b"NEW content"), [Segment(0, 3)], durable=True)


PLAIN: dict[str, Callable[[StoredTree], Any]] = {
    "stage": replace_durably,
    "transaction": patch,
    "large": write_large,
    "move": lambda tree: tree.move(b"d/g", b"d/f", True),
    "move directory": lambda tree: tree.move(b"d", b"moved", True),
    "copy": lambda tree: tree.copy(b"d/g", b"d/f", True),
    "make": lambda tree: tree.make_directory(b"d/h"),
    "property": lambda tree: tree.update_sidecar(b"d/f", lambda rows: rows.update({b"dav:x": b"1"})),
}


def contents(root: Path) -> dict[str, tuple[str, bytes]]:
    """Return data natively below ``root``, sidecars left out (they are checked against the data)."""
    return {name: found[:2] for name, found in look(root).items() if ".mirrorkeep" not in name}


@pytest.mark.parametrize("operation", PLAIN)
def test_a_failing_plain_operation_leaves_old_or_new(
    tmp_path: Path, faults: FailingCalls, operation: str
) -> None:
    act = PLAIN[operation]
    with fresh(tmp_path / "done", OLD) as done:
        act(done)
        after = contents(tmp_path / "done")
    for calls in range(1, 200):
        root = tmp_path / f"root{calls}"
        with fresh(root, OLD) as tree:
            before, old_state = contents(root), state(tree)
            faults.arm(calls)
            try:
                act(tree)
                failed = False
            except MirrorkeepError as error:
                failed = True
                assert isinstance(error, NoSpace | StorageFailure), error
            happened = faults.disarm()
            now = contents(root)
            if failed and now == after:
                tree.recover()  # as the next start does
            state(tree)  # every entry agrees with its own sidecar
            if not failed:
                assert now == after
            elif now == before:
                assert state(tree).keys() == old_state.keys()
            else:  # published, but not known to be durable
                assert now == after, calls
            if not happened:
                assert not failed
                break
    else:
        raise AssertionError("the operation never came to its end")


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:7]))
    with fresh(tmp_path / "root", [put(b"f", b"a longer content" * 100), put(b"f", b"another" * 50)]) as tree:
        assert tree.check(b"f", file_line(b"f", b"another" * 50), content=True) == []
