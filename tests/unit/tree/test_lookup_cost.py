"""Looking up one entry costs the same among 500 and among 20,000: there is no common index (META-08).

What is counted is work, not time: what is opened and listed, and how many bytes are read from files.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record
from mirrorkeep.tree.protocol import Frame, Op
from mirrorkeep.tree.stored import StoredTree

FEW, MANY = 500, 20_000
LOOKED_UP = 50
EMPTY = hashlib.sha256().hexdigest().encode()

_watched: list[Counter[str]] = []


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir"):
        _watched[-1][event] += 1


sys.addaudithook(_audit)  # there is no way to take one away: it counts only while somebody watches


def read_so_far() -> dict[str, int]:
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {"bytes read": int(told["rchar"]), "reads": int(told["syscr"])}


@contextmanager
def work_done() -> Iterator[Counter[str]]:
    """Count what is opened, listed and read until the block ends."""
    counted: Counter[str] = Counter()
    before = read_so_far()
    _watched.append(counted)
    yield counted
    _watched.pop()
    after = read_so_far()
    counted.update({name: after[name] - before[name] for name in before})


def fill(root: Path, count: int) -> None:
    """Make a tree of one folder with so many entries, whose names and records are of one length."""
    fields = {
        keys.TYPE: keys.FILE,
        keys.SIZE: b"0",
        keys.MTIME: b"1700000000",
        keys.MODE: b"100644",
        keys.HASH: EMPTY,
    }
    root.mkdir()
    with StoredTree(str(root)) as tree:
        assert tree.apply([Frame(Op.DIRECTORY, format_record(b"d", {keys.TYPE: keys.DIRECTORY}))]) == []
        for start in range(0, count, 500):
            records = (format_record(b"d/e%06d" % number, fields) for number in range(start, start + 500))
            assert tree.apply([Frame(Op.PUT, line) for line in records]) == []


def cost_of_looking_up(root: Path, count: int) -> Counter[str]:
    step = count // LOOKED_UP
    with StoredTree(str(root)) as tree:
        tree.stat(b"d/e000000")
        with work_done() as counted:
            for number in range(0, count, step):
                path = b"d/e%06d" % number
                assert tree.stat(path).record is not None
                assert tree.read_sidecar(path).entries
                fd, entry = tree.open_read(path)
                assert entry.size == 0
                os.close(fd)
    return counted


def test_looking_up_an_entry_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    costs = {}
    for count in (FEW, MANY):
        fill(tmp_path / str(count), count)
        costs[count] = cost_of_looking_up(tmp_path / str(count), count)
    few, many = costs[FEW], costs[MANY]
    assert few["open"] > LOOKED_UP, "something is counted"
    assert few["os.listdir"] == few["os.scandir"] == many["os.listdir"] == many["os.scandir"] == 0
    assert (many["open"], many["reads"]) == (few["open"], few["reads"])
    assert many["bytes read"] <= few["bytes read"] + 64 * LOOKED_UP, "only numbers may be longer"


def test_each_entry_has_a_sidecar_of_its_own_and_nothing_else_is_kept_about_it(tmp_path: Path) -> None:
    """What is lost with one sidecar is that entry's: the others answer as before."""
    fill(tmp_path / "tree", 1000)
    hidden = tmp_path / "tree" / "d" / ".mirrorkeep"
    assert {path.name for path in hidden.iterdir()} == {f"e{number:06}" for number in range(1000)}
    (hidden / "e000500").write_bytes(b"damaged beyond reading")
    with StoredTree(str(tmp_path / "tree")) as tree:
        for number in (0, 499, 501, 999):
            entry = tree.stat(b"d/e%06d" % number)
            assert entry.record is not None and entry.record.hash == EMPTY
            assert entry.record.path == entry.path == b"d/e%06d" % number


def file_in(folder: bytes) -> Frame:
    """An empty file in a folder."""
    fields = {keys.TYPE: keys.FILE, keys.SIZE: b"0", keys.MTIME: b"1700000000", keys.HASH: EMPTY}
    return Frame(Op.PUT, format_record(folder + b"/f", fields), b"")


def test_what_lies_deep_is_not_reached_from_the_top_each_time(tmp_path: Path) -> None:
    """Else one deep folder, which anybody may make, takes as long as all the rest."""
    depth = 500
    with StoredTree(str(tmp_path)) as tree:
        folders = [b"/".join([b"d"] * level) for level in range(1, depth + 1)]
        frames = [file_in(folder) for folder in folders]
        with work_done() as sending:
            assert tree.apply(list(reversed(frames))) == []
        with work_done() as walking:
            assert sum(1 for _ in tree.walk()) == 2 * depth + 1
    assert sending["open"] < 30 * depth
    assert walking["open"] < 30 * depth
