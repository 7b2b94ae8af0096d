"""A server that is far away: a relay behind which an exchange takes a round trip more, and a connection brings so much.

python -m benchmarks.far UPSTREAM_PORT ROUND_TRIP_MS MB_PER_S (of one connection) ONE_LATE_IN (0: none; it says its own
port)

A process of its own, as what measures must not wait for it. Opening a connection costs a round trip too.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
LATE_S = 3.0
_AHEAD_S = 0.02  # how much of what comes faster than it may go on is held


class _Back(asyncio.Protocol):
    """From the server to the client, no faster than a connection is."""

    def __init__(self, client: _Client, bytes_per_s: float) -> None:
        self._client = client
        self._bytes_per_s = bytes_per_s
        self._loop = asyncio.get_running_loop()
        self._free_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._client.reached(transport)

    def data_received(self, data: bytes) -> None:
        now_s = self._loop.time()
        self._free_s = max(self._free_s, now_s) + len(data) / self._bytes_per_s
        self._loop.call_at(self._free_s, self._client.transport.write, data)
        if self._free_s - now_s > _AHEAD_S:
            self.transport.pause_reading()
            self._loop.call_at(self._free_s - _AHEAD_S / 2, self._go_on)

    def _go_on(self) -> None:
        with suppress(RuntimeError):  # it was closed meanwhile
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.call_at(self._free_s + 0.001, self._client.transport.close)  # behind what is due then


class _Client(asyncio.Protocol):
    """From the client to the server, a round trip later."""

    def __init__(self, upstream: int, round_trip_s: float, bytes_per_s: float, late: Iterator[bool]) -> None:
        self._upstream = upstream
        self._round_trip_s = round_trip_s
        self._late = late
        self._bytes_per_s = bytes_per_s
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._delay_s = 2 * round_trip_s  # of what comes first: the handshake has not cost one here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._reaching = self._loop.create_task(
            self._loop.create_connection(lambda: _Back(self, self._bytes_per_s), HOST, self._upstream)
        )

    def reached(self, server: asyncio.Transport) -> None:
        self._server = server
        for data in self._early:
            server.write(data)

    def data_received(self, data: bytes) -> None:
        self._loop.call_later(self._delay_s + LATE_S * next(self._late), self._send, data)
        self._delay_s = self._round_trip_s

    def _send(self, data: bytes) -> None:
        if self._server is None:
            self._early.append(data)
        else:
            self._server.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._server is not None:
            self._server.close()


@contextmanager
def far(port: int, round_trip_ms: float, mb_per_s: float, one_late_in: int = 0) -> Iterator[int]:
    """The port of a relay to that port. Of so many requests one is ``LATE_S`` late, as of object stores; 0: none."""
    argv = [sys.executable, "-m", __name__, *map(str, (port, round_trip_ms, mb_per_s, one_late_in))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout is not None
        try:
            yield int(relay.stdout.readline())
        finally:
            relay.kill()


def _one_in(number: int) -> Iterator[bool]:
    """Requests come in pieces seldom, and are counted as pieces."""
    while True:
        for place in range(max(1, number)):
            yield number > 0 and place == number - 1


async def _serve(upstream: int, round_trip_ms: float, mb_per_s: float, one_late_in: int) -> None:
    late = _one_in(one_late_in)

    def client() -> _Client:
        return _Client(upstream, round_trip_ms / 1000, mb_per_s * 1e6, late)

    server = await asyncio.get_running_loop().create_server(client, HOST, 0, backlog=512)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
