"""The benchmark's input: trees and files of a known shape, the same for the same seed.

Small files: sizes are lognormal around 12.5 KB (1.25 GB for 100,000), about 30 files in a folder, folders up
to three deep; six in ten hold text that compresses, the others bytes that do not.  The large file is bytes
that do not compress.

Not here: what is done with them.  A crash leaves a part of a tree; the benchmark starts from a fresh one.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

FILES_IN_FOLDER = 30
MEAN_BYTES = 12_500
SIGMA = 1.0
LARGEST_BYTES = 400_000
TEXT_SHARE = 0.6
EDIT_BYTES = 4096
INSERTION_BYTES = 1000
BLOCK_BYTES = 1 << 20

TEXT = (
    "the of and to in is that it was for on are with as at be this have from or one had by word but not what"
    " all were we when your can said there use an each which she do how their if will up other about out many"
    " then them these so some her would make like him into time has look two more write go see number no way"
)


@dataclass(frozen=True)
class Shape:
    """How large the benchmark's input is."""

    files: int = 100_000
    large_bytes: int = 1 << 30
    changed_share: float = 0.01

    def tenth(self) -> Shape:
        return Shape(self.files // 10, self.large_bytes // 10, self.changed_share)


def _text_pool(rng: random.Random) -> bytes:
    words = TEXT.split()
    return " ".join(rng.choice(words) for _ in range(200_000)).encode()


def _paths(files: int) -> Iterator[tuple[str, bool]]:
    """Yield (relative path, is it text) of every file, folder by folder."""
    folders = max(1, files // FILES_IN_FOLDER)
    fan = max(2, math.ceil(folders ** (1 / 3)))
    for number in range(files):
        folder, within = divmod(number, FILES_IN_FOLDER)
        text = within < FILES_IN_FOLDER * TEXT_SHARE
        top, middle, low = folder // fan // fan, folder // fan % fan, folder % fan
        name = f"page{within:02}.txt" if text else f"image{within:02}.jpg"
        yield f"top{top:03}/middle{middle:03}/low{low:03}/{name}", text


def make_small_files(top: str, files: int, *, seed: int = 1, mean_bytes: int = MEAN_BYTES) -> int:
    """Write ``files`` small files below ``top`` and return their bytes in all."""
    rng = random.Random(seed)
    text, noise = _text_pool(rng), rng.randbytes(8 << 20)
    mu = math.log(mean_bytes) - SIGMA**2 / 2
    total, made = 0, ""
    for path, is_text in _paths(files):
        folder = os.path.dirname(path)
        if folder != made:
            os.makedirs(os.path.join(top, folder), exist_ok=True)
            made = folder
        size = min(LARGEST_BYTES, int(rng.lognormvariate(mu, SIGMA)))
        pool = text if is_text else noise
        start = rng.randrange(len(pool) - size)
        with open(os.path.join(top, path), "wb", buffering=0) as stream:
            stream.write(pool[start : start + size])
        total += size
    return total


def change_small_files(top: str, files: int, share: float, *, seed: int) -> int:
    """Rewrite a random ``share`` of the files with other bytes of the same size; return how many."""
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(files), max(1, int(files * share))))
    paths = [path for path, _ in _paths(files)]
    for number in chosen:
        path = os.path.join(top, paths[number])
        size = os.path.getsize(path)
        with open(path, "r+b", buffering=0) as stream:
            stream.write(rng.randbytes(size))
    return len(chosen)


def make_large_file(path: str, size_bytes: int, *, seed: int = 2) -> None:
    """Write a file of ``size_bytes`` that does not compress."""
    rng = random.Random(seed)
    with open(path, "wb", buffering=0) as stream:
        left = size_bytes
        while left:
            left -= stream.write(rng.randbytes(min(left, BLOCK_BYTES)))


def edit_large_file(path: str, share: float, *, seed: int) -> None:
    """Overwrite ``share`` of the file's 4 KiB blocks at random, and insert 1,000 bytes in its middle.

    The file is written anew, as most programs do, so its inode changes.
    """
    rng = random.Random(seed)
    size = os.path.getsize(path)
    blocks = size // EDIT_BYTES
    edits = set(rng.sample(range(blocks), max(1, int(blocks * share))))
    middle = size // 2 // BLOCK_BYTES * BLOCK_BYTES
    edited = path + ".edited"
    with open(path, "rb", buffering=0) as old, open(edited, "wb", buffering=0) as new:
        offset = 0
        while chunk := bytearray(old.read(BLOCK_BYTES)):
            for block in range(offset // EDIT_BYTES, (offset + len(chunk)) // EDIT_BYTES):
                if block in edits:
                    at = block * EDIT_BYTES - offset
                    chunk[at : at + EDIT_BYTES] = rng.randbytes(EDIT_BYTES)
            if offset == middle:
                new.write(rng.randbytes(INSERTION_BYTES))
            new.write(chunk)
            offset += len(chunk)
    os.replace(edited, path)


def warm(top: str) -> None:
    """Read everything once, so that no tool is the first to touch the disk."""
    for folder, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as stream:
                while stream.read(BLOCK_BYTES):
                    pass
