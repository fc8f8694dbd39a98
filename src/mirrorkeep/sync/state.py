"""What a client remembers between runs, and what an open run leaves for the next one.

::

    STATE/KEY/            KEY: 24 hex digits of the SHA-256 of source and target (CHG-10)
      lock                held by the running process
      manifest, index     the last closed run
      state.json          which manifest that is
      mounts.json         where other file systems were mounted in the source, if any were
      not_done            what the last run could not delete or stamp on the target, if anything: a patch
      run.json            the open run: its id and what its last commit covers
      work/               files of the open run; ``intents`` names what it may have changed on the store
      undecided           what is in doubt and could not be looked at (``undecided``)
      trust.json          the keys that sign the store's verdicts, and the newest one seen (``cli.trust``)
      signatures/         block signatures of large files (``delta/cache``)

Everything is replaced by rename.  ``run.json`` is written after the store confirmed a commit, so what
it covers is durable on both sides; whatever else lies in ``work`` is thrown away.  Losing the whole
folder costs one comparison with the store's own listing, never data.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirrorkeep.errors import MirrorkeepError
from mirrorkeep.tree.local_errors import local_errors
from mirrorkeep.tree.processes import is_alive

ELSEWHERE: Final = "name another folder with --state"
LEAVING_S: Final = 60.0
"""How long the workers of a run that was killed may take to notice."""


class StateBusy(MirrorkeepError):
    """Another process of this client works on the same source and target; nothing was done."""

    code = "state_busy"
    template = "another run of {source} to {target} is under way in process {pid}"
    http_status = 409


@dataclass(slots=True)
class OpenRun:
    """What the last commit of an open run covers."""

    run: str
    commit: int = 0
    walk_bytes: int = 0
    """Length of the part of ``work/walk.manifest`` that is committed."""
    late_bytes: int = 0
    """Length of the part of ``work/late.records`` that is committed."""
    own_input: bool = False
    """The run started from the manifest of the last closed run, so that what it committed completes that."""
    boot: str = ""
    """The boot of this machine that it ran in: ``work/intents`` is whole only while that lasts."""

    room_first: bool = False
    """The store was full: until a run has closed, what goes is removed before anything is sent."""

    def is_resumable(self) -> bool:
        """Return whether what the run left says everything that the mirror may hold because of it."""
        return self.own_input and self.boot == boot_id()


def boot_id() -> str:
    """Return what names this boot of the machine, nothing where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def default_state_folder() -> str:
    """Return where state lies when the command names no folder."""
    if os.geteuid() == 0:
        return "/var/lib/mirrorkeep"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "mirrorkeep")


class StateReader:
    """Where the state of one source and one target lies, and what the last closed run left; never written."""

    def __init__(self, folder: str, source: str, target: str) -> None:
        key = hashlib.sha256(f"{source}\0{target}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self.folder = os.path.join(folder, key)
        self.source, self.target = source, target
        self.manifest_path = os.path.join(self.folder, "manifest")
        self.index_path = os.path.join(self.folder, "index")

    def manifest_digest(self) -> str | None:
        """Return the digest of the manifest of the last closed run, if there is one."""
        known = self._read("state.json")
        if known and os.path.exists(self.manifest_path):
            digest: str | None = known.get("manifest")
            return digest
        return None

    def mounts(self) -> frozenset[bytes]:
        """Return the mount points of the source that the target may hold files of."""
        return frozenset(os.fsencode(path) for path in (self._read("mounts.json") or {}).get("mounts", ()))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self.folder, name), "rb") as stream:
                known = json.load(stream)
        except (FileNotFoundError, ValueError):
            return None
        return known if isinstance(known, dict) else None


class State(StateReader):
    """The state of one source and one target, locked while it is open."""

    def __init__(self, folder: str, source: str, target: str) -> None:
        super().__init__(folder, source, target)
        with local_errors(self.folder, ELSEWHERE):
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            self._lock = lock_alone(os.path.join(self.folder, "lock"), source, target)
        self._flush: _Flush | None = None
        self.signatures = os.path.join(self.folder, "signatures")
        self.work = os.path.join(self.folder, "work")
        self.not_done_path = os.path.join(self.folder, "not_done")

    def close(self) -> None:
        """Give the lock back, for processes that were forked meanwhile too."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the last closed run ---------------------------------------------------------------------

    def flush_early(self, manifest: str) -> None:
        """Begin to bring a finished manifest to the disk, while the store is busy with its own."""
        self._flush = _Flush(manifest)
        self._flush.start()

    def keep(self, manifest: str, index: str, digest: str) -> None:
        """Make a manifest and its index those of the last closed run; forget the open run."""
        flush, self._flush = self._flush, None
        if flush is not None and flush.path == manifest:
            flush.finish()
        else:
            _sync_file(manifest)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, "state.json"))
        os.replace(manifest, self.manifest_path)
        os.replace(index, self.index_path)
        self._write("state.json", {"manifest": digest, "source": self.source, "target": self.target})
        self.forget_run()

    def forget(self) -> None:
        """Forget the last closed run, and the open one: the store has to say what it has."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, "state.json"))
        self.forget_not_done()  # which may be what is damaged
        self.forget_run()

    def note_mounts(self, paths: set[bytes]) -> None:
        """Remember mount points of the source; nothing is written when they are known."""
        if paths != self.mounts():
            self._write("mounts.json", {"mounts": sorted(os.fsdecode(path) for path in paths)})

    def note_not_done(self, patch: str) -> None:
        """Have the next runs look at what a patch names, until one has closed without such a patch."""
        _sync_file(patch)
        os.replace(patch, self.not_done_path)

    def forget_not_done(self) -> None:
        """All that was to be done is done."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.not_done_path)

    # --- the open run ----------------------------------------------------------------------------

    def open_run(self) -> OpenRun | None:
        """Return what the open run committed, if a run was left open."""
        known = self._read("run.json")
        try:
            return OpenRun(**known) if known else None
        except TypeError:
            return None

    def note_run(self, run: OpenRun) -> None:
        """Record how far the open run is committed."""
        self._write("run.json", asdict(run))

    def forget_run(self) -> None:
        """The run is closed: remove its files."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, "run.json"))
        shutil.rmtree(self.work, ignore_errors=True)

    def fresh_work(self) -> str:
        """Return an empty folder for the files of a run."""
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work, mode=0o700)
        return self.work

    def _write(self, name: str, value: dict[str, Any]) -> None:
        path = os.path.join(self.folder, name)
        with local_errors(path):
            with open(path + ".new", "wb") as stream:
                stream.write(json.dumps(value).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(path + ".new", path)


class _Flush(threading.Thread):
    """One flush of one file, beside what else there is to do."""

    def __init__(self, path: str) -> None:
        super().__init__(name="flush", daemon=True)
        self.path = path
        self._error: OSError | None = None

    def run(self) -> None:
        try:
            _sync_file(self.path)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Wait for it; raises SystemFailure when the disk did not take the file."""
        self.join()
        if self._error is not None:  # only once does the system tell
            with local_errors(self.path):
                raise self._error


def lock_alone(path: str | bytes, source: str, target: str | bytes) -> int:
    """Lock a file, write this process's id to it and return its descriptor.  Raises StateBusy."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LEAVING_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            # Of a run that was killed the workers live on for a moment, and the lock with them.
            if (pid.isdigit() and is_alive(int(pid))) or time.monotonic() > deadline:
                os.close(fd)
                raise StateBusy(source=source, target=target, pid=pid or "unknown") from None
        time.sleep(0.02)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
