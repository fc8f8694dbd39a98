"""The slow link is as slow, and as distant, as it says."""

from __future__ import annotations

import asyncio
import time

from bench.wan import serve
from rig.served import free_port


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def connect(port: int, link: asyncio.Task[None]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as the link listens."""
    while not link.done():
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
    raise AssertionError(link.result())


async def through_link(payload_bytes: int, *, delay_s: float, rate: float) -> tuple[float, float, int]:
    """Return (seconds of a one-byte round trip, seconds of the payload there and back, bytes back)."""
    target, listen = free_port(), free_port()
    async with await asyncio.start_server(echo, "127.0.0.1", target):
        link = asyncio.create_task(serve(listen, target, delay_s, rate))
        reader, writer = await connect(listen, link)
        writer.write(b"1")
        await reader.readexactly(1)  # the connection stands
        began = time.monotonic()
        writer.write(b"1")
        await reader.readexactly(1)
        round_trip_s = time.monotonic() - began
        began = time.monotonic()
        writer.write(bytes(payload_bytes))
        writer.write_eof()
        back = len(await reader.read(-1))
        transfer_s = time.monotonic() - began
        writer.close()
        link.cancel()
    return round_trip_s, transfer_s, back


def test_delay_and_rate() -> None:
    round_trip_s, transfer_s, back = asyncio.run(through_link(1_000_000, delay_s=0.025, rate=1e6))
    assert back == 1_000_000
    # Not "and no slower": that depends on what else the machine does.
    assert round_trip_s >= 0.05
    assert transfer_s >= 1.0
