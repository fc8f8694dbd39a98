"""A slow, distant network on loopback, and how much of it each tool fills.

Answers for: the line of ``rig.link`` run as a process of its own, and the cases ``wan-large`` and
``wan-small``.

``python -m bench.wan LISTEN_PORT TARGET_PORT ONE_WAY_MS MEGABITS`` runs the proxy alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from bench import trees
from bench.cases import Plan, Round, Sample, opened
from bench.peers import Mirrorkeep, Rsync, await_port
from rig.link import Direction, Line
from rig.served import END_WITH_PARENT, free_port

ROUND_TRIP_MS, MEGABITS = 50, 20


async def serve(listen: int, target: int, delay_s: float, rate: float) -> None:
    """Accept connections on ``listen`` for ever; ``rate`` in bytes a second each way."""
    up, down = Line(rate, delay_s), Line(rate, delay_s)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * delay_s)  # the three-way handshake
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        there, back = Direction(up), Direction(down)
        await asyncio.gather(
            there.take(reader), there.give(far_writer), back.take(far_reader), back.give(writer)
        )
        for one in (writer, far_writer):
            one.close()

    async with await asyncio.start_server(connected, "127.0.0.1", listen) as server:
        await server.serve_forever()


@contextlib.contextmanager
def slow_link(target: int) -> Iterator[int]:
    """Run a proxy to ``target`` in a process of its own and yield its port."""
    port = free_port()
    argv = [sys.executable, "-m", "bench.wan", str(port), str(target), str(ROUND_TRIP_MS / 2), str(MEGABITS)]
    process = subprocess.Popen([*END_WITH_PARENT, *argv], stdin=subprocess.DEVNULL)
    try:
        await_port(port)
        time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _through_link(one: Round, case: str, payload_bytes: int) -> None:
    rate = MEGABITS * 1e6 / 8
    for peer in one.peers:
        one.settle()
        if isinstance(peer, Mirrorkeep):
            with slow_link(peer.served.port) as port:
                peer.target = peer.volume.url.replace(f":{peer.served.port}/", f":{port}/")
                measured = peer.copy(str(one.source))
                peer.target = peer.volume.url
        elif isinstance(peer, Rsync):
            with slow_link(peer.own_port) as port:
                peer.port = port
                measured = peer.copy(str(one.source))
                peer.port = 0
        else:
            continue
        measured.link_share = payload_bytes / measured.seconds / rate
        one.note(case, peer.name, measured)


def run(plan: Plan) -> list[Sample]:
    """Measure both cases; restic and Borg write to a local mount and take no part."""
    plan = replace(plan, tools=tuple(tool for tool in plan.tools if tool in ("mirrorkeep", "rsync")))
    samples: list[Sample] = []
    for number in range(plan.runs):
        if plan.wants("wan-large"):
            size = 64 << 20
            with opened(Round(plan, number, data_bytes=size, files=100)) as one:
                trees.make_large_file(str(one.source / "large.bin"), size, seed=number + 1)
                _through_link(one, "wan-large", size)
            samples += one.samples
        if plan.wants("wan-small"):
            with opened(Round(plan, number, data_bytes=10_000 * 4096, files=10_000)) as one:
                made = trees.make_small_files(str(one.source), 10_000, seed=number + 1, mean_bytes=4096)
                _through_link(one, "wan-small", made)
            samples += one.samples
    return samples


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1e3, float(sys.argv[4]) * 1e6 / 8)
        )
