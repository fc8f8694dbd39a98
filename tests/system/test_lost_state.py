"""A client that has lost its state asks the store what it holds, and sends nothing again (MAN-49)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mirrorkeep.sync.session import Session
from rig.served import Served
from tests.property.sync.loop import Cut, CutAfter
from tests.system.test_loop import StoreLoop, restored_differences, tip_differences

FILES = 300
FILE_BYTES = 3000


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of which listings were fetched."""
    names: list[str] = []
    fetch = Session.fetch_manifest

    def told(session: Session, snapshot: str, path: str) -> None:
        names.append(snapshot)
        fetch(session, snapshot, path)

    monkeypatch.setattr(Session, "fetch_manifest", told)
    return names


@pytest.fixture
def loop(served_store: Served, tmp_path: Path) -> StoreLoop:
    made = StoreLoop(tmp_path, served_store.create_volume("vol"), "part")
    for number in range(FILES):
        place = made.source / f"folder{number % 7}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(FILE_BYTES))
    (made.source / "large").write_bytes(os.urandom(5_000_000))
    os.link(made.source / "large", made.source / "folder1" / "another name")
    (made.source / "link").symlink_to("large")
    return made


def test_the_store_s_manifest_stands_in_for_a_lost_one(
    served_store: Served, loop: StoreLoop, asked: list[str]
) -> None:
    assert loop.sync().status == "complete"
    asked.clear()
    shutil.rmtree(loop.folder / "state")
    (loop.source / "folder3" / "file101").write_bytes(b"edited meanwhile")
    (loop.source / "folder2" / "file100").unlink()
    again = loop.sync()
    assert asked == ["latest"]
    assert (again.status, again.new, again.removed) == ("complete", 0, 1)
    assert again.bytes_sent < FILE_BYTES
    assert tip_differences(loop.source, served_store.native_path("vol") / "part") == []
    loop.check_unchanged()
    assert asked == ["latest"]


def test_what_a_run_that_was_cut_off_has_sent_is_listed_by_the_store(
    served_store: Served, loop: StoreLoop, asked: list[str]
) -> None:
    """No manifest describes the tip then: the store makes one of its actual contents."""
    assert loop.sync().status == "complete"
    for number in range(FILES):
        (loop.source / "added" / f"file{number}").parent.mkdir(exist_ok=True)
        (loop.source / "added" / f"file{number}").write_bytes(os.urandom(FILE_BYTES))
    with pytest.raises(Cut), CutAfter(4):
        loop.sync()
    asked.clear()
    shutil.rmtree(loop.folder / "state")
    again = loop.sync()
    assert asked == ["actual"]
    assert again.status == "complete"
    assert again.bytes_sent < 2 * FILES * FILE_BYTES < 5_000_000  # nothing of what had been closed
    assert tip_differences(loop.source, served_store.native_path("vol") / "part") == []
    assert restored_differences(loop) == []
    loop.check_unchanged()
