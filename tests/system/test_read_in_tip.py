"""What a run mirrored and nobody touched since is restored without a look into the snapshot (ADR 0015)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorkeep.server.address import parse_address
from mirrorkeep.server.place import find_place
from mirrorkeep.store.pool import Store
from mirrorkeep.tree.stored_twin import SLACK_NS, TwinReader
from rig.served import Served, checked

pytestmark = [pytest.mark.btrfs, pytest.mark.root]
NAMES = [b"folder/f%d" % number for number in range(20)]


def test_only_what_a_run_wrote_around_its_snapshot_is_looked_up(
    make_served: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = make_served(driver="btrfs")
    volume = served.create_volume("v")
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    for name in NAMES:
        (source / os.fsdecode(name)).write_bytes(name)
    argv = ("sync", str(source), volume.url, "--state", str(tmp_path / "state"))
    checked(*argv, environment=volume.environment)
    time.sleep(SLACK_NS / 1e9 + 0.5)
    (source / "other").write_bytes(b"a change elsewhere")
    checked(*argv, environment=volume.environment)

    looked: list[bytes] = []
    real = TwinReader.same

    def seen(reader: TwinReader, parent: bytes, name: bytes, wanted: os.stat_result) -> object:
        looked.append(name)
        return real(reader, parent, name, wanted)

    monkeypatch.setattr(TwinReader, "same", seen)
    store = Store.open(str(served.data))
    try:
        place = find_place(store, parse_address(b"/snapshots/latest/v"))
        with place.tree:
            found = list(place.tree.contents([*NAMES, b"other"]))
    finally:
        store.close()
    assert found == [*NAMES, b"a change elsewhere"]
    assert looked == [b"other"]
