"""Power cuts under the store's small records: what was answered is there, what was under way is old or new.

The other power cuts (``test_power``) are of the pool's disk.  The records beside it (``store.json``, the
registry, the queue, the keys) lie on the host's file system, and with the ``dir`` driver those of the parts
too: ``state.json``, snapshots, verdicts, findings, the patch.  Here a store does each kind of work once while
``rig.powercut`` watches; then every state that a cut may have left, at every instant, is looked at:

- Each record is one that was there since the last answer, whole: the old one or the new one, never neither.
- The store opens, recovers, and goes on from there.

The same for work whose process was killed and that was asked for again: what the second answer promised is
durable, though the first attempt had left some of it done and not flushed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorkeep.errors import AlreadyExists, NotFound
from mirrorkeep.store import keys, queue, runs
from mirrorkeep.store.chain import Chain
from mirrorkeep.store.pool import Store
from mirrorkeep.store.validation import Validator, findings_path, request_validation
from mirrorkeep.store.verdict import check_chain, check_signature
from mirrorkeep.store.volume import Part
from mirrorkeep.tree import durability
from rig.powercut import State, Watch, build, fingerprint, state_at, states_after_cut
from tests.unit.store.part_at_work import NOON, close, manifest_of
from tests.unit.store.test_verdict_chain import statement

pytestmark = pytest.mark.soak
HOST = "host"
IS_LINK = re.compile(r"[0-9]+-[0-9a-f]+\.json")
EMPTY = manifest_of([])
MISSING = manifest_of([b"a", b"b/c"])
"""A manifest of files that nobody sent: its validation has findings."""


class Work:
    """A store that does one thing after the other; ``answered`` are the instants between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / HOST
        self.folder.mkdir(exist_ok=True)
        self.data = str(self.folder / "data")
        self.watch = Watch(self.folder)
        self.answered = [0]
        self.labels: list[str] = []

    def store(self) -> Store:
        """The store as a process that has just begun sees it."""
        store = Store.open(self.data)
        store.clock = lambda: NOON
        return store

    def part(self) -> Part:
        return self.store().volume("laptop").part(b"home", create=True)

    def do(self, label: str, action: Callable[[], object]) -> None:
        action()
        self.labels.append(label)
        self.answered.append(self.watch.now)
        self.watch.settle()

    def label(self, index: int) -> str:
        """Return what was under way, or was answered last, at an instant."""
        begun = sum(one < index for one in self.answered)
        return ["before", *self.labels, "after"][begun]

    def last_answer(self, index: int) -> int:
        """Return the instant of the last answer before or at an instant."""
        return max(one for one in self.answered if one <= index)


STEPS: dict[str, Callable[[Work], object]] = {
    "init": lambda work: Store.create(work.data, "dir"),
    "start": lambda work: work.store().start_incarnation(),
    "volume create": lambda work: work.store().create_volume("laptop"),
    "token": lambda work: work.store().registry.create_token("laptop"),
    "user": lambda work: work.store().registry.create_user("ann", "secret", {"laptop": "read"}),
    "right": lambda work: work.store().registry.grant_user("ann", "laptop", "write"),
    "revoke": lambda work: revoke(work.store()),
    "part": lambda work: work.part(),
    "begin": lambda work: runs.begin_run(work.part(), "", {}),
    "commit": lambda work: commit(work.part()),
    "close": lambda work: close_open_run(work.part(), MISSING),
    "validate": lambda work: Validator(work.store()).run_once(),
    "rotate": lambda work: keys.rotate_verdict_key(work.store().keys_folder, "2026-01-01T12:00:00Z"),
    "next begin": lambda work: runs.begin_run(work.part(), "", {}),
    "next close": lambda work: close_open_run(work.part(), EMPTY),
    "validate again": lambda work: Validator(work.store()).run_once(),
    "request": lambda work: request_validation(work.part(), "latest", "full"),
    "put back": lambda work: lease(work).put_back(),
    "done": lambda work: lease(work).done(),
    "user delete": lambda work: work.store().registry.delete_user("ann"),
    "volume delete": lambda work: work.store().delete_volume("laptop"),
    "volume again": lambda work: work.store().create_volume("laptop"),
}


def revoke(store: Store) -> None:
    """Revoke the token; asked for again, when it is no longer listed, by what its owner calls it."""
    rows = store.registry.tokens("laptop")
    store.registry.revoke_token("laptop", rows[0]["id"] if rows else "x" * 12)


def commit(part: Part) -> None:
    run = part.state().run
    assert run is not None
    runs.commit_run(part, run["id"], run["epoch"], part.volume.store.incarnation, "there")


def close_open_run(part: Part, manifest: bytes) -> None:
    state = part.state()
    run = state.run
    if run is None:  # it was closed by an attempt that nobody heard the answer of
        assert state.closed is not None
        run = {"id": state.closed["run"], "epoch": state.epoch}
    info = runs.RunInfo(run["id"], run["epoch"], part.volume.store.incarnation, "", False, False, False)
    close(part, info, manifest)


def lease(work: Work) -> queue.Lease:
    leased = work.store().queue.lease()
    assert leased is not None
    return leased


@contextmanager
def watching(work: Work) -> Iterator[None]:
    """Watch what is done, flushes of the pool included, which counts as a file system of its own."""

    class Library:
        def __init__(self, library: object) -> None:
            self._library = library

        def __getattr__(self, name: str) -> object:
            return getattr(self._library, name)

        def syncfs(self, fd: int) -> int:
            work.watch.flushed_below(Path(work.data, "pool"))
            return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durability, "_LIBC", Library(durability._LIBC))
        with work.watch.watching():
            yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Work:
    work = Work(tmp_path_factory.mktemp("records"))
    with watching(work):
        for label, action in STEPS.items():
            work.do(label, lambda action=action: action(work))
    return work


def is_record(path: str) -> bool:
    """Say whether the store answers for what lies at a path: not for what is in the making, nor for locks."""
    name = path.rpartition("/")[2]
    return not (
        name.endswith((".tmp", ".partial", "lock", "lock.gate"))
        or name.startswith("upload-")
        or ".mirrorkeep.staging/" in path
        or "pool/deleted/" in path
    )


def records_of(state: State) -> dict[str, tuple[str, bytes]]:
    return {path: (one.kind, one.content) for path, (one, _) in state.items() if is_record(path)}


def wrong_records(work: Work, index: int) -> Iterator[str]:
    """Name the records that a cut at an instant may leave as they never were since the last answer."""
    instants = work.watch.instants
    window = [records_of(state_at(one)) for one in instants[work.last_answer(index) : index + 1]]
    for state in states_after_cut(instants, index):
        there = records_of(state)
        for path in there.keys() | set().union(*window):
            if not any(there.get(path) == one.get(path) for one in window):
                yield path


def test_a_cut_leaves_each_record_old_or_new_and_what_was_answered_there(done: Work) -> None:
    found = {
        f"{done.label(index)}, {done.watch.instants[index].call}: {path}"
        for index in range(done.watch.now + 1)
        for path in wrong_records(done, index)
    }
    assert not found, "\n".join(sorted(found))


# --- going on -------------------------------------------------------------------------------------


def test_a_store_goes_on_from_whatever_a_cut_left(
    done: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture, kill_count: int
) -> None:
    """Every state in the long tier, a sample of them else."""
    states = {
        fingerprint(state): (index, state)
        for index in range(done.watch.now + 1)
        for state in states_after_cut(done.watch.instants, index)
    }
    print(f"{done.watch.now + 1} instants, {len(states)} states")
    every = max(1, len(states) // (5 * kill_count))
    for index, state in [*states.values()][::every]:
        place = tmp_path / HOST
        build(state, place)
        told = f"after a cut at {index}: {done.label(index)}, {done.watch.instants[index].call}"
        if (place / "data" / "store.json").exists():
            go_on(Store.open(str(place / "data")), told)
        else:
            assert index <= done.answered[1], told
        assert not caplog.records, told


def go_on(store: Store, told: str) -> None:
    """Recover the store, close a run, add a verdict; everything of before has to be sound."""
    store.clock = lambda: NOON
    store.recover()
    store.start_incarnation()
    store.certificate()
    jobs = list(store.queue.jobs())
    assert len(jobs) == len([name for name in os.listdir(store.queue.directory) if name.endswith(".json")]), (
        told
    )
    if not store.registry.has_volume("laptop"):
        store.create_volume("laptop")
    token = store.registry.create_token("laptop")
    assert store.registry.authenticate_token(token) is not None, told
    part = store.volume("laptop").part(b"home", create=True)
    before = part.state()
    assert before.closing is None, told
    assert before.sequence == len(part.snapshots()), told
    run = runs.begin_run(part, "", {})
    assert run.epoch == before.epoch + 1, told
    closed = close(part, run, EMPTY)
    assert closed.sequence == before.sequence + 1, told
    for info in part.snapshots():
        manifest = Path(part.manifest_path(info.name)).read_bytes()
        assert hashlib.sha256(manifest).hexdigest() == info.manifest, told
    check_findings(part, told)
    add_verdict(store, part, told)
    store.close()


def check_findings(part: Part, told: str) -> None:
    """What a verdict that counts says of its findings is there."""
    for info in part.snapshots():
        verdict = Chain(part.folder).newest(info.sequence)
        if verdict is not None:
            found = Path(findings_path(part, info.name)).read_bytes()
            assert hashlib.sha256(found).hexdigest() == verdict["findings_digest"], told


def add_verdict(store: Store, part: Part, told: str) -> None:
    key = keys.signing_key(store.keys_folder)
    chain = Chain(part.folder)
    links = {name for name in listed(chain.directory) if IS_LINK.fullmatch(name)}
    newest = chain.add(
        statement(part.snapshot("latest").sequence, volume="laptop", part="home"),
        "f" * 16,
        key.sign,
        key.public_key,
        rotations=key.rotations,
    )
    verdicts = [
        json.loads(Path(chain.directory, name).read_bytes())
        for name in listed(chain.directory)
        if IS_LINK.fullmatch(name)
    ]
    assert links < {f"{one['sequence']}-{one['validation']}.json" for one in verdicts}, told
    earlier = [one for one in verdicts if one != newest]
    assert len(earlier) == len(verdicts) - 1, told
    assert check_chain(newest, earlier) == len(earlier), told
    check_signature(newest, [key.public_key])


def listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


# --- killed, and asked for again --------------------------------------------------------------------


@pytest.mark.parametrize("label", [label for label in STEPS if label not in ("init", "done")])
def test_what_was_killed_and_is_answered_when_asked_again_is_durable(
    done: Work, tmp_path: Path, kill_count: int, label: str
) -> None:
    """The first attempt may have renamed what it did not live to flush.

    Not asked again: ``init``, whose remains are for a person to look at; a job that is done, which may be
    done twice.
    """
    begun = done.answered[done.labels.index(label)]
    calls = done.answered[done.labels.index(label) + 1] - begun
    wrong: list[str] = []
    for call in range(1, calls, max(1, 2 * calls // kill_count)):
        build(state_at(done.watch.instants[begun]), tmp_path / HOST)
        work = Work(tmp_path)
        work.watch = attempt_killed(work, STEPS[label], call, tmp_path / "watch")
        with watching(work), contextlib.suppress(AlreadyExists, NotFound):
            STEPS[label](work)
        work.answered = [work.watch.now]
        left = sorted(set(wrong_records(work, work.watch.now)))
        if label.startswith("validate"):  # a job may be done twice
            left = [path for path in left if not path.startswith("data/queue/")]
        wrong += [f"killed after call {call} of {calls}: {path}" for path in left]
    assert not wrong, "\n".join(wrong)


def attempt_killed(work: Work, action: Callable[[Work], object], calls: int, place: Path) -> Watch:
    """Do something in a process that ends after so many calls; returns what was watched until then."""
    place.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            with watching(work):
                work.watch.end_after(calls, lambda: leave(work.watch, place))
                action(work)
                work.watch.end()  # killed before it could answer
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    watch: Watch = pickle.loads(place.read_bytes())
    return watch


def leave(watch: Watch, place: Path) -> None:
    """Keep what was watched and end the process, as SIGKILL would."""
    place.write_bytes(pickle.dumps(watch))
    os._exit(0)
