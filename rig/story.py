"""How the demo tells its story: numbered steps, short lines, numbers that a person can read."""

from __future__ import annotations

import os
import sys
import time


class StoryError(RuntimeError):
    """Something did not go as the story says; the message is for a person."""


def count(number: int) -> str:
    return f"{number:,}"


def size(size_bytes: float) -> str:
    """Return a size in decimal units, as storage is sold."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:,.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


class Teller:
    """Print the story to stdout, in colour on a terminal (NO_COLOR and FORCE_COLOR are honoured)."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.colour = bool(os.environ.get("FORCE_COLOR")) or (
            sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        )
        self.step_number = 0

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def step(self, title: str) -> None:
        self.step_number += 1
        elapsed = self._paint(f"{time.monotonic() - self.began:5.1f} s", "2")
        print(f"\n{elapsed}  {self._paint(f'{self.step_number}. {title}', '1;36')}", flush=True)

    def line(self, text: str) -> None:
        print(f"         {text}", flush=True)

    def command(self, *words: str) -> None:
        self.line(self._paint("$ mirrorkeep " + " ".join(words), "2"))

    def good(self, text: str) -> None:
        self.line(f"{self._paint('✓', '1;32')} {text}")

    def bad(self, text: str) -> None:
        self.line(f"{self._paint('✗', '1;31')} {text}")

    def expect(self, true: object, text: str, otherwise: object = "") -> None:
        """Tick ``text`` off when ``true``; raises StoryError otherwise."""
        if not true:
            self.bad(text)
            raise StoryError(f"expected: {text}. {otherwise}".rstrip())
        self.good(text)
