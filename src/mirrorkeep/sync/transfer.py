"""What a worker does: read entries from the master, find what really changed, write it to the slave.

A worker gets small pickled orders from the coordinator and answers with an :class:`Outcome` for each
entry.  Content that hashes to what the mirror has already is never sent again: only its metadata are
(CHG-09).  A large file goes its own way (``large``).

Not here: deciding which entries are looked at (``detect``), the order of phases (``mirror``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.errors import MirrorkeepError, NoSpace, NotFound, SourceAltered
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.peek import digest_of
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync.contents import Known
from mirrorkeep.sync.digests import base_fields
from mirrorkeep.sync.orders import (
    ABORTING,
    Action,
    Apply,
    Order,
    Outcome,
    Report,
    Send,
    SendLarge,
    Wanted,
    is_altered,
    version_of,
)
from mirrorkeep.sync.session import WritableTree
from mirrorkeep.sync.workers import tell
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Failure, Frame, Op

if TYPE_CHECKING:
    from mirrorkeep.sync.large import LargeTransfer


class Transfer:
    """The handler of one worker thread: a master, a slave, and orders to carry out between them."""

    def __init__(
        self,
        master: NativeTree,
        slave: WritableTree,
        *,
        signatures: SignatureCache,
        call: Callable[[str, tuple[Any, ...]], Any] | None = None,
        threads: int = 1,
    ) -> None:
        """``threads`` is how many transfers the run may have at once; a large file takes a few of them."""
        self._threads = threads
        self._master = master
        self._slave = slave
        self._signatures = signatures
        self._large: LargeTransfer | None = None
        self._call = call
        self._known = Known()

    def __call__(self, order: Order) -> Report:
        """Carry out one order."""
        report = Report(read_started_ns=time.time_ns())
        before = self._slave.sent_bytes
        if isinstance(order, Send):
            self._send(order.wanted, report)
        elif isinstance(order, SendLarge):
            self._send_large(order.wanted, report)
        elif isinstance(order, Apply):
            report.failures = self._apply(order.frames)
        elif self._call is not None:
            report.value = self._call(order.method, order.arguments)
        report.sent_bytes = self._slave.sent_bytes - before
        return report

    def _apply(self, frames: list[Frame]) -> list[Failure]:
        """Carry out frames; a full store ends the run, for the next entry would fare no better."""
        failures = self._slave.apply(frames)
        for failure in failures:
            if failure.code == NoSpace.code:
                said = NoSpace.template.format(detail="")
                raise NoSpace(detail=failure.detail.removeprefix(said))
        return failures

    # --- small entries ---------------------------------------------------------------------------

    def _send(self, wanted: list[Wanted], report: Report) -> None:
        outgoing: list[Frame] = []
        places: list[int] = []
        outcomes = report.outcomes
        for one, frame in zip(wanted, self._frames(wanted), strict=True):
            if isinstance(frame, Failure):
                outcomes.append(self._failed(one.path, frame))
                continue
            report.read_bytes += len(frame.data)
            outcome, sending = self._copy(one, frame) or _choose(one, frame)
            if sending is not None:
                outgoing.append(sending)
                places.append(len(outcomes))
            outcomes.append(outcome)
        if not outgoing:
            return
        retry: list[int] = []
        for failure in self._apply(outgoing):
            number = places[failure.index]
            if outgoing[failure.index].op == Op.HARD_LINK:
                outcomes[number] = Outcome(Action.UNLINKED)
            elif outcomes[number].action in (Action.STAMPED, Action.PLACED, Action.COPIED):
                retry.append(number)
            else:
                outcomes[number] = self._failed(wanted[number].path, failure)
        if retry:
            self._send_content(wanted, retry, report)

    def _failed(self, path: bytes, failure: Failure) -> Outcome:
        """Return the outcome of an entry that could not be read or written.

        What the source no longer has is no failure, whichever side missed it; what the mirror misses is.
        """
        if failure.code == NotFound.code:
            try:
                self._master.describe(path)
            except NotFound:
                return Outcome(Action.VANISHED)
            except MirrorkeepError:
                pass
        return Outcome(Action.FAILED, b"", failure.code, failure.detail)

    def _frames(self, wanted: list[Wanted]) -> Iterator[Frame | Failure]:
        """Read what is wanted; further names of a hard-linked file are only described."""
        if not any(one.link_to for one in wanted):
            yield from self._master.frames([one.path for one in wanted])
            return
        for one in wanted:
            if one.link_to:
                yield self._describe_link(one)
            else:
                yield from self._master.frames([one.path])

    def _describe_link(self, wanted: Wanted) -> Frame | Failure:
        try:
            fields, _ = self._master.describe(wanted.path)
        except MirrorkeepError as error:
            return Failure(0, wanted.path, error.code, str(error))
        fields[keys.HARD_LINK] = wanted.link_to
        fields.update(base_fields(wanted.digest, self._master.digest))
        return Frame(Op.HARD_LINK, format_record(wanted.path, fields))

    def _copy(self, wanted: Wanted, frame: Frame) -> tuple[Outcome, Frame] | None:
        """Return the copy of what the mirror has already; None where the content is not known to be there."""
        if not wanted.contents or frame.op != Op.PUT:
            return None
        source = self._known.find(wanted, digest_of(frame.line), len(frame.data))
        return (Outcome(Action.COPIED, frame.line), Frame(Op.COPY, frame.line, source)) if source else None

    def _send_content(self, wanted: list[Wanted], numbers: list[int], report: Report) -> None:
        """The mirror lacks what a stamp or a move counted on: send those entries whole."""
        outcomes = report.outcomes
        whole: list[Frame] = []
        places: list[int] = []
        frames = self._master.frames([wanted[number].path for number in numbers])
        for number, frame in zip(numbers, frames, strict=True):
            if isinstance(frame, Failure):
                outcomes[number] = self._failed(wanted[number].path, frame)
                continue
            whole.append(frame)
            places.append(number)
            outcomes[number] = Outcome(Action.SENT, frame.line)
        for failure in self._apply(whole):
            number = places[failure.index]
            outcomes[number] = self._failed(wanted[number].path, failure)

    # --- large files -----------------------------------------------------------------------------

    def _send_large(self, wanted: Wanted, report: Report) -> None:
        if self._large is None:
            # A run of small files never needs it.
            from mirrorkeep.sync.large import LargeTransfer
            from mirrorkeep.sync.sending import SEGMENT_THREADS

            threads = min(self._threads, SEGMENT_THREADS)
            self._large = LargeTransfer(self._master, self._slave, self._signatures, threads)
        try:
            find = (lambda *content: self._known.find(wanted, *content)) if wanted.contents else None
            before = self._slave.sent_bytes
            action, line, read_bytes = self._large.send(
                wanted, find, lambda done: tell((done, self._slave.sent_bytes - before))
            )
        except MirrorkeepError as error:
            if error.code in ABORTING:
                raise
            failure = Failure(0, wanted.path, error.code, str(error))
            report.outcomes.append(self._failed(wanted.path, failure))
            return
        report.read_bytes += read_bytes
        report.outcomes.append(Outcome(Action(action), line))


def _choose(wanted: Wanted, frame: Frame) -> tuple[Outcome, Frame | None]:
    """Decide what has to be sent for an entry that was read."""
    if frame.op == Op.STAMP:  # a directory: described now, stamped at the end
        return Outcome(Action.DESCRIBED, frame.line), None
    if frame.op == Op.HARD_LINK:  # the leader's digest says nothing about what was written since
        if version_of(parse_record(frame.line, check=False)) != wanted.version:
            return Outcome(Action.UNLINKED), None
        return Outcome(Action.SENT, frame.line), frame
    if frame.op != Op.PUT or wanted.forced:
        if wanted.forced and (altered := _altered(wanted, frame.line)):
            return altered, None
        return Outcome(Action.SENT, frame.line), frame
    digest = digest_of(frame.line)
    if wanted.key and digest == digest_of(wanted.source_line):
        return Outcome(Action.PLACED, frame.line), Frame(Op.PLACE, frame.line, wanted.key)
    if digest and digest == digest_of(wanted.old_line):
        return Outcome(Action.STAMPED, frame.line), Frame(Op.STAMP, frame.line)
    return Outcome(Action.SENT, frame.line), frame


def _altered(wanted: Wanted, line: bytes) -> Outcome | None:
    if not is_altered(wanted.old_line, line):
        return None
    return Outcome(Action.FAILED, b"", SourceAltered.code, str(SourceAltered(path=wanted.path)))
