"""The benchmark's arithmetic: medians, ratios, and a picture that is well formed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from bench.cases import Sample
from bench.plot import ratios, svg
from bench.report import median_of, table


def sample(case: str, tool: str, run: int, seconds: float, sent: int | None = None) -> Sample:
    return Sample(case, tool, run, seconds, 0.5, 40_000_000, 20_000_000, sent)


SAMPLES = [
    *(sample("first", "rsync", run, seconds, 1000) for run, seconds in enumerate([10.0, 12.0, 11.0])),
    *(sample("first", "mirrorkeep", run, seconds, 900) for run, seconds in enumerate([8.8, 30.0, 5.5])),
    sample("validate-small", "sha256sum", 0, 1.0),
    sample("validate-small", "mirrorkeep", 0, 1.25),
]


def test_the_median_ignores_the_odd_one_out() -> None:
    assert median_of(SAMPLES, "first", "mirrorkeep") == 8.8
    assert median_of(SAMPLES, "first", "borg") is None


def test_the_table_gives_ratios_to_the_right_reference() -> None:
    text = table(SAMPLES)
    assert "| first copy, small files | 8.80 s (0.80) | 11.00 s (1.00) |" in text
    assert "1.25 s (1.25)" in text  # to sha256sum, not to rsync
    assert "(0.90)" in text  # bytes sent
    assert "mirrorkeep: peak memory 40 MB of any client process, 20 MB of any server process" in text


def test_the_picture_is_well_formed_and_has_a_bar_for_each_figure() -> None:
    bars = ratios(SAMPLES)
    assert [title for title, _ in bars] == ["first copy, small files", "validation, small files"]
    root = ElementTree.fromstring(svg(bars))
    titles = root.findall(".//{http://www.w3.org/2000/svg}rect/{http://www.w3.org/2000/svg}title")
    assert {t.text for t in titles} == {
        "mirrorkeep: 0.80",
        "rsync: 1.00",
        "mirrorkeep: 1.25",
        "sha256sum: 1.00",
    }
