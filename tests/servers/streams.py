"""Servers of asyncio streams in this process that leave no connection open: one would fail whichever test runs next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.servers.process import HOST

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_ACCEPTED_ROUNDS = 3  # of the loop, until a connection that it has just accepted is known here


class Connections:
    """All that a server has had, and who serves them."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new one: for ``asyncio.start_server``."""
        self.keep(writer)
        task = asyncio.create_task(self._run(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def keep(self, writer: asyncio.StreamWriter) -> None:
        """One more that is to be closed at the end, by force if what was written is not taken."""
        self._writers.append(writer)

    async def end(self) -> None:
        """Called when no more are accepted."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, *(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()


async def stop_listening(server: asyncio.Server) -> None:
    """As ``server.close()``, which alone would leave a connection open that was accepted just now: its transport cannot
    be attached to a server that is closed (``Server._attach``), and nobody closes its socket."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _round in range(_ACCEPTED_ROUNDS):
        await asyncio.sleep(0)
    server.close()


@asynccontextmanager
async def listening(serve: Serve, limit: int = 2**16) -> AsyncIterator[tuple[int, Connections]]:
    """A server on a free port for as long as the block lasts; ``limit`` bytes of a line that is read."""
    connections = Connections(serve)
    server = await asyncio.start_server(connections.take, HOST, 0, limit=limit)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        await stop_listening(server)
        await connections.end()
