"""How hard validation may work: the policy of a store, scheduling classes, the byte rate.

Answers for serving coming first.  Validation is nice and reads with the idle I/O class; what nobody waits
for (the rolling read) also runs in the idle scheduling class.  A verdict that a person may wait for does
not: on a machine that is busy for hours an idle process never gets a turn.

Policy is ``DATA/validation.json``, optional, read anew for every validation:
``{"processes", "bytes_per_second", "cycle_days", "hours": [from, to], "repair": "patch"|"wipe"}``.

Not here: what is read (``examine``).  Nothing here leaves anything behind.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mirrorkeep.errors import BadUsage, DamagedRecord
from mirrorkeep.store.records import read_record

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS: Final = 1
_IOPRIO_CLASS_IDLE: Final = 3 << 13
_NICE: Final = 10
_BURST_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Policy:
    """What a store's owner decided about validation."""

    processes: int = 2
    bytes_per_second: int | None = None
    cycle_days: float = 30.0
    """Within this time every byte of every part is read again."""
    hours: tuple[int, int] | None = None
    """Local hours within which validations that nobody asked for may start; None: at once."""
    repair: str = "patch"
    """``patch``: the next run looks at the damaged entries again; ``wipe``: at everything."""

    @property
    def cycle_s(self) -> float:
        """The cycle in seconds."""
        return self.cycle_days * 86_400.0

    def open_at(self, hour: int) -> bool:
        """Whether background validation may start in this local hour."""
        if self.hours is None:
            return True
        first, last = self.hours
        return first <= hour < last if first <= last else hour >= first or hour < last


_DEFAULT: Final = Policy()


def load_policy(data: str) -> Policy:
    """Return the policy of the store at ``data``; the defaults where nothing is said.  Raises BadUsage."""
    path = f"{data}/validation.json"
    try:
        record = read_record(path) or {}
        rate, hours = record.get("bytes_per_second"), record.get("hours")
        policy = Policy(
            int(record.get("processes", _DEFAULT.processes)),
            int(rate) if rate else None,
            float(record.get("cycle_days", _DEFAULT.cycle_days)),
            (int(hours[0]), int(hours[1])) if hours else None,
            str(record.get("repair", _DEFAULT.repair)),
        )
    except DamagedRecord as error:
        raise BadUsage(detail=str(error)) from error
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise BadUsage(detail=f"{path}: {error}") from error
    if policy.repair not in ("patch", "wipe") or policy.cycle_days <= 0 or policy.processes < 1:
        raise BadUsage(detail=f"{path}: a value is out of range")
    return policy


def yield_to_others(*, idle: bool) -> None:
    """Make this process stand back; what the machine does not allow is left as it is."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        if idle:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        pass
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE)


class ByteRate:
    """A token bucket: :meth:`spend` sleeps so that on average no more than the rate is read."""

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._paid_until = clock()

    def spend(self, size_bytes: int) -> None:
        """Account for bytes that were read; returns when they are paid for."""
        if self._rate is None or not size_bytes:
            return
        now = self._clock()
        self._paid_until = max(self._paid_until, now - _BURST_S) + size_bytes / self._rate
        if self._paid_until > now:
            self._sleep(self._paid_until - now)
