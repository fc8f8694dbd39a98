"""Times of directories on a store: what may be missing is made before anything is stamped."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorkeep.sync import late
from mirrorkeep.sync.late import LatePhases
from rig.served import Served, command
from tests.property.sync.loop import Cut
from tests.system.test_loop import StoreLoop

CHAINS = 40
numbers = itertools.count()


class Times:
    """A source with chains of directories that hold nothing else, and its part on a store."""

    def __init__(self, folder: Path, store: Served) -> None:
        name = f"times{next(numbers)}"
        self.volume = store.create_volume(name)
        self.loop = StoreLoop(folder, self.volume, "part")
        self.tip = store.native_path(name) / "part"
        self.source = self.loop.source
        self.source.mkdir()
        (self.source / "file").write_bytes(b"content")
        self.loop.sync()
        for number in range(CHAINS):
            (self.source / f"new{number}" / "a" / "b" / "c").mkdir(parents=True)

    def differing(self) -> list[Path]:
        """Return the directories whose times are not the source's."""
        return [
            inside
            for folder, _, _ in os.walk(self.source)
            for inside in [Path(folder).relative_to(self.source)]
            if os.stat(folder).st_mtime_ns != os.stat(self.tip / inside).st_mtime_ns
        ]


@pytest.fixture
def times(tmp_path: Path, store: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Times]:
    monkeypatch.setattr(late, "STAMPS_AT_ONCE", 1)
    yield Times(tmp_path, store)


def test_new_directories(times: Times) -> None:
    assert times.loop.sync().status == "complete"
    assert times.differing() == []


def test_directories_that_a_cut_off_run_recorded_and_did_not_make(
    times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(phases: LatePhases) -> None:
        phases._run.commit()
        phases._dispatch.wait()
        raise Cut(detail="before the first is made")

    with monkeypatch.context() as broken:
        broken.setattr(LatePhases, "_stamp_directories", cut)
        with pytest.raises(Cut):
            times.loop.sync()
    assert not (times.tip / "new0").exists()
    assert times.loop.sync().status == "complete"
    assert times.differing() == []


def test_directories_that_validation_misses(times: Times) -> None:
    """Also where the one that they are in was given back its times, so that nothing was found in it."""
    times.loop.sync()
    for number in range(CHAINS):
        inside = times.source / f"new{number}"
        shutil.rmtree(times.tip / inside.name / "a")
        os.utime(times.tip / inside.name, ns=(os.stat(inside).st_atime_ns, os.stat(inside).st_mtime_ns))
    argv = ("validate", f"{times.volume.url}/part", "--full", "--wait", "--json")
    found = command(*argv, environment=times.volume.environment)
    assert found.last["verdict"] == "failed"
    assert times.loop.sync().status == "complete"
    assert times.differing() == []
