"""Errors of files on this machine that hold no mirror: the state, what a command writes, its temporary files.

One line that names the file, says what the system says, and what to do.  Not here: errors of the storage of a
mirror (``layout.storage_errors``), of which some are repeated or mean that an entry failed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from mirrorkeep.errors import SystemFailure, printable

_MAY_NOT: Final = "run this as a user who may, the owner or root"
_MAKE_ROOM: Final = "make room there and run this again"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES: Final = {
    errno.EACCES: _MAY_NOT,
    errno.EPERM: _MAY_NOT,
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EMFILE: "let this process open more files (ulimit -n)",
}


@contextlib.contextmanager
def local_errors(path: str | bytes, remedy: str | None = None) -> Iterator[None]:
    """Turn OSError inside the block into a SystemFailure that names ``path``; ``remedy``: what else helps."""
    try:
        yield
    except OSError as error:
        raise SystemFailure(detail=explain(error, os.fsencode(path), remedy)) from error


def explain(error: OSError, name: object = None, remedy: str | None = None) -> str:
    """Return what the system says about ``name`` and what to do: ``remedy``, what is usual, or both."""
    said = error.strerror or type(error).__name__
    told = f"{_on_one_line(printable(name))}: {said}" if name is not None else said
    remedies = [one for one in (_REMEDIES.get(error.errno or 0), remedy) if one]
    return f"{told}; {', or '.join(remedies)}" if remedies else told


def is_full(error: OSError) -> bool:
    """Return whether the error says that no more can be written there."""
    return error.errno in _FULL


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
