"""Which content of a tip a power cut may have lost although its sidecar says that all is well.

Answers for: the spans of generations (published after the last commit before a service ended, and before the
next one began) whose content no commit has flushed.  Generations are times, so a span is a pair of times.
Where the store lists what it really has, such files have no digest and are sent again: what was acknowledged
by a service that is gone counts from its last commit.  A close ends all doubt: by then the run has sent
again whatever was not known to be good.

Not here: committing (``runs``), listing (``actual``).  The spans are part of the part's state; whatever a
crash cuts off, the state is that of the last commit, whose spans are no smaller.  A clock that is set back
hides what was published in between from a span: that is then believed until it is validated.
"""

from __future__ import annotations

from typing import Any, Final

from mirrorkeep.store.volume import PartState

Span = tuple[int, int]
"""After the first, up to and with the second; in nanoseconds since 1970."""

MAX_SPANS: Final = 16


def doubted_spans(state: PartState, started_ns: int) -> list[Span]:
    """Return the spans in doubt now; ``started_ns`` is when the running service began."""
    spans = [(int(after), int(until)) for after, until in state.doubted]
    if state.durable_ns is not None and state.durable_ns < started_ns:
        spans.append((state.durable_ns, started_ns))
    if len(spans) > MAX_SPANS:  # what lies between two spans is sent again as well
        spans[:2] = [(spans[0][0], spans[1][1])]
    return spans


def committed(state: PartState, started_ns: int, now_ns: int) -> dict[str, Any]:
    """Return what changes in the state with a commit of everything that was published up to ``now_ns``.

    What is in doubt stays so: the commit flushes what is there now, lost or not.
    """
    return {"durable_ns": now_ns, "doubted": [list(span) for span in doubted_spans(state, started_ns)]}


def closed(now_ns: int) -> dict[str, Any]:
    """Return what changes in the state with a close that flushed everything up to ``now_ns``."""
    return {"durable_ns": now_ns, "doubted": []}
