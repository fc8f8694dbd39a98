"""Fixtures of the delta room: open files with given content, and trials over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.delta.trial import OpenFile, Trial


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[OpenFile]:
    """Return ``open_file(content)``: the descriptor of a new file, closed after the test."""
    opened: list[int] = []

    def make(content: bytes) -> int:
        fd = os.open(tmp_path / f"file{len(opened)}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        opened.append(fd)
        os.pwrite(fd, content, 0)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


@pytest.fixture
def trial(open_file: OpenFile) -> Callable[[bytes, bytes], Trial]:
    """Return ``trial(base, new)``."""
    return lambda base, new: Trial(open_file, base, new)
