"""Storage that fails once: one storage call of this process raises, whichever module makes it.

Counted are the calls that ask something of a file system that is full or breaks: opening, writing (through
descriptors and through Python's own files), changing names, attributes and sizes, and flushing.  Child
processes are left alone.  Closing is not counted: it is not where Linux tells of errors.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

_NAMES = "open rename replace link symlink unlink mkdir rmdir mkfifo mknod"
_CONTENT = "write writev pwrite pwritev copy_file_range ftruncate truncate fsync fdatasync"
CALLS = (*_NAMES.split(), *_CONTENT.split(), "utime", "setxattr")
OWN_CALLS = ("flush_file_system", "exchange", "start_writing")
"""Calls of the C library that the product wraps, under whatever module has them."""


class FailingCalls:
    """Lets one storage call fail with ``number``; patched for as long as ``patch`` lasts."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        self.number = number
        self.error: BaseException | None = None
        self._left = 0
        self._process = os.getpid()
        for name in CALLS:
            patch.setattr(os, name, self._wrap(getattr(os, name)))
        patch.setattr(fcntl, "ioctl", self._wrap(fcntl.ioctl))
        failing_open = self._wrap_open(builtins.open)
        patch.setattr(builtins, "open", failing_open)
        patch.setattr(io, "open", failing_open)
        for module in [one for name, one in sys.modules.items() if name.startswith("mirrorkeep.")]:
            for name in OWN_CALLS:
                if name in vars(module):
                    patch.setattr(module, name, self._wrap(vars(module)[name]))

    def arm(self, call: int) -> None:
        """Let the ``call``-th storage call from now on fail."""
        self._left = call

    def disarm(self) -> bool:
        """Return whether the fault happened."""
        happened, self._left = self._left == 0, 0
        return happened

    def happens_in(self, action: Callable[[], object], call: int) -> bool:
        """Run ``action`` with its ``call``-th storage call failing; returns whether there was one.

        What it raised is in ``error``; anything but an error of ours or of the system goes through.
        """
        from mirrorkeep.errors import MirrorkeepError

        self.error = None
        self.arm(call)
        try:
            action()
        except (MirrorkeepError, OSError) as error:
            self.error = error
        finally:
            happened = self.disarm()
        return happened

    def _count(self) -> None:
        if self._left > 0 and os.getpid() == self._process:
            self._left -= 1
            if self._left == 0:
                raise OSError(self.number, os.strerror(self.number))

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **named: Any) -> Any:
            self._count()
            return call(*arguments, **named)

        return failing

    def _wrap_open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        count = self._count

        class File(io.FileIO):
            def write(self, data: Any) -> Any:
                count()
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                count()
                return super().truncate(size)

        def failing(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **named: Any) -> Any:
            binary = "b" in mode
            if not binary or not set(mode) & set("wxa+"):
                if isinstance(file, str | bytes | os.PathLike):
                    count()
                return call(file, mode, buffering, *arguments, **named)
            count()
            raw = File(file, mode, named.get("closefd", True), named.get("opener"))
            if buffering == 0:
                return raw
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return failing
