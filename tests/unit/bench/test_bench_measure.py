"""What is measured of a command is that command's own: time, memory, failure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.measure import CommandFailed, measure


def test_time_memory_and_output_of_a_command(tmp_path: Path) -> None:
    program = "import time; hoard = b'x' * (80 << 20); print('held'); time.sleep(0.4)"
    measured = measure([sys.executable, "-c", program], output=tmp_path / "log")
    assert measured.seconds >= 0.4
    assert 80e6 < measured.client_peak_bytes < 130e6
    assert measured.output == "held\n"


def test_this_process_does_not_count_as_the_command(tmp_path: Path) -> None:
    hoard = bytearray(b"x" * (100 << 20))
    measured = measure(["sleep", "0.3"], output=tmp_path / "log")
    assert measured.client_peak_bytes < 20e6
    assert len(hoard) > measured.client_peak_bytes


def test_a_failing_command_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="exit 7: no luck"):
        measure(["sh", "-c", "echo no luck; exit 7"], output=tmp_path / "log")
