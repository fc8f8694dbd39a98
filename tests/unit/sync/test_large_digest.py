"""The digest of a large file is made of the segments as they are read, in whatever order they are ready."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from mirrorkeep.delta.segments import SEGMENT_BYTES
from mirrorkeep.errors import SourceChanged
from mirrorkeep.manifest import keys
from mirrorkeep.sync import sending
from mirrorkeep.tree.protocol import Segment
from tests.property.sync.loop import Loop

SEGMENTS = 5
READ = sending.read_segment


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    loop.source.mkdir()
    (loop.source / "image").write_bytes(os.urandom((SEGMENTS - 1) * SEGMENT_BYTES + 1000))
    return loop


def check(loop: Loop) -> None:
    """Assert that the mirror has the file, and that its record has its digest."""
    content = (loop.source / "image").read_bytes()
    assert (loop.copy / "image").read_bytes() == content
    assert loop.manifest()[b"image"][keys.HASH] == hashlib.sha256(content).hexdigest().encode()


def test_segments_are_hashed_in_their_order(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(fd: int, segment: Segment) -> bytes:
        data = READ(fd, segment)
        time.sleep(0.1 if segment.start // SEGMENT_BYTES % 2 == 0 else 0)
        return data

    monkeypatch.setattr(sending, "read_segment", read)
    result = loop.sync()
    assert (result.status, result.failed) == ("complete", 0)
    check(loop)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [0, 1, SEGMENTS - 1])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad"), SourceChanged(path=b"image")])
def test_nobody_waits_for_a_segment_that_cannot_be_read(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, number: int, error: Exception
) -> None:
    def read(fd: int, segment: Segment) -> bytes:
        if segment.start == number * SEGMENT_BYTES:
            time.sleep(0.2)  # the others are read, and wait for their turns
            raise error
        return READ(fd, segment)

    with monkeypatch.context() as broken:
        broken.setattr(sending, "read_segment", read)
        result = loop.sync()
    assert (result.status, result.failed) == ("partial", 1)
    assert not (loop.copy / "image").exists()
    assert loop.sync().status == "complete"
    check(loop)


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (2, 2), (8, sending.SEGMENT_THREADS)])
def test_a_file_takes_no_more_connections_than_the_run_may_have(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, most: int
) -> None:
    marks = os.open(tmp_path / "marks", os.O_CREAT | os.O_RDWR | os.O_APPEND)

    def read(fd: int, segment: Segment) -> bytes:
        os.write(marks, b"+")
        time.sleep(0.1)
        data = READ(fd, segment)
        os.write(marks, b"-")
        return data

    monkeypatch.setattr(sending, "read_segment", read)
    assert loop.sync(replace(loop.options, threads=threads)).status == "complete"
    under_way = list(accumulate(1 if mark == ord("+") else -1 for mark in os.pread(marks, 1000, 0)))
    os.close(marks)
    assert (max(under_way), under_way[-1], len(under_way)) == (most, 0, 2 * SEGMENTS)
    check(loop)
