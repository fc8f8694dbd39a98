"""The durable queue: order, leases between processes, and what SIGKILL leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from mirrorkeep.errors import NoSpace, StorageFailure
from mirrorkeep.store import queue
from mirrorkeep.store.queue import Queue


@pytest.fixture
def jobs(tmp_path: Path) -> Queue:
    return Queue(str(tmp_path / "queue"))


def test_priority_comes_before_arrival_and_arrival_before_anything_else(jobs: Queue) -> None:
    jobs.publish({"n": 1})
    jobs.publish({"n": 2})
    jobs.publish({"n": 3}, priority=queue.REQUESTED)
    taken = []
    while (lease := jobs.lease()) is not None:
        taken.append(lease.job.payload["n"])
        lease.done()
    assert taken == [3, 1, 2]
    assert os.listdir(jobs.directory) == []


def test_a_leased_job_is_nobody_elses_until_it_is_put_back(jobs: Queue) -> None:
    jobs.publish({"n": 1})
    lease = jobs.lease()
    assert lease is not None
    assert jobs.lease() is None
    assert [job.payload for job in jobs.jobs()] == [{"n": 1}]
    lease.put_back()
    again = jobs.lease()
    assert again is not None
    assert (again.job.payload, again.job.tries) == ({"n": 1}, 1)


def test_a_job_put_back_with_a_pause_waits(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = Queue(str(tmp_path / "queue"), now=lambda: now[0])
    jobs.publish({"n": 1})
    lease = jobs.lease()
    assert lease is not None
    lease.put_back(pause_s=60)
    assert jobs.lease() is None
    now[0] += 61
    assert jobs.lease() is not None


def test_only_jobs_that_suit_are_leased(jobs: Queue) -> None:
    jobs.publish({"n": 1})
    jobs.publish({"n": 2})
    lease = jobs.lease(lambda job: job.payload["n"] == 2)
    assert lease is not None
    assert lease.job.payload["n"] == 2


def test_publishing_under_an_id_may_be_repeated(jobs: Queue) -> None:
    job_id = "0123456789abcdef"
    assert jobs.publish({"n": 1}, job_id=job_id) == jobs.publish({"n": 1}, job_id=job_id) == job_id
    assert len(list(jobs.jobs())) == 1
    assert jobs.holds(job_id)
    lease = jobs.lease()
    assert lease is not None
    lease.done()
    assert not jobs.holds(job_id)


def test_sigkill_of_the_holder_frees_its_job(jobs: Queue) -> None:
    jobs.publish({"n": 1})
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        held = jobs.lease()
        os.write(told, b"y" if held is not None else b"n")
        signal.pause()
    assert os.read(ready, 1) == b"y"
    assert jobs.lease() is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lease = jobs.lease()
    assert lease is not None
    assert lease.job.payload == {"n": 1}
    os.close(ready)
    os.close(told)


def test_a_torn_or_foreign_file_is_passed_over_and_left(jobs: Queue) -> None:
    jobs.publish({"n": 1})
    torn = Path(jobs.directory) / "0-00000000000000000000-ffffffffffffffff.json"
    torn.write_text('{"payload": {"n"')
    lease = jobs.lease()
    assert lease is not None
    assert lease.job.payload == {"n": 1}
    assert torn.exists()


def test_what_a_crash_while_publishing_left_is_no_job_and_is_swept(jobs: Queue) -> None:
    jobs.publish({"n": 1})
    left = Path(jobs.directory) / "5-1-ffffffffffffffff.json.tmp"
    left.write_text(json.dumps({"payload": {}}))
    assert len(list(jobs.jobs())) == 1
    jobs.sweep()
    assert left.exists()
    os.utime(left, (0, 0))
    jobs.sweep()
    assert not left.exists()


def test_an_unwritable_queue_says_so_and_queues_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageFailure, NotADirectoryError, FileExistsError)):
        Queue(str(tmp_path / "file")).publish({"n": 1})


def test_many_processes_do_every_job_once(jobs: Queue, tmp_path: Path) -> None:
    for number in range(40):
        jobs.publish({"n": number})
    log = tmp_path / "log"
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            while (lease := jobs.lease()) is not None:
                os.write(fd, b"%d\n" % lease.job.payload["n"])
                lease.done()
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    done = sorted(map(int, log.read_text().split()))
    # A process may see the queue empty while another still holds a lease, never a job twice.
    assert done == list(range(40))


def test_a_job_that_could_not_be_put_first_is_nobodys(jobs: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.publish({"n": 1})
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        patch.setattr(os, "write", full)
        with pytest.raises(NoSpace):
            jobs.promote(job, {"n": 2})
    lease = Queue(jobs.directory).lease()
    assert lease is not None
    assert lease.job.payload == {"n": 1}
