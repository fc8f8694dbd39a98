"""Sorting and keeping rows beyond memory, with few open files."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from mirrorkeep.manifest import spill
from mirrorkeep.manifest.spill import SpilledList, SpilledSort


def random_rows(count: int) -> list[bytes]:
    rng = random.Random(3)
    return [rng.randbytes(rng.randrange(12)) for _ in range(count)]


@pytest.mark.parametrize(("held", "opened"), [(10_000, 16), (7, 16), (7, 2), (1, 3), (300, 4)])
def test_rows_come_sorted_with_their_duplicates(held: int, opened: int, tmp_path: Path) -> None:
    rows = random_rows(1000)
    with SpilledSort(str(tmp_path), max_rows_in_memory=held, max_open_runs=opened) as sort:
        for row in rows:
            sort.add(row)
        assert list(sort) == sorted(rows)
        sort.add(b"late")
        assert list(sort) == sorted([*rows, b"late"])
    assert os.listdir(tmp_path) == []


def test_few_long_rows_are_spilled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_ROWS_BYTES", 10_000)
    with SpilledSort(str(tmp_path)) as sort:
        for number in range(50, 0, -1):
            sort.add(b"%03d" % number * 1000)
        assert len(os.listdir(tmp_path)) > 10
        assert [row[:3] for row in sort] == [b"%03d" % number for number in range(1, 51)]


def test_five_hundred_runs_with_thirty_two_descriptors(tmp_path: Path) -> None:
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
from mirrorkeep.manifest.spill import SpilledSort
with SpilledSort(sys.argv[1], max_rows_in_memory=20) as sort:
    for number in range(10_000):
        sort.add(b"%05d" % (number * 7919 % 10_000))
    assert len(sort._runs) == 500
    assert list(sort) == [b"%05d" % number for number in range(10_000)]
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, env=environment, timeout=60)
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 32


def test_memory_does_not_follow_the_rows(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with SpilledSort(str(tmp_path), max_rows_in_memory=1000) as sort, SpilledList(str(tmp_path)) as kept:
            for number in range(60_000):
                row = b"%06d" % (number * 7919 % 60_000) + bytes(100)
                sort.add(row)
                kept.append(row)
            assert sum(1 for _ in sort) == sum(1 for _ in kept) == 60_000
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20  # the rows are 8 MB
    finally:
        tracemalloc.stop()


def test_a_list_keeps_the_order_of_arrival(tmp_path: Path) -> None:
    rows = [*random_rows(1000), bytes(200_000), b"", b"last"]
    with SpilledList(str(tmp_path)) as kept:
        for count, row in enumerate(rows, 1):
            kept.append(row)
            assert len(kept) == count
        assert list(kept) == rows
        kept.append(b"more")
        assert list(kept) == [*rows, b"more"]
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(row: bytes) -> bytes:
        raise OSError(28, "No space left on device")

    sort = SpilledSort(str(tmp_path), max_rows_in_memory=2)
    sort.add(b"a")
    monkeypatch.setattr(spill, "_length", full)
    with pytest.raises(OSError, match="No space"):
        sort.add(b"b")
    assert os.listdir(tmp_path) == []
    sort.close()


def test_what_is_read_from_the_disk_leaves_no_rest_in_memory(tmp_path: Path) -> None:
    """Else memory would depend on how much of a full one the last rows take."""
    tracemalloc.start()
    try:
        with SpilledSort(str(tmp_path), max_rows_in_memory=10_000) as sort:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(19_999):
                sort.add(b"%06d" % number + bytes(100))
            rows = iter(sort)
            assert next(rows)[:6] == b"000000"
            assert tracemalloc.get_traced_memory()[0] - before < 1 << 20  # the rest is 1.5 MB
            assert sum(1 for _ in rows) == 19_998
    finally:
        tracemalloc.stop()
