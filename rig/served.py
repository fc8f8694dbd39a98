"""A store served by a child process on a free port of loopback, through the command line alone.

Answers for: making a store, starting and ending ``mirrorkeep store serve``, running other commands with
the right credentials, and the memory of the server's processes.  The child ends by its own pid: politely,
then not; it also ends when this process dies, and when its time is up.

Not here: anything that imports the product.  A crash of this process leaves the pool's mount and loop
device behind; :func:`rig.scratch.release` of the data folder takes them away.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_SCRIPT = Path(sys.executable).with_name("mirrorkeep")
COMMAND = (
    (str(_SCRIPT),)
    if _SCRIPT.exists()
    else (sys.executable, "-c", "from mirrorkeep.cli.main import main; main()")
)
"""The installed command; in an environment without it, the same entry point."""
END_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")


class ServedError(RuntimeError):
    """A command or the server failed; what it said is the message."""


@dataclass(frozen=True)
class Result:
    """How one command ended: its exit status, its output, what it wrote to stderr, how long it took."""

    status: int
    output: str
    errors: str
    seconds: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the JSON objects of ``--json`` output, one a line."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    @property
    def last(self) -> dict[str, Any]:
        """Return the last JSON object; raises ServedError when there is none."""
        rows = self.rows
        if not rows:
            raise ServedError(f"no JSON in the output (exit {self.status}): {self.output}{self.errors}")
        return rows[-1]


@dataclass(frozen=True)
class Volume:
    """What ``volume create`` answered: where to sync to, and with what credentials."""

    name: str
    url: str
    token: str
    ca: str

    @property
    def environment(self) -> dict[str, str]:
        state = f"{Path(self.ca).parents[1]}.state"  # a port comes again, and with it another store's key
        return {"MIRRORKEEP_TOKEN": self.token, "MIRRORKEEP_CA": self.ca, "MIRRORKEEP_STATE": state}


_ports: list[socket.socket] = []
"""What marks this process's ports as taken, until it ends."""


def free_port() -> int:
    """Return a port of loopback that is this process's alone among those that ask here.

    Below those that the system gives to connections of its own, so that a server can come back to its port.
    """
    for _ in range(1000):
        port = random.SystemRandom().randrange(12_000, 32_000)
        mark = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                mark.bind(f"\0mirrorkeep-rig-port-{port}")
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            except OSError:
                mark.close()
                continue
        _ports.append(mark)
        return port
    raise ServedError("no port of loopback is free")


def command(
    *argv: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    under: Sequence[str] = (),
) -> Result:
    """Run one ``mirrorkeep`` command to its end; raises subprocess.TimeoutExpired after ``timeout_s``.

    ``under`` is a command that runs it (``strace``, ``prlimit``).
    """
    began = time.monotonic()
    done = subprocess.run(
        [*END_WITH_PARENT, *under, *COMMAND, *argv],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def checked(
    *argv: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    under: Sequence[str] = (),
) -> Result:
    """Run one command that has to succeed; raises ServedError with what it said otherwise."""
    result = command(*argv, environment=environment, timeout_s=timeout_s, under=under)
    if result.status:
        raise ServedError(
            f"mirrorkeep {' '.join(argv)}: exit {result.status}: {result.errors}{result.output}"
        )
    return result


@dataclass
class Served:
    """A store in ``data``; ``start`` and ``stop`` as often as wanted, also after ``kill``."""

    data: Path
    driver: str = "auto"
    size: str | None = None
    workers: int = 2
    limit_s: float = 600
    """The server is killed after this time, whatever happens."""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    _timer: threading.Timer | None = None

    def create(self) -> None:
        """Make the store (``store init``)."""
        size = ["--size", self.size] if self.size else []
        checked("store", "init", str(self.data), "--driver", self.driver, *size, timeout_s=120)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.data.parent / f"{self.data.name}.serve.log"

    def start(self, *, within_s: float = 90) -> float:
        """Serve, and return after how many seconds connections were accepted; raises ServedError."""
        began = time.monotonic()
        argv = ["store", "serve", str(self.data), "--listen", f"127.0.0.1:{self.port}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*END_WITH_PARENT, *COMMAND, *argv, "--workers", str(self.workers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._timer = threading.Timer(self.limit_s, self._end_overdue, [self.process])
        self._timer.daemon = True
        self._timer.start()
        self._await_listening(began + within_s)
        return time.monotonic() - began

    def _end_overdue(self, process: subprocess.Popen[bytes]) -> None:
        with self.log.open("a") as log:
            log.write(f"killed: a server of a test lives {self.limit_s:g} s (limit_s)\n")
        process.kill()

    def _await_listening(self, deadline: float) -> None:
        process = self.process
        assert process is not None and process.stdout is not None
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"listening https://" not in said:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or process.poll() is not None:
                    self.kill()
                    raise ServedError(f"the server did not start: {said.decode()} {self.last_words()}")
                if selector.select(min(left_s, 0.5)):
                    said += os.read(process.stdout.fileno(), 4096)
        # Whatever else it prints must not fill the pipe.
        threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()

    def last_words(self) -> str:
        """Return the end of what the server wrote to stderr."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    @property
    def pids(self) -> list[int]:
        """Return the server's processes: the one started and all below it."""
        return descendants(self.process.pid) if self.process and self.process.poll() is None else []

    def stop(self, *, within_s: float = 20) -> int:
        """End the server politely and return its exit status; after ``within_s`` it is killed."""
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(within_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL the server and everything below it, each by its pid; returns the exit status."""
        process = self.process
        if process is None:
            return 0
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = process.wait()
        if self._timer is not None:
            self._timer.cancel()
        self.process = None
        return status

    def create_volume(self, name: str) -> Volume:
        """Make a volume and return its address and token."""
        row = checked("volume", "create", name, "--data", str(self.data), "--json", timeout_s=60).last
        return Volume(name, row["url"], row["token"], row["ca"])

    def native_path(self, volume: str, snapshot: str | None = None) -> Path:
        """Return the native directory of a volume's tip or of one of its snapshots."""
        chosen = ["--snapshot", snapshot] if snapshot else []
        result = checked("volume", "path", volume, "--data", str(self.data), *chosen, timeout_s=60)
        return Path(result.output.strip().splitlines()[-1])


def _drain(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while stream.read(4096):
            pass


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and every process below it, parents first, as /proc shows them now."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it may end while it is looked at
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found.extend(int(child) for child in children.read_text().split())
    return found


def end_children() -> None:
    """SIGKILL every process below this one, each by its pid, and wait for those that are its own."""
    for pid in descendants(os.getpid())[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def peak_memory_bytes(pid: int) -> int:
    """Return the peak resident size of a live process, 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
