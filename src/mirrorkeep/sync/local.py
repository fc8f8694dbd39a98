"""A directory as the target of a run: a stored copy on a local disk or a mounted share (LOC-01, LOC-04).

The same engine mirrors to it and restores from it; only the session differs.  What a store keeps beside a
part, a local copy keeps in its own hidden folder::

    ROOT/.mirrorkeep/.mirrorkeep.lock       held by the run (and by its last worker)
    ROOT/.mirrorkeep/.mirrorkeep.copy       state: open run, last commit, digest of the manifest
    ROOT/.mirrorkeep/.mirrorkeep.manifest   the manifest of the last closed run
    ROOT/.mirrorkeep/.mirrorkeep.patch      what validation found and no run has repaired since

One process at a time may write, so there are no epochs; a copy has one present and no snapshots.  A
validation of the copy keeps runs away too, and what it finds the next run is given as its patch.

A crash leaves the copy at its last commit plus whole entries of the open run: the state says that it is
*dirty*, and the next run resumes or takes stock.  A close is decided by one replacement of the state file
and rolled forward by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from mirrorkeep.delta.signature import make_signature
from mirrorkeep.delta.stream import patch_from
from mirrorkeep.errors import (
    BadUsage,
    DigestMismatch,
    ForeignManifest,
    MalformedDelta,
    NotFound,
    RunSuperseded,
)
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.sync.session import Closed, RunInfo
from mirrorkeep.sync.state import lock_alone
from mirrorkeep.tree.durability import flush_directory, flush_file_system
from mirrorkeep.tree.layout import FILE_SYSTEM_FOLDER, HIDDEN, MANIFEST, storage_errors
from mirrorkeep.tree.protocol import Failure, Frame, Segment
from mirrorkeep.tree.remote import RunMark
from mirrorkeep.tree.stored import StoredTree
from mirrorkeep.tree.transaction import StoredTransaction

LOCK: Final = b".mirrorkeep.lock"
COPY: Final = b".mirrorkeep.copy"
PATCH: Final = b".mirrorkeep.patch"
_BLOCK_BYTES: Final = 1 << 18
_NO_RUN: Final[dict[str, Any]] = {"dirty": False, "run": None, "commits": [], "closing": None}


def is_copy(root: str | bytes) -> bool:
    """Return whether a directory is a local copy."""
    return os.path.exists(os.path.join(os.fsencode(root), HIDDEN, COPY))


@dataclass(frozen=True, slots=True)
class CopyState:
    """What a copy says of itself."""

    manifest: str | None
    """Digest of the manifest of the last closed run, None when there is none or it is not to be trusted."""
    dirty: bool
    """The last run to the copy did not end."""


class LocalTree:
    """The slave of a run to a directory: a stored tree that counts what it writes."""

    def __init__(self, root: bytes) -> None:
        self._tree = StoredTree(root)
        self.sent_bytes = 0

    def apply(self, frames: Iterable[Frame]) -> list[Failure]:
        """Carry out frames in order."""
        listed = list(frames)
        self.sent_bytes += sum(len(one.data) for one in listed)
        return self._tree.apply(listed)

    def begin(self, line: bytes, *, on_base: bool) -> LocalTransaction:
        """Open a transaction for the file of record ``line``."""
        return LocalTransaction(self, self._tree.begin(line, on_base=on_base))

    def signature(self, path: bytes, size_bytes: int | None = None) -> bytes:
        """Return a signature of the file as the copy has it now."""
        fd, entry = self._tree.open_read(path)
        try:
            return make_signature(fd, entry.size)
        finally:
            os.close(fd)


class LocalTransaction:
    """A large file in the making in a local copy."""

    def __init__(self, tree: LocalTree, transaction: StoredTransaction) -> None:
        self._tree = tree
        self._transaction = transaction

    def write(self, segment: Segment, body: bytes, *, delta: bool, digest: bytes) -> None:
        """Write one segment; safe from several threads."""
        self._transaction.write(segment, body, delta=delta, digest=digest)
        self._tree.sent_bytes += len(body)

    def finish(self, line: bytes, segments: Sequence[Segment]) -> None:
        """Publish the file."""
        self._transaction.finish(line, segments)

    def abandon(self) -> None:
        """Forget what was written."""
        self._transaction.abandon()


class LocalSession:
    """One run to a directory: the same methods as a store's ``Session``."""

    stamps_in_order = True
    closes_beside_commits = False  # one file tells of both

    def __init__(self, root: str | bytes, *, source: str | bytes = "") -> None:
        """Check the target; nothing is made or written before :meth:`begin`.

        Raises BadUsage for a directory that holds something else, or lies inside ``source`` or around it.
        """
        self.root = os.path.realpath(os.fsencode(root))
        self.part = b""
        self.info: RunInfo | None = None
        self._hidden = os.path.join(self.root, HIDDEN)
        self._lock = self._flush_fd = -1
        _check_apart(os.path.realpath(os.fsencode(source)) if source else b"", self.root)
        if not is_copy(self.root) and _holds_something(self.root):
            raise BadUsage(
                detail=f"{os.fsdecode(self.root)} is not empty and no copy that an earlier run made; a copy"
                " needs a directory of its own"
            )

    # --- a run -----------------------------------------------------------------------------------

    @property
    def mark(self) -> RunMark:
        """What identifies this run."""
        assert self.info is not None
        return self.info.mark

    def slave(self, compress: str = "never") -> LocalTree:
        """Return the tree to write to; each worker thread has its own."""
        return LocalTree(self.root)

    def begin(self, source: str, state: dict[str, Any]) -> RunInfo:
        """Begin a run.  Raises StateBusy while another process writes to the copy."""
        self.release()
        with storage_errors(self.root):
            os.makedirs(self.root, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._hidden, 0o700)
            self._acquire(source)
            self._flush_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        known = self._roll_forward(self._read())
        with StoredTree(self.root) as tree:
            tree.recover()
            tree.empty_staging()
        run = {"id": secrets.token_hex(12), "epoch": known["epoch"] + 1, "source": source}
        self._write({**known, "epoch": run["epoch"], "run": run, "dirty": True})
        self.info = RunInfo(
            RunMark(run["id"], run["epoch"], "local"),
            known["manifest"],
            known["dirty"],
            known["dirty"] and [state.get("run"), state.get("commit")] in known["commits"],
            os.path.exists(self.patch_path),
            not known["dirty"] and known["manifest"] is None,
        )
        return self.info

    def commit(self, position: int) -> int:
        """Make everything written so far durable; returns the commit's number."""
        known = self._open_state()
        flush_file_system(self._flush_fd)
        last = known["commits"][-1][1] if known["commits"] else 0
        self._write({**known, "commits": [*known["commits"], [self.mark.run, last + 1]][-2:]})
        return int(last + 1)

    def close(self, *, form: str, base: str | None, digest: str, body: str | None, snapshot: bool) -> Closed:
        """Commit, and make the manifest that of the copy; the run is over."""
        known = self._open_state()
        if form != "full" and not os.path.exists(self._place(MANIFEST)):
            raise ForeignManifest(snapshot="the copy", detail="its manifest is gone")
        if body is None:
            if digest != known["manifest"]:
                raise ForeignManifest(snapshot="the copy", detail="its manifest has another digest")
        else:
            self._stage_manifest(form, base, known["manifest"], digest, body)
        with StoredTree(self.root) as tree:
            tree.empty_staging()
        flush_file_system(self._flush_fd)
        known = {**known, "closing": {"manifest": digest, "staged": body is not None}}
        self._write(known)
        self._roll_forward(known)
        return Closed(None, None, None)

    def release(self) -> None:
        """Let go of the copy; a run that was not closed stays open for the next one to resume."""
        for fd in (self._lock, self._flush_fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self._flush_fd = -1

    # --- what can be asked -------------------------------------------------------------------------

    def fetch_manifest(self, snapshot: str, path: str) -> None:
        """Write the copy's manifest (``latest``), or one of what it really holds (``actual``), to a file.

        Raises NotFound when no run was ever closed.
        """
        if snapshot == "actual":
            with open(path, "wb") as stream, StoredTree(self.root, read_only=True) as tree:
                writer = ManifestWriter(stream, {b"source": b"actual"})
                for _, line in tree.actual_records():
                    writer.add(line)
                writer.finish()
            return
        try:
            shutil.copyfile(self._place(MANIFEST), os.fsencode(path))
        except FileNotFoundError:
            raise NotFound(what=f"a finished copy in {os.fsdecode(self.root)}") from None

    def fetch_patch(self, path: str) -> bool:
        """Write what validation found to a file; False: there is nothing."""
        try:
            shutil.copyfile(self.patch_path, os.fsencode(path))
        except FileNotFoundError:
            return False
        return True

    # --- beside runs -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[CopyState]:
        """Keep runs away from the copy, and tell what is known of it once a decided close is finished.

        Raises StateBusy while a run is under way, OSError where the copy cannot be written to.
        """
        self._acquire("its source")
        try:
            known = self._roll_forward(self._read())
            yield CopyState(known["manifest"], known["dirty"])
        finally:
            self.release()

    def distrust_manifest(self) -> None:
        """Have the next run take stock of the copy and write its manifest anew (the copy is held)."""
        self._write({**self._read(), "manifest": None, "dirty": True})

    @property
    def patch_path(self) -> bytes:
        """Where the patch lies, when there is one."""
        return self._place(PATCH)

    # --- files -----------------------------------------------------------------------------------

    def _acquire(self, source: str) -> None:
        self._lock = lock_alone(self._place(LOCK), source, self.root)

    def _open_state(self) -> dict[str, Any]:
        known = self._read()
        if known["run"] is None or known["run"]["id"] != self.mark.run:
            raise RunSuperseded(run=self.mark.run)
        return known

    def _stage_manifest(
        self, form: str, base: str | None, present: str | None, digest: str, body: str
    ) -> None:
        staged = self._place(MANIFEST) + b".new"
        with open(staged, "wb") as stream, open(body, "rb", buffering=0) as source:
            out = _Hashing(stream)
            blocks = iter(lambda: source.read(_BLOCK_BYTES), b"")
            if form == "delta":
                if base != present:
                    raise ForeignManifest(snapshot="the copy", detail="the delta is against another manifest")
                with open(self._place(MANIFEST), "rb") as old, contextlib.suppress(MalformedDelta):
                    patch_from(blocks, old.fileno(), out)
                if out.hasher.hexdigest() != digest:
                    raise ForeignManifest(snapshot="the copy", detail="its manifest is damaged")
            else:
                for block in blocks:
                    out.write(block)
        if out.hasher.hexdigest() != digest:
            raise DigestMismatch(path="the manifest", expected=digest, actual=out.hasher.hexdigest())

    def _roll_forward(self, known: dict[str, Any]) -> dict[str, Any]:
        """Finish a close that was decided.  Repeatable."""
        closing = known["closing"]
        if closing is None:
            return known
        if closing["staged"]:
            with contextlib.suppress(FileNotFoundError):  # in place already
                os.replace(self._place(MANIFEST) + b".new", self._place(MANIFEST))
        with contextlib.suppress(FileNotFoundError):  # the run was given it: validation keeps runs away
            os.unlink(self.patch_path)
        flush_directory(self._hidden)
        known = {**known, **_NO_RUN, "manifest": closing["manifest"]}
        self._write(known)
        return known

    def _place(self, name: bytes) -> bytes:
        return os.path.join(self._hidden, name)

    def _read(self) -> dict[str, Any]:
        known: dict[str, Any] = {"epoch": 0, "manifest": None, **_NO_RUN}
        try:
            with open(self._place(COPY), "rb") as stream:
                known.update(json.load(stream))
        except FileNotFoundError:
            pass
        except ValueError:  # damaged: nothing is known but that something may be there
            known["dirty"] = True
        return known

    def _write(self, known: dict[str, Any]) -> None:
        path = self._place(COPY)
        with storage_errors(path):
            with open(path + b".new", "wb") as stream:
                stream.write(json.dumps(known).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(path + b".new", path)
            flush_directory(self._hidden)


class LocalSource:
    """A local copy as the source of a restore (LOC-04)."""

    def __init__(self, root: str | bytes) -> None:
        """Open the copy; raises BadUsage when the directory is none."""
        self._root = os.path.realpath(os.fsencode(root))
        if not is_copy(self._root):
            raise BadUsage(detail=f"{os.fsdecode(self._root)} is no copy that `sync` made")
        self._session = LocalSession(self._root)
        self.name = os.fsdecode(self._root)
        self.dirty = bool(self._session._read()["dirty"])
        """The last run to the copy did not end: what is really there is restored, entry by entry."""

    def fetch_manifest(self, path: str) -> None:
        """Write the manifest of what is to be restored to a file."""
        self._session.fetch_manifest("actual" if self.dirty else "latest", path)

    def master(self) -> StoredTree:
        """Return the tree to read from; each worker thread has its own."""
        return StoredTree(self._root, read_only=True)


class _Hashing:
    """Writes through to a file and hashes what passes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.hasher = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.hasher.update(data)
        return self._stream.write(data)


def _holds_something(root: bytes) -> bool:
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise BadUsage(detail=f"{os.fsdecode(root)} is no directory") from None
    if HIDDEN in names:  # the first run died between making the hidden folder and its state
        names = [name for name in names if name != HIDDEN or os.listdir(os.path.join(root, HIDDEN))]
    return any(name != FILE_SYSTEM_FOLDER for name in names)


def _check_apart(source: bytes, root: bytes) -> None:
    if not source:
        return
    for inner, outer in ((root, source), (source, root)):
        if inner == outer or inner.startswith(outer.rstrip(b"/") + b"/"):
            raise BadUsage(detail="the source and its copy cannot lie inside one another")
