"""Validation in a store: modes, repair, chain, cycle, and what a kill in the middle leaves."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorkeep.errors import BadUsage, NotFound
from mirrorkeep.manifest import keys as record_keys
from mirrorkeep.manifest.reader import ManifestReader
from mirrorkeep.store import assess, examine, keys, runs, validation
from mirrorkeep.store import verdict as verdicts
from mirrorkeep.store.chain import Chain
from mirrorkeep.store.cycle import load_cycle
from mirrorkeep.store.findings import FindingsFile, finding_line
from mirrorkeep.store.pool import Store
from mirrorkeep.store.records import write_record
from mirrorkeep.store.validation import Validator, read_verdict, request_validation
from mirrorkeep.store.volume import Part
from tests.unit.store.stored_copy import copy_stored, make_source


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Place:
    """A ``dir`` store with one part that holds a copy of a small tree."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.source = folder / "source"
        make_source(self.source)
        self.store = Store.create(str(folder / "data"), "dir")
        self.part: Part = self.store.create_volume("vol").part(b"", create=True)
        self.validator = Validator(self.store, now=self.clock)

    def run(self) -> runs.Closed:
        """Mirror the source and close the run."""
        run = runs.begin_run(self.part, "source", {})
        digest = copy_stored(self.source, Path(self.part.root))
        body = Path(self.part.root) / ".mirrorkeep" / ".mirrorkeep.manifest"
        return runs.close_run(
            self.part, run.run, run.epoch, run.incarnation, form="full", digest=digest, body_path=str(body)
        )

    def drain(self) -> None:
        while self.validator.run_once():
            pass

    def snapshot(self, name: str | None) -> Path:
        return Path(self.part.snapshot_root(name or "latest"))

    def findings(self, ticket: validation.ValidationTicket) -> list[dict[str, str]]:
        path = validation.findings_path(self.part, ticket.snapshot, ticket.id)
        return [json.loads(line) for line in Path(path).read_bytes().splitlines()]

    def validate(self, snapshot: str | None, mode: str = "full") -> dict[str, Any]:
        ticket = request_validation(self.part, snapshot, mode)
        self.drain()
        return read_verdict(self.part, ticket.snapshot, ticket.id)

    def patch(self) -> dict[bytes, bytes]:
        """Return the kind of each record in the patch."""
        with Path(self.part.patch_path).open("rb") as stream:
            return {record.path: record.kind for record in ManifestReader(stream, partial=True)}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def flip(path: Path) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_run_is_validated_by_itself_and_its_first_verdict_covers_every_byte(place: Place) -> None:
    closed = place.run()
    assert closed.snapshot is not None
    pending = read_verdict(place.part, closed.snapshot)
    assert (pending["state"], pending["verdict"]) == ("pending", "pending")
    place.drain()
    made = read_verdict(place.part, closed.snapshot)
    assert (made["state"], made["verdict"], made["mode"], made["findings"]) == ("done", "verified", "full", 0)
    assert made["coverage"]["complete"] is True
    assert made["coverage"]["content_bytes"] == made["coverage"]["bytes"] > 600_000
    assert made["coverage"]["oldest_read"] is not None
    assert closed.validation == made["validation"]
    verdicts.check_signature(made, [keys.public_key(place.store.keys_folder)])
    with (place.snapshot(closed.snapshot) / ".mirrorkeep" / ".mirrorkeep.manifest").open("rb") as stream:
        verdicts.check_manifest(made, stream)
    described = validation.describe_snapshot(place.part, place.part.snapshot("latest"))
    assert (described["verdict"], described["entries"]) == ("verified", 13)


def test_findings_fail_the_verdict_and_leave_a_patch_that_the_next_run_repairs(place: Place) -> None:
    first = place.run()
    root = place.snapshot(first.snapshot)
    flip(root / "docs/a.txt")
    (root / "media/film").unlink()
    (root / "docs/deep/new").write_bytes(b"planted")
    made = place.validate(first.snapshot)
    assert (made["verdict"], made["findings"]) == ("failed", 3)
    rows = place.findings(validation.ValidationTicket(made["validation"], made["snapshot"], made["sequence"]))
    assert [(row["path"], row["kind"]) for row in rows] == [
        ("docs/a.txt", "content"),
        ("docs/deep/new", "extra"),
        ("media/film", "missing"),
    ]
    raw = Path(validation.findings_path(place.part, made["snapshot"])).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == made["findings_digest"]
    assert list(place.patch().items()) == [
        (b"docs/a.txt", record_keys.UNKNOWN),
        (b"docs/deep/new", record_keys.FILE),
        (b"docs/deep", record_keys.UNKNOWN),
        (b"docs", record_keys.UNKNOWN),
        (b"media/film", record_keys.ABSENT),
        (b"media", record_keys.UNKNOWN),
    ]
    second = place.run()
    place.drain()
    healed = read_verdict(place.part, second.snapshot or "")
    assert (healed["verdict"], healed["findings"]) == ("repaired", 0)
    assert not os.path.exists(place.part.patch_path)
    third = place.run()
    place.drain()
    assert read_verdict(place.part, third.snapshot or "")["verdict"] == "verified"


def test_an_incremental_validation_reads_what_changed_and_known_findings_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorkeep.store.cycle.MIN_SHARE_BYTES", 0)
    first = place.run()
    place.drain()
    flip(place.snapshot(first.snapshot) / "docs/deep/c.bin")
    assert place.validate(first.snapshot)["findings"] == 1
    (place.source / "docs/a.txt").write_bytes(b"changed")
    second = place.run()
    place.drain()
    made = read_verdict(place.part, second.snapshot or "")
    assert made["mode"] == "incremental"
    # a.txt changed, c.bin had a finding, and the name that looks like the server's is always read
    assert made["coverage"]["content_entries"] == 3
    assert made["coverage"]["complete"] is False


def test_the_rolling_read_comes_round_and_finds_silent_rot(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorkeep.store.cycle.MIN_SHARE_BYTES", 0)
    first = place.run()
    place.drain()
    began = load_cycle(place.part.folder).oldest_read
    assert began is not None
    place.clock.now += 86_400
    second = place.run()
    place.drain()
    assert first.snapshot != second.snapshot
    flip(place.snapshot(second.snapshot) / "media/film")
    found, rounds = 0, 0
    while not found:
        rounds += 1
        assert rounds < 40, "the cycle never came round"
        place.clock.now += 86_400
        found = place.validate(second.snapshot, "incremental")["findings"]
    assert found == 1
    oldest = load_cycle(place.part.folder).oldest_read
    assert oldest is not None
    assert began < oldest


def test_metadata_only_names_metadata_and_makes_no_snapshot_verified(place: Place) -> None:
    closed = place.run()
    lease = place.store.queue.lease()
    assert lease is not None
    lease.done()
    flip(place.snapshot(closed.snapshot) / "docs/a.txt")
    made = place.validate(closed.snapshot, "metadata")
    assert (made["findings"], made["coverage"]["content_bytes"]) == (0, 0)
    assert read_verdict(place.part, closed.snapshot or "")["verdict"] == "pending"
    (place.snapshot(closed.snapshot) / "docs/b.txt").chmod(0o600)
    assert place.validate(closed.snapshot, "metadata")["findings"] == 1
    assert read_verdict(place.part, closed.snapshot or "")["verdict"] == "failed"


@pytest.mark.parametrize("damage", ["flip", "unlink", "other"])
def test_a_manifest_that_does_not_belong_makes_no_findings(place: Place, damage: str) -> None:
    closed = place.run()
    place.drain()
    path = place.snapshot(closed.snapshot) / ".mirrorkeep" / ".mirrorkeep.manifest"
    if damage == "flip":
        flip(path)
    elif damage == "unlink":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"part=", b"part=other"))
    made = place.validate(closed.snapshot)
    assert (made["verdict"], made["findings"]) == ("failed", 0)
    assert made["error"]["code"] == "foreign_manifest"
    assert not os.path.exists(place.part.patch_path)


def test_after_a_damaged_manifest_everything_is_read_and_the_next_snapshot_is_verified(place: Place) -> None:
    first = place.run()
    place.drain()
    flip(place.snapshot(first.snapshot) / ".mirrorkeep" / ".mirrorkeep.manifest")
    (place.source / "docs/new").write_bytes(b"new")
    second = place.run()
    place.drain()
    made = read_verdict(place.part, second.snapshot or "")
    assert (made["verdict"], made["mode"]) == ("verified", "full")


def test_damage_of_the_present_is_found_though_the_snapshot_is_older(place: Place) -> None:
    place.run()
    place.drain()
    flip(Path(place.part.root) / "docs/a.txt")
    made = place.validate(None)
    assert made["findings"] == 1
    assert set(place.patch()) == {b"docs/a.txt", b"docs"}


def test_findings_of_an_old_snapshot_have_the_present_looked_at(place: Place) -> None:
    first = place.run()
    second = place.run()
    place.drain()
    film = place.snapshot(first.snapshot) / "media/film"
    data = film.read_bytes()
    film.unlink()  # the old snapshot's own name: the new one keeps its file
    film.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert place.validate(first.snapshot)["findings"] >= 1
    newest = read_verdict(place.part, second.snapshot or "")
    assert newest["verdict"] == "verified"


def test_verdicts_form_one_chain(place: Place) -> None:
    first = place.run()
    place.drain()
    again = place.validate(first.snapshot)
    made = read_verdict(place.part, first.snapshot or "", first.validation)
    assert again["previous"] == verdicts.digest_of(made)
    assert Chain(place.part.folder).head() == verdicts.digest_of(again)


def test_a_validation_that_was_killed_goes_on_where_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "BATCH_ENTRIES", 2)
    monkeypatch.setattr("mirrorkeep.store.assess.CHECKPOINT_S", 0.0)
    closed = place.run()
    place.drain()
    root = place.snapshot(closed.snapshot)
    flip(root / "docs/a.txt")
    flip(root / "media/film")
    ticket = request_validation(place.part, closed.snapshot, "full")
    monkeypatch.setattr(assess, "write_record", _killed_behind_a_checkpoint)
    child = os.fork()
    if child == 0:
        place.validator.run_once()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    assert read_verdict(place.part, ticket.snapshot, ticket.id)["state"] in ("pending", "running")
    checkpoint = json.loads(
        Path(place.part.folder, "findings", f"{ticket.sequence}-{ticket.id}.checkpoint").read_text()
    )
    assert checkpoint["tally"]["entries"] > 0
    monkeypatch.setattr(assess, "write_record", write_record)
    seen: list[bytes] = []
    check = examine.Examination._submit

    def noting(self: examine.Examination, pool: Any, batch: Any) -> None:
        seen.extend(item[0] for item in batch.items)
        check(self, pool, batch)

    monkeypatch.setattr(examine.Examination, "_submit", noting)
    deadline = time.monotonic() + 60
    while not place.validator.run_once():  # workers of the killed one hold its lease until they are gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made = read_verdict(place.part, ticket.snapshot, ticket.id)
    assert [row["path"] for row in place.findings(ticket)] == ["docs/a.txt", "media/film"]
    assert (made["findings"], made["coverage"]["entries"]) == (2, 13)
    assert len(seen) < 13


def _killed_behind_a_checkpoint(path: str, record: dict[str, Any]) -> None:
    """Write as ever, but let no process go on that has written a checkpoint."""
    write_record(path, record)
    if path.endswith(".checkpoint"):
        os.kill(os.getpid(), 9)


def test_a_validation_that_cannot_be_done_ends_in_a_failed_verdict_with_the_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place.run()

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(examine.Examination, "run", broken)
    place.store.queue.now = place.clock
    for tries in range(validation.MAX_TRIES):
        assert [job.tries for job in place.store.queue.jobs()] == [tries]
        place.drain()
        place.clock.now += 3600
    assert list(place.store.queue.jobs()) == []
    made = read_verdict(place.part, closed.snapshot or "")
    assert (made["verdict"], made["error"]["code"]) == ("failed", "internal_error")


def test_the_policy_keeps_background_work_to_its_hours_but_not_what_is_asked_for(place: Place) -> None:
    hour = time.localtime(place.clock.now).tm_hour
    policy = {"hours": [(hour + 1) % 24, (hour + 2) % 24]}
    Path(place.store.data, "validation.json").write_text(json.dumps(policy))
    closed = place.run()
    place.drain()
    assert read_verdict(place.part, closed.snapshot or "")["verdict"] == "pending"
    assert place.validate(closed.snapshot)["verdict"] == "verified"


def test_a_verdict_that_somebody_waits_for_keeps_no_hours_and_goes_first(place: Place) -> None:
    hour = time.localtime(place.clock.now).tm_hour
    policy = {"hours": [(hour + 1) % 24, (hour + 2) % 24]}
    Path(place.store.data, "validation.json").write_text(json.dumps(policy))
    names = [place.run().snapshot or "" for _ in range(3)]
    for _ in range(2):
        assert read_verdict(place.part, names[1], waited_for=True)["verdict"] == "pending"
    assert next(place.store.queue.jobs()).payload["snapshot"] == names[1]
    place.drain()
    verdicts = [read_verdict(place.part, name)["verdict"] for name in names]
    assert verdicts == ["pending", "verified", "pending"]
    assert len(list(place.store.queue.jobs())) == 2


def test_wiping_has_the_next_run_look_at_everything(place: Place) -> None:
    Path(place.store.data, "validation.json").write_text('{"repair": "wipe"}')
    closed = place.run()
    (place.snapshot(closed.snapshot) / "media/film").unlink()
    place.validate(closed.snapshot)
    patch = place.patch()
    assert len(patch) == 13
    assert patch[b"media/film"] == record_keys.ABSENT
    assert set(patch.values()) == {record_keys.ABSENT, record_keys.UNKNOWN}


def test_a_silent_part_is_read_on(place: Place) -> None:
    closed = place.run()
    place.drain()
    place.clock.now += 2 * 86_400
    place.validator._next_roll = 0
    place.validator.queue_rolling()
    assert [job.payload["rolling"] for job in place.store.queue.jobs()] == [True]
    place.validator._next_roll = 0
    place.validator.queue_rolling()
    assert len(list(place.store.queue.jobs())) == 1
    place.drain()
    assert read_verdict(place.part, closed.snapshot or "")["verdict"] == "verified"
    cycle = load_cycle(place.part.folder)
    assert cycle.rolled_at == pytest.approx(place.clock.now)


def test_what_nobody_asked_for_is_not_found(place: Place) -> None:
    closed = place.run()
    with pytest.raises(NotFound):
        read_verdict(place.part, closed.snapshot or "", "f" * 16)
    with pytest.raises(NotFound):
        request_validation(place.part, "auto_1999", "full")
    with pytest.raises(BadUsage):
        request_validation(place.part, closed.snapshot, "deep")
    with pytest.raises(NotFound):
        validation.findings_path(place.part, closed.snapshot or "")


def test_findings_are_whole_where_the_disk_takes_a_part_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[:7], offset))
    file = FindingsFile(str(tmp_path / "findings"))
    rows = [(b"a", "missing", "one"), (b"b/c", "content", "other")]
    for row in rows:
        file.add(*row)
    file.publish()
    file.close()
    found = (tmp_path / "findings").read_bytes()
    assert found == b"".join(finding_line(*row) for row in rows)
    assert hashlib.sha256(found).hexdigest() == file.digest
