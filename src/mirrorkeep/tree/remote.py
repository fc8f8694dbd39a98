"""A tree on a store, reached over HTTPS: the slave of a mirror run, the master of a restore.

Small things travel in bundles, large files in transactions of segments; every request is whole or
not at all on the server, and may be repeated.  Writes belong to a run: they carry its epoch, and the
server refuses those of a superseded run, whatever was still under way.

Not here: the connection (``client``), what to send (``sync``), beginning and closing runs
(``sync/session``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from mirrorkeep.errors import MalformedBundle, MirrorkeepError, StoreUnreachable
from mirrorkeep.manifest.peek import path_of
from mirrorkeep.manifest.record import parse_record
from mirrorkeep.tree import wire
from mirrorkeep.tree.client import STREAM_TRIES, StoreClient, quote_path
from mirrorkeep.tree.compression import Compressor, Policy, packed_by_type
from mirrorkeep.tree.protocol import Failure, Frame, Op, Segment

__all__ = ["RemoteTransaction", "RemoteTree", "RunMark", "StoreClient"]

MAX_READ_PATHS_BYTES: Final = 1 << 20
_Item = TypeVar("_Item")
_NOT_THERE: Final = "the store has no such entry"


@dataclass(frozen=True, slots=True)
class RunMark:
    """What a write inside a run carries."""

    run: str
    epoch: int
    incarnation: str

    def header(self) -> str:
        """Return the value of the run header."""
        return f"{self.run};epoch={self.epoch};incarnation={self.incarnation}"


class RemoteTree:
    """A part's tip (with a run) or one of its snapshots (read-only)."""

    def __init__(
        self,
        client: StoreClient,
        *,
        run: RunMark | None = None,
        snapshot: str | None = None,
        compress: Policy = "auto",
    ) -> None:
        self.client = client
        self.snapshot = snapshot
        self._run = {wire.RUN_HEADER: run.header()} if run else {}
        self._compressor = Compressor(compress)
        self.sent_bytes = 0

    # --- slave ---------------------------------------------------------------------------------

    def apply(self, frames: Iterable[Frame]) -> list[Failure]:
        """Carry out frames in one BUNDLE-APPLY; the caller keeps them within the wire's limits."""
        listed = list(frames)
        body = wire.pack_bundle(listed)
        answer = self._upload(
            wire.BUNDLE_APPLY,
            self.client.url(),
            body,
            {},
            packed=lambda: 2 * _packed_bytes(listed) > len(body),
        )
        result = json.loads(answer)
        return [
            Failure(one["index"], one["path"].encode("utf-8", "surrogateescape"), one["code"], one["detail"])
            for one in result["failed"]
        ]

    def begin(self, line: bytes, *, on_base: bool) -> RemoteTransaction:
        """Open a transaction for the file of record ``line``."""
        path = path_of(line)
        url = self.client.url(path, transaction="begin", base=int(on_base))
        answer = self.client.request("POST", url, b"", {**self._run, wire.RECORD_HEADER: quote_path(line)})
        size_bytes = parse_record(line, check=False).size
        return RemoteTransaction(self, path, answer.json()["transaction"], size_bytes)

    def _upload(
        self, method: str, url: str, body: bytes, headers: dict[str, str], *, packed: Callable[[], bool]
    ) -> bytes:
        headers = {**self._run, "Content-Type": "application/octet-stream", **headers}
        squeezed = self._compressor.pack(body, packed)
        if squeezed is not None:
            headers["Content-Transfer-Encoding"] = "gzip"
            body = squeezed
        answer = self.client.request(method, url, body, headers)
        self._compressor.note_sent(len(body), self.client.send_seconds())
        self.sent_bytes += len(body)
        return answer.body

    # --- master --------------------------------------------------------------------------------

    def frames(self, paths: Sequence[bytes]) -> Iterator[Frame | Failure]:
        """Yield the frames of ``paths`` in order, as the server reads them (one BUNDLE-READ).

        What the server cannot read is reported as a Failure in its place.  After an answer that broke off
        the rest is asked for again.
        """
        return _again(self._frames_once, paths)

    def _frames_once(self, paths: Sequence[bytes], first: int) -> Iterator[Frame | Failure]:
        wanted = iter(enumerate(paths, first))
        blocks = self.client.stream_url(
            self.client.url(snapshot=self.snapshot), method=wire.BUNDLE_READ, body=b"\0".join(paths)
        )
        for code, line, data in _read_frames(blocks, self.client.target.origin):
            path = path_of(line)
            for index, asked in wanted:
                if asked == path:
                    yield Frame(Op(code), line, data)
                    break
                yield Failure(index, asked, "not_found", _NOT_THERE)
        for index, asked in wanted:
            yield Failure(index, asked, "not_found", _NOT_THERE)

    def contents(self, paths: Sequence[bytes]) -> Iterator[bytes | Failure]:
        """Yield the content of each small file (one BUNDLE-READ); see ``protocol.Master``."""
        return _again(self._contents_once, paths)

    def _contents_once(self, paths: Sequence[bytes], first: int) -> Iterator[bytes | Failure]:
        url = self.client.url(snapshot=self.snapshot, content=1)
        blocks = self.client.stream_url(url, method=wire.BUNDLE_READ, body=b"\0".join(paths))
        position = 0
        for _, line, data in _read_frames(blocks, self.client.target.origin):
            found = int(line) if line.isdigit() else -1
            if not position <= found < len(paths):
                raise MalformedBundle(
                    offset=0, detail=f"content for no path that was asked for: {line[:40]!r}"
                )
            for missing in range(position, found):
                yield Failure(first + missing, paths[missing], "not_found", _NOT_THERE)
            yield data
            position = found + 1
        for missing in range(position, len(paths)):
            yield Failure(first + missing, paths[missing], "not_found", _NOT_THERE)

    def read_range(self, path: bytes, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive) of the file at ``path``."""
        if end <= start:
            return b""
        url = self.client.url(path, snapshot=self.snapshot)
        answer = self.client.request("GET", url, None, {"Range": f"bytes={start}-{end - 1}"}, allow=(416,))
        return b"" if answer.status == 416 else answer.body

    def signature(self, path: bytes, size_bytes: int | None = None) -> bytes:
        """Return a librsync signature of the file as the store has it now.

        Where its size is known, a large one is signed in pieces, so that no answer keeps one waiting for
        the reading of a whole disk image.
        """
        if size_bytes is None or size_bytes <= wire.SIGNED_AT_ONCE_BYTES:
            return self._signed(path)
        return self.signature_of_range(path, 0, size_bytes)

    def signature_of_range(self, path: bytes, start: int, end: int) -> bytes:
        """Return a librsync signature of a range, which begins on a border of the file's blocks."""
        pieces: list[bytes] = []
        for position in range(start, end, wire.SIGNED_AT_ONCE_BYTES):
            piece = self._signed(path, start=position, end=min(position + wire.SIGNED_AT_ONCE_BYTES, end))
            pieces.append(piece[wire.SIGNATURE_HEAD_BYTES :] if pieces else piece)
        return b"".join(pieces)

    def _signed(self, path: bytes, **span: int) -> bytes:
        url = self.client.url(path, snapshot=self.snapshot, signature=1, **span)
        return self.client.request("GET", url).body


class RemoteTransaction:
    """A large file in the making on the store."""

    def __init__(self, tree: RemoteTree, path: bytes, transaction: str, size_bytes: int) -> None:
        self._tree = tree
        self._path = path
        self._size_bytes = size_bytes
        self.id = transaction

    def write(self, segment: Segment, body: bytes, *, delta: bool, digest: bytes) -> None:
        """Send one segment; safe from several threads, each with its own connection."""
        headers = {
            wire.TRANSACTION_HEADER: self.id,
            wire.DIGEST_HEADER: f"{wire.SEGMENT_DIGEST}={digest.hex()}",
            "Content-Range": f"bytes:{segment.start}-{segment.end - 1}/{self._size_bytes}",
        }
        if not delta:
            headers[wire.PLAIN_SEGMENT_HEADER] = "true"
        url = self._tree.client.url(self._path)
        self._tree._upload(wire.PATCH_APPLY, url, body, headers, packed=partial(packed_by_type, self._path))

    def finish(self, line: bytes, segments: Sequence[Segment]) -> None:
        """Publish the file."""
        url = self._tree.client.url(self._path, transaction=self.id)
        body = json.dumps({"segments": [[one.start, one.end] for one in segments]}).encode()
        headers = {**self._tree._run, wire.RECORD_HEADER: quote_path(line)}
        self._tree.client.request("POST", url, body, {**headers, "Content-Type": "application/json"})

    def abandon(self) -> None:
        """Give the transaction up; what is left of it expires on the server in any case."""
        try:
            url = self._tree.client.url(self._path, transaction=self.id)
            self._tree.client.request("DELETE", url, None, self._tree._run, allow=(404,))
        except MirrorkeepError:
            return


def _again(
    once: Callable[[Sequence[bytes], int], Iterator[_Item]], paths: Sequence[bytes]
) -> Iterator[_Item]:
    """Yield what ``once`` gives for ``paths``, one for each; after an answer that broke off, for the rest."""
    done, tries_left = 0, STREAM_TRIES
    while done < len(paths):
        try:
            for item in once(paths[done:], done):
                done += 1
                tries_left = STREAM_TRIES
                yield item
        except StoreUnreachable as error:
            tries_left -= 1
            if not tries_left or "begun" not in error.fields:
                raise


def _packed_bytes(frames: Iterable[Frame]) -> int:
    """Return how much of the frames' content is compressed already, by the types of the files."""
    return sum(len(one.data) for one in frames if one.op == Op.PUT and packed_by_type(path_of(one.line)))


def _read_frames(blocks: Iterator[bytes], origin: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Cut a stream of blocks into (operation, line, data); the end mark must come, or it was cut off."""
    block, position = b"", 0
    while True:
        while len(block) - position < wire.HEAD_BYTES:
            block, position = block[position:] + _next_block(blocks, origin), 0
        code, line_bytes, data_bytes = wire.unpack_head(block, position)
        if code == 0:
            return
        data_start = position + wire.HEAD_BYTES + line_bytes
        end = data_start + data_bytes
        if end > len(block):
            parts, have_bytes = [block[position:]], len(block) - position
            while have_bytes < end - position:
                parts.append(_next_block(blocks, origin))
                have_bytes += len(parts[-1])
            block, data_start, end, position = b"".join(parts), data_start - position, end - position, 0
        yield code, block[position + wire.HEAD_BYTES : data_start], block[data_start:end]
        position = end


def _next_block(blocks: Iterator[bytes], origin: str) -> bytes:
    block = next(blocks, b"")
    if not block:
        raise StoreUnreachable(url=origin, detail="the answer was cut off", begun=True)
    return block
