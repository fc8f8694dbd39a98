"""What a run keeps in memory after its walk does not depend on how much the walk has found."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.described import write_manifest
from mirrorkeep.manifest import spill
from mirrorkeep.sync.late import LatePhases
from mirrorkeep.sync.local import LocalSession
from tests.property.sync.loop import Loop

ROWS_BYTES = 1 << 20
"""What rows may take in memory here: some 3,000 of them, so that few entries do for many spills."""
JUST_SPILLED, ALMOST_FULL = 3_100, 26_900
"""Entries that leave next to nothing, and next to a full memory, of the rows that come last."""
TOLERANCE_BYTES = ROWS_BYTES // 4
PHASES = ("_hold", "_delete", "_bring_over", "_stamp_directories", "assemble")


def held_by_phase(folder: Path, entries: int) -> dict[str, int]:
    """Remove so many entries and add one; return what the interpreter held as each phase began."""
    loop = Loop(folder)
    loop.source.mkdir(parents=True)
    (loop.source / "only").write_bytes(b"one")
    describe(loop, entries)
    held: dict[str, int] = {}

    def watched(name: str) -> Callable[..., object]:
        carry_out = getattr(LatePhases, name)

        def begin(phases: LatePhases, *arguments: object, **named: object) -> object:
            held[name] = tracemalloc.get_traced_memory()[0]
            return carry_out(phases, *arguments, **named)

        return begin

    with pytest.MonkeyPatch.context() as patched:
        for name in PHASES:
            patched.setattr(LatePhases, name, watched(name))
        tracemalloc.start()
        try:
            result = loop.sync()
        finally:
            tracemalloc.stop()
    assert (result.new, result.failed) == (1, 0)
    assert result.removed >= entries - 2
    return held


def describe(loop: Loop, entries: int) -> None:
    """Let the copy say that it holds so many entries."""
    manifest = loop.folder / "manifest"
    write_manifest(manifest, entries)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    session = LocalSession(os.fspath(loop.copy))
    session.begin("nowhere", {})
    session.close(form="full", base=None, digest=digest, body=os.fspath(manifest), snapshot=False)
    session.release()


def test_what_waits_to_be_removed_takes_no_memory_after_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_ROWS_BYTES", ROWS_BYTES)
    held_by_phase(tmp_path / "warm", 100)  # what is loaded once does not count
    few = held_by_phase(tmp_path / "few", JUST_SPILLED)
    many = held_by_phase(tmp_path / "many", ALMOST_FULL)
    assert list(many) == list(PHASES)
    for phase, before in few.items():
        assert many[phase] < before + TOLERANCE_BYTES, phase
