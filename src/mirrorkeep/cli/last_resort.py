"""What the command line says of errors that nobody foresaw: one line, and never a value.

An exception's text may hold a secret (a header, a URL with a password), and what a scheduled job prints is
mailed and kept.  So only what the system says and the name of the file are shown, or the kind of the error
and its place in the program; the whole traceback comes with ``MIRRORKEEP_DEBUG=1``.

Not here: errors of the one tree (``mirrorkeep.errors``), which say themselves what they mean.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Final

from mirrorkeep.errors import MirrorkeepError, SystemFailure
from mirrorkeep.tree.local_errors import explain, is_full

DEBUG: Final = "MIRRORKEEP_DEBUG"
_TERMINATED: Final = b"mirrorkeep: ended by SIGTERM; what was committed is kept\n"


def system_failure(error: OSError) -> SystemFailure:
    """Return the one line for an error of the system that nobody gave a meaning."""
    _show_traceback()
    if error.filename is not None:
        name: object = os.fsencode(error.filename) if isinstance(error.filename, str) else error.filename
    else:
        name = "standard output" if _is_of_stdout(error) else None
    return SystemFailure(detail=explain(error, name))


def say_when_terminated() -> None:
    """Have this process say that SIGTERM ended it, and end by that signal as it would have.

    Nothing is tidied up: what a run leaves when it is cut off, the next one takes up.
    """
    process = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() == process:  # not in workers, which inherit this
            with contextlib.suppress(OSError):
                os.write(2, _TERMINATED)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with contextlib.suppress(ValueError):  # another thread than the main one: a program's, not a command's
        signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def files_in(folder: str) -> Iterator[None]:
    """Have a full disk named by ``folder``, where everything lies that is written inside the block."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or not is_full(error) or _is_of_stdout(error):
            raise
        raise SystemFailure(detail=explain(error, os.fsencode(folder))) from error


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
    # What was buffered is written at the end, by the main program, whichever way that was started.
    return is_full(error) and modules[-1].startswith(("click.", "mirrorkeep.cli.", "__main__"))


def _frames(error: Exception) -> list[FrameType]:
    """Return the frames that the error passed through, the innermost last."""
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append(step.tb_frame)
        step = step.tb_next
    return frames


def _show_traceback() -> None:
    if os.environ.get(DEBUG) == "1":
        import traceback  # a run that finds nothing changed shall not pay for it

        traceback.print_exc()
