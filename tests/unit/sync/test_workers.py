"""The pool of worker processes: order, errors, and what a worker that dies costs."""

from __future__ import annotations

import multiprocessing
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import NotFound
from mirrorkeep.sync import workers
from mirrorkeep.sync.workers import Completed, Handler, WorkerLost, WorkerPool


def run(pool: WorkerPool) -> list[Completed]:
    ended: list[Completed] = []
    while pool.outstanding:
        ended += pool.completed(10)
    return ended


def double() -> Handler:
    return lambda task: 2 * task


@pytest.mark.parametrize("threads", [1, 3])
def test_every_task_comes_back_once(threads: int) -> None:
    with WorkerPool(double, processes=2, threads=threads) as pool:
        for number in range(50):
            pool.submit(number, number)
        ended = run(pool)
    assert sorted((done.sequence, done.result) for done in ended) == [(n, 2 * n) for n in range(50)]
    assert all(done.error is None and done.task == done.sequence for done in ended)


def test_the_lowest_number_goes_first() -> None:
    with WorkerPool(lambda: lambda task: time.sleep(0.01), processes=1) as pool:
        for number in (1, 9, 7, 3, 5):
            pool.submit(number, None)
        assert [done.sequence for done in run(pool)][2:] == [3, 5, 7]  # two were at the worker by then


@pytest.mark.parametrize("threads", [1, 2])
def test_orders_and_answers_larger_than_the_pipe_do_not_lock_up(threads: int) -> None:
    payload = os.urandom(1_500_000)
    with WorkerPool(lambda: lambda task: task, processes=1, threads=threads) as pool:
        signal.alarm(100)  # the coordinator would wait for the worker, and the worker for it
        try:
            for number in range(6):
                pool.submit(number, payload)
            assert all(done.result == payload for done in run(pool))
        finally:
            signal.alarm(0)


@pytest.mark.parametrize(
    ("processes", "threads", "shares"), [(4, 5, [1, 1, 1, 2]), (2, 8, [4, 4]), (3, 1, [1, 1, 1]), (1, 3, [3])]
)
def test_so_many_threads_work_as_were_asked_for_and_one_in_each_process_at_least(
    processes: int, threads: int, shares: list[int]
) -> None:
    """Every thread holds a task until so many have been begun: fewer would never be done, more would show."""
    fork = multiprocessing.get_context("fork")
    count = sum(shares)
    all_begun = fork.Barrier(count)

    def start() -> Handler:
        def handle(task: int) -> tuple[int, int]:
            if task < count:
                all_begun.wait(60)
            return os.getpid(), threading.get_ident()

        return handle

    with WorkerPool(start, processes=processes, threads=threads) as pool:
        for number in range(4 * count):
            pool.submit(number, number)
        ended = run(pool)
    assert [done.error for done in ended if done.error] == []
    seen = {done.result for done in ended}
    assert sorted(Counter(pid for pid, _ in seen).values()) == shares


@pytest.mark.must_run
def test_workers_are_heard_whatever_the_numbers_of_their_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("no process here may have so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    null = os.open(os.devnull, os.O_RDONLY)
    taken = [null]
    try:
        while taken[-1] < 1030:
            taken.append(os.dup(null))
        with WorkerPool(double, processes=2) as pool:
            for number in range(10):
                pool.submit(number, number)
            assert sorted(done.result for done in run(pool)) == list(range(0, 20, 2))
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_error_of_the_handler_comes_back_with_its_fields() -> None:
    def start() -> Handler:
        def handle(task: Any) -> Any:
            raise NotFound(what=task)

        return handle

    with WorkerPool(start, processes=1) as pool:
        pool.submit(1, b"a/b")
        (done,) = run(pool)
    assert isinstance(done.error, NotFound)
    assert done.error.fields == {"what": b"a/b"}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_worker_costs_its_tasks_one_more_try(tmp_path: Path, threads: int) -> None:
    mark = tmp_path / "killed once"

    def start() -> Handler:
        def handle(task: int) -> int:
            if task == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return task

        return handle

    with WorkerPool(start, processes=2, threads=threads) as pool:
        for number in range(12):
            pool.submit(number, number)
        ended = run(pool)
    assert sorted(done.sequence for done in ended) == list(range(12))
    assert [done.error for done in ended if done.error] == []


def test_a_task_that_kills_two_workers_is_reported_and_the_pool_goes_on() -> None:
    def start() -> Handler:
        def handle(task: int) -> int:
            if task == 0:
                os._exit(9)
            return task

        return handle

    with WorkerPool(start, processes=1) as pool:
        pool.submit(0, 0)
        (lost,) = run(pool)
        assert isinstance(lost.error, WorkerLost)
        for number in range(1, 6):
            pool.submit(number, number)
        ended = run(pool)
    assert sorted(done.sequence for done in ended) == [1, 2, 3, 4, 5]
    assert all(done.error is None for done in ended)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cut", ["in an order", "with an answer unread"])
def test_a_worker_ends_when_its_coordinator_was_killed(threads: int, cut: str) -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        workers._work(theirs, double, threads)
    theirs.close()
    if cut == "in an order":
        ours.sendall(struct.pack(">I", 1000) + b"x" * 10)
    else:
        workers._send(ours, (1, 5))
        select.select([ours], [], [])
    ours.close()
    _, status = os.waitpid(pid, 0)  # it would never end
    assert os.WIFEXITED(status)


def test_no_worker_is_forked_before_the_first_task_and_none_is_left_behind() -> None:
    pool = WorkerPool(double, processes=2)
    assert list(pool.completed(0)) == []
    assert children() == set()
    pool.submit(1, 1)
    run(pool)
    assert children()
    pool.close()
    assert children() == set()


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as listing:
        return set(listing.read().split())
