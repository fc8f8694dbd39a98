"""The comparer: two ordered descriptions of a tree, laid side by side.

Mirroring, restoring, local copies and validation all go through :func:`pair`; they differ only in what
the two sides are and in what is done with a pair.  Both sides come in manifest order, so the
comparison holds one entry of each side in memory, whatever the size of the trees (MAN-07).

Not here: what to do about a difference (``plan``), reading or writing of any kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from mirrorkeep.manifest.order import order_key

Expected = TypeVar("Expected")
Actual = TypeVar("Actual")


class Pair(NamedTuple, Generic[Expected, Actual]):
    """One path and what each side has there; ``None`` on the side that has nothing."""

    path: bytes
    expected: Expected | None
    actual: Actual | None


def pair(
    expected: Iterable[tuple[bytes, Expected]], actual: Iterable[tuple[bytes, Actual]]
) -> Iterator[Pair[Expected, Actual]]:
    """Yield every path of either side once, in manifest order, with what each side has there.

    Both sides are ``(path, item)`` in manifest order; an item is anything but ``None``.
    """
    left, right = iter(expected), iter(actual)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        if a[0] == b[0]:
            yield Pair(a[0], a[1], b[1])
            a, b = next(left, None), next(right, None)
        elif order_key(a[0]) < order_key(b[0]):
            yield Pair(a[0], a[1], None)
            a = next(left, None)
        else:
            yield Pair(b[0], None, b[1])
            b = next(right, None)
    while a is not None:
        yield Pair(a[0], a[1], None)
        a = next(left, None)
    while b is not None:
        yield Pair(b[0], None, b[1])
        b = next(right, None)
