"""A line between a client and a store that can be slowed, held, cut, and counted.

Answers for: a TCP proxy on loopback that delays every byte and limits the rate in each direction (kernels
without netem cannot do it).  :class:`Direction` is one direction of one connection; :class:`Link` runs a
proxy in a thread of this process.

Not here: looking into what passes (it is encrypted).  Nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

from rig.served import free_port

QUEUE_S = 0.1
"""Data that would wait longer than this for its turn is not read yet: the sender feels the rate."""
BLOCK_BYTES = 16384


class Line:
    """What all connections of one direction share: a rate (bytes a second) and a delay; both may change."""

    def __init__(self, rate: float, delay_s: float) -> None:
        self.rate, self.delay_s = rate, delay_s
        self.free_at = 0.0
        self.passed_bytes = 0


class Direction:
    """One direction of one connection: bytes leave at the rate, ``delay_s`` later."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

    async def take(self, reader: asyncio.StreamReader) -> None:
        """Read to the end, no faster than the line allows."""
        loop, line = asyncio.get_running_loop(), self.line
        with contextlib.suppress(OSError):
            while data := await reader.read(BLOCK_BYTES):
                now = loop.time()
                line.free_at = max(now, line.free_at) + len(data) / line.rate
                line.passed_bytes += len(data)
                await self.queue.put((line.free_at + line.delay_s, data))
                if line.free_at - now > QUEUE_S:
                    await asyncio.sleep(line.free_at - now - QUEUE_S)
        await self.queue.put((loop.time() + line.delay_s, b""))

    async def give(self, writer: asyncio.StreamWriter) -> None:
        """Write what was taken, each piece at its time."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                at, data = await self.queue.get()
                if (wait_s := at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


class Link:
    """A proxy to ``target`` (a port of loopback) on ``port``, in a thread of this process, while entered."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.up, self.down = Line(float("inf"), 0.0), Line(float("inf"), 0.0)
        self.present = self.most = self.waiting = 0
        """Connections now, the most there were at one time, and those that are held."""
        self._changed = threading.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._held: list[asyncio.Future[None]] = []
        self._holding = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- from the test's thread ------------------------------------------------------------------

    def slow(self, *, round_trip_s: float = 0.0, bytes_per_second: float = float("inf")) -> None:
        """From now on every byte takes so long, at so many bytes a second each way."""
        for line in (self.up, self.down):
            line.rate, line.delay_s = bytes_per_second, round_trip_s / 2

    def hold(self) -> None:
        """Take new connections, and let nothing through them until :meth:`release`."""
        self._loop.call_soon_threadsafe(self._hold)

    def let_through(self, count: int) -> None:
        """Let as many held connections through as that, the oldest first; others are still held."""
        self._loop.call_soon_threadsafe(self._let_through, count)

    def release(self) -> None:
        """Let everything through."""
        self._loop.call_soon_threadsafe(self._release)

    def cut(self) -> None:
        """Break every connection there is; new ones are taken."""
        self._call(self._break())

    def await_waiting(self, count: int, *, within_s: float = 60.0) -> bool:
        """Return whether so many new connections are held, waiting for them."""
        with self._changed:
            return self._changed.wait_for(lambda: self.waiting >= count, within_s)

    def await_passed(self, size_bytes: int, *, within_s: float = 60.0) -> bool:
        """Return whether so many bytes have gone up to the store in all, waiting for them."""
        with self._changed:
            return self._changed.wait_for(lambda: self.up.passed_bytes >= size_bytes, within_s)

    # --- in the link's thread --------------------------------------------------------------------

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _close(self) -> None:
        self._server.close()
        self._release()
        await self._break()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _hold(self) -> None:
        self._holding = True

    def _release(self) -> None:
        self._holding = False
        self._let_through(len(self._held))

    def _let_through(self, count: int) -> None:
        going, self._held = self._held[:count], self._held[count:]
        for one in going:
            one.set_result(None)
        self._count(waiting=-len(going))

    async def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _count(self, *, present: int = 0, waiting: int = 0) -> None:
        with self._changed:
            self.present += present
            self.waiting += waiting
            self.most = max(self.most, self.present)
            self._changed.notify_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count(present=1)
        try:
            if self._holding:
                self._held.append(self._loop.create_future())
                self._count(waiting=1)
                await self._held[-1]
            await asyncio.sleep(2 * self.up.delay_s)  # the three-way handshake
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers |= {writer, far_writer}
            there, back = Direction(self.up), Direction(self.down)
            await asyncio.gather(
                self._noted(there.take(reader)),
                there.give(far_writer),
                back.take(far_reader),
                back.give(writer),
            )
            far_writer.close()
            self._writers -= {writer, far_writer}
        except OSError:
            pass  # the store is not there: the client sees its connection closed
        finally:
            writer.close()
            self._count(present=-1)

    async def _noted(self, taking: object) -> None:
        """Tell waiting threads, every so often, that bytes have passed."""
        task = asyncio.ensure_future(taking)  # type: ignore[call-overload]
        while not task.done():
            await asyncio.wait([task], timeout=0.02)
            self._count()
