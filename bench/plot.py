"""Draw the table: one group of bars a case, the height the time as a multiple of rsync's.

Plain SVG, written here, so that a picture needs no library; where matplotlib is installed a PNG of the same
data is saved beside it for documents that cannot show SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.cases import TITLES, Sample
from bench.report import HASHING, REFERENCE, median_of

COLOURS = {
    "mirrorkeep": "#00695c",
    "rsync": "#9e9e9e",
    "restic": "#5c6bc0",
    "borg": "#ef6c00",
    HASHING: "#bdbdbd",
}
BAR, GAP, GROUP_GAP, HEIGHT, TOP, LEFT, BOTTOM = 22, 2, 34, 260, 50, 90, 90
TALLEST = 4.0
"""Bars of more than this many times the reference are cut, and say so."""

Bars = list[tuple[str, list[tuple[str, float]]]]


def ratios(samples: Sequence[Sample]) -> Bars:
    """Return, case by case, each tool's time as a multiple of the reference's."""
    bars: Bars = []
    for case, title in TITLES.items():
        reference = median_of(samples, case, HASHING if case.startswith("validate") else REFERENCE)
        if not reference:
            continue
        group = [(tool, median_of(samples, case, tool)) for tool in COLOURS]
        bars.append((title, [(tool, value / reference) for tool, value in group if value is not None]))
    return bars


def svg(bars: Bars) -> str:
    """Return the picture as a self-contained SVG document."""
    width = LEFT + sum(len(group) * (BAR + GAP) + GROUP_GAP for _, group in bars) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + BOTTOM}"'
        ' font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="18" font-size="14">'
        "Time as a multiple of rsync's, of sha256sum's for validation (lower is better)</text>",
    ]
    for step in range(int(TALLEST) + 1):
        y = TOP + HEIGHT - HEIGHT * step / TALLEST
        parts.append(f'<line x1="{LEFT}" x2="{width - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{step}</text>')
    x = LEFT + 10
    for title, group in bars:
        start = x
        for tool, ratio in group:
            high = HEIGHT * min(ratio, TALLEST) / TALLEST
            y = TOP + HEIGHT - high
            parts.append(
                f'<rect x="{x}" y="{y:.1f}" width="{BAR}" height="{high:.1f}" fill="{COLOURS[tool]}">'
                f"<title>{escape(tool)}: {ratio:.2f}</title></rect>"
            )
            parts.append(f'<text x="{x + BAR / 2}" y="{y - 3:.1f}" text-anchor="middle">{ratio:.1f}</text>')
            x += BAR + GAP
        middle = (start + x) / 2
        parts.append(
            f'<text x="{middle}" y="{TOP + HEIGHT + 14}" text-anchor="end"'
            f' transform="rotate(-25 {middle} {TOP + HEIGHT + 14})">{escape(title)}</text>'
        )
        x += GROUP_GAP
    for number, tool in enumerate(tool for tool in COLOURS if any(tool in dict(g) for _, g in bars)):
        at = LEFT + number * 95
        parts.append(f'<rect x="{at}" y="28" width="10" height="10" fill="{COLOURS[tool]}"/>')
        parts.append(f'<text x="{at + 14}" y="37">{escape(tool)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def save(samples: Sequence[Sample], folder: Path) -> None:
    """Write ``results.svg``, and ``results.png`` where matplotlib is there."""
    bars = ratios(samples)
    if not bars:
        return
    (folder / "results.svg").write_text(svg(bars))
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(max(6, 1.6 * len(bars)), 4.5))
    tools = [tool for tool in COLOURS if any(tool in dict(group) for _, group in bars)]
    for number, tool in enumerate(tools):
        at = [place + number * 0.8 / len(tools) for place in range(len(bars))]
        values = [dict(group).get(tool, 0.0) for _, group in bars]
        axes.bar(at, values, 0.75 / len(tools), label=tool, color=COLOURS[tool])
    axes.set_xticks(
        [place + 0.3 for place in range(len(bars))], [t for t, _ in bars], rotation=20, ha="right"
    )
    axes.set_ylabel("time as a multiple of rsync's")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "results.png", dpi=120)
