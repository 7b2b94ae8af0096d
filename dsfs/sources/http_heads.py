"""HEAD requests to one plain server, several under way on each connection (pipelining, RFC 9112 section 9.3.2).

A directory index has no sizes that can be trusted, so each name costs a HEAD. By the library one takes 0.4 ms of
processor time, which readers of a dataset that is just being listed have to wait for; here it takes a third.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from dsfs.sources.wire_head import BadHead, Head, parse_head

_CONNECTIONS: Final = 4
_EACH: Final = 8  # requests under way
_WORTHWHILE: Final = 16  # answers on one connection; many servers end it after 100 or 1000
_LONGEST_HEAD_BYTES: Final = 64 * 1024
_PATIENCE_S: Final = 2.0
"""For a connection, and for the next answer on it: whoever has to ask another way has most of his time left."""
_REST_S: Final = 60.0
_IDLE_MAX_S: Final = 15.0
"""What lies idle for longer may have been forgotten by a firewall, which says so to nobody. As aiohttp's."""
_NEXT_ADDRESS_S: Final = 0.25
"""RFC 8305 section 8."""
_SLOW_S: Final = 0.008
"""Of the server's, for an answer: if it takes longer, requests are better spread over as many connections as there are,
as most servers answer those of one connection one after the other."""


class Heads:
    """Runs on asyncio. A server that is slow, or does not go on answering on one connection, is not asked here for a
    while: whatever is wrong with it, whoever asks another way hears."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._connections: list[_Connection] = []
        self._connecting = asyncio.Lock()
        self._room = asyncio.Semaphore(_CONNECTIONS * _EACH)
        self._proving = asyncio.Lock()
        self._proven = False
        self._not_before_s = 0.0
        self._closed = False
        self._making: set[asyncio.Task[_Connection]] = set()  # the loop itself holds them weakly

    @property
    def _usable(self) -> bool:
        return not self._closed and asyncio.get_running_loop().time() >= self._not_before_s

    def rest(self) -> None:
        """Ask another way for a while."""
        self._proven = False
        self._not_before_s = asyncio.get_running_loop().time() + _REST_S
        for connection in self._connections:
            connection.retire()

    async def ask(self, request: bytes) -> Head | None:
        """The answer to a request, which is ready to be sent; None: ask another way."""
        if not self._proven:  # one alone, until it is known that the connection stays open behind it
            if self._proving.locked():
                return None
            async with self._proving:
                return await self._asked(request)
        async with self._room:
            return await self._asked(request)

    async def _asked(self, request: bytes) -> Head | None:
        while (connection := await self._connection()) is not None:
            answer = await connection.ask(request)
            self._proven = True
            if connection.is_slow or (not connection.good and connection.answered < _WORTHWHILE):
                self.rest()
            if answer is not None:
                return answer
        return None

    async def _connection(self) -> _Connection | None:
        """An idle one, else another one, else the one with the fewest requests under way; None: ask another way."""
        while self._usable:
            self._connections = [each for each in self._connections if each.is_good()]
            best = min(self._connections, key=lambda each: each.under_way, default=None)
            full, waited = len(self._connections) >= _CONNECTIONS, self._connecting.locked()
            if best is not None and (full or best.under_way < (_EACH if waited else 1)):
                return best
            async with self._connecting:
                if not waited and self._usable and len(self._connections) < _CONNECTIONS:
                    try:
                        return await self._connect()
                    except OSError:  # TimeoutError among them
                        self.rest()
        return None

    async def _connect(self) -> _Connection:
        # Whoever asked may go: asyncio loses the socket of a connection that is given up in the moment it is made.
        making = asyncio.create_task(self._make())
        self._making.add(making)
        making.add_done_callback(self._made)
        return await asyncio.shield(making)

    async def _make(self) -> _Connection:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.timeout(_PATIENCE_S):
            _transport, made = await loop.create_connection(
                _Connection, self._host, self._port, happy_eyeballs_delay=_NEXT_ADDRESS_S
            )
        made.round_trip_s = loop.time() - began_s
        self._connections.append(made)
        if self._closed:
            made.close()
        return made

    def _made(self, making: asyncio.Task[_Connection]) -> None:
        self._making.discard(making)
        if not making.cancelled():
            making.exception()  # told to who asked, who may have gone

    def close(self) -> None:
        """Give back the connections."""
        self._closed = True
        for connection in self._connections:
            connection.close()


class _Connection(asyncio.Protocol):
    """Answers come in the order of the requests. ``answered`` counts them; ``good`` says whether more may be asked."""

    def __init__(self) -> None:
        self.good = True
        self.answered = 0
        self.stood_still = False
        self.round_trip_s = 0.0
        """At most: what it took to connect."""
        self._work_s = 0.0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._moved_s = self._loop.time()
        self._look: asyncio.TimerHandle | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: deque[tuple[asyncio.Future[Head | None], float]] = deque()  # and since when
        self._unsent = bytearray()
        self._came = bytearray()

    @property
    def under_way(self) -> int:
        return len(self._waiting)

    @property
    def is_slow(self) -> bool:
        """Whether the server takes its time, for the last answers on average or for the next one."""
        return self.stood_still or (self.answered >= _WORTHWHILE and self._work_s > _SLOW_S)

    def is_good(self) -> bool:
        """Whether more may be asked. One that has lain idle is closed."""
        if not self._waiting and self._loop.time() - self._moved_s > _IDLE_MAX_S:
            self.close()
        return self.good

    def retire(self) -> None:
        """Whoever waits gets an answer, nobody else does."""
        self.good = False
        self._close_if_unwanted()

    async def ask(self, request: bytes) -> Head | None:
        """None when the connection has ended before the answer, or brought none for too long."""
        if not self.good or self._transport is None:
            return None
        answer: asyncio.Future[Head | None] = self._loop.create_future()
        now_s = self._loop.time()
        if not self._waiting:
            self._moved_s = now_s
        self._waiting.append((answer, now_s))
        if self._look is None:
            self._look = self._loop.call_later(_PATIENCE_S, self._look_again)
        if not self._unsent:  # a system call for all that is asked in this turn of the loop
            self._loop.call_soon(self._send)
        self._unsent += request
        return await answer

    def _look_again(self) -> None:
        self._look = None
        if self._waiting:
            left_s = self._moved_s + _PATIENCE_S - self._loop.time()
            if left_s > 0:
                self._look = self._loop.call_later(left_s, self._look_again)
            else:
                self.stood_still = True
                self.close()

    def _close_if_unwanted(self) -> None:
        if not self.good and all(answer.done() for answer, _since_s in self._waiting):
            self.close()

    def _send(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._unsent))
        self._unsent.clear()

    def close(self) -> None:
        """Whoever waits gets None."""
        self.good, self._ended = False, True
        if self._look is not None:
            self._look.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            self._tell(None)

    def _tell(self, head: Head | None) -> None:
        answer, _since_s = self._waiting.popleft()
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
                self._count()
                self._tell(head)
            if not head.keeps_open:
                self.close()
        if len(self._came) > _LONGEST_HEAD_BYTES:
            self.close()
        self._close_if_unwanted()

    def _count(self) -> None:
        """An answer has come."""
        now_s, (_answer, since_s) = self._loop.time(), self._waiting[0]
        worked_s = now_s - max(self._moved_s, since_s + self.round_trip_s)  # since the last answer, or since asked
        self._work_s += (max(0.0, worked_s) - self._work_s) / _WORTHWHILE
        self._moved_s = now_s
        self.answered += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()
