"""Which entries belong to a tree: exclusion rules in gitignore syntax, and marked cache folders.

Rules are relative to the root of the tree.  What is excluded is not part of the tree at all: it is
removed from the mirror when it was there before.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mirrorkeep.errors import BadUsage
from mirrorkeep.tree.walk import Keep

if TYPE_CHECKING:
    from mirrorkeep.sync.gitignore import Excluded

CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def make_rules(patterns: Sequence[str], files: Sequence[str], *, caches: bool) -> Keep | None:
    """Return the rule for a tree, or None when everything belongs to it.

    Raises BadUsage for a pattern that makes no sense.
    """
    lines = [os.fsencode(pattern) for pattern in patterns]
    for name in files:
        with open(name, "rb") as stream:
            lines += stream.read().removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines and not caches:
        return None
    excluded = _compile(lines) if lines else None

    def keep(path: bytes, is_directory: bool, dir_fd: int) -> bool:
        if excluded is not None and excluded(path, is_directory):
            return False
        return not (caches and is_directory and _is_cache(path.rpartition(b"/")[2], dir_fd))

    return keep


def _compile(lines: list[bytes]) -> Excluded:
    from mirrorkeep.sync.gitignore import compile_patterns

    try:
        return compile_patterns(lines)
    except ValueError as error:
        raise BadUsage(detail=f"a pattern makes no sense: {error}") from error


def _is_cache(name: bytes, dir_fd: int) -> bool:
    """Say whether a directory has the tag.  Whose it is may make anything of that name: opening a FIFO would
    wait for a writer, and opening a device may do something."""
    try:
        folder = os.open(name, _OPEN_FOLDER, dir_fd=dir_fd)
        try:
            if not stat.S_ISREG(os.stat(CACHE_TAG, dir_fd=folder, follow_symlinks=False).st_mode):
                return False
            tag = os.open(CACHE_TAG, _OPEN_FILE, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            return os.read(tag, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
        finally:
            os.close(tag)
    except OSError:
        return False
