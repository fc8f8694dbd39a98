"""ENOSPC and EIO at every storage call of the registry, the volumes, the queue, the keys and the validator.

Each single fault: what was asked for is done, or an error says what is wrong; what was there before is there;
and the same asked for again, with the storage well again, does what it should.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorkeep.errors import AlreadyExists, NoSpace, NotFound, StorageFailure, StoreRestarted
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.server import api
from mirrorkeep.store import keys, runs
from mirrorkeep.store.chain import Chain
from mirrorkeep.store.cycle import load_cycle
from mirrorkeep.store.pool import Store
from mirrorkeep.store.queue import Queue
from mirrorkeep.store.registry import Registry
from mirrorkeep.store.validation import Validator, findings_path, read_verdict, request_validation
from mirrorkeep.store.verdict import check_chain, check_signature
from mirrorkeep.store.volume import Part
from rig.faults import FailingCalls
from tests.unit.store.part_at_work import close, digest_of, make_store, manifest_of

MISSING = manifest_of([b"a", b"b/c"])
"""A manifest of files that nobody sent: its validation has findings."""
PATCHED = [(b"a", b"absent"), (b"b/c", b"absent"), (b"b", b"unknown"), (b"", b"directory")]


@pytest.fixture(params=[errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def failing(request: pytest.FixtureRequest) -> Iterator[FailingCalls]:
    with pytest.MonkeyPatch.context() as patch:
        yield FailingCalls(patch, request.param)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = make_store(tmp_path / "data")
    made.create_volume("laptop")
    yield made
    made.close()


def check_told(failing: FailingCalls, told: str) -> None:
    """What failed is told by an error that the edges (command line, server, validator) know how to say."""
    error = failing.error
    known = isinstance(error, NoSpace | StorageFailure)
    assert error is None or known or (isinstance(error, OSError) and error.errno == failing.number), told


# --- the registry -----------------------------------------------------------------------------------


def view(registry: Registry) -> dict[str, Any]:
    """Return what the registry grants, tokens by what they reach."""
    return {
        "volumes": registry.volumes(),
        "tokens": {
            volume: sorted(row["part"] for row in registry.tokens(volume)) for volume in ("old", "new")
        },
        "users": {name: registry.rights(name) for name in registry.users()},
    }


def a_registry(folder: Path) -> Registry:
    registry = Registry(str(folder))
    registry.prepare()
    registry.create_volume("old")
    registry.create_token("old", b"kept")
    registry.create_token("old", b"lost")
    registry.create_user("ann", "secret", {"old": "read"})
    return registry


def lost_token(registry: Registry) -> str:
    return next(str(row["id"]) for row in registry.tokens("old") if row["part"] == b"lost")


REGISTRY: dict[str, Callable[[Registry], Callable[[], object]]] = {
    "volume": lambda registry: lambda: registry.create_volume("new"),
    "no volume": lambda registry: lambda: registry.delete_volume("old"),
    "deletion": lambda registry: lambda: registry.decide_deletion("old"),
    "token": lambda registry: lambda: registry.create_token("old", b"more"),
    "revoke": lambda registry: partial(registry.revoke_token, "old", lost_token(registry)),
    "user": lambda registry: lambda: registry.create_user("bob", "other", {"old": "write"}),
    "password": lambda registry: lambda: registry.create_user("ann", "other", {"old": "read"}),
    "right": lambda registry: lambda: registry.grant_user("ann", "old", "write"),
    "no right": lambda registry: lambda: registry.grant_user("ann", "old", None),
    "no user": lambda registry: lambda: registry.delete_user("ann"),
}


@pytest.mark.parametrize("operation", REGISTRY)
def test_the_registry_fails_at_every_call(tmp_path: Path, failing: FailingCalls, operation: str) -> None:
    done = a_registry(tmp_path / "done")
    before = view(done)
    REGISTRY[operation](done)()
    after = view(done)
    call, happened = 0, True
    while happened:
        call += 1
        registry = a_registry(tmp_path / str(call))
        action = REGISTRY[operation](registry)
        happened = failing.happens_in(action, call)
        check_told(failing, f"call {call}")
        assert happened or failing.error is None
        if operation != "no volume":  # that takes several records, and the volume is the last
            assert view(registry) in ((before, after) if failing.error else (after,)), f"call {call}"
        if failing.error is not None:
            with suppress(AlreadyExists, NotFound):
                action()
        again = view(Registry(str(tmp_path / str(call))))
        if operation == "token" and b"more" in again["tokens"]["old"][:-1]:
            again["tokens"]["old"].remove(b"more")  # nobody has heard of the first one
        assert again == after, f"call {call}"
        if operation != "password":
            assert registry.authenticate_user("ann", "secret") is not None or "ann" not in after["users"]
    assert call > 3


def make_with_faults(store: Store, failing: FailingCalls) -> int:
    """Make volumes ``new1``, ``new2`` and so on, with another call failing each time; returns how many."""
    call, happened = 0, True
    while happened:
        call += 1
        make = partial(store.create_volume, f"new{call}")
        happened = failing.happens_in(make, call)
        check_told(failing, f"call {call}")
        if failing.error is not None:
            with suppress(AlreadyExists):
                make()
    return call


def delete_with_faults(store: Store, failing: FailingCalls) -> None:
    call, happened = 0, True
    while happened:
        call += 1
        name = f"new{call}"
        if not store.registry.has_volume(name):
            store.create_volume(name)
        happened = failing.happens_in(partial(store.delete_volume, name), call)
        check_told(failing, f"call {call}")
        if failing.error is not None:
            with suppress(NotFound):
                store.delete_volume(name)
        assert not store.registry.has_volume(name), f"call {call}"
        assert not os.path.exists(os.path.join(store.pool, "volumes", name)), f"call {call}"


@pytest.mark.parametrize(
    "driver", ["dir", pytest.param("btrfs", marks=[pytest.mark.btrfs, pytest.mark.root])]
)
def test_volumes_are_made_and_deleted_with_a_fault_at_every_call(
    tmp_path: Path, failing: FailingCalls, driver: str
) -> None:
    store = make_store(tmp_path / "data", driver)
    try:
        store.create_volume("old").part(b"", create=True)
        kept = Path(store.volume("old").tip, "file")
        kept.write_text("content")
        for call in range(1, 1 + make_with_faults(store, failing)):
            assert store.registry.has_volume(f"new{call}")
            store.volume(f"new{call}").part(b"home", create=True)
        delete_with_faults(store, failing)
        store.recover()
        assert kept.read_text() == "content"
        assert os.listdir(os.path.join(store.pool, "deleted")) == []
    finally:
        store.close(detach=True)


# --- keys -------------------------------------------------------------------------------------------


def test_the_verdict_key_is_rotated_with_a_fault_at_every_call(tmp_path: Path, failing: FailingCalls) -> None:
    call, happened = 0, True
    while happened:
        call += 1
        folder = str(tmp_path / str(call))
        keys.create_keys(folder)
        old = keys.public_key(folder)
        happened = failing.happens_in(lambda folder=folder: keys.rotate_verdict_key(folder, "now"), call)  # type: ignore[misc]
        check_told(failing, f"call {call}")
        keys.renew_certificate(folder)
        stated = keys.rotations(folder)
        assert (keys.public_key(folder) == old) == (not stated), f"call {call}"
        if failing.error is not None:
            keys.rotate_verdict_key(folder, "later")
        assert keys.signing_key(folder).public_key == keys.public_key(folder) != old
        assert len(keys.rotations(folder)) == len(stated) + (failing.error is not None)


# --- the queue --------------------------------------------------------------------------------------


def test_a_validation_is_asked_for_with_a_fault_at_every_call(store: Store, failing: FailingCalls) -> None:
    part = store.volume("laptop").part(b"home", create=True)
    close(part, runs.begin_run(part, "", {}), MISSING)
    call, happened = 0, True
    while happened:
        call += 1
        queued = len(list(store.queue.jobs()))
        happened = failing.happens_in(lambda: request_validation(part, "latest", "full"), call)
        check_told(failing, f"call {call}")
        ticket = request_validation(part, "latest", "full")
        assert store.queue.holds(ticket.id)
        assert len(list(store.queue.jobs())) in (queued + 1, queued + 2), f"call {call}"


def test_a_job_that_could_not_be_put_first_is_still_done(store: Store, failing: FailingCalls) -> None:
    call, happened = 0, True
    while happened:
        call += 1
        job = store.queue.publish({"background": True}, job_id=f"{call:016x}")
        happened = failing.happens_in(lambda job=job: store.queue.promote(job, {"background": False}), call)  # type: ignore[misc]
        check_told(failing, f"call {call}")
        elsewhere = Queue(store.queue.directory)
        done = 0
        while (lease := elsewhere.lease()) is not None:
            assert lease.job.id == job
            lease.done()
            done += 1
        assert done >= 1, f"call {call}"
        assert list(elsewhere.jobs()) == []


# --- the validator ----------------------------------------------------------------------------------


class Clock:
    """A clock that goes on when a test says so."""

    now = 1_767_268_800.0

    def __call__(self) -> float:
        return self.now


def validator_of(store: Store, clock: Clock) -> Validator:
    store.queue = Queue(store.queue.directory, now=clock)
    validator = Validator(store, now=clock)
    validator.queue_rolling()  # not again for a while: it looks at every part, and each call has a part
    return validator


def drain(validator: Validator, clock: Clock) -> None:
    for _ in range(3):
        while validator.turn() == 0:
            pass
        clock.now += 70  # in all of a test less than a day: then every part would be read on


def signed(made: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key not in ("state", "progress")}


def check_validated(store: Store, part: Part, told: str, clock: Clock) -> None:
    """Everything that a validation leaves is there, agrees with its verdict, and nothing else is left."""
    info = part.snapshot("latest")
    made = read_verdict(part, info.name)
    earlier = []
    if "error" in made:  # the manifest could not be read, which is no verified snapshot: ask again
        earlier = [signed(made)]
        request_validation(part, info.name, "full")
        drain(validator_of(store, clock), clock)
        made = read_verdict(part, info.name)
    assert (made["state"], made["verdict"], made["findings"]) == ("done", "failed", 3), told
    found = Path(findings_path(part, info.name)).read_bytes()
    assert hashlib.sha256(found).hexdigest() == made["findings_digest"], told
    assert [json.loads(line)["kind"] for line in found.splitlines()] == ["missing", "missing", "extra"], told
    for name in ("patch", "open"):
        with Path(part.folder, name).open("rb") as stream:
            records = [(one.path, one.kind) for one in ManifestReader(stream, partial=True)]
        assert [path for path, _ in records] == [path for path, _ in PATCHED], told
        # What could not be looked at is not known, and comes again with the next run all the same.
        assert {*records} <= {*PATCHED, (b"", b"unknown")}, told
    assert load_cycle(part.folder).base == info.name, told
    own = signed(made)
    chain = Chain(part.folder)
    check_signature(own, [keys.public_key(store.keys_folder)])
    assert check_chain(own, earlier) == len(earlier), told
    assert chain.of(info.sequence, made["validation"]) == own, told
    assert list(store.queue.jobs()) == [], told
    for folder, _, names in os.walk(part.folder):
        assert not [one for one in names if one.endswith((".partial", ".checkpoint"))], (told, folder)


def test_a_validation_fails_at_every_call(store: Store, failing: FailingCalls) -> None:
    call, happened, clock = 0, True, Clock()
    while happened:
        call += 1
        part = store.volume("laptop").part(b"part%d" % call, create=True)
        close(part, runs.begin_run(part, "", {}), MISSING)
        validator = validator_of(store, clock)
        happened = failing.happens_in(validator.turn, call)
        assert failing.error is None, f"call {call}: the validator would have ended"
        drain(validator, clock)
        check_validated(store, part, f"call {call}", clock)
    assert call > 50


def test_a_disk_that_stays_full_ends_no_validator(store: Store, failing: FailingCalls) -> None:
    part = store.volume("laptop").part(b"home", create=True)
    close(part, runs.begin_run(part, "", {}), MISSING)
    clock = Clock()
    validator = validator_of(store, clock)
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: object, **__: object) -> int:
            raise OSError(failing.number, os.strerror(failing.number))

        patch.setattr(os, "write", full)
        tries = 0
        for _ in range(10):
            while validator.turn() == 0:
                tries += 1
                assert tries < 10, "it tries without a pause"
            clock.now += 70
    clock.now += 700
    drain(validator, clock)
    check_validated(store, part, "after the disk had room", clock)


# --- a manifest that is uploaded ----------------------------------------------------------------------


def test_an_upload_of_a_manifest_fails_at_every_call(store: Store, failing: FailingCalls) -> None:
    part = store.volume("laptop").part(b"home", create=True)
    token = store.registry.create_token("laptop")
    manifest = manifest_of([b"%d" % number for number in range(20)])
    call, happened = 0, True

    def upload(run: runs.RunInfo) -> None:
        query = {"digest": digest_of(manifest).encode(), "incarnation": run.incarnation.encode()}
        request = SimpleNamespace(gzipped=False, query=query, query_int=lambda _: run.epoch)
        grant = store.registry.authenticate_token(token)
        taken = api.CloseUpload(SimpleNamespace(store=store, request=request, grant=grant), run.run)  # type: ignore[arg-type]
        try:
            taken.feed(manifest[:100])
            taken.feed(manifest[100:])
            assert taken.finish().status == 200
        finally:
            taken.abandon()

    while happened:
        call += 1
        sequence = part.state().sequence
        run = runs.begin_run(part, "", {})
        happened = failing.happens_in(lambda run=run: upload(run), call)  # type: ignore[misc]
        check_told(failing, f"call {call}")
        made = 1
        if failing.error is not None:
            try:
                upload(run)  # the same again, as a client does
            except StoreRestarted:
                made = part.state().sequence - sequence + 1
                upload(runs.begin_run(part, "", {}))
        assert part.state().sequence == sequence + made, f"call {call}"
        assert Path(part.manifest_path("latest")).read_bytes() == manifest, f"call {call}"
        assert os.listdir(api.uploads_folder(store.data)) == [], f"call {call}"
        staging = Path(part.root, ".mirrorkeep", ".mirrorkeep.staging")
        assert not staging.exists() or list(staging.iterdir()) == [], f"call {call}"
    assert call > 20
