"""What travels, and how: TLS alone, several connections, only what changed, packed where that pays (TX-*)."""

from __future__ import annotations

import os
import random
from pathlib import Path

from rig.mirrored import Mirrored
from rig.served import Served, Volume, checked
from rig.tapping import Tapped, TappingProxy

MIB = 1 << 20
CANARY = b"the canary that nobody on the line may see "
WINDOW_BYTES, ROUND_TRIP_S = MIB // 2, 0.06


def through(proxy: TappingProxy, volume: Volume) -> Volume:
    return Volume(volume.name, proxy.url(volume.url), volume.token, volume.ca)


# --- what can be read on the line (TX-26) -----------------------------------------------------------


def tls_records(stream: bytes) -> list[int]:
    """Return the content types of the TLS records that ``stream`` is made of, and of nothing else."""
    kinds, position = [], 0
    while position < len(stream):
        kind, version = stream[position], stream[position + 1 : position + 3]
        assert kind in (20, 21, 22, 23), f"byte {position} begins no TLS record"
        assert version in (b"\3\1", b"\3\3"), f"byte {position} begins no TLS record"
        length = int.from_bytes(stream[position + 3 : position + 5], "big")
        assert 0 < length <= (1 << 14) + 256
        kinds.append(kind)
        position += 5 + length
    assert position == len(stream), "the last record is cut off"
    return kinds


def test_of_a_whole_run_the_line_shows_tls_records_and_nothing_else(store: Served, tmp_path: Path) -> None:
    volume = store.create_volume("tapped")
    with TappingProxy(store.port) as proxy:
        mirrored = Mirrored(store, tmp_path, "--compress", "never", volume=through(proxy, volume))
        mirrored.source.mkdir()
        names = [f"canary-name-{number}" for number in range(40)]
        for name in names:
            (mirrored.source / name).write_bytes(CANARY * 20)
        large = bytearray(random.Random(1).randbytes(3 * MIB))
        (mirrored.source / "canary-name-large").write_bytes(large)
        first = mirrored.sync("--wait")
        large[MIB : MIB + 4300] = CANARY * 100
        (mirrored.source / "canary-name-large").write_bytes(large)
        second = mirrored.sync("--wait")
        restored = ("restore", mirrored.volume.url, str(tmp_path / "restored"))
        checked(*restored, environment=mirrored.volume.environment)
    assert first["verdict"] == second["verdict"] == "verified"
    # The second run sent the segment's difference, and the canary is what the difference was.
    assert 4300 <= second["bytes_sent"] < 64 * 1024
    assert CANARY * 100 in (mirrored.tip() / "canary-name-large").read_bytes()
    assert mirrored.differences() == []

    assert sum(len(one.up) + len(one.down) for one in proxy.connections) > 6 * MIB
    for one in proxy.connections:
        for stream in (bytes(one.up), bytes(one.down)):
            tls_records(stream)
            for secret in (CANARY.strip(), b"canary-name", volume.token.encode(), b"PATCH-APPLY"):
                assert secret not in stream


# --- several connections (TX-06, TX-24) -------------------------------------------------------------


def full_rounds(connections: list[Tapped]) -> list[tuple[float, float]]:
    return sorted(one for connection in connections for one in connection.full_rounds)


def seconds_covered(spans: list[tuple[float, float]]) -> float:
    """Return how long at least one of the (sorted) spans lasted."""
    covered, until = 0.0, 0.0
    for begin, end in spans:
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def test_more_threads_carry_more_over_a_long_line_than_one_window_allows(
    store: Served, tmp_path: Path
) -> None:
    """The line is measured, not the run: how much it carried while a whole window was under way at all.

    One connection fills one window a round trip whatever it does; four may reach four times that.  Half of
    it is asked for, since how the last bundles fall to the workers is left open.
    """
    source = tmp_path / "source"
    source.mkdir()
    chance = random.Random(2)
    for number in range(384):
        (source / f"f{number:03}").write_bytes(chance.randbytes(64 * 1024))
    rate, carriers = {}, {}
    for threads in (1, 4):
        volume = store.create_volume(f"far{threads}")
        with TappingProxy(store.port, window_bytes=WINDOW_BYTES, round_trip_s=ROUND_TRIP_S) as proxy:
            argv = ("sync", str(source), proxy.url(volume.url), "--state", str(tmp_path / f"state{threads}"))
            argv += ("--threads", str(threads), "--compress", "never", "--no-snapshot")
            checked(*argv, environment=volume.environment)
            rounds = full_rounds(proxy.connections)
            rate[threads] = len(rounds) * WINDOW_BYTES / seconds_covered(rounds)
            carriers[threads] = sum(len(one.up) > MIB for one in proxy.connections)
    # Not exactly as many: a busy worker may end a connection, which is then opened anew (ADR 0016).
    assert carriers[1] < 4 <= carriers[4]
    assert rate[1] < 1.1 * WINDOW_BYTES / ROUND_TRIP_S
    assert rate[4] > 2 * rate[1]


def test_of_a_large_file_several_connections_bring_only_what_changed(store: Served, tmp_path: Path) -> None:
    """Four places in four segments change: their segments go side by side, and only the changes."""
    volume = store.create_volume("segments")
    content = bytearray(random.Random(3).randbytes(40 * MIB))
    with TappingProxy(store.port) as proxy:
        mirrored = Mirrored(store, tmp_path, "--compress", "never", volume=through(proxy, volume))
        mirrored.source.mkdir()
        (mirrored.source / "image").write_bytes(content)
        mirrored.sync()
        assert sum(len(one.up) > 4 * MIB for one in proxy.connections) > 1
        before = len(proxy.connections)
        for place in range(4):
            content[place * 10 * MIB : place * 10 * MIB + 50_000] = random.Random(place).randbytes(50_000)
        (mirrored.source / "image").write_bytes(content)
        assert mirrored.sync()["bytes_sent"] < 4 * 64 * 1024
        later = proxy.connections[before:]
        assert sum(len(one.up) > 50_000 for one in later) > 1
        assert sum(len(one.up) for one in later) < 5 * 64 * 1024
    assert mirrored.differences() == []


# --- what is packed (TX-08, TX-26) ------------------------------------------------------------------


def lines(name: str) -> bytes:
    return b"".join(b"line %d of %s shrinks well\n" % (number, name.encode()) for number in range(70_000))


def test_what_is_packed_is_told_by_the_type_and_then_by_a_sample(store: Served, tmp_path: Path) -> None:
    """A text shrinks; under a packed type the same text goes as it is, as does noise of an unknown type."""
    mirrored = Mirrored(store, tmp_path, "--compress", "always", volume=store.create_volume("packing"))
    mirrored.source.mkdir()
    names = ("a.txt", "a.jpg", "a.ZIP", "noise")
    contents = {name: lines(name) for name in names[:3]} | {"noise": os.urandom(3 * MIB)}
    sent = {}
    for name, content in contents.items():
        (mirrored.source / name).write_bytes(content)
        sent[name] = mirrored.sync()["bytes_sent"]
    assert sent["a.txt"] < len(contents["a.txt"]) // 3
    for name in names[1:]:
        assert sent[name] >= len(contents[name]), name
    text = contents["a.txt"]
    edited = text[:MIB] + b"a text that was put in between, and shrinks\n" * 4000 + text[MIB:]
    (mirrored.source / "a.txt").write_bytes(edited)
    assert 0 < mirrored.sync()["bytes_sent"] < 4000 * 45 // 3
    assert mirrored.differences() == []
