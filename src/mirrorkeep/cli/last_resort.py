"""What the command line says of errors that nobody foresaw: one line, and never a value.

An exception's text may hold a secret (a header, a URL with a password), and what a scheduled job prints is
mailed and kept.  So only what the system says and the name of the file are shown, or the kind of the error
and its place in the program; the whole traceback comes with ``MIRRORKEEP_DEBUG=1``.

Not here: errors of the one tree (``mirrorkeep.errors``), which say themselves what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from types import FrameType
from typing import Final

from mirrorkeep.errors import MirrorkeepError, SystemFailure, printable

DEBUG: Final = "MIRRORKEEP_DEBUG"
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


def system_failure(error: OSError) -> SystemFailure:
    """Return the one line for an error of the system that nobody gave a meaning."""
    _show_traceback()
    if error.filename is not None:
        name = os.fsencode(error.filename) if isinstance(error.filename, str) else error.filename
    else:
        name = "standard output" if _is_of_stdout(error) else None
    return SystemFailure(detail=explain(error, name))


def explain(error: OSError, name: object = None, remedy: str | None = None) -> str:
    """Return what the system says about ``name`` and what to do: ``remedy``, else what is usual."""
    said = error.strerror or type(error).__name__
    told = f"{_on_one_line(printable(name))}: {said}" if name is not None else said
    remedy = remedy or _REMEDIES.get(error.errno or 0)
    return f"{told}; {remedy}" if remedy else told


def internal_failure(error: Exception) -> MirrorkeepError:
    """Return the one line for an error that is a fault of the program."""
    _show_traceback()
    place = "an unknown place"
    for frame in _frames(error):  # the innermost of this program; what it called says less
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "mirrorkeep":
            place = f"{module}:{frame.f_lineno}"
    return MirrorkeepError(
        detail=f"internal error: {type(error).__name__} at {place}; what was committed is kept."
        f" With {DEBUG}=1 the whole traceback is shown: please report it"
    )


def drop_stdout() -> None:
    """Have nothing more written to standard output, so that leaving raises no second error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_stdout(error: OSError) -> bool:
    """Return whether the error comes from what a command prints; files that it writes have a name."""
    modules = [frame.f_globals.get("__name__", "") for frame in _frames(error)]
    return error.errno in _FULL and modules[-1].startswith(("click.", "mirrorkeep.cli."))


def _frames(error: Exception) -> list[FrameType]:
    """Return the frames that the error passed through, the innermost last."""
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append(step.tb_frame)
        step = step.tb_next
    return frames


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show_traceback() -> None:
    if os.environ.get(DEBUG) == "1":
        import traceback  # a run that finds nothing changed shall not pay for it

        traceback.print_exc()
