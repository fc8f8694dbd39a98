"""``python -m bench``: measure, print the table, save table, samples and picture.  Root, for fresh mounts."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import cases, described, plot, report, scale, wan
from bench.measure import CommandFailed
from bench.trees import Shape
from rig import scratch
from rig.served import ServedError

NORMAL = (*cases.SMALL_CASES, *cases.LARGE_CASES)
EXTRA = ("wan-large", "wan-small", "scale", "described")
TOOLS = ("mirrorkeep", "rsync", "restic", "borg")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Mirrorkeep beside rsync, restic and Borg, on fresh loop-mounted file systems.",
        epilog=f"Cases: {' '.join(NORMAL)}; only with --all or by name: {' '.join(EXTRA)}.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each case (5)")
    parser.add_argument("--only", action="append", choices=(*NORMAL, *EXTRA), metavar="CASE", default=[])
    parser.add_argument("--all", action="store_true", help="every case, the slow line and the million too")
    parser.add_argument("--tools", default=",".join(TOOLS), metavar="A,B", help="which tools take part")
    parser.add_argument("--driver", default="btrfs", choices=("btrfs", "dir"), help="storage of ours")
    parser.add_argument(
        "--pool-size",
        type=float,
        default=4,
        metavar="X",
        help="size of the file systems that are copied to, in multiples of what may be written to them (4)",
    )
    parser.add_argument(
        "--entries", type=int, default=1_000_000, metavar="N", help="files of the cases scale and described"
    )
    parser.add_argument("--folder", type=Path, help="where images lie (a fresh folder in /var/tmp)")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where results go")
    return parser.parse_args(argv)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    chosen = _arguments(argv)
    if why := scratch.missing_for_mounts("btrfs"):
        print(f"the benchmark needs fresh loop-mounted file systems: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _stop)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="mirrorkeep-bench-", dir="/var/tmp"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {text}", flush=True)

    shape = Shape().tenth() if chosen.quick else Shape()
    plan = cases.Plan(
        folder=folder,
        shape=shape,
        runs=chosen.runs,
        cases=(*NORMAL, *EXTRA) if chosen.all else tuple(chosen.only) or NORMAL,
        tools=tuple(chosen.tools.split(",")),
        driver=chosen.driver,
        pool_size=max(1.0, chosen.pool_size),
        say=say,
    )
    say(f"images in {folder}; {', '.join(plan.tools)}")
    try:
        samples = cases.run(plan)
        if plan.wants("wan-large", "wan-small"):
            samples += wan.run(plan)
        if plan.wants("scale"):
            samples += scale.run(plan, chosen.entries)
        if plan.wants("described"):
            samples += described.run(plan, chosen.entries)
    except (CommandFailed, ServedError, scratch.ScratchError) as error:
        print(f"the benchmark failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        scratch.discard(folder)
    about = {
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "files": shape.files,
        "large_bytes": shape.large_bytes,
        "runs": plan.runs,
        "driver": plan.driver,
        "pool_size": plan.pool_size,
    }
    report.save(samples, chosen.out, about)
    plot.save(samples, chosen.out)
    print("\n" + report.table(samples))
    print(f"saved in {chosen.out}: results.md, results.json, results.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
