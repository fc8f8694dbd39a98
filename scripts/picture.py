#!/usr/bin/env python3
"""Draw what ``scripts/demo`` prints as a terminal, for the README:

scripts/demo | python3 scripts/picture.py docs/images/demo.svg
"""

from __future__ import annotations

import re
import sys
from html import escape

CHARACTER, LINE, MARGIN, TOP = 7.8, 18, 20, 44
COLOURS = {"plain": "#d7dae0", "step": "#ffffff", "command": "#8ab4f8", "good": "#81c995", "time": "#7f858f"}
STEP = re.compile(r"^ *([0-9.]+ s)  (\d+\..*)$")


def kind(text: str) -> str:
    """Return the colour's name for a line of the story."""
    if text.startswith("$"):
        return "command"
    return "good" if text.startswith("✓") else "plain"


def draw(lines: list[str]) -> str:
    """Return the picture of these lines."""
    width = round(MARGIN * 2 + CHARACTER * max(map(len, lines)))
    height = TOP + LINE * len(lines) + MARGIN
    rows = []
    for number, line in enumerate(lines):
        y, indent = TOP + LINE * number + 14, len(line) - len(line.lstrip())
        if step := STEP.match(line):
            rows.append(span(MARGIN, y, step[1].rjust(7), "time"))
            rows.append(span(MARGIN + CHARACTER * 9, y, step[2], "step", bold=True))
        elif line.strip():
            rows.append(span(MARGIN + CHARACTER * indent, y, line.strip(), kind(line.strip())))
    dots = "".join(
        f'<circle cx="{MARGIN + 18 * place}" cy="20" r="6" fill="{colour}"/>'
        for place, colour in enumerate(("#ed6a5e", "#f5bf4f", "#62c554"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="What scripts/demo prints">\n'
        f'<rect width="100%" height="100%" rx="10" fill="#202328"/>{dots}\n'
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace" '
        'font-size="13">\n' + "\n".join(rows) + "\n</g>\n</svg>\n"
    )


def span(x: float, y: int, text: str, colour: str, *, bold: bool = False) -> str:
    """Return one piece of text."""
    weight = ' font-weight="bold"' if bold else ""
    length = f' textLength="{CHARACTER * len(text):.0f}"'
    place = f'x="{x:.0f}" y="{y}" fill="{COLOURS[colour]}"'
    return f'<text {place}{weight}{length} xml:space="preserve">{escape(text)}</text>'


def main() -> None:
    """Read the story and write the picture."""
    text = sys.stdin.read()
    lines = [line.rstrip() for line in text[text.index("Mirrorkeep, the whole story") :].splitlines()]
    lines[0] = "$ sh scripts/demo"
    last = max(number for number, line in enumerate(lines) if STEP.match(line))
    with open(sys.argv[1], "w", encoding="utf-8") as stream:
        stream.write(draw(lines[: last + 1]))


if __name__ == "__main__":
    main()
