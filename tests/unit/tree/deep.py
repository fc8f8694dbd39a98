"""A folder in a folder in a folder: trees that are deeper than calls nest and paths are long."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = b"down"


def make_deep(top: Path, depth: int, name: bytes = NAME, files: tuple[bytes, ...] = (b"a", b"z")) -> int:
    """Make ``depth`` folders in one another, with ``files`` in each; returns how many entries."""
    top.mkdir(parents=True, exist_ok=True)
    with steps(top) as go:
        for level in range(depth):
            fd = go(b".")
            os.mkdir(name, dir_fd=fd)
            fd = go(name)
            for file in files:
                with open(os.open(file, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd), "wb") as stream:
                    stream.write(b"%d" % level)
    return depth * (1 + len(files))


@contextmanager
def steps(top: Path) -> Iterator[Callable[[bytes], int]]:
    """Yield a function that goes one folder on and returns its descriptor: no path is too long for it."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)

    def go(name: bytes) -> int:
        nonlocal here
        here, left = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here), here
        os.close(left)
        return here

    try:
        yield go
    finally:
        os.close(here)


def remove_deep(top: Path) -> None:
    """Remove what is below ``top``, which what tidies up after tests may not be able to."""
    subprocess.run(["rm", "-rf", "--", *map(str, top.iterdir())], check=False)


def descriptors() -> int:
    """Return how many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))
