"""Time one command: wall seconds, CPU seconds, peak memory of the client and of the server's processes.

Memory is the high-water mark (``VmHWM``) of the largest single process, sampled for every process of the
client and below the server's pids while the command runs, so that workers, and servers which fork for each
connection, are seen too.  (The kernel's ``ru_maxrss`` would do for the client, but it starts at the size of
the process that forked it.)
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rig.served import descendants, peak_memory_bytes

SAMPLE_EVERY_S = 0.1


class CommandFailed(RuntimeError):
    """A measured command did not succeed; its last words are the message."""


@dataclass
class Measured:
    """One execution of one command."""

    seconds: float
    cpu_s: float = 0.0
    client_peak_bytes: int = 0
    server_peak_bytes: int = 0
    sent_bytes: int | None = None
    link_share: float | None = None
    """Content per second as a share of a slow link's rate, where there was one."""
    output: str = ""


@dataclass
class _Sampler:
    """Watch the processes of client and servers until stopped."""

    client: int
    servers: Sequence[int]
    every_s: float
    client_peak_bytes: int = 0
    server_peak_bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while True:
            self.client_peak_bytes = max(self.client_peak_bytes, _largest([self.client]))
            self.server_peak_bytes = max(self.server_peak_bytes, _largest(self.servers))
            if self._stop.wait(self.every_s):
                return

    def stop(self) -> None:
        self._stop.set()


def _largest(tops: Sequence[int]) -> int:
    return max((peak_memory_bytes(pid) for top in tops for pid in descendants(top)), default=0)


def touch_memory(size_bytes: int) -> None:
    """Use so much memory once and give it back, in a process of its own.

    A virtual machine is given memory by its host when it first touches it, which can take seconds a gigabyte:
    without this the first tool to fill the page cache would pay for all that come after it.
    """
    script = (
        "import mmap, sys\n"
        "size, step = int(sys.argv[1]), 1 << 20\n"
        "memory, zeros = mmap.mmap(-1, size), bytes(step)\n"
        "for place in range(0, size - step, step):\n"
        "    memory[place : place + step] = zeros\n"
    )
    subprocess.run([sys.executable, "-c", script, str(size_bytes)], check=True)


def spare_memory_bytes() -> int:
    """Return what may be used at once without taking it from anything."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        for row in stream:
            if row.startswith("MemFree:"):
                return int(row.split()[1]) * 1024
    return 0


def measure(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    servers: Sequence[int] = (),
    output: Path,
    accept: tuple[int, ...] = (0,),
    sample_every_s: float = SAMPLE_EVERY_S,
) -> Measured:
    """Run ``argv`` to its end; raises CommandFailed when its exit status is not in ``accept``.

    ``output`` is a file for what it prints (a pipe would need a reader that takes CPU time).  A command
    that takes a few tenths of a second needs its memory looked at more often than others.
    """
    with output.open("wb") as stream:
        began = time.monotonic()
        process = subprocess.Popen(
            argv,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        sampler = _Sampler(process.pid, servers, sample_every_s)
        watcher = threading.Thread(target=sampler.run, daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    sampler.stop()
    watcher.join()
    said = output.read_text(encoding="utf-8", errors="replace")
    if process.returncode not in accept:
        raise CommandFailed(f"{' '.join(argv)}: exit {process.returncode}: {said[-2000:]}")
    return Measured(
        seconds=seconds,
        cpu_s=usage.ru_utime + usage.ru_stime,
        client_peak_bytes=sampler.client_peak_bytes,
        server_peak_bytes=sampler.server_peak_bytes,
        output=said,
    )
