"""What the target refused to delete or stamp is asked of it again by the next run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorkeep.manifest.record import parse_record
from mirrorkeep.sync.local import LocalTree
from mirrorkeep.tree.protocol import Failure, Frame, Op
from rig.compare import Comparer
from tests.property.sync.loop import Loop

CHANGES: dict[str, tuple[Op, str, Callable[[Path], object]]] = {
    "a file that goes": (Op.DELETE, "gone", Path.unlink),
    "a folder that goes": (Op.DELETE, "empty", Path.rmdir),
    "a file in a folder that goes": (Op.DELETE, "folder/inside", Path.unlink),
    "a folder with another mode": (Op.STAMP, "folder", lambda place: place.chmod(0o700)),
    "a new folder's attributes": (Op.STAMP, "new", lambda place: place.mkdir(0o711)),
    "a new folder": (Op.DIRECTORY, "new", lambda place: place.mkdir(0o711)),
    "the root": (Op.STAMP, "", lambda place: place.chmod(0o700)),
}


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    for folder in ("folder", "empty"):
        (loop.source / folder).mkdir(parents=True)
    for name in ("folder/inside", "gone", "staying"):
        (loop.source / name).write_bytes(name.encode())
    loop.sync()
    return loop


def refuse(patch: pytest.MonkeyPatch, op: Op, path: bytes) -> None:
    """Have the target refuse one operation on one path."""
    apply = LocalTree.apply

    def refuse_one(tree: LocalTree, frames: Iterable[Frame]) -> list[Failure]:
        failures: list[Failure] = []
        for index, frame in enumerate(frames):
            if frame.op == op and parse_record(frame.line).path == path:
                failures.append(Failure(index, path, "storage_failure", "Input/output error"))
            else:
                failures += [replace(one, index=index) for one in apply(tree, [frame])]
        return failures

    patch.setattr(LocalTree, "apply", refuse_one)


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_target_refused_is_done_by_the_next_run(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    op, path, make = CHANGES[change]
    make(loop.source / path)
    with monkeypatch.context() as patch:
        refuse(patch, op, os.fsencode(path))
        for _ in range(2):  # for as long as it is refused
            result = loop.sync()
            assert (result.status, result.failures[0][:2]) == (
                "partial",
                (os.fsencode(path), "storage_failure"),
            )
    assert loop.sync().status == "complete"
    comparer = Comparer(str(loop.source), str(loop.copy), skip=(b".mirrorkeep",))
    assert [str(one) for one in comparer.differences()] == []
    loop.check()
    loop.check_unchanged()


def test_a_note_of_it_that_is_damaged_keeps_no_run_from_its_work(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loop.source / "folder").chmod(0o700)
    with monkeypatch.context() as patch:
        refuse(patch, Op.STAMP, b"folder")
        assert loop.sync().status == "partial"
    note = loop.manifest_path().parent / "not_done"
    note.write_bytes(note.read_bytes()[:-30])
    (loop.source / "staying").write_bytes(b"changed")
    assert loop.sync().status == "complete"
    loop.check()
