"""A run as the store sees it: begin, commit, close, and what can be asked beside it.

Not here: what happens between begin and close (``mirror``), the requests themselves (``tree/client``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mirrorkeep.tree.client import StoreClient
from mirrorkeep.tree.compression import Policy
from mirrorkeep.tree.protocol import Slave
from mirrorkeep.tree.remote import RemoteTree, RunMark

_BLOCK_BYTES: Final = 1 << 18
_GZIP_WINDOW: Final = 31


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What the store says when a run begins."""

    mark: RunMark
    manifest: str | None
    """Digest of the manifest that describes the tip, if a run was ever closed."""
    dirty: bool
    """The tip may hold writes of a run that was not closed."""
    resume: bool
    """The store's last commit is the one that the client named."""
    patch: bool
    """Validation left findings to repair."""
    empty: bool
    """The tip holds nothing at all."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing a run made."""

    snapshot: str | None
    sequence: int | None
    validation: str | None


class WritableTree(Slave, Protocol):
    """The slave as workers need it: it counts what travels, and can sign what it has."""

    sent_bytes: int

    def signature(self, path: bytes, size_bytes: int | None = None) -> bytes:
        """Return a librsync signature of the file as the slave has it now; the caller may know its size."""


class RunSession(Protocol):
    """One run of one target, wherever that is."""

    part: bytes
    """Path of the part inside its volume."""
    stamps_in_order: bool
    """Whether a directory may only be stamped after what is in it (its mode may shut this process out)."""
    closes_beside_commits: bool
    """Whether a close may be asked for while a commit is under way: the target keeps the two apart."""

    @property
    def mark(self) -> RunMark:
        """What identifies this run."""

    def slave(self, compress: Policy) -> WritableTree:
        """Return the tree to write to; called once in each worker thread, after :meth:`begin`."""

    def begin(self, source: str, state: dict[str, Any]) -> RunInfo:
        """Begin a run; ``state`` is what the client knows of the last one."""

    def commit(self, position: int) -> int:
        """Make everything written so far durable; returns the commit's number.  Called in a worker."""

    def close(self, *, form: str, base: str | None, digest: str, body: str | None, snapshot: bool) -> Closed:
        """Commit, hand over the manifest; the run is over.

        ``body`` is the path of a file: the manifest (``full``), its difference from the manifest of digest
        ``base`` (``delta``), or None where the store has it (``same``).  The file stays as it is until the
        call returns, so that a repeated request reads it again.
        """

    def fetch_manifest(self, snapshot: str, path: str) -> None:
        """Write the manifest of the last run (``latest``), or of what is there (``actual``), to a file."""

    def fetch_patch(self, path: str) -> bool:
        """Write the patch that validation left to a file; returns whether there is one."""


class PackedFile:
    """A file as the gzip'd body of a request: read, packed and sent a block at a time, anew each time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sent_bytes = 0

    def __len__(self) -> int:
        """Return the bytes that the last reading gave."""
        return self._sent_bytes

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body from its beginning."""
        self._sent_bytes = 0
        packer = _packer()
        with open(self._path, "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield from self._counted(packer.compress(block))
        yield from self._counted(packer.flush())

    def _counted(self, packed: bytes) -> Iterator[bytes]:
        if packed:
            self._sent_bytes += len(packed)
            yield packed


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _packer() -> _Packer:
    """Return a fast gzip compressor (the accelerator is loaded when it is first wanted)."""
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib.compressobj(1, zlib.DEFLATED, _GZIP_WINDOW)
    made: _Packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, _GZIP_WINDOW)
    return made


class Session:
    """One run of one part on a store."""

    stamps_in_order = False  # the server can always get in
    closes_beside_commits = True  # both take the part's barrier

    def __init__(self, client: StoreClient) -> None:
        self.client = client
        self.part = client.part
        self.info: RunInfo | None = None

    @property
    def mark(self) -> RunMark:
        """What writes of this run carry."""
        assert self.info is not None
        return self.info.mark

    def slave(self, compress: Policy) -> RemoteTree:
        """Return the part's tip, to be written by this run."""
        return RemoteTree(self.client, run=self.mark, compress=compress)

    def begin(self, source: str, state: dict[str, Any]) -> RunInfo:
        """Begin a run; a run of the same part that is still open is superseded."""
        answer = self.client.post_json(
            "runs",
            {
                "volume": self.client.volume,
                "part": self.client.part.decode("utf-8", "surrogateescape"),
                "source": source,
                "state": state,
            },
        )
        self.info = RunInfo(
            RunMark(answer["run"], answer["epoch"], answer["incarnation"]),
            answer["manifest"] or None,
            bool(answer["dirty"]),
            bool(answer["resume"]),
            bool(answer["patch"]),
            bool(answer.get("empty", False)),
        )
        return self.info

    def commit(self, position: int) -> int:
        """Make everything acknowledged so far durable on the store; returns the commit's number."""
        mark = self.mark
        body = {"epoch": mark.epoch, "incarnation": mark.incarnation, "position": position}
        number: int = self.client.post_json(f"runs/{mark.run}/commit", body)["commit"]
        return number

    def close(self, *, form: str, base: str | None, digest: str, body: str | None, snapshot: bool) -> Closed:
        """Commit, hand over the manifest, freeze the tip; the run is over."""
        mark = self.mark
        url = self.client.api(
            f"runs/{mark.run}/close",
            epoch=mark.epoch,
            incarnation=mark.incarnation,
            form=form,
            base=base,
            digest=digest,
            snapshot=int(snapshot),
        )
        headers = {"Content-Type": "application/octet-stream"}
        if body is None:
            answer = self.client.request("POST", url, b"", headers).json()
        else:
            headers["Content-Encoding"] = "gzip"
            answer = self.client.request("POST", url, PackedFile(body), headers).json()
        return Closed(answer.get("snapshot"), answer.get("sequence"), answer.get("validation"))

    def fetch_manifest(self, snapshot: str, path: str) -> None:
        """Write the manifest of a snapshot (``latest``), or of the tip as it is (``actual``), to a file."""
        self.client.save(self.client.api(f"volumes/{self.client.volume}/manifest", snapshot=snapshot), path)

    def fetch_patch(self, path: str) -> bool:
        """Write the patch that validation left to a file; returns whether there is one."""
        self.client.save(self.client.api(f"volumes/{self.client.volume}/patch"), path)
        return os.path.getsize(path) > 0
