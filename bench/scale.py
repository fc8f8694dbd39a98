"""Many entries: does time follow change, and does memory stay where it was?

The case ``scale`` makes ``--entries`` tiny files, mirrors them once, and then times runs in which nothing
changed beside rsync's, with the peak memory of client and servers.  Running it with 100,000 and with
2,000,000 shows whether memory grows with the number of entries.
"""

from __future__ import annotations

from dataclasses import replace

from bench import trees
from bench.cases import Plan, Round, Sample, opened

MEAN_BYTES = 60


def run(plan: Plan, entries: int) -> list[Sample]:
    """Mirror ``entries`` tiny files once, then measure ``plan.runs`` runs without any change."""
    tools = tuple(tool for tool in plan.tools if tool in ("mirrorkeep", "rsync"))
    plan = replace(plan, tools=tools)
    with opened(Round(plan, 0, data_bytes=entries * 4096, files=entries)) as one:
        trees.make_small_files(str(one.source), entries, mean_bytes=MEAN_BYTES)
        plan.say(f"{entries} tiny files")
        one.copy("scale-first")
        for number in range(plan.runs):
            one.number = number
            one.copy("scale-same")
        for sample in one.samples:
            plan.say(
                f"{sample.case} {sample.tool}: client {sample.client_peak_bytes / 1e6:.0f} MB,"
                f" server {sample.server_peak_bytes / 1e6:.0f} MB"
            )
    return one.samples
