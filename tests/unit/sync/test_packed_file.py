"""The body of a close: packed as it is read, the same each time it is asked for."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from mirrorkeep.sync.session import PackedFile


@pytest.mark.parametrize("size_bytes", [0, 1, 1_000_000])
def test_a_body_can_be_read_again(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "manifest"
    content = random.Random(size_bytes).randbytes(size_bytes // 2) * 2
    path.write_bytes(content)
    body = PackedFile(str(path))
    broken = iter(body)
    next(broken)  # the connection breaks after the first piece
    first = list(body)
    assert gzip.decompress(b"".join(first)) == content
    assert list(body) == first
    assert len(body) == sum(map(len, first))
    assert all(first)  # an empty piece would end a chunked body
