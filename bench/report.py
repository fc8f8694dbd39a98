"""From samples to a table: medians, ratios to rsync, bytes sent, peak memory."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.cases import TITLES, Sample

REFERENCE = "rsync"
HASHING = "sha256sum"


def median_of(
    samples: Iterable[Sample], case: str, tool: str, value: Callable[[Sample], float] = lambda s: s.seconds
) -> float | None:
    """Return the median of ``value`` over the runs of ``case`` by ``tool``, None when there is none."""
    values = [value(s) for s in samples if s.case == case and s.tool == tool]
    return statistics.median(values) if values else None


def _peak(samples: Iterable[Sample], tool: str, value: Callable[[Sample], int]) -> int:
    return max((value(s) for s in samples if s.tool == tool), default=0)


def _in_order(values: Iterable[str], order: Sequence[str]) -> list[str]:
    present = list(dict.fromkeys(values))
    return sorted(present, key=lambda v: order.index(v) if v in order else len(order))


def _cell(seconds: float | None, reference: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" + (f" ({seconds / reference:.2f})" if reference else "")


def table(samples: Sequence[Sample]) -> str:
    """Return the results as a Markdown table: median seconds, in brackets the ratio to the reference."""
    tools = _in_order((s.tool for s in samples), ["mirrorkeep", REFERENCE, "restic", "borg", HASHING])
    cases = _in_order((s.case for s in samples), list(TITLES))
    rows = [["case", *tools], ["---"] * (len(tools) + 1)]
    for case in cases:
        reference = median_of(samples, case, HASHING if case.startswith("validate") else REFERENCE)
        cells = (_cell(median_of(samples, case, tool), reference) for tool in tools)
        rows.append([TITLES.get(case, case), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        "",
        f"Medians of {1 + max((s.run for s in samples), default=0)} runs; in brackets the time as a",
    ]
    lines += ["multiple of rsync's (of sha256sum's, two processes, for validation).", ""]
    for tool in tools:
        client = _peak(samples, tool, lambda s: s.client_peak_bytes) / 1e6
        server = _peak(samples, tool, lambda s: s.server_peak_bytes) / 1e6
        beside = f", {server:.0f} MB of any server process" if server else ""
        lines.append(f"- {tool}: peak memory {client:.0f} MB of any client process{beside}")
    for case, tool in ((case, tool) for case in cases for tool in tools):
        share = median_of(samples, case, tool, lambda s: s.link_share or 0)
        if share:
            lines.append(
                f"- {TITLES.get(case, case)}: {tool} filled {100 * share:.1f} % of the link with content"
            )
    for case in cases:
        sent = {
            tool: median_of(samples, case, tool, lambda s: s.sent_bytes or 0)
            for tool in ("mirrorkeep", REFERENCE)
        }
        ours, theirs = sent["mirrorkeep"], sent[REFERENCE]
        if ours and theirs:
            lines.append(
                f"- {TITLES.get(case, case)}: sent {ours / 1e6:.2f} MB, rsync {theirs / 1e6:.2f} MB"
                f" ({ours / theirs:.2f})"
            )
    return "\n".join(lines) + "\n"


def save(samples: Sequence[Sample], folder: Path, about: Mapping[str, object]) -> None:
    """Write ``results.json`` (every sample) and ``results.md`` (the table) into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"about": dict(about), "samples": [sample.as_row() for sample in samples]}
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "results.md").write_text(table(samples))
