"""Connections that break within requests and answers: the run goes on, everything is right (TX-25)."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.churn import Churn
from rig.compare import Comparer
from rig.cutting import CuttingProxy
from rig.mirrored import Mirrored
from rig.served import Served, Volume, checked

SEED = int(os.environ.get("MIRRORKEEP_SEED", "0")) or random.SystemRandom().randrange(10**9)


@pytest.fixture
def proxied(served_store: Served, tmp_path: Path) -> Iterator[tuple[Mirrored, CuttingProxy, Churn]]:
    rng = random.Random(SEED)
    print(f"MIRRORKEEP_SEED={SEED}")
    churn = Churn(tmp_path / "source", rng, files=300)
    direct = served_store.create_volume("vol")
    # A segment has 10 MB: half of the connections bring one over, else a run might lose patience.
    proxy = CuttingProxy(served_store.port, rng, (20_000, 200_000), (10_500_000, 14_000_000))
    url = direct.url.replace(f":{served_store.port}/", f":{proxy.port}/")
    through = Volume(direct.name, url, direct.token, direct.ca)
    yield Mirrored(served_store, tmp_path, "--commit-interval", "0.3", volume=through), proxy, churn
    proxy.stop()


@pytest.mark.timeout(0)
def test_runs_and_restores_over_connections_that_break(
    proxied: tuple[Mirrored, CuttingProxy, Churn], tmp_path: Path
) -> None:
    mirrored, proxy, churn = proxied
    rounds = 0
    while rounds < 4 or (proxy.cuts < 2 and rounds < 40):
        mirrored.sync()
        assert mirrored.differences() == []
        churn.step(40)
        rounds += 1
    mirrored.sync()
    assert proxy.cuts > 1
    target = tmp_path / "restored"
    argv = ("restore", mirrored.volume.url, str(target), "--json")
    checked(*argv, environment=mirrored.volume.environment)
    comparer = Comparer(str(mirrored.source), str(target))
    assert [str(one) for one in comparer.differences()] == []
    proxy.armed = False
    mirrored.check_verdict()
    mirrored.check_snapshots()
    print(f"{proxy.cuts} of {proxy.connections} connections were cut")
