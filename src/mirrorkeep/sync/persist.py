"""Going on after the store restarted, hard links moved, or the client's own manifest proved damaged.

Answers for: one command outlives a store that is killed, upgraded or that lost a write, as long as it comes
back within the client's patience.  What was not committed is sent again; nothing else is.  Without a manifest
of its own the run asks the store what it has.

Not here: waiting for a store that does not answer (``tree.client``), what a resumed run starts from
(``input``).  A crash leaves what the run that was cut off left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mirrorkeep.errors import MalformedManifest, StoreRestarted
from mirrorkeep.sync.mirror import LinksMoved, MirrorRun
from mirrorkeep.sync.options import RunResult

MAX_RESTARTS: Final = 5
"""A store that restarts more often than this during one run has a problem that repeating will not solve."""


def execute_run(make_run: Callable[[], MirrorRun]) -> tuple[MirrorRun, RunResult]:
    """Execute a run, a new one each time one of these things happened; returns the one that closed and its
    result.

    The result's bytes and seconds are those of all of them, its counts those of the entries that the last
    one handled and of what the earlier ones had committed.  Raises StoreRestarted after
    ``MAX_RESTARTS`` restarts, MalformedManifest when it is the store's, and whatever else ends a run.
    """
    earlier: list[RunResult] = []
    started = time.monotonic()
    distrusted = False
    while True:
        run = make_run()
        try:
            result = run.execute()
        except LinksMoved:
            sent = run.progress()
            earlier.append(RunResult(bytes_read=sent.bytes_read, bytes_sent=sent.bytes_sent))
        except MalformedManifest:
            if distrusted:
                raise
            distrusted = True
            run.distrust()
            earlier.append(run.progress())
        except StoreRestarted:
            if len(earlier) >= MAX_RESTARTS:
                raise
            earlier.append(run.progress())
        else:
            for one in earlier:
                _add(result, one)
            result.seconds = time.monotonic() - started
            return run, result


def _add(result: RunResult, earlier: RunResult) -> None:
    for name in ("new", "changed", "moved", "copied", "bytes_read", "bytes_sent"):
        setattr(result, name, getattr(result, name) + getattr(earlier, name))
    # What an earlier one had committed looked unchanged to the last, or was looked at again.
    result.unchanged = max(0, result.unchanged - earlier.new - earlier.changed - earlier.moved)
