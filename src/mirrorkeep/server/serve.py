"""The service: one supervisor, N workers that speak HTTPS, one validator; all in one process group.

Start: take the store for this supervisor, wait until the workers of a killed one are gone, put in order
what a crash left, begin a new incarnation, start the processes, and say ``listening`` once a TLS
connection succeeds.  End: SIGTERM or SIGINT, within a few seconds.  Children die with their supervisor
(PR_SET_PDEATHSIG), so that after SIGKILL the same command starts again at once.

Not here: what is served (``app``), what start-up repairs (``store.recovery``).
A crash of a worker or of the validator is answered by a new one; of the supervisor, by the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from mirrorkeep.errors import AlreadyExists, MirrorkeepError, NotFound, StorageFailure
from mirrorkeep.server.api import uploads_folder
from mirrorkeep.server.app import App, create_app
from mirrorkeep.server.balance import Balance
from mirrorkeep.server.listen import Listen, reserved
from mirrorkeep.store.pool import Store
from mirrorkeep.tree.allocator import collect_rarely, keep_freed_memory

PR_SET_PDEATHSIG: Final = 1
TAKE_OVER_S: Final = 10.0
"""How long a start waits for what a killed supervisor left to be gone."""
STOP_S: Final = 4
RESTART_PAUSE_S: Final = 1.0
EXPIRY_S: Final = 86400.0
"""Uploads and transactions that nobody touched for a day are given up."""
HOUSEKEEPING_S: Final = 3600.0
VALIDATOR_NICENESS: Final = 10
BODY_PIECE_BYTES: Final = 1024 * 1024
"""How much of a body the HTTP layer hands over at most; each piece wakes the event loop."""

log = logging.getLogger("mirrorkeep.server")


def serve(data: str, listen: str, workers: int) -> None:
    """Serve the store at ``data`` until SIGTERM or SIGINT.

    Raises NotFound, AlreadyExists (somebody serves it already), AddressInUse, StorageFailure, BadUsage.
    """
    data = os.path.abspath(data)
    address = Listen.parse(listen)
    if not os.path.isdir(data):
        raise NotFound(what=f"a store at {data}")
    with _taken(data), reserved(address) as address:
        store = Store.open(data)
        store.recover()
        shutil.rmtree(uploads_folder(data), ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_load_notes(data))
        store.start_incarnation()
        store.remember_address(address.shown)
        certificate, key = store.certificate()
        store.close()
        multiprocessing.set_start_method("spawn", force=True)
        server = make_supervisor(address, certificate, key, workers)
        with _validator(data), _housekeeping(data):
            threading.Thread(target=_announce, args=(address,), daemon=True).start()
            try:
                server.serve(target_loader=functools.partial(load_app, data, os.getpid()), wrap_loader=False)
            except SystemExit:
                if not server.interrupt_signal:  # asked to end: that workers were asked too is no failure
                    raise


def make_supervisor(address: Listen, certificate: str, key: str, workers: int) -> Any:
    """Return the HTTP layer's supervisor of so many workers; nothing listens yet."""
    server: Any = Server(
        "mirrorkeep",
        address=address.host,
        port=address.port,
        interface=Interfaces.ASGI,
        workers=max(1, workers),
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=BODY_PIECE_BYTES),
        websockets=False,
        loop=Loops.asyncio,
        backlog=2048,
        ssl_cert=Path(certificate),
        ssl_key=Path(key),
        ssl_protocol_min=SSLProtocols.tls12,
        respawn_failed_workers=True,
        workers_kill_timeout=STOP_S,
        log_level=LogLevels.error,
        log_dictconfig=_granian_log(),
    )
    server.main_loop_interrupt = _Interrupt(server)
    return server


class _Interrupt(threading.Event):
    """What wakes the supervisor up: a signal to end, or a worker that ended.

    A service manager signals the supervisor and its workers at once.  The supervisor of the HTTP layer
    clears the event for workers that ended; a signal that came just before that would be forgotten, and it
    would wait for ever.
    """

    def __init__(self, server: Any) -> None:
        super().__init__()
        self._server = server

    def clear(self) -> None:
        """Forget workers that ended, never the signal to end."""
        super().clear()
        if self._server.interrupt_signal:
            self.set()


# --- the children -------------------------------------------------------------------------------


def load_app(data: str, supervisor: int) -> App:
    """Make the application, inside a worker process."""
    _follow(supervisor)
    _log_to_stderr()
    # Modes are given to every call that makes something; the mask must not take bits off them.
    os.umask(0)
    keep_freed_memory()
    collect_rarely()
    _hold_as_worker(data)
    return create_app(data, balance=Balance(_load_notes(data)))


def _load_notes(data: str) -> str:
    return os.path.join(data, "run", "load")


def run_validator(data: str, supervisor: int) -> None:
    """Run the validator, inside its own process."""
    _follow(supervisor)
    _log_to_stderr()
    os.nice(VALIDATOR_NICENESS)
    _hold_as_worker(data)
    from mirrorkeep.store.validation import Validator

    Validator(Store.open(data)).run_forever()


def _follow(supervisor: int) -> None:
    """Die when the supervisor dies, however it does."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before the line above
        os._exit(1)


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def _granian_log() -> dict[str, Any]:
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "generic"}
    return {
        "handlers": {"console": handler, "access": handler},
    }


@contextlib.contextmanager
def _validator(data: str) -> Iterator[None]:
    """Keep a validator process running, from one thread that outlives every one of them."""
    stopping = threading.Event()

    def supervise() -> None:
        context = multiprocessing.get_context("spawn")
        while not stopping.is_set():
            child = context.Process(target=run_validator, args=(data, os.getpid()), name="validator")
            child.start()
            while child.is_alive() and not stopping.is_set():
                child.join(0.1)
            if child.is_alive():
                child.terminate()
                child.join(STOP_S)
                if child.is_alive():
                    child.kill()
                    child.join()
            elif not stopping.wait(RESTART_PAUSE_S):
                log.error("the validator ended (status %s) and is started again", child.exitcode)

    thread = threading.Thread(target=supervise, name="validator", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(2 * STOP_S)


@contextlib.contextmanager
def _housekeeping(data: str) -> Iterator[None]:
    """Give up abandoned uploads and transactions now and then."""
    stopping = threading.Event()

    def keep_house() -> None:
        while not stopping.wait(HOUSEKEEPING_S):
            try:
                expire_staging(data)
            except (MirrorkeepError, OSError) as error:
                log.warning("housekeeping: %s", error)

    threading.Thread(target=keep_house, name="housekeeping", daemon=True).start()
    try:
        yield
    finally:
        stopping.set()


def expire_staging(data: str, older_than_s: float = EXPIRY_S) -> int:
    """Remove staged files of every tip that nobody touched for so long; returns how many."""
    store = Store.open(data)
    removed = 0
    try:
        for volume in store.volumes():
            parts = volume.parts()
            removed += sum(part.tree().empty_staging(older_than_s) for part in parts)
            if all(part.path for part in parts):
                removed += volume.plain_tree().empty_staging(older_than_s)
    finally:
        store.close()
    return removed


# --- taking over --------------------------------------------------------------------------------


@contextlib.contextmanager
def _taken(data: str) -> Iterator[None]:
    """Be the one supervisor of the store, after every worker of an earlier one is gone."""
    folder = os.path.join(data, "run")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    supervisor = _open_lock(os.path.join(folder, "supervisor.lock"))
    workers = _open_lock(os.path.join(folder, "workers.lock"))
    try:
        if not _lock_within(supervisor, 2.0):
            raise AlreadyExists(what=f"a service for {data}")
        if not _lock_within(workers, TAKE_OVER_S):
            raise StorageFailure(detail="workers of an earlier service are stuck in the storage")
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield
    finally:
        os.close(workers)
        os.close(supervisor)


def _hold_as_worker(data: str) -> None:
    """Hold the workers' lock for the life of this process; the descriptor is never closed."""
    fcntl.flock(_open_lock(os.path.join(data, "run", "workers.lock")), fcntl.LOCK_SH)


def _open_lock(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock_within(fd: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _announce(address: Listen) -> None:
    """Say ``listening`` on stdout once a TLS connection succeeds."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # our own server: only whether it answers is asked
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    while True:
        try:
            with (
                socket.create_connection((host, address.port), timeout=2) as plain,
                context.wrap_socket(plain),
            ):
                break
        except OSError:
            time.sleep(0.02)
    print(f"listening https://{address.shown}", flush=True)
