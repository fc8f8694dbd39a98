"""Random trees, and random changes of them: what a source may look like from one run to the next.

A change is drawn as plain data (:data:`changes`) and carried out by :class:`Tree`, so that a failing example
reads as the list of what was done.  A change that makes no sense where the tree stands is passed over.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st

from mirrorkeep.delta.segments import SEGMENT_BYTES
from mirrorkeep.tree.metadata.acl import ACCESS_XATTR, DEFAULT_XATTR, acl_from_text
from mirrorkeep.tree.wire import SMALL_FILE_BYTES

NAMES = (
    b"a",
    b"b",
    b"c",
    b"log",
    b"log.1",
    b"log.2",
    b"new\nline",
    b"\xff\xfe",
    b"a,b=c&d;%2F",
    b"=",
    b"x" * 255,
)
HIDDEN = b".mirrorkeep"
"""A name of the source that a store has to keep under another."""
SIZES = st.sampled_from((0, 1, 100, 5_000, 70_000))
LARGE_SIZES = st.one_of(
    st.sampled_from([SMALL_FILE_BYTES + more for more in (-1, 0, 1)]),
    st.sampled_from([SEGMENT_BYTES + more for more in (-1, 0, 1)]),
    st.integers(SMALL_FILE_BYTES + 1, 25_000_000),
)
"""Around the size from which on a file travels by itself, around a segment of it, and up to three of them."""
LARGE_FILES = 2
"""So many large files a list of changes writes at most: they are what takes time."""
SEEDS = st.integers(0, 1_000_000)
OWNERS = st.sampled_from((0, 1, 1000, 65_534, 2**32 - 2))
FAR_TIMES = st.sampled_from((-1, -(10**9), -50 * 365 * 86_400 * 10**9 + 7, 2**63 - 1, 2**63, 9 * 10**18 + 5))
"""Nanoseconds since 1970: before it, as far as 63 bits go and beyond, and years that are still to come."""
TIMES = st.one_of(st.integers(0, 2**31 * 10**9), FAR_TIMES)
SPANS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), max_size=4)
"""Where a sparse file has data: first block of 4 KiB and how many."""

ACCESS_LISTS = ("u::rwx;u:1000:rw-;g::r-x;m::rwx;o::r--", "u::r-x;u:1000:rwx;g::---;m::rwx;o::---")
FEW = st.sampled_from((b"a", b"b", b"c"))

BLOCK = 4096

Change = tuple[object, ...]


def lists_of_changes(names: Sequence[bytes]) -> st.SearchStrategy[list[Change]]:
    """Return lists of changes to paths of these names."""
    paths = st.lists(st.sampled_from(names), min_size=1, max_size=3).map(b"/".join)
    one = st.one_of(
        st.tuples(st.just("write"), paths, SIZES, SEEDS),
        st.tuples(st.just("write"), paths, SIZES, SEEDS),
        st.tuples(st.just("edit"), paths, SEEDS),
        st.tuples(st.just("folder"), paths),
        st.tuples(st.just("link"), paths, paths),
        st.tuples(st.just("fifo"), paths),
        st.tuples(st.just("same"), paths, paths),
        st.tuples(st.just("rename"), paths, paths),
        st.tuples(st.just("rename"), paths, paths),
        st.tuples(st.just("swap"), paths, paths),
        st.tuples(st.just("rotate"), paths),
        st.tuples(st.just("remove"), paths),
        st.tuples(st.just("mode"), paths, st.sampled_from((0o600, 0o644, 0o755, 0o700))),
        st.tuples(st.just("time"), paths, TIMES),
        st.tuples(st.just("attribute"), paths, st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("own"), paths, OWNERS, OWNERS),
        st.tuples(st.just("sparse"), paths, SPANS, st.integers(0, 2_000_000), SEEDS),
        st.tuples(st.just("resize"), paths, SIZES),
    )
    return with_large_files(st.lists(one, max_size=14))


@st.composite
def with_large_files(draw: st.DrawFn, ordinary: st.SearchStrategy[list[Change]]) -> list[Change]:
    """Return changes with, in one list of four, some of large files between them."""
    made = list(draw(ordinary))
    if draw(st.integers(0, 3)) == 3:
        for change in draw(st.lists(LARGE_CHANGES, min_size=1, max_size=5).filter(_has_few_large_files)):
            made.insert(draw(st.integers(0, len(made))), change)
    return made


def _has_few_large_files(some: list[Change]) -> bool:
    return sum(change[0] == "write" for change in some) <= LARGE_FILES


LARGE_CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.just("write"), FEW, LARGE_SIZES, SEEDS),
    st.tuples(st.just("write"), FEW, LARGE_SIZES, SEEDS),
    st.tuples(st.just("edit"), FEW, SEEDS),
    st.tuples(st.just("insert"), FEW, SEEDS),
    st.tuples(st.just("resize"), FEW, LARGE_SIZES),
    st.tuples(st.just("rename"), FEW, FEW),
    st.tuples(st.just("swap"), FEW, FEW),
    st.tuples(st.just("same"), FEW, FEW),
    st.tuples(st.just("again"), FEW, FEW),
    st.tuples(st.just("sparse"), FEW, SPANS, LARGE_SIZES, SEEDS),
)
"""Large files under few names, so that they meet each other, and what is done to them."""

rights = st.lists(
    st.one_of(
        st.tuples(st.just("write"), FEW, st.just(100), st.just(0)),
        st.tuples(st.just("folder"), FEW),
        st.tuples(st.just("same"), FEW, FEW),
        st.tuples(st.just("again"), FEW, FEW),
        st.tuples(st.just("rename"), FEW, FEW),
        st.tuples(st.just("mode"), FEW, st.sampled_from((0o600, 0o644))),
        st.tuples(st.just("attribute"), FEW, st.sampled_from((b"one", b"two"))),
        st.tuples(st.just("access"), FEW, st.sampled_from(ACCESS_LISTS), st.booleans()),
        st.tuples(st.just("bare"), FEW),
        st.tuples(st.just("own"), FEW, OWNERS, OWNERS),
        st.tuples(st.just("time"), FEW, FAR_TIMES),
    ),
    max_size=10,
)
"""Changes of names and metadata where all files have one content."""

changes = lists_of_changes((*NAMES, HIDDEN))
changes_without_hidden = lists_of_changes(NAMES)


class Tree:
    """A directory that changes are carried out in."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        os.mkdir(self.root)

    def change(self, what: list[Change]) -> None:
        """Carry out changes in order."""
        for verb, *arguments in what:
            with suppress(OSError):
                getattr(self, f"do_{verb}")(*arguments)

    def place(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def is_file(self, path: bytes) -> bool:
        return os.path.isfile(self.place(path)) and not os.path.islink(self.place(path))

    def clear(self, path: bytes) -> bytes:
        """Return the place of ``path`` with nothing there, and folders all the way to it."""
        parent = self.root
        for name in path.split(b"/")[:-1]:
            parent = os.path.join(parent, name)
            if not os.path.isdir(parent) or os.path.islink(parent):
                with suppress(FileNotFoundError):
                    os.unlink(parent)
                os.mkdir(parent)
        self.do_remove(path)
        return self.place(path)

    def do_write(self, path: bytes, size: int, seed: int) -> None:
        with open(self.clear(path), "wb") as stream:
            stream.write(random.Random(seed).randbytes(size))

    def do_edit(self, path: bytes, seed: int) -> None:
        """Write over a few bytes, or behind the end."""
        if self.is_file(path):
            with open(self.place(path), "r+b") as stream:
                stream.seek(seed * 31 % max(3000, os.path.getsize(self.place(path))))
                stream.write(b"edited %d" % seed)

    def do_insert(self, path: bytes, seed: int) -> None:
        """Put a few bytes in between, in place: what follows moves on."""
        if self.is_file(path):
            with open(self.place(path), "r+b") as stream:
                stream.seek(seed * 31 % max(1, os.path.getsize(self.place(path))))
                rest = stream.read()
                stream.seek(-len(rest), os.SEEK_CUR)
                stream.write(b"inserted %d" % seed + rest)

    def do_resize(self, path: bytes, size: int) -> None:
        """Cut a file off, or have it end with a hole."""
        if self.is_file(path):
            os.truncate(self.place(path), size)

    def do_sparse(self, path: bytes, spans: list[tuple[int, int]], size: int, seed: int) -> None:
        with open(self.clear(path), "wb") as stream:
            for start, blocks in spans:
                stream.seek(start * BLOCK)
                stream.write(random.Random(seed + start).randbytes(blocks * BLOCK))
            stream.truncate(size)

    def do_folder(self, path: bytes) -> None:
        os.mkdir(self.clear(path))

    def do_link(self, path: bytes, target: bytes) -> None:
        os.symlink(target, self.clear(path))

    def do_fifo(self, path: bytes) -> None:
        os.mkfifo(self.clear(path))

    def do_same(self, path: bytes, other: bytes) -> None:
        if path != other and not os.path.isdir(self.place(path)) and os.path.lexists(self.place(path)):
            keep = self.place(b"kept")
            os.link(self.place(path), keep, follow_symlinks=False)
            place = self.clear(other)
            os.rename(keep, place)

    def do_rename(self, path: bytes, other: bytes) -> None:
        if path != other and os.path.lexists(self.place(path)):
            os.rename(self.place(path), self.place(b"kept"))
            os.rename(self.place(b"kept"), self.clear(other))

    def do_swap(self, path: bytes, other: bytes) -> None:
        one, two, kept = self.place(path), self.place(other), self.place(b"kept")
        if os.path.lexists(one) and os.path.lexists(two) and not _nested(path, other):
            os.rename(one, kept)
            os.rename(two, one)
            os.rename(kept, two)

    def do_rotate(self, path: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        log = os.path.join(self.place(parent), b"log")
        with suppress(OSError):
            os.rename(log + b".1", log + b".2")
        with suppress(OSError):
            os.rename(log, log + b".1")
        with open(log, "xb") as stream:  # what would not make way may be a FIFO that nobody reads
            stream.write(b"fresh" * 10)

    def do_remove(self, path: bytes) -> None:
        place = self.place(path)
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place)
        else:
            with suppress(FileNotFoundError):
                os.unlink(place)

    def do_mode(self, path: bytes, mode: int) -> None:
        if not os.path.islink(self.place(path)):
            os.chmod(self.place(path), mode)

    def do_time(self, path: bytes, time_ns: int) -> None:
        os.utime(self.place(path), ns=(time_ns, time_ns), follow_symlinks=False)

    def do_own(self, path: bytes, user: int, group: int) -> None:
        os.chown(self.place(path), user, group, follow_symlinks=False)

    def do_attribute(self, path: bytes, value: bytes) -> None:
        os.setxattr(self.place(path), b"user.note", value, follow_symlinks=False)

    def do_access(self, path: bytes, text: str, inherited: bool) -> None:
        name = DEFAULT_XATTR if inherited else ACCESS_XATTR
        os.setxattr(self.place(path), name, acl_from_text(text.encode()), follow_symlinks=False)

    def do_bare(self, path: bytes) -> None:
        for name in os.listxattr(self.place(path), follow_symlinks=False):
            os.removexattr(self.place(path), name, follow_symlinks=False)

    def do_again(self, path: bytes, other: bytes) -> None:
        """Make a file of its own with the same content."""
        if path != other and self.is_file(path):
            keep = self.place(b"kept")
            shutil.copyfile(self.place(path), keep)
            os.chmod(keep, 0o600)
            os.rename(keep, self.clear(other))


def _nested(one: bytes, other: bytes) -> bool:
    return (one + b"/").startswith(other + b"/") or (other + b"/").startswith(one + b"/")
