"""What crosses between the two sides: who reads, and who gives way to that."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from dsfs import bridge as module
from dsfs.bridge import Bridge, network_side

WITHIN_S = 60.0


def crossed(work: Callable[[Bridge], Awaitable[None]]) -> None:
    async def run() -> None:
        with trio.fail_after(WITHIN_S):
            async with network_side() as bridge:
                await work(bridge)

    trio.run(run)


def test_who_gives_way_waits_until_a_reader_has_gone_on() -> None:
    async def work(bridge: Bridge) -> None:
        before_s = time.monotonic()
        bridge.note_reader()
        await bridge.call(bridge.giving_way())
        assert time.monotonic() >= before_s + module._READS_ON_S

    crossed(work)


def test_who_gives_way_does_not_wait_for_ever() -> None:
    async def work(bridge: Bridge) -> None:
        async def read_on() -> None:
            while True:
                bridge.note_reader()
                await trio.sleep(module._READS_ON_S / 10)

        async with trio.open_nursery() as readers:
            readers.start_soon(read_on)
            await bridge.call(bridge.giving_way())
            readers.cancel_scope.cancel()

    crossed(work)


def test_a_job_has_given_way_for_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GIVES_WAY_IN_ALL_S", 0.0)

    async def work(bridge: Bridge) -> None:
        bridge.note_reader()
        assert await bridge.call(_turns, bridge) == 0

    crossed(work)


def test_while_nobody_reads_nobody_gives_way() -> None:
    async def work(bridge: Bridge) -> None:
        assert await bridge.call(_turns, bridge) == 0

    crossed(work)


async def _turns(bridge: Bridge) -> int:
    """How often others had their turn before it was this one's."""
    turns = 0
    waiting = bridge.giving_way()()
    try:
        while True:
            waiting.send(None)
            turns += 1
    except StopIteration:
        return turns
