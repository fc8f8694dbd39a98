"""A restore worker: what one refused entry costs the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mirrorkeep.errors import PathRefused, StoreUnreachable
from mirrorkeep.manifest.record import format_record
from mirrorkeep.sync.restore import Fetch, RestoreWorker
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame


def record(path: bytes) -> bytes:
    digest = hashlib.sha256(path).hexdigest().encode()
    return format_record(path, {b"type": b"file", b"st_size": b"%d" % len(path), b"hash": digest})


class Master:
    """Serves files that contain their own path; refuses a whole request that names ``bad``."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        if b"bad" in paths:
            raise self._error
        yield from paths

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        raise NotImplementedError

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        return path[start:end]


def fetch(paths: list[bytes]) -> Fetch:
    return Fetch([(path, record(path)) for path in paths], [False] * len(paths), overwrite=False)


def test_one_refused_entry_does_not_take_its_bundle_along(tmp_path: Path) -> None:
    worker = RestoreWorker(Master(PathRefused(path=b"bad", detail="no")), NativeTree(str(tmp_path)))
    good = [b"f%d" % number for number in range(20)]
    done = worker(fetch([*good[:7], b"bad", *good[7:]]))
    assert [(path, code) for path, code, _ in done.failures] == [(b"bad", "path_refused")]
    assert done.written == 20
    assert {path.name.encode() for path in tmp_path.iterdir()} == set(good)


def test_a_store_that_does_not_answer_ends_the_restore(tmp_path: Path) -> None:
    worker = RestoreWorker(Master(StoreUnreachable(url="host", detail="gone")), NativeTree(str(tmp_path)))
    with pytest.raises(StoreUnreachable):
        worker(fetch([b"a", b"bad"]))
