"""Calls of the operating system that drivers share: exchange names, run a tool, name a failure.

Answers for: turning the errno of a storage call into the one error tree.  Not here: anything that belongs
to one kind of storage.  Nothing is kept; a crash leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from mirrorkeep.errors import AlreadyExists, EngineMissing, NoSpace, NotFound, StorageFailure

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_TOOL_PATH: Final = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Translate OSError of calls about ``path`` into NoSpace, AlreadyExists, NotFound, StorageFailure."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: str) -> NoSpace | AlreadyExists | NotFound | StorageFailure:
    """Return the error that ``error`` about ``path`` means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(detail=path)
    if error.errno == errno.EEXIST:
        return AlreadyExists(what=path)
    if error.errno == errno.ENOENT:
        return NotFound(what=path)
    return StorageFailure(detail=f"{path}: {error.strerror or error}")


def exchange(one: str, other: str) -> None:
    """Exchange what two names of one file system stand for, atomically.  Raises OSError."""
    if _LIBC.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_folder(path: str, mode: int = 0o755) -> None:
    """Make a directory with its missing parents, each with ``mode`` whatever the mask.  Raises OSError."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        make_folder(parent, mode)
    with suppress(FileExistsError):
        os.mkdir(path, mode & 0o777)


def find_tool(name: str) -> str | None:
    """Return the tool's path; the administrators' folders count although a user's PATH lacks them."""
    return shutil.which(name, path=_TOOL_PATH)


def run_tool(*arguments: str) -> str:
    """Run a tool to its end and return its output.  Raises EngineMissing, StorageFailure."""
    tool = find_tool(arguments[0])
    if tool is None:
        raise EngineMissing(what=arguments[0], remedy=f"install the package that has {arguments[0]}")
    done = subprocess.run([tool, *arguments[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        detail = said[-1] if said else f"exit status {done.returncode}"
        if "No space left" in done.stderr:
            raise NoSpace(detail=f"{arguments[0]}: {detail}")
        raise StorageFailure(detail=f"{arguments[0]}: {detail}")
    return done.stdout
