"""Which entries belong to a tree: exclusion rules in gitignore syntax, and marked cache folders.

Rules are relative to the root of the tree.  What is excluded is not part of the tree at all: it is
removed from the mirror when it was there before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mirrorkeep.errors import BadUsage
from mirrorkeep.tree.walk import Keep

CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


def make_rules(
    root: str | bytes, patterns: Sequence[str], files: Sequence[str], *, caches: bool
) -> Keep | None:
    """Return the rule for a tree, or None when everything belongs to it.

    Raises BadUsage for a pattern that makes no sense.
    """
    lines = list(patterns)
    for name in files:
        with open(name, encoding="utf-8", errors="surrogateescape") as stream:
            lines += stream.read().splitlines()
    if not lines and not caches:
        return None
    top = os.fsencode(root)
    excluded = _compile(lines) if lines else None

    def keep(path: bytes, is_directory: bool) -> bool:
        if excluded is not None:
            text = os.fsdecode(path)
            if excluded(text + "/" if is_directory else text):
                return False
        return not (caches and is_directory and _is_cache(os.path.join(top, path)))

    return keep


def _compile(lines: list[str]):  # type: ignore[no-untyped-def]
    import pathspec

    try:
        spec = pathspec.GitIgnoreSpec.from_lines(lines)
    except Exception as error:
        raise BadUsage(detail=f"a pattern makes no sense: {error}") from error
    return spec.match_file


def _is_cache(folder: bytes) -> bool:
    try:
        with open(os.path.join(folder, CACHE_TAG), "rb") as tag:
            return tag.read(len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
    except OSError:
        return False
