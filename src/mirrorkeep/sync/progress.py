"""What a long operation tells the outside while it runs.

The engine calls a :class:`Reporter`; the command line shows it on a terminal or as JSON lines.  Calls
are cheap and rate-limited by the reporter, never by the engine.
"""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives what happens during a run."""

    def phase(self, name: str) -> None:
        """A new phase begins: ``walk``, ``delete``, ``late``, ``stamp``, ``close``."""

    def advance(
        self, *, entries: int, read_bytes: int, sent_bytes: int, current: bytes = b"", share: float = 0.0
    ) -> None:
        """Totals so far (not increments), the entry at hand, and what part of the phase is done (or 0)."""

    def failure(self, path: bytes, code: str, detail: str) -> None:
        """An entry could not be brought over."""


class Silent:
    """Tells nobody."""

    def phase(self, name: str) -> None:
        """Ignore."""

    def advance(
        self, *, entries: int, read_bytes: int, sent_bytes: int, current: bytes = b"", share: float = 0.0
    ) -> None:
        """Ignore."""

    def failure(self, path: bytes, code: str, detail: str) -> None:
        """Ignore."""
