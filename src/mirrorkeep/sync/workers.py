"""A pool of worker processes: where hashing, compression and waiting for the network happen.

The coordinator (walk, compare, manifest) is one process; everything that costs time per file runs in
``threads`` threads of ``processes`` workers.  Workers are forked when the first task is submitted, so a
run that finds nothing changed never pays for them.  Tasks and results are pickled over a pipe per worker.

A worker that dies costs its tasks one more try in a fresh process (GEN-17); a task that kills two
workers is reported as failed, the pool goes on.

Not here: what a task is.  A crash leaves no trace: workers end when their pipe closes.
"""

from __future__ import annotations

import heapq
import importlib
import os
import pickle
import queue
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mirrorkeep.tree.allocator import keep_freed_memory

Handler = Callable[[Any], Any]

_LENGTH = struct.Struct(">I")
MAX_TRIES = 2


@dataclass(slots=True)
class Completed:
    """A task that ended: its result, or the exception that ended it."""

    sequence: int
    task: Any
    result: Any
    error: BaseException | None


@dataclass(slots=True)
class _Told:
    """What a worker has to say about a task that it is at."""

    value: Any


class WorkerLost(Exception):
    """A worker process died while it held the task, twice."""


@dataclass(slots=True)
class _Worker:
    pid: int
    link: socket.socket
    threads: int
    buffer: bytearray = field(default_factory=bytearray)
    held: dict[int, Any] = field(default_factory=dict)


class WorkerPool:
    """Runs tasks in forked workers, in the order of their sequence numbers (a heap; WQ-03)."""

    def __init__(
        self,
        start: Callable[[], Handler],
        *,
        processes: int,
        threads: int = 1,
        modules: Sequence[str] = (),
        told: Callable[[int, Any], None] = lambda sequence, value: None,
    ) -> None:
        """``threads`` is how many tasks are worked on at one time, in all workers together; each has one.

        ``start`` runs once in each thread of each worker and returns the task handler; ``modules`` are
        loaded just before the first fork, once for all workers.  ``told`` is called, while :meth:`completed`
        waits, with what a handler says through :func:`tell` about a task under way.
        """
        self._told = told
        self._start = start
        self._modules = modules
        self._processes = max(1, processes)
        self._threads = max(self._processes, threads)
        self._workers: list[_Worker] = []
        self._waiting: list[tuple[int, int, Any]] = []
        self._tries: dict[int, int] = {}
        self._given_up: list[Completed] = []

    @property
    def outstanding(self) -> int:
        """Tasks submitted and not yet returned by :meth:`completed`."""
        held = sum(len(worker.held) for worker in self._workers)
        return held + len(self._waiting) + len(self._given_up)

    @property
    def capacity(self) -> int:
        """Tasks that can be worked on or lie ready at a worker at one time."""
        return self._threads + self._processes

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do, as far as is known without looking at what came back."""
        return len(self._tries) < self._threads

    def submit(self, sequence: int, task: Any) -> None:
        """Queue a task; the lowest sequence number goes first.  Never blocks."""
        heapq.heappush(self._waiting, (sequence, len(self._tries), task))
        self._tries[sequence] = 1
        self._feed()

    def completed(self, timeout_s: float | None = None) -> Iterator[Completed]:
        """Yield what has ended, waiting up to ``timeout_s`` (``None``: until something ends)."""
        self._feed()
        if self._given_up:
            yield from self._drain_given_up()
            timeout_s = 0
        if not any(worker.held for worker in self._workers):
            return
        while True:
            ready = self._wait(timeout_s)
            ended = [done for worker in ready for done in self._receive(worker)]
            self._feed()
            yield from ended
            yield from self._drain_given_up()
            if ended or not ready or not any(worker.held for worker in self._workers):
                return

    def close(self) -> None:
        """End the workers; tasks still outstanding are dropped."""
        for worker in self._workers:
            worker.link.close()
        for worker in self._workers:
            _reap(worker.pid)
        self._workers.clear()
        self._waiting.clear()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- coordinator side ---------------------------------------------------------------------

    def _wait(self, timeout_s: float | None) -> list[_Worker]:
        """Return the workers that said something; by ``poll``, which takes descriptors of any number."""
        links = select.poll()
        for worker in self._workers:
            links.register(worker.link, select.POLLIN)
        ready = {fd for fd, _ in links.poll(None if timeout_s is None else timeout_s * 1000)}
        return [worker for worker in self._workers if worker.link.fileno() in ready]

    def _drain_given_up(self) -> Iterator[Completed]:
        given_up, self._given_up = self._given_up, []
        yield from given_up

    def _feed(self) -> None:
        while self._waiting:
            worker = self._least_busy()
            if worker is None:
                return
            sequence, _, task = heapq.heappop(self._waiting)
            worker.held[sequence] = task
            try:
                _send(worker.link, (sequence, task))
            except OSError:
                self._bury(worker)

    def _least_busy(self) -> _Worker | None:
        if len(self._workers) < self._processes and all(worker.held for worker in self._workers):
            self._workers.append(self._fork())
        worker = min(self._workers, key=lambda one: len(one.held) - one.threads)
        return worker if len(worker.held) <= worker.threads else None

    def _receive(self, worker: _Worker) -> list[Completed]:
        try:
            data = worker.link.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._bury(worker)
            return []
        buffer = worker.buffer
        buffer += data
        ended: list[Completed] = []
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            if len(buffer) < _LENGTH.size + length:
                break
            sequence, result, error = pickle.loads(bytes(buffer[_LENGTH.size : _LENGTH.size + length]))
            del buffer[: _LENGTH.size + length]
            if isinstance(result, _Told):
                self._told(sequence, result.value)
                continue
            self._tries.pop(sequence, None)
            ended.append(Completed(sequence, worker.held.pop(sequence), result, error))
        return ended

    def _bury(self, worker: _Worker) -> None:
        worker.link.close()
        _reap(worker.pid)
        self._workers.remove(worker)
        for place, (sequence, task) in enumerate(worker.held.items()):
            if place >= worker.threads:  # it lay ready and was not begun: no fault of its own
                heapq.heappush(self._waiting, (sequence, len(self._tries), task))
            elif self._tries[sequence] >= MAX_TRIES:
                self._tries.pop(sequence)
                lost = WorkerLost("the worker process died while it held this task")
                self._given_up.append(Completed(sequence, task, None, lost))
            else:
                self._tries[sequence] += 1
                heapq.heappush(self._waiting, (sequence, len(self._tries), task))

    def _fork(self) -> _Worker:
        for module in self._modules:
            importlib.import_module(module)
        ours, theirs = socket.socketpair()
        left = self._threads - sum(worker.threads for worker in self._workers)
        threads = -(-left // (self._processes - len(self._workers)))
        pid = os.fork()
        if pid:
            theirs.close()
            return _Worker(pid, ours, threads)
        status = 1
        try:
            ours.close()
            for sibling in self._workers:
                sibling.link.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _work(theirs, self._start, threads)
            status = 0
        finally:
            os._exit(status)


# --- worker side ------------------------------------------------------------------------------


def _work(link: socket.socket, start: Callable[[], Handler], threads: int) -> None:
    """Read tasks as they come, whatever the handlers are at: a reader that waited for an answer to be taken,
    while the coordinator waits for its order to be read, would wait for ever."""
    tasks: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    answers = threading.Lock()

    def say(sequence: int, value: Any) -> None:
        with answers:
            _send(link, (sequence, _Told(value), None))

    def serve() -> None:
        try:
            handler = start()
            while True:
                sequence, task = tasks.get()
                _at.say = partial(say, sequence)
                outcome = _outcome(handler, sequence, task)
                with answers:
                    _send(link, outcome)
        finally:
            os._exit(1)  # it could not start, or nobody listens any more

    def read() -> None:
        try:
            for item in _tasks(link):
                tasks.put(item)
        finally:
            os._exit(0)  # the coordinator is done, or gone, maybe in the middle of an order

    keep_freed_memory()
    # The first handler has the main thread: the allocator gives memory of other threads back, and takes it
    # anew, with every batch.
    for number in range(1, threads):
        threading.Thread(target=serve, name=f"transfer-{number}", daemon=True).start()
    threading.Thread(target=read, name="orders", daemon=True).start()
    serve()


_at = threading.local()


def tell(value: Any) -> None:
    """Tell the coordinator something about the task that this thread is at; elsewhere nobody hears."""
    say = getattr(_at, "say", None)
    if say is not None:
        say(value)


def _outcome(handler: Handler, sequence: int, task: Any) -> tuple[int, Any, BaseException | None]:
    try:
        return sequence, handler(task), None
    except Exception as error:
        return sequence, None, error


def _tasks(link: socket.socket) -> Iterator[tuple[int, Any]]:
    stream = link.makefile("rb", buffering=1 << 18)
    while head := stream.read(_LENGTH.size):
        if len(head) < _LENGTH.size:
            return
        (length,) = _LENGTH.unpack(head)
        body = stream.read(length)
        if len(body) < length:
            return
        yield pickle.loads(body)


def _send(link: socket.socket, message: Any) -> None:
    try:
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # an answer that cannot travel is answered by saying so, never with silence
        sequence, _, original = message
        lost = WorkerLost(f"an answer could not be sent: {original!r} ({error})")
        body = pickle.dumps((sequence, None, lost), protocol=pickle.HIGHEST_PROTOCOL)
    link.sendall(_LENGTH.pack(len(body)) + body)


def _reap(pid: int) -> None:
    try:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if not done:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass
