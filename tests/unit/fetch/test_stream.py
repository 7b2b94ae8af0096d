"""A server without ranges is read as one stream, whoever waits for whichever part of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from dsfs.cache.space import map_space
from dsfs.errors import SourceChanged, SourceUnavailable
from dsfs.fetch.queue import Priority
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.answers import copy_body
from dsfs.sources.base import Sink
from tests.unit.fetch import test_flights as lab
from tests.unit.fetch.test_flights import BLOCK, FAST, FakeSource, World

run = lab.run
SIZE = 40 * BLOCK + 100


class Rangeless:
    """Plans of a server that answers everything with the whole file; counts what is read of it."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.fail_at: list[int] = []

    async def plan(self, _source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        size = obj.size or 0
        data = lab.content(size)
        fail_at = self.fail_at.pop(0) if self.fail_at and wanted.length == size else size

        async def pieces():  # type: ignore[no-untyped-def]
            for at in range(0, fail_at, lab.PIECE):
                self.sent_bytes += len(data[at : at + lab.PIECE])
                yield data[at : at + lab.PIECE]
            if fail_at < size:
                raise SourceUnavailable("broke off")

        await copy_body(pieces(), ByteRange(0, size), wanted, sink, "fake")


def test_readers_everywhere_share_one_stream(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        server = Rangeless()
        world.source.plans = [server.plan] * 100
        async with trio.open_nursery() as nursery:
            for at in (39, 0, 17, 25, 3):
                nursery.start_soon(world.read, SIZE, at * BLOCK, at * BLOCK + 50)
        for block in range(40):
            await world.read(SIZE, block * BLOCK, (block + 1) * BLOCK)
        assert server.sent_bytes == SIZE
        assert [wanted for wanted in world.source.reads if wanted.length == SIZE] == [ByteRange(0, SIZE)]

    run(test)


def test_a_broken_stream_begins_again(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        server = Rangeless()
        server.fail_at = [20 * BLOCK]
        world.source.plans = [server.plan] * 100
        await world.read(SIZE, 0, SIZE)
        assert server.sent_bytes <= SIZE + 21 * BLOCK

    run(test, rate=FAST)


def test_without_room_it_is_read_as_before(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.source.plans = [Rangeless().plan] * 100
        await world.read(SIZE, 9 * BLOCK, 30 * BLOCK)

    run(test, limit=12 * BLOCK)


def test_what_is_stored_is_not_set_aside_too(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would push out as much of others."""

    async def test(world: World) -> None:
        world.source.plans = [Rangeless().plan] * 100
        publish, taken = world.tier.publish, []

        def watched(*args: Any) -> int:
            there = world.tier.statistics()
            taken.append(there.used_bytes + there.reserved_bytes)
            return publish(*args)

        monkeypatch.setattr(world.tier, "publish", watched)
        await world.landed(SIZE)
        assert len(taken) == 41
        assert max(taken) <= taken[0] + map_space(SIZE, BLOCK)  # which is set aside to the end
        assert world.tier.statistics().reserved_bytes == 0

    run(test)


def test_another_version_reaches_the_reader(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.source.plans = [Rangeless().plan, lab.failing(SourceChanged("another one"))]
        with pytest.raises(SourceChanged):
            await world.read(SIZE, 0, 10)

    run(test)


def test_who_brings_it_in_waits_until_it_is_stored(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        world.source.plans = [Rangeless().plan] * 100
        publish = world.tier.publish

        def slowly(*args: Any) -> int:
            time.sleep(0.01)
            return publish(*args)

        monkeypatch.setattr(world.tier, "publish", slowly)
        file = world.file(SIZE)
        for blocks in (range(4, 9), range(41)):
            await world.reader.bring(file, blocks, Priority.WARM)
            assert world.reader.has(file, blocks)

    run(test, rate=FAST)
