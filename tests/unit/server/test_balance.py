"""Connections move from a busy worker to one that is not: when, and when not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorkeep.server.balance import WINDOW_S, Balance

ONE, TWO = ("127.0.0.1", 50001), ("127.0.0.1", 50002)


class Worker:
    """A worker whose clock and work are set by the test; its process is a live one."""

    def __init__(self, path: Path, pid: int) -> None:
        self.now_s, self.used_s = 100.0, 0.0
        self.balance = Balance(str(path), pid=pid, clock=lambda: self.now_s, used_s=lambda: self.used_s)

    def work(self, load: float, *clients: tuple[str, int]) -> list[bool]:
        """Answer each of ``clients`` over one window of so much load."""
        for client in clients[:-1]:
            assert not self.balance.give_away(client)
        self.now_s += WINDOW_S
        self.used_s += load * WINDOW_S
        return [self.balance.give_away(clients[-1])]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "load"


def test_a_busy_worker_gives_a_connection_to_an_idle_one(notes: Path) -> None:
    busy, _idle = Worker(notes, os.getpid()), Worker(notes, os.getppid())
    assert busy.work(0.9, ONE, TWO) == [True]
    assert not busy.balance.give_away(ONE), "one in a window"


def test_the_only_client_stays(notes: Path) -> None:
    busy, _idle = Worker(notes, os.getpid()), Worker(notes, os.getppid())
    assert busy.work(0.9, ONE, ONE, ONE) == [False]


def test_nothing_moves_between_workers_that_have_about_as_much_to_do(notes: Path) -> None:
    one, other = Worker(notes, os.getpid()), Worker(notes, os.getppid())
    assert other.work(0.7, ONE, TWO) == [True], "the other has noted nothing yet"
    assert one.work(0.9, ONE, TWO) == [False]


def test_a_note_that_is_old_is_that_of_an_idle_worker(notes: Path) -> None:
    one, other = Worker(notes, os.getpid()), Worker(notes, os.getppid())
    other.work(0.7, ONE)
    one.work(0.1, ONE)
    one.work(0.1, ONE)
    one.work(0.1, ONE)
    assert one.work(0.9, ONE, TWO) == [True]


def test_little_load_moves_nothing(notes: Path) -> None:
    calm, _idle = Worker(notes, os.getpid()), Worker(notes, os.getppid())
    assert calm.work(0.4, ONE, TWO) == [False]


def test_a_worker_alone_keeps_what_it_has(notes: Path) -> None:
    assert Worker(notes, os.getpid()).work(1.0, ONE, TWO) == [False]


def test_a_dead_worker_takes_nothing_and_leaves_its_place(notes: Path) -> None:
    gone = 2**22 + 1  # above the largest process id that there is
    Worker(notes, gone)
    assert Worker(notes, os.getpid()).work(1.0, ONE, TWO) == [False]
    size = notes.stat().st_size
    Worker(notes, os.getppid())
    assert notes.stat().st_size == size
