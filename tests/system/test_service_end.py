"""A service manager ends a service by a signal to every one of its processes at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorkeep.server.serve import Listen, make_supervisor
from mirrorkeep.store.pool import Store
from rig.served import Served

WITHIN_S = 30.0


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.02, 0.2])
def test_a_signal_to_every_process_ends_the_service(
    make_served: Callable[..., Served], delay_s: float
) -> None:
    """The workers and the validator may be gone before the supervisor hears that it shall end."""
    served = make_served()
    process = served.process
    assert process is not None
    supervisor, *others = served.pids
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    time.sleep(delay_s)
    os.kill(supervisor, signal.SIGTERM)
    assert process.wait(WITHIN_S) == 0, served.last_words()
    deadline = time.monotonic() + WITHIN_S  # a helper of the interpreter ends when its last user has
    while left := [pid for pid in others if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    served.start()


def test_a_signal_that_comes_with_the_end_of_a_worker_is_not_forgotten(
    make_served: Callable[..., Served],
) -> None:
    """The supervisor is about to forget that a worker ended, and starts a new one, when the signal comes."""
    store = Store.open(str(make_served(start=False).data))
    server = make_supervisor(Listen("127.0.0.1", 1), *store.certificate(), workers=1)
    store.close()

    class Signalled(dict[int, float]):
        def clear(self) -> None:  # what the supervisor does last before it clears its event
            server.signal_handler_interrupt()

    server.respawned_wrks = Signalled()
    server._respawn_workers = lambda *_: None
    server.interrupt_children.append(0)
    server.main_loop_interrupt.set()
    loop = threading.Thread(target=server._serve_loop, args=(None, None), daemon=True)
    loop.start()
    loop.join(WITHIN_S)
    assert not loop.is_alive()


def test_workers_that_end_beside_their_supervisor_are_no_failure(make_served: Callable[..., Served]) -> None:
    """When it hears that it shall end they have ended already, asked to as well."""
    served = make_served()
    process = served.process
    assert process is not None
    supervisor = next(pid for pid in served.pids if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes())
    others = [pid for pid in served.pids if pid != supervisor]
    os.kill(supervisor, signal.SIGSTOP)
    for pid in (*others, supervisor):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(supervisor, signal.SIGCONT)
    assert process.wait(WITHIN_S) == 0, served.last_words()
