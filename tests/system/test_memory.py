"""Memory does not follow the number of entries, in no process of client or server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.described import CLOSED, EMPTIED, FOUND, SETTLED, Step, steps

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
