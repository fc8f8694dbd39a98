"""Which entries belong to a tree: exclusion rules in gitignore syntax, and marked cache folders.

Rules are relative to the root of the tree.  What is excluded is not part of the tree at all: it is
removed from the mirror when it was there before.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

from mirrorkeep.errors import BadUsage
from mirrorkeep.tree.walk import Keep

CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def make_rules(patterns: Sequence[str], files: Sequence[str], *, caches: bool) -> Keep | None:
    """Return the rule for a tree, or None when everything belongs to it.

    Raises BadUsage for a pattern that makes no sense.
    """
    lines = list(patterns)
    for name in files:
        with open(name, encoding="utf-8", errors="surrogateescape") as stream:
            lines += stream.read().splitlines()
    if not lines and not caches:
        return None
    excluded = _compile(lines) if lines else None

    def keep(path: bytes, is_directory: bool, dir_fd: int) -> bool:
        if excluded is not None:
            text = os.fsdecode(path)
            if excluded(text + "/" if is_directory else text):
                return False
        return not (caches and is_directory and _is_cache(path.rpartition(b"/")[2], dir_fd))

    return keep


def _compile(lines: list[str]):  # type: ignore[no-untyped-def]
    import pathspec

    try:
        spec = pathspec.GitIgnoreSpec.from_lines(lines)
    except Exception as error:
        raise BadUsage(detail=f"a pattern makes no sense: {error}") from error
    return spec.match_file


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
