"""The small rooms of the engine: pairs, hard links, rules, verdicts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.errors import BadUsage
from mirrorkeep.manifest.order import order_key
from mirrorkeep.sync.compare import pair
from mirrorkeep.sync.links import LinkTable
from mirrorkeep.sync.rules import CACHE_SIGNATURE, make_rules
from mirrorkeep.sync.verdicts import wait_for_verdict

sides = st.dictionaries(
    st.lists(st.sampled_from([b"a", b"b", b"\xff", b"a.b"]), max_size=3).map(b"/".join), st.integers()
)


@given(sides, sides)
def test_a_pair_has_what_each_side_has_and_every_path_once(
    left: dict[bytes, int], right: dict[bytes, int]
) -> None:
    def ordered(side: dict[bytes, int]) -> list[tuple[bytes, int]]:
        return sorted(side.items(), key=lambda one: order_key(one[0]))

    pairs = list(pair(ordered(left), ordered(right)))
    assert [one.path for one in pairs] == sorted(left.keys() | right.keys(), key=order_key)
    assert all((one.expected, one.actual) == (left.get(one.path), right.get(one.path)) for one in pairs)


@pytest.mark.parametrize("room", [3, 50_000])
def test_the_first_name_of_a_file_leads_whatever_is_spilled(tmp_path: Path, room: int) -> None:
    table = LinkTable(str(tmp_path), max_in_memory=room)
    for number in range(20):
        assert table.lead(1, number, b"first%d" % number) == b"first%d" % number
    table.note_digest(1, 4, b"abc")
    for number in range(20):
        assert table.lead(1, number, b"second") == b"first%d" % number
        assert table.lead(2, number, b"elsewhere") == b"elsewhere"  # another device
    assert (table.digest(1, 4), table.digest(1, 5), table.digest(9, 9)) == (b"abc", b"", b"")
    table.note_digest(9, 9, b"unheard of")
    assert table.digest(9, 9) == b""
    table.close()
    assert list(tmp_path.iterdir()) == []


def test_without_rules_everything_belongs(tmp_path: Path) -> None:
    assert make_rules([], [], caches=False) is None


def test_rules_are_those_of_gitignore(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("# comment\nbuild/\n/top\n!keep.o\n")
    keep = make_rules(["*.o"], [str(tmp_path / "rules")], caches=False)
    assert keep is not None
    said = {
        path: keep(path, path.endswith(b"/") or path == b"build", -1)
        for path in (b"a.o", b"d/a.o", b"keep.o", b"build", b"top", b"d/top", b"\xff.c", b"\xff.o")
    }
    assert said == {
        b"a.o": False,
        b"d/a.o": False,
        b"keep.o": True,
        b"build": False,
        b"top": False,
        b"d/top": True,
        b"\xff.c": True,
        b"\xff.o": False,
    }
    assert keep(b"build", False, -1)  # a file of that name is no folder


def test_a_pattern_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadUsage):
        make_rules(["!"], [], caches=False)


def test_marked_caches_are_left_out(tmp_path: Path) -> None:
    for name, text in (("cache", CACHE_SIGNATURE + b"\n# more"), ("other", b"something else")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "CACHEDIR.TAG").write_bytes(text)
    keep = make_rules([], [], caches=True)
    assert keep is not None
    here = os.open(tmp_path, os.O_RDONLY)
    said = [keep(b"above/" + name, True, here) for name in (b"cache", b"other", b"neither")]
    assert said == [False, True, True]
    assert keep(b"above/cache", False, here)
    os.close(here)


def test_what_is_no_file_marks_no_cache_and_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever may write in a tree could else stop its mirror, for ever or for a folder of somebody else."""
    for name in ("fifo", "link", "folder", "cache"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo" / "CACHEDIR.TAG")
    (tmp_path / "cache" / "CACHEDIR.TAG").write_bytes(CACHE_SIGNATURE)
    (tmp_path / "link" / "CACHEDIR.TAG").symlink_to("../cache/CACHEDIR.TAG")
    (tmp_path / "folder" / "CACHEDIR.TAG").mkdir()
    (tmp_path / "detour").symlink_to("cache")
    keep = make_rules([], [], caches=True)
    assert keep is not None
    here = os.open(tmp_path, os.O_RDONLY)
    signal.alarm(10)
    try:
        assert all(keep(name, True, here) for name in (b"fifo", b"link", b"folder", b"detour"))
    finally:
        signal.alarm(0)
        os.close(here)


def test_a_verdict_is_waited_for() -> None:
    class Client:
        volume = "vol"
        asked: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

        def get_json(self, path: str, **query: Any) -> dict[str, Any]:
            self.asked.append((path, query))
            state = ("pending", "running", "done")[len(self.asked) - 1]
            return {"state": state, "verdict": "repaired" if state == "done" else None}

    client = Client()
    assert wait_for_verdict(client, "auto 1", "v7", since="d")["verdict"] == "repaired"  # type: ignore[arg-type]
    assert [path for path, _ in client.asked] == ["volumes/vol/verdicts/auto%201"] * 3
    assert all(query == {"validation": "v7", "wait": 20, "since": "d"} for _, query in client.asked)
