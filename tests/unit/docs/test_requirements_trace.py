"""The trace of requirements keeps its word: known states, counted right, and what a row names is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

TOP = Path(__file__).parents[3]
PAGE = TOP / "docs" / "requirements.md"
ROW = re.compile(r"^\| ([A-Z]+-\d+) \| (.+) \| (\w+) \| (.*) ?\|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    """Return (id, state, shown by) of every row."""
    return [(found[1], found[3], found[4]) for found in ROW.finditer(PAGE.read_text())]


def test_every_row_has_an_id_of_its_own_and_a_known_state() -> None:
    ids = Counter(identity for identity, _, _ in rows())
    assert len(ids) > 400
    assert [identity for identity, times in ids.items() if times > 1] == []
    assert {state for _, state, _ in rows()} <= {"done", "partly", "planned"}


def test_the_counts_at_the_top_are_right() -> None:
    count = Counter(state for _, state, _ in rows())
    told = f"{count['done']} done, {count['partly']} partly, {count['planned']} planned"
    assert f"In all: {told}." in PAGE.read_text()


def test_what_is_not_planned_says_what_shows_it() -> None:
    assert [identity for identity, state, shown in rows() if state != "planned" and not shown.strip()] == []


def test_the_tests_and_pages_that_rows_name_are_there() -> None:
    missing = []
    for identity, _, shown in rows():
        named = re.findall(r"`((?:tests|scripts)/[^` ]+)", shown)
        named += [f"docs/{page}" for page in re.findall(r"\]\(([^)#]+)\)", shown)]
        named += [f"src/mirrorkeep/{module}" for module in re.findall(r"`(\w+/\w+\.py)`", shown)]
        missing += [(identity, path) for path in named if not (TOP / path).exists()]
    assert missing == []
