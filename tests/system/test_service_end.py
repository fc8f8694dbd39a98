"""A service manager ends a service by a signal to every one of its processes at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorkeep.server.serve import _Interrupt
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


def test_a_signal_is_not_forgotten_with_the_workers_that_ended() -> None:
    server: Any = SimpleNamespace(interrupt_signal=False)
    interrupt = _Interrupt(server)
    interrupt.set()
    interrupt.clear()
    assert not interrupt.is_set()
    server.interrupt_signal = True  # as the handler of the signal does, before it sets the event
    interrupt.set()
    interrupt.clear()
    assert interrupt.is_set()
    assert threading.Event.wait(interrupt, 1.0)
