"""What differs between two manifests, entry by entry, read side by side.

This compares *descriptions*, for people and scripts.  Comparing trees, and deciding what to do about a
difference, is the engine's alone (``sync``).  Memory: one record of each.  Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import Record

READ_TRACES: frozenset[bytes] = frozenset({keys.ATIME, keys.INODE, keys.INODE_CTIME})
"""Keys that change by being read or copied; a difference in them alone is none unless asked for."""


@dataclass(frozen=True, slots=True)
class EntryDifference:
    """One path that the manifests describe differently; ``change``: new, removed or changed.

    ``fields`` are the keys that differ, in order (empty for new and removed).
    """

    path: bytes
    change: str
    fields: tuple[bytes, ...] = ()


def compare_manifests(
    old: Iterable[Record], new: Iterable[Record], *, ignored: Set[bytes] = READ_TRACES
) -> Iterator[EntryDifference]:
    """Yield the differences in manifest order; both must be in it, as readers check."""
    olds, news = iter(old), iter(new)
    before, after = next(olds, None), next(news, None)
    while before is not None or after is not None:
        if after is None or (before is not None and order_key(before.path) < order_key(after.path)):
            assert before is not None  # one of them is there
            yield EntryDifference(before.path, "removed")
            before = next(olds, None)
        elif before is None or order_key(after.path) < order_key(before.path):
            yield EntryDifference(after.path, "new")
            after = next(news, None)
        else:
            if differing := _differing_keys(before, after, ignored):
                yield EntryDifference(after.path, "changed", differing)
            before, after = next(olds, None), next(news, None)


def _differing_keys(before: Record, after: Record, ignored: Set[bytes]) -> tuple[bytes, ...]:
    if before.fields == after.fields:
        return ()
    names = (before.fields.keys() | after.fields.keys()) - ignored
    if keys.SEGMENTS not in before.fields or keys.SEGMENTS not in after.fields:
        names -= {keys.SEGMENTS}  # made from the content, by who made them: `hash` tells in any case
    return tuple(sorted(name for name in names if before.fields.get(name) != after.fields.get(name)))
