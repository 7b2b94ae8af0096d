"""HEAD requests to one plain server, several under way on each connection (pipelining, RFC 9112 section 9.3.2).

A directory index has no sizes that can be trusted, so each name costs a HEAD. By the library one takes 0.4 ms of
processor time, which readers of a dataset that is just being listed have to wait for; here it takes a third.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from dsfs.sources.timeouts import Timeouts
from dsfs.sources.wire_head import BadHead, Head, parse_head

_CONNECTIONS: Final = 4
_EACH: Final = 8  # requests under way
_WORTHWHILE: Final = 16  # answers on one connection; many servers end it after 100 or 1000
_LONGEST_HEAD_BYTES: Final = 64 * 1024


class Heads:
    """Runs on asyncio. A server that does not go on answering on one connection is asked here no more."""

    def __init__(self, host: str, port: int, timeouts: Timeouts) -> None:
        self._host, self._port = host, port
        self._timeouts = timeouts
        self._connections: list[_Connection] = []
        self._connecting = asyncio.Lock()
        self._failure: OSError | None = None  # of the last try to connect
        self._room = asyncio.Semaphore(_CONNECTIONS * _EACH)
        self._proving = asyncio.Lock()
        self._proven = False
        self._usable = True

    async def ask(self, request: bytes) -> Head | None:
        """The answer to a request, which is ready to be sent; None: ask another way. Raises TimeoutError, OSError."""
        if not self._proven:  # one alone, until it is known that the connection stays open behind it
            if self._proving.locked():
                return None
            async with self._proving:
                return await self._asked(request)
        async with self._room:
            return await self._asked(request)

    async def _asked(self, request: bytes) -> Head | None:
        while (connection := await self._connection()) is not None:
            answer = await connection.ask(request, self._timeouts.idle_s)
            ended = answer is None or not answer.keeps_open
            self._proven = True
            self._usable = self._usable and not (ended and connection.answered < _WORTHWHILE)
            if answer is not None:
                return answer
        return None

    async def _connection(self) -> _Connection | None:
        """An idle one, else another one, else the one with the fewest requests under way; None once there is no use in
        asking. Raises TimeoutError, OSError."""
        while self._usable:
            self._connections = [each for each in self._connections if each.good]
            best = min(self._connections, key=lambda each: each.under_way, default=None)
            waited = self._connecting.locked()
            another = not waited and len(self._connections) < _CONNECTIONS
            if best is not None and best.under_way < (1 if another else _EACH):
                return best
            async with self._connecting:
                if waited and self._failure is not None:  # or one after the other would be out of time
                    raise self._failure
                if not waited and sum(each.good for each in self._connections) < _CONNECTIONS:
                    return await self._connect()
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                loop = asyncio.get_running_loop()
                _transport, made = await loop.create_connection(_Connection, self._host, self._port)
        except OSError as error:
            self._failure = error
            raise
        self._failure = None
        self._connections.append(made)
        return made

    def close(self) -> None:
        """Give back the connections."""
        for connection in self._connections:
            connection.close()


class _Connection(asyncio.Protocol):
    """Answers come in the order of the requests. ``answered`` counts them; ``good`` says whether more may be asked."""

    def __init__(self) -> None:
        self.good = True
        self.answered = 0
        self._ended = False
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: deque[asyncio.Future[Head | None]] = deque()
        self._unsent = bytearray()
        self._came = bytearray()

    @property
    def under_way(self) -> int:
        return len(self._waiting)

    async def ask(self, request: bytes, within_s: float) -> Head | None:
        """None when the connection ended before the answer. Raises TimeoutError after so many seconds.

        Once somebody has given up here, by that or by being cancelled, nobody else is sent behind them.
        """
        if not self.good or self._transport is None:
            return None
        answer: asyncio.Future[Head | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        if not self._unsent:  # a system call for all that is asked in this turn of the loop
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent += request
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except (TimeoutError, asyncio.CancelledError):
            self.good = False
            self._close_if_unwanted()
            raise

    def _close_if_unwanted(self) -> None:
        if not self.good and all(each.done() for each in self._waiting):
            self.close()

    def _send(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._unsent))
        self._unsent.clear()

    def close(self) -> None:
        """Whoever waits gets None."""
        self.good, self._ended = False, True
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            self._tell(None)

    def _tell(self, head: Head | None) -> None:
        answer = self._waiting.popleft()
        if not answer.done():  # whoever asked may have gone
            answer.set_result(head)

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        while not self._ended and (end := self._came.find(b"\r\n\r\n")) >= 0:
            try:
                head = parse_head(bytes(self._came[:end]))
            except BadHead:
                self.close()
                return
            del self._came[: end + 4]
            if head.status < 200:
                continue  # an interim answer (RFC 9110 15.2): the real one follows
            if self._waiting:
                self.answered += 1
                self._tell(head)
            if not head.keeps_open:
                self.close()
        if len(self._came) > _LONGEST_HEAD_BYTES:
            self.close()
        self._close_if_unwanted()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()
