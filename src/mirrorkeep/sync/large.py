"""A large file's way: what has to be done for it, by what the mirror has and what was known of it.

It may be unchanged (its record is stamped), have another name (it is placed), be on the mirror already under
another (it is copied there), or be sent, as what differs from the mirror's or whole (``sending``).  What is
sent is published when the file did not change meanwhile.

Memory and what a crash leaves: see ``sending``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from mirrorkeep.delta.cache import SignatureCache
from mirrorkeep.delta.difference import ChangeKind, Difference
from mirrorkeep.delta.segments import (
    digest_segments,
    pack_digests,
    plan_segments,
)
from mirrorkeep.delta.signature import Signature
from mirrorkeep.errors import (
    MalformedSignature,
    MirrorkeepError,
    PatchTargetMissing,
    SourceAltered,
    SourceChanged,
)
from mirrorkeep.manifest import keys
from mirrorkeep.manifest.record import format_record, parse_record
from mirrorkeep.sync.digests import base_fields, hash_content, segment_fields, segments_of
from mirrorkeep.sync.orders import Wanted, is_altered
from mirrorkeep.sync.sending import SEGMENT_THREADS, Sending, Tell
from mirrorkeep.sync.session import WritableTree
from mirrorkeep.sync.signing import wait_for_signatures
from mirrorkeep.tree.metadata.sparse import ranges_from_text
from mirrorkeep.tree.native import NativeTree
from mirrorkeep.tree.protocol import Frame, Op

_ATTEMPTS: Final = 3

_SENT, _STAMPED, _PLACED, _COPIED = 1, 2, 3, 5

Find = Callable[[bytes, int], bytes]
"""Returns where the mirror has a content already, by its digest (hex) and size; nothing: not known."""


class LargeTransfer:
    """Sends large files of a master to a slave."""

    def __init__(
        self,
        master: NativeTree,
        slave: WritableTree,
        signatures: SignatureCache,
        threads: int = SEGMENT_THREADS,
    ) -> None:
        self._threads = threads
        self._master = master
        self._slave = slave
        self._signatures = signatures
        self._waited = False

    def send(
        self, wanted: Wanted, find: Find | None = None, tell: Tell | None = None
    ) -> tuple[int, bytes, int]:
        """Bring one file over; returns (action, new record line, bytes read).

        With ``find`` it is hashed first, and copied on the mirror where that has its content already.
        It is sent whole when the mirror lacks what was counted on, or lost the file in the making (its worker
        was killed).  Raises SourceChanged when the file would not hold still, and what reading or sending
        raises; the mirror then keeps what it had.
        """
        whole = False
        for attempt in range(_ATTEMPTS):
            try:
                return self._attempt(wanted, find, tell, whole=whole)
            except (SourceChanged, PatchTargetMissing) as error:
                if attempt + 1 == _ATTEMPTS:
                    raise
                whole = whole or isinstance(error, PatchTargetMissing)
        raise SourceChanged(path=wanted.path)

    def _attempt(
        self, wanted: Wanted, find: Find | None, tell: Tell | None, *, whole: bool
    ) -> tuple[int, bytes, int]:
        path, key = wanted.path, wanted.key
        fields, status = self._master.describe(path)
        fd = self._master.open_content(path)
        try:
            if not self._master.settled(status, fd):
                raise SourceChanged(path=path)
            base_line = wanted.source_line if key else wanted.old_line
            anew = whole or wanted.forced
            known = parse_record(base_line, check=False).hash if base_line and not anew else b""
            if known and status.st_size == parse_record(base_line, check=False).size:
                digest = self._unchanged_digest(fd, path, status.st_size, known)
                if digest == known and self._master.settled(status, fd):
                    fields.update(segments_of(base_line))
                    if done := self._stamp_or_place(path, fields, digest, key, status.st_size):
                        return done
                    known = b""  # the mirror lacks what that counted on
            digest = b""
            if find is not None:
                digest = hash_content(fd, status.st_size, self._master.digest)
                source = find(digest, status.st_size)
                if (
                    source
                    and self._copy(source, path, fields, digest, fd)
                    and self._master.settled(status, fd)
                ):
                    line = _line(path, fields, digest, self._master.digest)
                    return _COPIED, line, status.st_size
            signature = (
                self._signature(path, known, parse_record(base_line, check=False).size)
                if known and not key
                else None
            )
            base = base_fields(known, self._master.digest) if signature is not None else {}
            sending = Sending(self._slave, path, fd, status.st_size, signature, base, self._threads)
            sending.know(base_line if signature is not None else b"")
            if keys.SPARSE in fields:
                base_bytes = parse_record(base_line, check=False).size if signature is not None else 0
                sending.skip_holes(ranges_from_text(fields[keys.SPARSE], status.st_size), base_bytes)
            try:
                digest = sending.run(self._master.digest, digest, tell)
                if not self._master.settled(status, fd):
                    raise SourceChanged(path=path)
                fields.update(segment_fields(sending.digests()))
                line = _line(path, fields, digest, self._master.digest)
                if wanted.forced and is_altered(wanted.old_line, line):
                    raise SourceAltered(path=path)
                sending.finish(line)
            except BaseException:
                sending.abandon()
                raise
            return _SENT, line, status.st_size
        finally:
            os.close(fd)

    def _unchanged_digest(self, fd: int, path: bytes, size_bytes: int, known: bytes) -> bytes:
        """Return ``known`` if the content may be unchanged and is; stops at the first block that differs."""
        signature = self._signatures.load(path, known)
        if signature is not None:
            difference = Difference(signature, fd, size_bytes)
            for start, end in plan_segments(size_bytes):
                if difference.segment(start, end).kind is not ChangeKind.UNCHANGED:
                    return b""
        return hash_content(fd, size_bytes, self._master.digest)

    def _stamp_or_place(
        self, path: bytes, fields: dict[bytes, bytes], digest: bytes, key: bytes, size_bytes: int
    ) -> tuple[int, bytes, int] | None:
        line = _line(path, fields, digest, self._master.digest)
        frame = Frame(Op.PLACE, line, key) if key else Frame(Op.STAMP, line)
        if self._slave.apply([frame]):
            return None
        return (_PLACED if key else _STAMPED), line, size_bytes

    def _copy(self, source: bytes, path: bytes, fields: dict[bytes, bytes], digest: bytes, fd: int) -> bool:
        """Have the mirror copy what it has at ``source``; returns whether it did."""
        size_bytes = int(fields[keys.SIZE])
        fields.update(segment_fields(pack_digests(size_bytes, digest_segments(fd, size_bytes))))
        return not self._slave.apply(
            [Frame(Op.COPY, _line(path, fields, digest, self._master.digest), source)]
        )

    def _signature(self, path: bytes, known: bytes, size_bytes: int) -> Signature | None:
        """Return the signature of what the mirror has: from the cache, else from the store."""
        cached = self._signatures.load(path, known)
        if cached is None and not self._waited:
            self._waited = True
            wait_for_signatures(self._signatures.directory)
            cached = self._signatures.load(path, known)
        if cached is not None:
            return cached
        try:
            return Signature.load(self._slave.signature(path, size_bytes))
        except (MirrorkeepError, MalformedSignature):
            return None


def _line(path: bytes, fields: dict[bytes, bytes], digest: bytes, digest_name: str) -> bytes:
    return format_record(path, {**fields, **base_fields(digest, digest_name)})
