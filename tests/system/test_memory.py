"""Memory does not follow the number of entries, in no process of client or server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.described import CLOSED, EMPTIED, FOUND, SETTLED, Step, steps
from bench.trees import edit_large_file, make_large_file
from rig.served import Served, checked, peak_memory_bytes

FEW, MANY = 20_000, 200_000
LIMIT_BYTES = 150 << 20
TOLERANCE_BYTES = 24 << 20
"""Half of what the entries that make the difference take as text."""


def peaks(done: list[Step]) -> dict[str, tuple[int, int]]:
    return {one.case: (one.measured.client_peak_bytes, one.measured.server_peak_bytes) for one in done}


@pytest.mark.slow
def test_ten_times_the_entries_take_no_more_memory(tmp_path: Path) -> None:
    few, many = (tmp_path / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    small = peaks(list(steps(few, FEW, driver="dir")))
    large = peaks(list(steps(many, MANY, driver="dir")))
    assert list(large) == [CLOSED, FOUND, EMPTIED, SETTLED]
    for case, both in large.items():
        for before, after in zip(small[case], both, strict=True):
            assert after < LIMIT_BYTES, case
            assert after < before + TOLERANCE_BYTES, case


def test_one_worker_that_takes_a_large_file_alone_stays_below_the_limit(
    make_served: Callable[..., Served], tmp_path: Path
) -> None:
    """All its segments come to the same process, several at a time, whole and then as deltas."""
    served = make_served(workers=1)
    volume = served.create_volume("large")
    source = tmp_path / "source"
    source.mkdir()
    make_large_file(str(source / "large"), 600 << 20)
    argv = ("sync", str(source), volume.url, "--state", str(tmp_path / "state"), "--json", "--wait")
    checked(*argv, environment=volume.environment)
    for seed in range(2):
        edit_large_file(str(source / "large"), 0.01, seed=seed)
        checked(*argv, environment=volume.environment)
    assert max(map(peak_memory_bytes, served.pids)) < LIMIT_BYTES
