"""Digests of plainly written files, made after the answer (META-12).

One thread of the worker takes files one by one, reads them, and puts the digest into the record by
compare-and-set on the generation: a digest computed on one content is never written to another
(META-13).  A worker that dies forgets its list; the files are then without a digest until they are
written again, which every reader of records allows.

Not here: digests of mirrored files, which their own client makes and publishing checks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from typing import Final

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.server.place import Place, writing
from mirrorkeep.tree.sidecar import RECORD

log = logging.getLogger("mirrorkeep.server")

MAX_WAITING: Final = 100_000
_READ_BYTES: Final = 1 << 20


class Hasher:
    """The thread that makes digests later.  :meth:`add` never blocks."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Place, int] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="hasher", daemon=True)
        self._started = threading.Lock()

    def add(self, place: Place, generation: int) -> None:
        """Have the file at ``place`` hashed, if it still has this generation by then."""
        with self._started:
            if not self._thread.is_alive() and self._thread.ident is None:
                self._thread.start()
        try:
            self._waiting.put_nowait((place, generation))
        except queue.Full:
            log.warning("too many files wait for their digest; one is left without")

    def close(self) -> None:
        """Forget what is waiting and end the thread after the file it is at."""
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                break
        self._waiting.put(None)

    def drain(self) -> None:
        """Wait until everything that was added is done (for tests)."""
        self._waiting.join()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                hash_now(*item)
            except (MirrorkeepError, OSError) as error:
                log.info("no digest for a file that changed or went: %s", error)
            finally:
                self._waiting.task_done()
        self._waiting.task_done()


def hash_now(place: Place, generation: int) -> None:
    """Read the file and note its digest.  Raises GenerationConflict when it changed, NotFound, ReadOnly."""
    fd, entry = place.tree.open_read(place.path)
    try:
        if entry.generation != generation:
            return
        hasher = hashlib.sha256()
        while block := os.read(fd, _READ_BYTES):
            hasher.update(block)
    finally:
        os.close(fd)
    digest = hasher.hexdigest().encode("ascii")

    def note(entries: dict[bytes, bytes]) -> None:
        record = parse_record(entries[RECORD])
        fields = {key: value for key, value in record.fields.items() if key != keys.HASH_NAME}
        entries[RECORD] = format_record(place.path, {**fields, keys.HASH: digest})

    with writing(place, ""):
        place.tree.update_sidecar(place.path, note, if_generation=generation)
