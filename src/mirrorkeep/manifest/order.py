"""The order of a manifest: alphabetical by component, a directory after everything in it, the root last.

``ad/1d``, ``ad/2d/wf``, ``ad/2d/xf``, ``ad/2d``, ``ad/3f``, ``ad``, and then the root: a tree walked in
this order has finished a directory's children when it comes to the directory, which is when its times
can be stamped, and two trees walked in it can be compared with no table in memory.

Not here: sorting (``spill``) and merging (``merge``).  Pure functions: a crash leaves nothing behind.
"""

from __future__ import annotations

from typing import Final

_ROOT: Final = b"\xff\xff"
_BEHIND_KEY: Final = b"\0\0\0"
"""Stands in no key."""


def order_key(path: bytes) -> bytes:
    """Return bytes whose plain comparison is the order of paths in a manifest.

    A component ends with NUL, which no file name holds, so that it sorts before every longer name; a
    path ends with ``FF FF``, which sorts behind everything inside it, since ``FF`` in a name becomes
    ``FF 01``.  Distinct POSIX paths have distinct keys.
    """
    if not path:
        return _ROOT
    if b"\xff" in path:
        path = path.replace(b"\xff", b"\xff\x01")
    return path.replace(b"/", b"\x00") + b"\x00\xff\xff"


def row_in_order(path: bytes, payload: bytes) -> bytes:
    """Return a row that comes, among sorted rows, where ``path`` comes in a manifest."""
    return order_key(path) + _BEHIND_KEY + payload


def payload_of(row: bytes) -> bytes:
    """Return what :func:`row_in_order` was given beside the path."""
    return row.partition(_BEHIND_KEY)[2]
