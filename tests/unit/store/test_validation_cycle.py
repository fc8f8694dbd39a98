"""The rolling cycle: marks tell the age of the oldest read and never claim a read that was not made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorkeep.errors import BadUsage
from mirrorkeep.manifest import keys as record_keys
from mirrorkeep.manifest.order import order_key
from mirrorkeep.manifest.record import format_record
from mirrorkeep.manifest.writer import ManifestWriter
from mirrorkeep.store import cycle as cycles
from mirrorkeep.store.change import Changed, entry_of, is_renamed, sorted_keys
from mirrorkeep.store.cycle import END, Cycle, load_cycle, save_cycle
from mirrorkeep.store.pacing import ByteRate, load_policy

PATHS = [b"%02d" % number for number in range(40)]
KEYS = [order_key(path) for path in PATHS]


@given(st.lists(st.tuples(st.integers(0, 45), st.booleans()), min_size=1, max_size=60), st.integers(2, 8))
def test_the_oldest_mark_is_never_younger_than_the_oldest_read(
    steps: list[tuple[int, bool]], limit: int
) -> None:
    kept, cycles.MAX_MARKS = cycles.MAX_MARKS, limit  # type: ignore[misc]
    try:
        cycle = Cycle()
        cycle.read_all(0.0)
        truth = dict.fromkeys(KEYS, 0.0)
        for time, (count, everything) in enumerate(steps, 1):
            if everything:
                cycle.read_all(float(time))
                truth = dict.fromkeys(KEYS, float(time))
                continue
            ahead = [key for key in KEYS if key > cycle.position]
            end = END if count >= len(ahead) else ahead[count]
            for key in ahead:
                if key <= end:
                    truth[key] = float(time)
            cycle.read_stretch(end, float(time))
            assert cycle.oldest_read is not None
            assert cycle.oldest_read <= min(truth.values())
            assert len(cycle.marks) <= limit
            assert [key for key, _ in cycle.marks] == sorted({key for key, _ in cycle.marks})
            assert cycle.marks[-1][0] == END
    finally:
        cycles.MAX_MARKS = kept  # type: ignore[misc]


def test_the_share_comes_round_within_the_cycle() -> None:
    cycle = Cycle()
    cycle.read_all(0.0)
    total, days = 10 << 30, 30
    read = 0
    for day in range(1, days + 1):
        read += cycle.share_bytes(total, day * 86_400.0, days * 86_400.0)
        cycle.rolled_at = day * 86_400.0
    assert read >= total


def test_state_survives_and_damaged_state_means_a_full_validation(tmp_path: Path) -> None:
    cycle = Cycle("snap", 7, KEYS[3], 5.0, [(KEYS[3], 5.0), (END, 1.5)])
    save_cycle(str(tmp_path), cycle)
    assert load_cycle(str(tmp_path)) == cycle
    (tmp_path / "cycle.json").write_text('{"marks": 3')
    assert load_cycle(str(tmp_path)) == Cycle()


def test_the_choice_reads_what_changed_what_is_known_and_the_share() -> None:
    choice = Changed(iter([KEYS[2], KEYS[30]]), [PATHS[5]], position=KEYS[9], share_bytes=25)
    read = [path for path in PATHS if choice.wants(path, 10)]
    assert read == [PATHS[2], PATHS[5], PATHS[10], PATHS[11], PATHS[12], PATHS[30]]
    assert choice.end() == KEYS[12]


def test_a_share_with_room_left_reached_the_end() -> None:
    choice = Changed(iter(()), (), position=KEYS[37], share_bytes=1000)
    assert [path for path in PATHS if choice.wants(path, 10)] == PATHS[38:]
    assert choice.end() == END


@pytest.mark.parametrize(
    ("stored", "entry"),
    [
        (b"", b""),
        (b"a/b", b"a/b"),
        (b"a/.mirrorkeep/b", b"a/b"),
        (b".mirrorkeep/b", b"b"),
        (b".mirrorkeep/.mirrorkeep.root", b""),
        (b".mirrorkeep/.mirrorkeep.manifest", None),
        (b".mirrorkeep/.mirrorkeep.staging/x", None),
        (b"a/.mirrorkeep", None),
        (b"a/.mirrorkeep~0123/b", None),
        (b"a/.mirrorkeep/.mirrorkeep~0123", None),
    ],
)
def test_stored_paths_name_their_entries(stored: bytes, entry: bytes | None) -> None:
    assert entry_of(stored) == entry


def test_names_that_are_stored_under_others_are_recognised() -> None:
    assert is_renamed(b"a/.mirrorkeepish/b")
    assert is_renamed(b"a/" + b"x" * 256)
    assert not is_renamed(b"a/x.mirrorkeep")
    assert not is_renamed(b"/".join([b"x" * 200] * 3))


def test_changed_paths_come_sorted_by_their_entries(tmp_path: Path) -> None:
    stored = [b"b", b"a/.mirrorkeep/x", b"a/x", b"a", b".mirrorkeep/.mirrorkeep.root"]
    write_manifest(tmp_path / "manifest", {})
    keys = list(dict.fromkeys(sorted_keys(stored, str(tmp_path / "manifest"), str(tmp_path))))
    assert keys == [order_key(path) for path in (b"a/x", b"a", b"b", b"")]
    assert os.listdir(tmp_path) == ["manifest"]


def test_what_changed_is_all_names_of_a_file_of_which_the_storage_tells_one(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest", {b"a/x": b"7", b"b": b"8", b"c": b"7", b"d": b"8"})
    for stored in ([b"a/x"], [b"c"], [b"a/.mirrorkeep/x", b"c"]):
        keys = list(dict.fromkeys(sorted_keys(stored, str(tmp_path / "manifest"), str(tmp_path))))
        assert keys == [order_key(path) for path in (b"a/x", b"c")]
    assert os.listdir(tmp_path) == ["manifest"]


def write_manifest(path: Path, inodes: dict[bytes, bytes]) -> None:
    """Write a manifest of files with two names each, in the order given."""
    with path.open("wb") as stream:
        writer = ManifestWriter(stream, {})
        for name, inode in inodes.items():
            fields = {record_keys.TYPE: record_keys.FILE, record_keys.LINKS: b"2", record_keys.INODE: inode}
            writer.add(format_record(name, fields))
        writer.finish()


def test_the_byte_rate_holds_on_average_and_forgives_no_debt() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    rate = ByteRate(1000, clock=lambda: now[0], sleep=sleep)
    for _ in range(50):
        rate.spend(200)
    assert now[0] == pytest.approx(10.0, abs=0.3)
    now[0] += 100
    rate.spend(100_000)
    assert now[0] == pytest.approx(210.0, abs=0.6)


@pytest.mark.parametrize(
    "text", ['{"repair": "pray"}', '{"cycle_days": 0}', '{"hours": [1]}', "[]", '{"processes": "x"}']
)
def test_a_policy_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "validation.json").write_text(text)
    with pytest.raises(BadUsage, match=r"validation\.json"):
        load_policy(str(tmp_path))


def test_hours_may_pass_midnight(tmp_path: Path) -> None:
    (tmp_path / "validation.json").write_text('{"hours": [22, 6]}')
    policy = load_policy(str(tmp_path))
    assert [hour for hour in range(24) if policy.open_at(hour)] == [0, 1, 2, 3, 4, 5, 22, 23]
