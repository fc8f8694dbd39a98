"""A few changes scattered over many files cost what they are, on both sides (PERF-10, PERF-11)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mirrorkeep.sync.index import OldSide
from rig.mirrored import Mirrored
from rig.served import Served
from tests.property.sync.loop import Loop

FILE_BYTES = 500
CHANGED = 40
FILES_IN_FOLDER = 200


def make_files(source: Path, count: int) -> list[Path]:
    places = []
    for number in range(count):
        place = source / f"folder{number // FILES_IN_FOLDER:04}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%05d" % number * (FILE_BYTES // 5))
        places.append(place)
    return places


@pytest.mark.parametrize("count", [2_000, 8_000])
def test_finding_scattered_changes_reads_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """What is looked at beside the walk follows the changes, not the files among which they lie."""
    loop = Loop(tmp_path)
    places = make_files(loop.source, count)
    loop.sync()
    loop.sync()  # what was written just before it was read is read once more
    chosen = random.Random(count).sample(places, CHANGED)
    for place in chosen:
        place.write_bytes(b"!" * FILE_BYTES)
    touched = len({place.parent for place in chosen})
    compared = 0
    match = OldSide.match

    def counted(side: OldSide, blobs: bytes, entries: int) -> bool:
        nonlocal compared
        compared += 1
        return match(side, blobs, entries)

    monkeypatch.setattr(OldSide, "match", counted)
    result = loop.sync()
    folders = count // FILES_IN_FOLDER
    assert (result.changed, result.new, result.removed) == (CHANGED + touched, 0, 0)
    assert result.unchanged == count + folders + 1 - CHANGED - touched
    assert result.bytes_read == CHANGED * FILE_BYTES
    assert result.bytes_sent < CHANGED * 3 * FILE_BYTES
    runs_of_siblings = -(-FILES_IN_FOLDER // 32)
    to_the_change = 2 * 6  # halving a run of 32 siblings looks at two of each length
    assert compared <= 3 * folders + 1 + CHANGED * (runs_of_siblings + to_the_change)
    monkeypatch.undo()
    loop.check_unchanged()


def calls_of(served: Served) -> dict[str, int]:
    """Return how often the server's processes have read and written so far, and how much."""
    total = {"syscr": 0, "syscw": 0, "rchar": 0}
    for pid in served.pids:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, number = line.partition(":")
            if name in total:
                total[name] += int(number)
    return total


def no_change_run(served: Served, folder: Path, name: str, count: int) -> dict[str, int]:
    folder.mkdir()
    mirrored = Mirrored(served, folder, "--no-snapshot", volume=served.create_volume(name))
    make_files(mirrored.source, count)
    for _ in range(2):
        assert mirrored.try_sync().status == 0
    before = calls_of(served)
    done = mirrored.try_sync().last
    assert (done["unchanged"], done["bytes_sent"]) == (done["entries"], 0)
    after = calls_of(served)
    return {name: after[name] - before[name] for name in after}


def test_a_run_that_finds_nothing_changed_asks_the_store_for_nothing(
    served_store: Served, tmp_path: Path
) -> None:
    """The slave is not read: what the store does for such a run is the same for ten times the files."""
    few = no_change_run(served_store, tmp_path / "few", "few", 200)
    many = no_change_run(served_store, tmp_path / "many", "many", 2_000)
    for name in ("syscr", "syscw"):
        assert many[name] < few[name] + 100, (few, many)  # an idle server wakes now and then
    assert many["rchar"] < few["rchar"] + 100_000 < 2_000 * FILE_BYTES, (few, many)


def test_a_manifest_costs_a_hundredth_of_a_first_run(tmp_path: Path) -> None:
    """Of the bytes that a run moves, for files of a usual mean size (MAN-08)."""
    loop = Loop(tmp_path)
    source = loop.source
    source.mkdir()
    for number in range(200):
        (source / f"file{number}").write_bytes(os.urandom(50_000))
    first = loop.sync()
    manifest_bytes = loop.manifest_path().stat().st_size
    assert manifest_bytes < first.bytes_sent / 100
