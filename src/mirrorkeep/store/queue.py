"""The durable queue: one file a job, leased by ``flock``, in the order of priority and then of arrival.

Answers for: a job that was published is worked on at least once, whatever is killed in between.  A job
is one JSON file under ``DATA/queue``; publishing writes it beside, makes it durable and renames it.  A
lease is an exclusive ``flock`` on the file, so the kernel gives it back when the holder dies;
:meth:`Lease.done` removes the file.  Any number of processes may publish and lease.

A crash leaves: while publishing, a ``*.tmp`` file that nobody looks at and :meth:`Queue.sweep` removes a
day later; while working, the job, free to be leased again.

Not here: what a job means, retry policy (the holder calls :meth:`Lease.put_back` with a pause).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirrorkeep.store.drivers.system import storage_errors
from mirrorkeep.store.records import make_durable_folder, write_record
from mirrorkeep.tree.durability import flush_directory

REQUESTED: Final = 1
"""Priority of what a person waits for; lower goes first."""
AFTER_RUN: Final = 5
ROLLING: Final = 9

_STALE_S: Final = 86_400.0

Clock = Callable[[], float]


@dataclass(slots=True)
class Job:
    """One piece of work: ``payload`` is JSON, ``tries`` counts the leases that ended without ``done``."""

    id: str
    payload: dict[str, Any]
    tries: int = 0
    not_before: float = 0.0


class Lease:
    """A job that this process works on, and nobody else."""

    def __init__(self, queue: Queue, job: Job, fd: int, name: str) -> None:
        self.job = job
        self._queue = queue
        self._fd = fd
        self._name = name

    def fileno(self) -> int:
        """The locked descriptor: a forked child closes its copy, or the lease outlives this process."""
        return self._fd

    def done(self) -> None:
        """Remove the job for good; durable when this returns."""
        try:
            with storage_errors(self._queue.directory):
                os.unlink(self._path())
                flush_directory(self._queue.directory)
        finally:
            self._release()

    def put_back(self, pause_s: float = 0.0, *, tried: bool = True) -> None:
        """Give the job back, to be leased again not before ``pause_s`` from now; ``tried`` counts a try."""
        self.job.tries += tried
        self.job.not_before = self._queue.now() + pause_s
        try:
            # The new file takes the name of the locked one; a waiting process notices by the inode.
            self._queue.store(self._name, self.job)
        finally:
            self._release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the job, which is leased again unless it is done."""
        self._release()

    def _path(self) -> str:
        return f"{self._queue.directory}/{self._name}"

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Queue:
    """The queue in one directory; cheap to make, holds nothing open."""

    def __init__(self, directory: str, *, now: Clock = time.time) -> None:
        self.directory = directory
        self.now = now

    def publish(
        self,
        payload: dict[str, Any],
        *,
        priority: int = AFTER_RUN,
        not_before: float = 0.0,
        job_id: str | None = None,
    ) -> str:
        """Queue a job and return its id; durable when this returns.

        With ``job_id`` (16 hex digits) publishing may be repeated: a job of that id and priority is
        queued once.  Raises NoSpace, StorageFailure: the job is not queued.
        """
        with storage_errors(self.directory):
            make_durable_folder(self.directory)
        if job_id is not None and any(name.endswith(f"-{job_id}.json") for name in self._names()):
            with storage_errors(self.directory):
                flush_directory(self.directory)  # who published it may have been killed before that
            return job_id
        job = Job(job_id or secrets.token_hex(8), payload, 0, not_before)
        self.store(f"{priority}-{time.time_ns():020d}-{job.id}.json", job)
        return job.id

    def lease(self, suits: Callable[[Job], bool] = lambda job: True) -> Lease | None:
        """Lease the first job that is due, free and suits; None when there is none.  Never waits."""
        for name in self._names():
            lease = self._try(name, suits)
            if lease is not None:
                return lease
        return None

    def jobs(self) -> Iterator[Job]:
        """Yield every job, leased ones included, in order; a snapshot that may be outdated at once."""
        for name in self._names():
            try:
                with open(f"{self.directory}/{name}", "rb") as stream:
                    job = _decode(name, stream.read())
            except OSError:
                continue
            if job is not None:
                yield job

    def holds(self, job_id: str) -> bool:
        """Whether the job is queued or being worked on."""
        return any(name.endswith(f"-{job_id}.json") for name in self._names())

    def promote(self, job_id: str, payload: Mapping[str, Any], *, priority: int = REQUESTED) -> None:
        """Have a job that nobody works on go first, with these changes of its payload; durable.

        A crash may leave it queued twice.  Nothing is done when it is under way, or no longer there.
        Raises NoSpace, StorageFailure: it is done all the same, at its time.
        """
        for name in self._names():
            if not name.endswith(f"-{job_id}.json") or int(name.partition("-")[0]) <= priority:
                continue
            lease = self._try(name, lambda job: True)
            if lease is not None:
                with lease:
                    lease.job.payload.update(payload)
                    self.store(f"{priority}-{time.time_ns():020d}-{job_id}.json", lease.job)
                    lease.done()

    def store(self, name: str, job: Job) -> None:
        """Write a job's file under ``name`` (atomic, durable)."""
        record = {"payload": job.payload, "tries": job.tries, "not_before": job.not_before}
        with storage_errors(self.directory):
            write_record(f"{self.directory}/{name}", record, mode=0o600)

    def sweep(self) -> None:
        """Remove what crashes while publishing left more than a day ago."""
        for name in _listing(self.directory):
            if name.endswith(".tmp"):
                path = f"{self.directory}/{name}"
                try:
                    if time.time() - os.stat(path).st_mtime > _STALE_S:
                        os.unlink(path)
                except OSError:
                    continue

    def _names(self) -> list[str]:
        return sorted(name for name in _listing(self.directory) if name.endswith(".json"))

    def _try(self, name: str, suits: Callable[[Job], bool]) -> Lease | None:
        try:
            fd = os.open(f"{self.directory}/{name}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been finished, or replaced by put_back, between open and lock.
            if os.fstat(fd).st_ino == os.stat(f"{self.directory}/{name}").st_ino:
                with open(os.dup(fd), "rb") as stream:
                    job = _decode(name, stream.read())
                if job is not None and job.not_before <= self.now() and suits(job):
                    return Lease(self, job, fd, name)
        except OSError:
            pass
        os.close(fd)
        return None


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _decode(name: str, body: bytes) -> Job | None:
    """Return the job of a file, or None for a file that is none (it is left for a person to look at)."""
    try:
        fields = json.loads(body)
        job_id = name.removesuffix(".json").rsplit("-", 1)[1]
        return Job(job_id, dict(fields["payload"]), int(fields["tries"]), float(fields["not_before"]))
    except (ValueError, KeyError, TypeError, IndexError):
        return None
