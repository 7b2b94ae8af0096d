"""HEAD requests that share connections, against servers that keep to the protocol, end early, lie and fall silent."""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.sources import http_heads
from dsfs.sources.http_heads import Heads
from dsfs.sources.wire_head import Head
from tests.servers.process import HOST
from tests.servers.streams import listening

NAMES = 200
Answering = Callable[[int, int], bytes | None]
"""What a server says to the request for a number, the how manieth on its connection; None: nothing any more."""


class Origin:
    """``most``: requests that were seen on one connection before the first of them was answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.most = 0
        self.asked: list[int] = []


@asynccontextmanager
async def origin(
    answering: Answering, late_s: float = 0.0, each_s: float = 0.0, far_s: float = 0.0
) -> AsyncIterator[Origin]:
    """``late_s`` for what came together, ``each_s`` for each; ``far_s`` on their way, where others pass too."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        count, came = 0, b""
        try:
            while data := await reader.read(65536):
                came += data
                *requests, came = came.split(b"\r\n\r\n")
                seen.most = max(seen.most, len(requests))
                await asyncio.sleep(late_s)
                for request in requests:
                    match = re.match(rb"HEAD /(\d+) HTTP/1.1", request)
                    assert match, request
                    seen.asked.append(int(match[1]))
                    count += 1
                    answer = answering(int(match[1]), count)
                    if answer is None:
                        await asyncio.sleep(60)
                        continue
                    await asyncio.sleep(each_s)
                    if far_s:
                        asyncio.get_running_loop().call_later(far_s, writer.write, answer)
                        continue
                    writer.write(answer)
                    if b"close" in answer:
                        return
        except ConnectionError:
            return

    async with listening(serve) as (port, _connections):
        seen = Origin(port)
        yield seen


def plain(number: int, _count: int = 0) -> bytes:
    return b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "%d"\r\n\r\n' % (number * 10, number)


def check(number: int, head: Head) -> None:
    assert (head.status, head.content_length, head.headers["ETag"]) == (200, number * 10, f'"{number}"')


async def ask(heads: Heads, number: int) -> Head | None:
    return await heads.ask(b"HEAD /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)


def with_heads(
    answering: Answering,
    use: Callable[[Heads, Origin], Awaitable[None]],
    late_s: float = 0.0,
    each_s: float = 0.0,
    far_s: float = 0.0,
    slow_s: float = math.inf,
) -> None:
    """``slow_s``: what is taken for a slow server. A machine that does much else is none, so by default nothing is."""

    async def run() -> None:
        async with origin(answering, late_s, each_s, far_s) as server:
            heads = Heads(HOST, server.port)
            try:
                await use(heads, server)
            finally:
                heads.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_heads, "_SLOW_S", slow_s)
        asyncio.run(run())


def test_each_gets_its_own_answer_over_few_connections() -> None:
    async def use(heads: Heads, server: Origin) -> None:
        early = await asyncio.gather(*(ask(heads, 0) for number in range(5)))
        assert early[0] is not None
        assert early[1:] == [None] * 4, "until the server has answered one, nobody waits for it here"
        found = await asyncio.gather(*(ask(heads, number) for number in range(1, NAMES)))
        for number, head in enumerate(found, 1):
            assert head is not None
            check(number, head)
        assert sorted(server.asked) == list(range(NAMES)), "each is asked once"
        assert server.connections <= 4
        assert 2 <= server.most <= 8

    with_heads(plain, use, late_s=0.002)


def test_interim_answers_are_none() -> None:
    async def use(heads: Heads, _server: Origin) -> None:
        assert await ask(heads, 0) is not None
        for number, head in enumerate(await asyncio.gather(*(ask(heads, number) for number in range(20)))):
            assert head is not None
            check(number, head)

    with_heads(lambda number, _count: b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(number), use)


@settings(max_examples=20, deadline=None)
@given(after=st.integers(1, 60), says=st.booleans())
def test_a_server_that_ends_connections(after: int, says: bool) -> None:
    """It may say so or not; what it has not answered is asked again or left to others, and no answer is another's."""

    def answering(number: int, count: int) -> bytes | None:
        ended = b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + plain(number).partition(b"\r\n")[2]
        return plain(number) if count < after else ended if says else b"close"

    async def use(heads: Heads, server: Origin) -> None:
        await ask(heads, 0)
        found = await asyncio.gather(*(ask(heads, number) for number in range(NAMES)))
        for number, head in enumerate(found):
            if head is not None:
                check(number, head)
        if after > 20:  # it goes on for long enough each time
            assert all(found)
        elif after < 16:
            assert server.connections <= 5, "it is not asked again and again"

    with_heads(answering, use)


@pytest.mark.parametrize("behind", [b"<html>a body</html>", b"\r\n\r\n", b"x" * 70_000])
def test_what_a_head_must_not_have_behind_it(behind: bytes) -> None:
    async def use(heads: Heads, _server: Origin) -> None:
        first = await ask(heads, 1)
        assert first is not None
        check(1, first)
        found = await asyncio.gather(*(ask(heads, number) for number in range(NAMES)))
        for number, head in enumerate(found):
            if head is not None:
                check(number, head)
        assert found[-1] is None

    with_heads(lambda number, _count: plain(number) + behind, use)


def test_one_that_falls_silent_is_not_waited_for() -> None:
    async def use(heads: Heads, server: Origin) -> None:
        assert await ask(heads, 0) is not None
        found = await asyncio.gather(*(ask(heads, number) for number in range(1, 60)))
        assert found == [None] * 59
        asked = len(server.asked)
        assert await ask(heads, 0) is None
        assert len(server.asked) == asked, "it is left alone for a while"

    with_heads(lambda number, _count: None if number else plain(number), use)


def test_one_that_stops_for_one_request_answers_the_others_elsewhere() -> None:
    async def use(heads: Heads, _server: Origin) -> None:
        assert await ask(heads, 0) is not None
        for number, head in enumerate(await asyncio.gather(*(ask(heads, number) for number in range(40)))):
            if head is not None:
                check(number, head)
            assert number != 17 or head is None

    with_heads(lambda number, _count: None if number == 17 else plain(number), use)


def test_one_that_is_slow_is_asked_over_more_connections() -> None:
    async def use(heads: Heads, server: Origin) -> None:
        assert await ask(heads, 0) is not None
        found = await asyncio.gather(*(ask(heads, number) for number in range(NAMES)))
        for number, head in enumerate(found):
            if head is not None:
                check(number, head)
        assert len(server.asked) < NAMES / 2

    with_heads(plain, use, each_s=0.02, slow_s=http_heads._SLOW_S)


def test_one_that_is_far_is_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Heads._connect

    async def far(heads: Heads) -> Any:
        connection = await connect(heads)
        connection.round_trip_s = 0.05
        return connection

    monkeypatch.setattr(Heads, "_connect", far)

    async def use(heads: Heads, _server: Origin) -> None:
        for number in range(40):
            assert await ask(heads, number) is not None
        assert all(await asyncio.gather(*(ask(heads, number) for number in range(NAMES))))

    with_heads(plain, use, far_s=0.05, slow_s=0.045)


def test_one_that_is_not_there() -> None:
    async def run() -> None:
        async with origin(plain) as server:
            heads = Heads(HOST, server.port)
        assert await asyncio.gather(*(ask(heads, number) for number in range(3))) == [None] * 3
        assert await ask(heads, 0) is None

    asyncio.run(run())


def test_one_that_takes_no_connection() -> None:
    async def run() -> None:
        with socket.socket() as full:
            full.bind((HOST, 0))
            full.listen(0)
            with socket.create_connection(full.getsockname()):
                heads = Heads(HOST, full.getsockname()[1])
                async with asyncio.timeout(10):
                    assert await ask(heads, 0) is None

    asyncio.run(run())


def test_what_was_given_back_is_not_opened_again() -> None:
    async def use(heads: Heads, server: Origin) -> None:
        assert await ask(heads, 0) is not None
        heads.close()
        assert await ask(heads, 1) is None
        assert server.connections == 1

    with_heads(plain, use)


def test_who_goes_away_takes_no_answer_along() -> None:
    async def use(heads: Heads, _server: Origin) -> None:
        assert await ask(heads, 0) is not None
        tasks = [asyncio.create_task(ask(heads, number)) for number in range(40)]
        await asyncio.sleep(0.005)
        for task in tasks[::3]:
            task.cancel()
        for number, head in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
            if number % 3:
                assert isinstance(head, Head)
                check(number, head)

    with_heads(plain, use, late_s=0.02)
