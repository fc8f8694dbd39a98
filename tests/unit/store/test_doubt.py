"""After a service has ended without a commit, what it wrote last is not believed by its sidecar alone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.store import doubt, runs
from mirrorkeep.store.pool import Store
from mirrorkeep.store.volume import Part, PartState
from tests.unit.store.part_at_work import close, make_store, manifest_of
from tests.unit.tree.stored_trial import directory, link, put


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data")
    yield made
    made.close(detach=True)


@pytest.fixture
def part(store: Store) -> Part:
    return store.create_volume("laptop").part(b"", create=True)


def write(part: Part, *paths: bytes) -> None:
    assert part.tree().apply([put(path, b"content of " + path) for path in paths]) == []


def commit(part: Part, run: runs.RunInfo, position: int) -> None:
    runs.commit_run(part, run.run, run.epoch, run.incarnation, position)


def believed(part: Part) -> set[bytes]:
    """Return which files the store's own listing gives a digest."""
    listing = io.BytesIO(b"".join(runs.actual_manifest(part)))
    found = {record.path: record for record in ManifestReader(listing)}
    files = {path: record for path, record in found.items() if record.kind == b"file"}
    assert all(record.size for record in files.values())
    return {path for path, record in files.items() if record.hash}


def test_what_no_commit_confirmed_is_in_doubt_once_its_service_is_gone(store: Store, part: Part) -> None:
    run = runs.begin_run(part, "", {})
    write(part, b"committed", b"d/committed")
    commit(part, run, 1)
    write(part, b"late", b"d/late")
    part.tree().apply([directory(b"d"), link(b"l", b"target")])
    assert believed(part) == {b"committed", b"d/committed", b"late", b"d/late"}

    # The power cut: the sidecar reached the disk, the content did not, size and time are those of the record.
    late = Path(part.root, "late")
    status = late.stat()
    late.write_bytes(bytes(status.st_size))
    os.utime(late, ns=(status.st_atime_ns, status.st_mtime_ns))
    store.start_incarnation()
    assert believed(part) == {b"committed", b"d/committed"}

    # A commit of the next service flushes what is there now: that confirms nothing of before.
    run = runs.begin_run(part, "", {})
    assert believed(part) == {b"committed", b"d/committed"}
    write(part, b"d/late", b"fresh")
    commit(part, run, 2)
    assert believed(part) == {b"committed", b"d/committed", b"d/late", b"fresh"}
    store.start_incarnation()
    assert believed(part) == {b"committed", b"d/committed", b"d/late", b"fresh"}


def test_a_close_ends_all_doubt(store: Store, part: Part) -> None:
    runs.begin_run(part, "", {})
    write(part, b"a")
    store.start_incarnation()
    run = runs.begin_run(part, "", {})
    assert believed(part) == set()
    commit(part, run, 1)
    assert believed(part) == set()
    close(part, run, manifest_of([b"a"]))
    assert believed(part) == {b"a"}
    assert part.state().doubted == []


def test_what_was_plainly_written_before_there_was_a_part_is_believed(store: Store) -> None:
    volume = store.create_volume("plain")
    volume.plain_tree().make_directory(b"folder")
    assert volume.plain_tree().apply([put(b"folder/file", b"plain")]) == []
    store.start_incarnation()
    part = volume.part(b"folder", create=True)
    runs.begin_run(part, "", {})
    assert believed(part) == {b"file"}


def test_a_state_that_does_not_say_when_it_was_durable_doubts_nothing() -> None:
    assert doubt.doubted_spans(PartState(), 5) == []
    assert doubt.doubted_spans(PartState(durable_ns=7), 5) == []
    assert doubt.doubted_spans(PartState(durable_ns=3, doubted=[[1, 2]]), 5) == [(1, 2), (3, 5)]


def test_spans_do_not_pile_up() -> None:
    state, doubted = PartState(durable_ns=0), set()
    for number in range(1, 60):
        started_ns, now_ns = 100 * number, 100 * number + 50
        doubted.add(started_ns)
        state = replace(state, **doubt.committed(state, started_ns, now_ns))
    assert len(state.doubted) == doubt.MAX_SPANS
    assert all(any(after < one <= until for after, until in state.doubted) for one in doubted)
    assert state.doubted[-1] == [5850, 5900]
