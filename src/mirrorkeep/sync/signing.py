"""Signatures of large files, made after the run, off its critical path (design section 4).

A child process of low priority reads what was uploaded once more and keeps its block signatures for
the next run.  It holds a lock while it works, so that a run that follows at once waits for it rather
than fetching a signature from the store.  Killing it costs the next run that fetch, nothing else.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from typing import Final

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.delta.signature import sign_file
from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.tree.native import NativeTree

NICE: Final = 5
PATIENCE_S: Final = 120.0


def wait_for_signatures(directory: str) -> None:
    """Return when nobody is making signatures in ``directory``, or patience ends."""
    try:
        fd = os.open(os.path.join(directory, "making"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.02)
    finally:
        os.close(fd)


def make_signatures(tree: NativeTree, directory: str, lines: Iterable[bytes]) -> None:
    """Make and keep the signatures of the files of these records, where they are still as recorded."""
    cache = SignatureCache(directory)
    for line in lines:
        record = parse_record(line, check=False)
        try:
            fd = tree.open_content(record.path)
        except MirrorkeepError:
            continue
        try:
            status = os.fstat(fd)
            if (status.st_size, status.st_mtime_ns) != (record.size, record.mtime_ns):
                continue
            signed = sign_file(fd, record.size)
            if tree.settled(status, fd):
                cache.save(
                    record.path,
                    record.hash,
                    signed.signature,
                    base_bytes=signed.size_bytes,
                    outline=signed.outline,
                )
        except (MirrorkeepError, OSError):
            continue
        finally:
            os.close(fd)


def make_signatures_behind(tree: NativeTree, directory: str, lines: list[bytes]) -> None:
    """Fork a process that makes the signatures; returns at once."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    making = os.open(os.path.join(directory, "making"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(making, fcntl.LOCK_EX)
    if os.fork():
        os.close(making)
        return
    try:
        os.setsid()
        os.nice(NICE)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        _close_others(making)
        make_signatures(tree, directory, lines)
    finally:
        os._exit(0)


def _close_others(keep: int) -> None:
    """Close every inherited descriptor (the state's lock among them) but the standard ones and ``keep``."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                continue
