"""Which manifests make up one complete set of data, and which of them are missing (MAN-12).

A header may name its set: ``set`` (any id), ``set_count`` (how many parts there are) and ``set_index``
(which of them this is, from 1).  Not here: what a part holds.  Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mirrorkeep.errors import MalformedManifest

SET: Final = b"set"
SET_COUNT: Final = b"set_count"
SET_INDEX: Final = b"set_index"
_MAX_PARTS: Final = 1_000_000


def find_missing_parts(headers: Iterable[Mapping[bytes, bytes]]) -> dict[bytes, list[int]]:
    """Return, for each set that one of the headers names, the indexes of the parts no header is of.

    Raises MalformedManifest when a header's numbers make no sense or two headers disagree.
    """
    counts: dict[bytes, int] = {}
    present: dict[bytes, set[int]] = {}
    for header in headers:
        name = header.get(SET)
        if name is None:
            continue
        count, index = _number(header, SET_COUNT), _number(header, SET_INDEX)
        if index > count or counts.setdefault(name, count) != count:
            raise MalformedManifest(offset=0, detail=f"headers disagree on the parts of set {name!r}")
        present.setdefault(name, set()).add(index)
    return {name: [i for i in range(1, counts[name] + 1) if i not in present[name]] for name in counts}


def _number(header: Mapping[bytes, bytes], key: bytes) -> int:
    text = header.get(key, b"")
    if not text.isdigit() or len(text) > 7 or not 1 <= int(text) <= _MAX_PARTS:
        raise MalformedManifest(offset=0, detail=f"the header's {key.decode()} is not a number of parts")
    return int(text)
