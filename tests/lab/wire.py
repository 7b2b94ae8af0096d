"""A TCP relay in front of an origin: it passes, refuses, stalls or drips, and can cut what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from enum import StrEnum
from typing import Any

from tests.servers.process import HOST
from tests.servers.streams import Connections, stop_listening

_PIECE_BYTES = 64 * 1024
_DRIP_BYTES, _DRIP_S = 2048, 0.05


class Mode(StrEnum):
    """What the relay does with bytes; connections that are open follow at once."""

    PASS = "pass"
    REFUSE = "refuse"
    """Nobody listens; what was open is reset."""
    STALL = "stall"
    """Connections are accepted and nothing ever comes: a black hole."""
    DRIP = "drip"
    """40 kB/s."""


class Wire:
    """The handle; ``port`` stays the same for its whole life."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self.port = 0
        self._mode = Mode.PASS
        self._passing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._connections = Connections(self._accept)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def set(self, mode: Mode) -> None:
        self._call(self._set(mode))

    def cut(self) -> None:
        """Reset every connection that is open."""
        self._call(self._cut())

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.STALL:
            self._passing.clear()
        else:
            self._passing.set()
        if mode is Mode.REFUSE:
            if self._server is not None:
                server, self._server = self._server, None
                await stop_listening(server)
            await self._cut()
        elif self._server is None:
            self._server = await asyncio.start_server(self._connections.take, HOST, self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._passing.wait()
            up_reader, up_writer = await asyncio.open_connection(HOST, self._upstream_port)
            self._open.add(up_writer)
            self._connections.keep(up_writer)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._relay(reader, up_writer))
                    both.create_task(self._relay(up_reader, writer))
            finally:
                self._open.discard(up_writer)
                up_writer.close()
        except* OSError:
            pass  # either side may go at any time; the other is closed then
        finally:
            self._open.discard(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_DRIP_BYTES if self._mode is Mode.DRIP else _PIECE_BYTES):
            await self._passing.wait()
            if self._mode is Mode.DRIP:
                await asyncio.sleep(_DRIP_S)
            writer.write(data)
            await writer.drain()
        writer.close()

    def _start(self) -> None:
        self._thread.start()
        self.set(Mode.PASS)

    def _stop(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _end(self) -> None:
        await self._set(Mode.REFUSE)
        await self._connections.end()


@contextlib.contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """A relay to a port of this machine."""
    wire = Wire(port)
    wire._start()
    try:
        yield wire
    finally:
        wire._stop()
