"""What validation found: the findings file of one validation, and the patch that makes the next run repair.

Answers for two files.  *Findings*: one JSON object a line, ``{"path","kind","detail"}``, ASCII, bytes that
are not UTF-8 as lone surrogates, in manifest order; its SHA-256 stands in the verdict.  *Patch*: a partial
manifest of what the mirror really has, merged over the client's manifest by the next run, whose compare
then repairs exactly these entries (MAN-50).  The patch accumulates: newer records win over older ones.

A crash leaves: of a findings file a ``*.partial`` that the repeated validation goes on with; of a patch the
old one, whole.

Not here: looking for differences (``examine``), when a patch is taken and cleared (``runs``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import path_of
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.compare import pair
from mirrorkeep.tree.durability import flush_directory

EMPTY_DIGEST: Final = hashlib.sha256(b"").hexdigest()

PATCH_HEADER: Final[Mapping[bytes, bytes]] = {b"partial": b"1", b"purpose": b"patch"}


def finding_line(path: bytes, kind: str, detail: str) -> bytes:
    """Return one line of a findings file, newline included."""
    return json.dumps(finding_row(path, kind, detail), ensure_ascii=True).encode("ascii") + b"\n"


def finding_row(path: bytes, kind: str, detail: str) -> dict[str, str]:
    """Return a finding as clients see it."""
    return {"path": path.decode("utf-8", "surrogateescape"), "kind": kind, "detail": detail}


def unknown_record(path: bytes) -> bytes:
    """Return the patch's line for an entry whose state in the mirror is not to be trusted."""
    return format_record(path, {keys.TYPE: keys.UNKNOWN})


def absent_record(path: bytes) -> bytes:
    """Return the patch's line for an entry that the mirror has lost."""
    return format_record(path, {keys.TYPE: keys.ABSENT})


class FindingsFile:
    """The findings of one validation in the making; lines are appended in manifest order."""

    def __init__(self, path: str, *, resume_bytes: int = 0) -> None:
        """Open ``path``.partial, kept up to ``resume_bytes`` (what a checkpoint vouches for)."""
        self.path = path
        self._partial = f"{path}.partial"
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._fd, resume_bytes)
        self.count, self._digest = 0, hashlib.sha256()
        offset = 0
        while block := os.pread(self._fd, 1 << 20, offset):
            offset += len(block)
            self._digest.update(block)
            self.count += block.count(b"\n")
        self.size_bytes = offset

    def add(self, path: bytes, kind: str, detail: str) -> None:
        """Append one finding."""
        line = finding_line(path, kind, detail)
        left, offset = memoryview(line), self.size_bytes
        while left:  # a disk that is nearly full takes a part
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written
        self._digest.update(line)
        self.size_bytes += len(line)
        self.count += 1

    @property
    def digest(self) -> str:
        """SHA-256 of the lines so far."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Make the lines so far durable."""
        os.fsync(self._fd)

    def publish(self) -> None:
        """Give the file its name, durably."""
        os.fsync(self._fd)
        os.rename(self._partial, self.path)
        flush_directory(os.path.dirname(self.path))

    def close(self) -> None:
        """Close the descriptor; what was not published stays for a repeated validation."""
        os.close(self._fd)


def partial_bytes(path: str) -> int:
    """Return the size of a findings file in the making; 0 when there is none."""
    try:
        return os.stat(f"{path}.partial").st_size
    except FileNotFoundError:
        return 0


def publish_newest(path: str, newest: str) -> None:
    """Make ``newest`` another name of the findings file ``path``, durably; atomic and repeatable."""
    link = f"{newest}.link"
    if os.path.lexists(link):
        os.unlink(link)
    os.link(path, link)
    os.rename(link, newest)
    if os.path.lexists(link):  # both were the same file already, then rename leaves both
        os.unlink(link)
    flush_directory(os.path.dirname(newest))


def read_findings(path: str) -> Iterator[dict[str, str]]:
    """Yield the findings of a file."""
    with open(path, "rb") as stream:
        for line in stream:
            yield json.loads(line)


# --- the patch ---------------------------------------------------------------------------------


def patch_path(directory: str) -> str:
    """Return where the patch of the part in ``directory`` lies, when there is one."""
    return f"{directory}/patch"


def partial_lines(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield ``(entry path, line)`` of a partial manifest, in order; nothing when there is none."""
    try:
        stream = open(path, "rb")
    except FileNotFoundError:
        return
    with stream:
        for _, line in ManifestReader(stream, partial=True).lines():
            yield path_of(line), line


def overlay(path: str, fresh: Iterable[bytes]) -> int:
    """Merge lines (manifest order, one an entry) over the partial manifest at ``path``; the newer wins.

    Returns the entries it then has.  Atomic and durable: all of them, or the old file stands (OSError).
    """
    both = pair(partial_lines(path), ((path_of(line), line) for line in fresh))
    return write_partial(path, (one.actual or one.expected or b"" for one in both))


def write_partial(path: str, lines: Iterable[bytes]) -> int:
    """Replace the partial manifest at ``path`` by ``lines`` (manifest order); no lines, no file."""
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as stream:
        writer = ManifestWriter(stream, PATCH_HEADER)
        for line in lines:
            writer.add(line)
        summary = writer.finish()
        stream.flush()
        os.fsync(stream.fileno())
    if summary.entries:
        os.rename(temporary, path)
    else:
        os.unlink(temporary)
        if os.path.exists(path):
            os.unlink(path)
    flush_directory(os.path.dirname(path))
    return summary.entries


def add_to_patch(directory: str, lines: Iterable[bytes], wiped: Iterable[bytes] | None = None) -> int:
    """Merge record lines (manifest order, one an entry) into the part's patch; return its entries.

    With ``wiped``, lines for every entry of the manifest, these come first: nothing old is kept.
    """
    path = patch_path(directory)
    with patch_lock(directory):
        if wiped is not None:
            write_partial(path, wiped)
        return overlay(path, lines)


@contextmanager
def patch_lock(directory: str) -> Iterator[None]:
    """Hold other processes off the patch of a part: merging, taking and clearing exclude each other."""
    fd = os.open(f"{directory}/patch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
