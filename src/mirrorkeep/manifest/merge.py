"""Merging manifests as they are read: an old one with the new one of an interrupted run, or with a patch.

Later streams win.  What an interrupted run did not come to is taken from the old manifest, so the merged
stream describes what the mirror holds (MAN-41..43): entries that vanished from the source stay in it
until the run that deletes them has finished.  In a patch ``type=absent`` removes the entry from the
result, ``type=unknown`` takes its place.

Memory: one record a stream.  Every stream must be in manifest order, as readers check.  Not here: what
a run does with the result (``sync``).  Nothing is written, so a crash leaves nothing behind.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final, TypeVar

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import Record

_ABSENT_FIELD: Final = b"," + keys.TYPE + b"=" + keys.ABSENT + b","
"""How the field stands in a line: a comma and an equals sign in a value would be entities."""
_Item = TypeVar("_Item")
_RANK_AND_KEY: Final = itemgetter(0, 1)


def merge_records(*streams: Iterable[Record]) -> Iterator[Record]:
    """Yield the union of the streams in manifest order; of equal paths the last stream's record."""
    keyed = [((order_key(record.path), record) for record in stream) for stream in streams]
    return (record for _, record in _merge(keyed) if record.fields.get(keys.TYPE) != keys.ABSENT)


def merge_lines(*streams: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, line) of the union in order, as :func:`merge_records`; keys are of ``order_key``."""
    return (item for item in _merge(streams) if _ABSENT_FIELD not in item[1])


def _merge(streams: Iterable[Iterable[tuple[bytes, _Item]]]) -> Iterator[tuple[bytes, _Item]]:
    sources = list(streams)
    if len(sources) == 2:
        return _merge_two(iter(sources[0]), iter(sources[1]))
    return _merge_many(sources)


def _merge_two(
    old: Iterator[tuple[bytes, _Item]], new: Iterator[tuple[bytes, _Item]]
) -> Iterator[tuple[bytes, _Item]]:
    """The usual case, without a heap."""
    ours, theirs = next(old, None), next(new, None)
    while ours is not None and theirs is not None:
        if ours[0] < theirs[0]:
            yield ours
            ours = next(old, None)
            continue
        if ours[0] == theirs[0]:
            ours = next(old, None)
        yield theirs
        theirs = next(new, None)
    if ours is not None:
        yield ours
        yield from old
    if theirs is not None:
        yield theirs
        yield from new


def _merge_many(sources: list[Iterable[tuple[bytes, _Item]]]) -> Iterator[tuple[bytes, _Item]]:
    ranked = [_rank(source, -index) for index, source in enumerate(sources)]
    previous: bytes | None = None
    for key, _, item in heapq.merge(*ranked, key=_RANK_AND_KEY):
        if key != previous:
            yield key, item
            previous = key


def _rank(source: Iterable[tuple[bytes, _Item]], rank: int) -> Iterator[tuple[bytes, int, _Item]]:
    for key, item in source:
        yield key, rank, item
