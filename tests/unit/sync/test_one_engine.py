"""One engine: mirror, restore, local copy, dry run and validation compare in the same code (GEN-12..15)."""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path

import pytest

from mirrorkeep.sync.local import LocalSession, LocalSource
from mirrorkeep.sync.plan import Plan
from mirrorkeep.sync.progress import Silent
from mirrorkeep.tree.protocol import Master, Slave
from tests.property.sync.loop import Loop

SOURCE = Path(__file__).parents[3] / "src" / "mirrorkeep"
OPERATIONS = [
    # operation, where it lies, what lays two trees side by side in it: a walk and records, or records alone
    ("mirror to a store", "mirrorkeep.sync.mirror", "mirrorkeep.sync.detect.Detector"),
    ("resume a mirror", "mirrorkeep.sync.input", "mirrorkeep.sync.compare.pair"),
    ("dry run", "mirrorkeep.sync.plan", "mirrorkeep.sync.detect.Detector"),
    ("restore", "mirrorkeep.sync.restore", "mirrorkeep.sync.compare.pair"),
    ("validate", "mirrorkeep.store.examine", "mirrorkeep.sync.compare.pair"),
]


def imports_of(module: str) -> set[str]:
    path = SOURCE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize(("operation", "module", "comparer"), OPERATIONS)
def test_every_operation_compares_with_the_one_comparer(operation: str, module: str, comparer: str) -> None:
    assert comparer in imports_of(module), operation
    name = comparer.rpartition(".")[2]
    assert hasattr(importlib.import_module(comparer.rpartition(".")[0]), name)


SHARED = {
    "mirrorkeep.manifest.order": "which entry comes before which",
    "mirrorkeep.manifest.reader": "how a manifest is read",
    "mirrorkeep.manifest.record": "what a record says",
    "mirrorkeep.sync.compare": "how two trees are laid side by side",
    "mirrorkeep.sync.workers": "how entries are worked on in parallel",
    "mirrorkeep.tree.digest": "how content is hashed",
    "mirrorkeep.tree.metadata.posix": "how attributes become fields",
}


def reached_from(*modules: str) -> set[str]:
    """Return the modules of ours that some modules import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = SOURCE.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if module.startswith("mirrorkeep.") and module not in found and path.exists():
            found.add(module)
            names = imports_of(module)
            waiting += names | {name.rpartition(".")[0] for name in names}
    return found


def test_a_backup_and_its_validation_are_made_by_the_same_modules() -> None:
    """What the client reads a source with is what the server reads its copy with (VAL-13)."""
    client = reached_from("mirrorkeep.sync.mirror", "mirrorkeep.sync.transfer")
    server = reached_from("mirrorkeep.store.examine")
    assert SHARED.keys() <= client & server
    assert {
        module for module in client if module.startswith(("mirrorkeep.store", "mirrorkeep.server"))
    } == set()
    comparers = {module for module in server - client if module.startswith("mirrorkeep.sync")}
    assert comparers == set(), "validation has no engine of its own"


MODES = ("directly", "through a manifest", "not at all")


@pytest.mark.parametrize("mode", MODES)
def test_the_same_difference_is_applied_told_or_left(tmp_path: Path, mode: str) -> None:
    loop = Loop(tmp_path)
    (loop.source / "folder").mkdir(parents=True)
    for number in range(5):
        (loop.source / "folder" / f"f{number}").write_bytes(b"%d" % number)
    loop.sync()
    (loop.source / "folder" / "f1").write_bytes(b"changed")
    (loop.source / "folder" / "f2").unlink()
    (loop.source / "added").write_bytes(b"added")
    if mode == "not at all":
        before = state_of(loop.copy)
        told: list[tuple[str, bytes]] = []
        session = LocalSession(os.fspath(loop.copy))
        folder = os.fspath(tmp_path / "state")
        Plan(
            os.fspath(loop.source),
            session,
            folder,
            loop.target,
            loop.options,
            Silent(),
            lambda *one: told.append(one),
        ).execute()
        assert {("new", b"added"), ("changed", b"folder/f1"), ("removed", b"folder/f2")} <= set(told)
        assert state_of(loop.copy) == before
        return
    if mode == "through a manifest":  # all that is known of the target is the manifest it was left with
        for name in ("index", "state.json", "manifest"):
            (loop.manifest_path().parent / name).unlink()
    loop.sync()
    loop.check()


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in folder.rglob("*")}


def test_masters_and_slaves_are_told_apart_by_what_they_can_do_alone(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    loop.sync()
    master: Master = LocalSource(os.fspath(loop.copy)).master()
    slave: Slave = LocalSession(os.fspath(loop.copy)).slave()
    assert next(iter(master.frames([b"absent"]))).code == "not_found"  # type: ignore[union-attr]
    assert slave.apply([]) == []
