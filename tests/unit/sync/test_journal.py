"""A manifest put together from stretches, items and holes is the one written straight."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorkeep.delta.patch import patch_pieces
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.index import IndexWriter
from mirrorkeep.sync.journal import Item, Journal, Late, Stretch, assemble
from mirrorkeep.sync.manifest_delta import write_manifest_delta

HEADER = {b"source": b"/home"}
QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def line_of(path: bytes, version: int = 0) -> bytes:
    return format_record(path, {b"type": b"file", b"st_size": b"%d" % version})


def blob_of(path: bytes, version: int = 0) -> bytes:
    return b"%08d" % version + path + b"\0"


def in_order(paths: set[bytes]) -> list[bytes]:
    return sorted(paths, key=order_key)


def write_straight(path: Path, lines: list[bytes]) -> tuple[str, list[int]]:
    """Write a manifest; return its digest and where each record begins (and where the last one ends)."""
    with path.open("wb") as stream:
        writer = ManifestWriter(stream, HEADER)
        offsets = []
        for line in lines:
            offsets.append(writer.offset)
            writer.add(line)
        offsets.append(writer.offset)
        return writer.finish().digest, offsets


paths = st.sets(st.integers(0, 400).map(lambda n: b"d%d/f%d" % (n % 5, n)), max_size=60)


@QUICK
@given(
    old=paths, changed=st.integers(0, 2**32), added=paths, late=st.integers(0, 2**32), lost=st.integers(0, 9)
)
def test_stretches_items_and_holes_make_the_manifest_written_straight(
    tmp_path: Path, old: set[bytes], changed: int, added: set[bytes], late: int, lost: int
) -> None:
    rng, holes = random.Random(changed), random.Random(late)
    before = in_order(old)
    versions = {path: 1 if rng.random() < 0.3 else 0 for path in before}
    versions.update(dict.fromkeys(added - old, 2))
    _, offsets = write_straight(tmp_path / "old", [line_of(path) for path in before])
    index = IndexWriter(str(tmp_path / "blobs"))
    places = []
    for path in before:
        places.append(index.offset)
        index.add(blob_of(path))
    places.append(index.offset)
    index.close()

    expected: list[bytes] = []
    outcomes: dict[bytes, bytes] = {}
    with (tmp_path / "old").open("rb") as text, (tmp_path / "blobs").open("rb") as blobs:
        journal = Journal(
            str(tmp_path / "walk"),
            HEADER,
            "sha256",
            old_manifest_fd=text.fileno(),
            old_index_fd=blobs.fileno(),
        )
        number = {path: place for place, path in enumerate(before)}
        waiting: list[Item] = []
        for path in in_order(set(versions)):
            if versions[path] == 0:
                at = number[path]
                journal.stretch(
                    Stretch(offsets[at], _end(tmp_path / "old", offsets[at]), places[at], places[at + 1], 1)
                )
                expected.append(path)
                continue
            line = line_of(path, versions[path])
            item = Item(path, blob_of(path, versions[path]))
            if holes.random() < 0.4:
                item.late = True
                outcomes[path] = b"" if holes.randrange(10) < lost else line
                journal.add(item)
                if outcomes[path]:
                    expected.append(path)
            else:
                item.line = b"" if holes.random() < 0.1 else line
                if item.line:
                    expected.append(path)
                journal.add(item)
                waiting.append(item)
            if holes.random() < 0.3:
                journal.drain()
            if holes.random() < 0.5:
                rng.shuffle(waiting)
                while waiting:
                    waiting.pop().done = True
        for item in waiting:
            item.done = True
        journal.drain()
        assert len(journal) == 0
        summary = journal.finish()
        result = journal.text_path, journal.blob_path
        if journal.late_count:

            def settled(found: Late) -> tuple[Late, Item]:
                found.item.line = outcomes[found.item.path]
                return found, found.item

            whole, summary = assemble(
                str(tmp_path / "whole"), journal, map(settled, journal.late_items()), HEADER, "sha256"
            )
            result = whole.text_path, whole.blob_path
            whole.close()
        journal.close()
    digest, _ = write_straight(tmp_path / "straight", [line_of(path, versions[path]) for path in expected])
    assert Path(result[0]).read_bytes() == (tmp_path / "straight").read_bytes()
    assert summary.digest == digest
    assert Path(result[1]).read_bytes() == b"".join(blob_of(path, versions[path]) for path in expected)


def _end(manifest: Path, start: int) -> int:
    with manifest.open("rb") as stream:
        stream.seek(start)
        return start + len(stream.readline())


def test_nothing_is_written_as_long_as_nothing_differs(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "walk"), HEADER, "sha256")
    assert journal.untouched
    journal.drain()
    assert (journal.mark().text_bytes, list(tmp_path.glob("walk*"))) == (0, [])
    journal.close()


def test_a_mark_covers_records_that_can_be_read_again(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "walk"), HEADER, "sha256")
    items = [Item(b"f%03d" % n, b"blob", line=line_of(b"f%03d" % n), done=n < 5) for n in range(9)]
    for item in items:
        journal.add(item)
    journal.drain()
    mark = journal.mark()
    assert mark.records == 5
    text = Path(journal.text_path).read_bytes()[: mark.text_bytes]
    assert [one.path for one in ManifestReader(io.BytesIO(text), partial=True)] == [
        item.path for item in items[:5]
    ]
    journal.close()


@pytest.mark.parametrize("late", [False, True])
def test_directories_are_told_of_when_their_record_is_written(tmp_path: Path, late: bool) -> None:
    told: list[Item] = []
    journal = Journal(str(tmp_path / "walk"), HEADER, "sha256", on_written=told.append)
    item = Item(b"folder", b"blob", line=line_of(b"folder"), done=True, late=late)
    journal.add(item)
    journal.drain()
    assert told == ([] if late else [item])
    journal.close()


def test_an_item_survives_its_spill_file() -> None:
    item = Item(b"\xff\n,", b"blob", b"old", b"new", late=True, forced=True, link_to=b"leader", number=7)
    assert Item.unpack(item.pack()) == item


# --- the delta between two manifests ----------------------------------------------------------------


def delta_of(folder: Path, old: str, new: str) -> bytes:
    target = folder / "delta"
    size_bytes = write_manifest_delta(str(folder / old), str(folder / new), str(target))
    assert size_bytes == target.stat().st_size
    return target.read_bytes()


@QUICK
@given(old=paths, new=paths, seed=st.integers(0, 2**32))
def test_the_delta_of_two_manifests_gives_the_new_one(
    tmp_path: Path, old: set[bytes], new: set[bytes], seed: int
) -> None:
    rng = random.Random(seed)
    new |= {path for path in old if rng.random() < 0.8}
    write_straight(tmp_path / "old", [line_of(path) for path in in_order(old)])
    write_straight(tmp_path / "new", [line_of(path, rng.random() < 0.1) for path in in_order(new)])
    delta = delta_of(tmp_path, "old", "new")
    wanted = (tmp_path / "new").read_bytes()
    with (tmp_path / "old").open("rb") as base:
        pieces = patch_pieces(delta, base.fileno(), expected_bytes=len(wanted))
    assert b"".join(piece.data for piece in pieces) == wanted


def test_the_delta_follows_the_changes_not_the_size(tmp_path: Path) -> None:
    lines = [line_of(b"f%06d" % n) for n in range(20_000)]
    write_straight(tmp_path / "old", lines)
    lines[7_000] = line_of(b"f%06d" % 7_000, 99)
    del lines[15_000]
    write_straight(tmp_path / "new", lines)
    delta = delta_of(tmp_path, "old", "new")
    assert len(delta) < (tmp_path / "new").stat().st_size / 100
    assert len(delta_of(tmp_path, "old", "old")) < 32
