"""How a long operation shows itself: a line that moves on a terminal, JSON lines, or nothing.

Rates and the remaining time are computed here; the engine only reports totals.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

INTERVAL_S: Final = 0.2
JSON_INTERVAL_S: Final = 1.0


def show_bytes(count: float) -> str:
    """Return a size for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_path(path: bytes) -> str:
    """Return a path for a terminal: control characters and bytes that are not UTF-8 escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(value: dict[str, Any]) -> None:
    """Write one JSON line on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def say(row: dict[str, Any], as_json: bool, text: str) -> None:
    """Print what a command did: ``row`` as a JSON line, or ``text``."""
    if as_json:
        emit(row)
    else:
        sys.stdout.write(text + "\n")


class ConsoleReporter:
    """Reports a run on stderr (a terminal) or stdout (JSON lines)."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._terminal = sys.stderr.isatty() and not as_json
        self._started = time.monotonic()
        self._next = self._started + INTERVAL_S
        self._phase = ""
        self._phase_started = self._started
        self._width = 0

    def phase(self, name: str) -> None:
        """Note the phase."""
        self._phase = name
        self._phase_started = time.monotonic()

    def advance(
        self, *, entries: int, read_bytes: int, sent_bytes: int, current: bytes = b"", share: float = 0.0
    ) -> None:
        """Show totals, at most a few times a second."""
        now = time.monotonic()
        if now < self._next or not (self._json or self._terminal):
            return
        self._next = now + (JSON_INTERVAL_S if self._json else INTERVAL_S)
        seconds = max(now - self._started, 1e-3)
        remaining = self._remaining(share, now)
        if self._json:
            emit(
                {
                    "event": "progress",
                    "phase": self._phase,
                    "entries": entries,
                    "entries_per_s": round(entries / seconds, 1),
                    "bytes_read": read_bytes,
                    "bytes_sent": sent_bytes,
                    "bytes_per_s": round(read_bytes / seconds),
                    "eta_s": remaining,
                    "current": current.decode("utf-8", "surrogateescape"),
                }
            )
            return
        eta = f"  {remaining:.0f} s left" if remaining is not None else ""
        self._line(
            f"{self._phase}: {entries:,} entries, {entries / seconds:,.0f}/s, read {show_bytes(read_bytes)}"
            f" ({show_bytes(read_bytes / seconds)}/s), sent {show_bytes(sent_bytes)}{eta}"
            f"  {show_path(current)[-40:]}"
        )

    def failure(self, path: bytes, code: str, detail: str) -> None:
        """Name an entry that was not brought over, at once."""
        self.clear()
        if self._json:
            text = path.decode("utf-8", "surrogateescape")
            emit({"event": "failure", "path": text, "code": code, "detail": detail})
        else:
            shown = show_path(path)
            named = detail.startswith((f"{shown}: ", f"{shown} changed "))
            sys.stderr.write((detail if named else f"{shown}: {detail}") + "\n")

    def clear(self) -> None:
        """Take the moving line away."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0

    def _remaining(self, share: float, now: float) -> float | None:
        """Return the seconds that the rest of the phase takes at its rate so far."""
        if not 0 < share < 1:
            return None
        return round((now - self._phase_started) * (1 - share) / share, 1)

    def _line(self, text: str) -> None:
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)
