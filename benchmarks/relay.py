"""A bad network: a relay between a websocket's client and its server that delays, drops, reorders and cuts.

For measurements and tests; it listens on loopback, in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


class Relay:
    """What happens between both sides; everything may be changed at any time."""

    def __init__(self, upstream: str) -> None:
        """Take the server's address."""
        self.upstream, self.address = upstream, ""
        self.delay: Callable[[], float] = lambda: 0.0  # seconds for the next answer
        self.keeps_order = True  # answers do not overtake each other
        self.drops: Callable[[int], bool] = lambda number: False  # whether the n-th answer, from 0, is lost
        self.refuses = False  # whoever connects
        self.num_answers = self.num_connections = 0
        self.moves = asyncio.Event()  # unset: nothing is read from either side, as behind a cable that is out
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._open: set[ServerConnection] = set()

    @contextmanager
    def running(self) -> Iterator[Relay]:
        """Relay until the block ends."""
        started = threading.Event()
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(started),), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            self._call(self._ended.set)
            thread.join(10)

    def freeze(self) -> None:
        """Let nothing through any more, on connections that stay open."""
        self._call(self.moves.clear)

    def thaw(self) -> None:
        """End `freeze`."""
        self._call(self.moves.set)

    def cut(self) -> None:
        """End all connections at once, without a word."""
        self._call(lambda: [each.transport.abort() for each in self._open])

    def _call(self, function: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    async def _run(self, started: threading.Event) -> None:
        self.moves.set()
        quiet = {"compression": None, "max_size": None, "ping_interval": None, "close_timeout": 0.2}
        async with serve(self._relay, "127.0.0.1", 0, **quiet) as server:
            self.address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            started.set()
            await self._ended.wait()
            for each in self._open:
                each.transport.abort()

    async def _relay(self, client: ServerConnection) -> None:
        if self.refuses:
            client.transport.abort()
            return
        self.num_connections += 1
        self._open.add(client)
        quiet = {"compression": None, "max_size": None, "ping_interval": None, "close_timeout": 0.2}
        try:
            async with connect(self.upstream, **quiet) as server:
                await client.send(await server.recv())  # what the server says of itself
                ends = [self._requests(client, server), self._answers(server, client), client.wait_closed()]
                tasks = [asyncio.create_task(each) for each in ends]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        except (ConnectionClosed, OSError):
            pass
        finally:
            self._open.discard(client)

    async def _requests(self, client: AsyncIterator[bytes], server: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            async for message in client:
                await self.moves.wait()
                await server.send(message)

    async def _answers(self, server: AsyncIterator[bytes], client: ServerConnection) -> None:
        last = 0.0
        with suppress(ConnectionClosed):
            async for message in server:
                await self.moves.wait()
                self.num_answers += 1
                if self.drops(self.num_answers - 1):
                    continue
                at = self._loop.time() + self.delay()
                at = last = max(at, last) if self.keeps_order else at
                self._loop.call_at(at, lambda m=message: self._loop.create_task(self._deliver(client, m)))

    async def _deliver(self, client: ServerConnection, message: bytes) -> None:
        with suppress(ConnectionClosed):
            await client.send(message)
