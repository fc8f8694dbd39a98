"""From items to orders: small entries are gathered into bundles, large files go alone, answers come home.

The dispatcher owns the worker pool and the flow control: it takes no more work than memory allows
(WQ-05) and hands finished items back to whoever asked.  It knows nothing of phases or manifests.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Any, Final

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.sync.journal import Item
from mirrorkeep.sync.orders import (
    ABORTING,
    Action,
    Apply,
    Call,
    Order,
    Outcome,
    Report,
    Send,
    SendLarge,
    Wanted,
)
from mirrorkeep.sync.workers import Completed, Handler, WorkerPool
from mirrorkeep.tree.protocol import Failure, Frame
from mirrorkeep.tree.walk import STAT
from mirrorkeep.tree.wire import BUNDLE_TARGET_BYTES, MAX_BUNDLE_FRAMES, SMALL_FILE_BYTES

MAX_BUNDLE_ENTRIES: Final = 512
FIRST_BUNDLE_BYTES: Final = BUNDLE_TARGET_BYTES // 8
FIRST_BUNDLE_ENTRIES: Final = MAX_BUNDLE_ENTRIES // 8
"""A bundle of this size is worth a request of its own while a worker waits for work."""

Settle = Callable[[Item, Outcome, int], None]
"""Called for each finished item with its outcome and when its reading began (ns)."""
Refuse = Callable[[Frame, Failure], None]


class Dispatcher:
    """Hands items to workers and their outcomes back."""

    def __init__(
        self,
        start: Callable[[], Handler],
        *,
        processes: int,
        threads: int,
        settle: Settle,
        before_send: Callable[[], object] = lambda: None,
        under_way: Callable[[bytes], object] = lambda path: None,
        modules: Sequence[str] = (),
    ) -> None:
        """``before_send`` is called whenever anything is about to leave for the workers, ``under_way`` with
        the path of a large file when more of it was read or sent.
        """
        self._pool = WorkerPool(
            start, processes=processes, threads=threads, modules=modules, told=self._note_under_way
        )
        self._tell_under_way = under_way
        self._under_way: dict[int, tuple[int, int]] = {}
        self._settle = settle
        self._before_send = before_send
        self._sequence = 0
        self._open: list[tuple[Item, Wanted]] = []
        self._open_bytes = 0
        self._items: dict[int, list[Item]] = {}
        self._refusals: dict[int, Refuse] = {}
        self._answers: dict[int, Callable[[Any], None]] = {}
        self.read_bytes = 0
        """Bytes of content read so far, those of large files under way included."""
        self.sent_bytes = 0
        """The same of what was sent."""
        self.current = b""

    def send(self, item: Item, wanted: Wanted) -> None:
        """Bring one entry over; its outcome comes through ``settle``."""
        mode, _, _, _, size_bytes, *_ = STAT.unpack_from(item.blob)
        regular = stat.S_ISREG(mode)
        if regular and size_bytes > SMALL_FILE_BYTES and not wanted.link_to:
            self._submit(SendLarge(wanted), [item])
            self._relieve()
        else:
            self._open.append((item, wanted))
            self._open_bytes += len(item.path) + (size_bytes if regular and not wanted.link_to else 0)
            if self._is_full():
                self.flush()
                self._relieve()

    def apply(self, frames: list[Frame], refuse: Refuse) -> None:
        """Carry out frames (within a bundle's limits); each refused one comes through ``refuse``."""
        self._submit(Apply(frames), [])
        self._refusals[self._sequence] = refuse
        self._relieve()

    def call(self, method: str, arguments: tuple[Any, ...], answer: Callable[[Any], None]) -> None:
        """Have a worker call the session beside the transfers."""
        self._submit(Call(method, arguments), [])
        self._answers[self._sequence] = answer

    def flush(self) -> None:
        """Send the bundle that is being gathered."""
        if self._open:
            gathered, self._open, self._open_bytes = self._open, [], 0
            self._submit(Send([wanted for _, wanted in gathered]), [item for item, _ in gathered])

    def wait(self) -> None:
        """Return when everything handed over has come back."""
        self.flush()
        while self._pool.outstanding:
            self.collect(None)

    def collect(self, timeout_s: float | None) -> None:
        """Take in what workers have finished, waiting up to ``timeout_s`` for the first."""
        for done in self._pool.completed(timeout_s):
            self._take(done)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    @property
    def busy(self) -> bool:
        """Whether workers have all that they can hold."""
        return self._pool.outstanding >= 2 * self._pool.capacity

    def _is_full(self) -> bool:
        """Whether the open bundle is to go: it is large, or large enough for a worker that has nothing."""
        entries, size_bytes = len(self._open), self._open_bytes
        if size_bytes >= BUNDLE_TARGET_BYTES or entries >= MAX_BUNDLE_ENTRIES:
            return True
        worthwhile = size_bytes >= FIRST_BUNDLE_BYTES or entries >= FIRST_BUNDLE_ENTRIES
        return worthwhile and self._pool.idle

    def _relieve(self) -> None:
        self.collect(0)
        while self.busy:
            self.collect(None)

    def _submit(self, order: Order, items: list[Item]) -> None:
        self._before_send()
        self._sequence += 1
        self._items[self._sequence] = items
        self._pool.submit(self._sequence, order)

    def _note_under_way(self, sequence: int, told: tuple[int, int]) -> None:
        self._count(sequence, told)
        self._under_way[sequence] = told
        self._tell_under_way(self._items[sequence][0].path)

    def _count(self, sequence: int, told: tuple[int, int]) -> None:
        """Count the bytes of an order, of which some may have been counted while it was under way."""
        read_bytes, sent_bytes = self._under_way.pop(sequence, (0, 0))
        self.read_bytes += told[0] - read_bytes
        self.sent_bytes += told[1] - sent_bytes

    def _take(self, done: Completed) -> None:
        items = self._items.pop(done.sequence)
        refuse = self._refusals.pop(done.sequence, None)
        answer = self._answers.pop(done.sequence, None)
        if done.error is not None:
            self._count(done.sequence, (0, 0))
            if answer is not None:
                raise done.error  # a commit that failed: nothing since the last one counts
            self._take_error(done, items, refuse)
            return
        report: Report = done.result
        self._count(done.sequence, (report.read_bytes, report.sent_bytes))
        for item, outcome in zip(items, report.outcomes, strict=True):
            self._settle(item, outcome, report.read_started_ns)
        if items:
            self.current = items[-1].path
        if refuse is not None:
            for failure in report.failures:
                refuse(done.task.frames[failure.index], failure)
        if answer is not None:
            answer(report.value)

    def _take_error(self, done: Completed, items: list[Item], refuse: Refuse | None) -> None:
        error = done.error
        assert error is not None
        if isinstance(error, MirrorkeepError) and error.code in ABORTING:
            raise error
        code = error.code if isinstance(error, MirrorkeepError) else "worker_lost"
        detail = str(error) or type(error).__name__
        for item in items:
            self._settle(item, Outcome(Action.FAILED, b"", code, detail), 0)
        if refuse is not None:
            for index, frame in enumerate(done.task.frames):
                refuse(frame, Failure(index, b"", code, detail))


class FrameQueue:
    """Gathers frames into bundles for :meth:`Dispatcher.apply`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        refuse: Refuse,
        *,
        in_order: bool = False,
        most_frames: int = MAX_BUNDLE_FRAMES // 2,
    ) -> None:
        self._dispatcher = dispatcher
        self._refuse = refuse
        self._in_order = in_order
        self._most_frames = most_frames
        self._frames: list[Frame] = []
        self._bytes = 0

    def add(self, frame: Frame) -> None:
        """Queue one frame."""
        self._frames.append(frame)
        self._bytes += len(frame.line) + len(frame.data)
        if len(self._frames) >= self._most_frames or self._bytes >= BUNDLE_TARGET_BYTES:
            self._go()

    def finish(self) -> None:
        """Send what is left and wait until everything is done."""
        self._go()
        self._dispatcher.wait()

    def _go(self) -> None:
        if self._frames:
            frames, self._frames, self._bytes = self._frames, [], 0
            self._dispatcher.apply(frames, self._refuse)
            if self._in_order:
                self._dispatcher.wait()
