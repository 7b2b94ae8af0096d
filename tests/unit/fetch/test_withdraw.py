"""Read-ahead of a reader that is gone does not begin; what has begun, or somebody else wants, comes."""

from __future__ import annotations

from collections.abc import Callable

import trio
import trio.testing

from dsfs.fetch.queue import Priority
from dsfs.ranges import ByteRange
from tests.unit.fetch.test_flights import (  # noqa: F401  # pytest finds fixtures by their names
    BLOCK,
    World,
    _quiet_log,
    run,
    when_let,
)

Run = Callable[..., None]
SIZES = [(40 + number) * BLOCK for number in range(7)]  # of eight slots one is left to other sources
LARGE = 60 * BLOCK


async def hold_all_slots(world: World) -> None:
    """As many requests as there may be, none of which is answered yet."""
    world.source.plans = [when_let] * len(SIZES)
    for size in SIZES:
        world.reader.want(world.file(size), ByteRange(0, 1), Priority.DEMAND)
    while len(world.source.reads) < len(SIZES):
        await trio.lowlevel.checkpoint()


async def let(world: World) -> None:
    await world.bridge.call(world.source.open_gate)
    await world.idle()


def test_what_has_not_begun_does_not_begin(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        await hold_all_slots(world)
        file, ahead = world.file(LARGE), ByteRange(0, 20 * BLOCK)
        world.reader.want(file, ahead, Priority.AHEAD)
        await trio.testing.wait_all_tasks_blocked()
        assert world.reader.withdraw(file, ahead) == 20 * BLOCK
        assert world.reader.withdraw(file, ahead) == 0
        await let(world)
        assert len(world.source.reads) == len(SIZES)

    run(test)


def test_who_comes_at_once_has_a_flight_that_flies(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        await hold_all_slots(world)
        file, ahead = world.file(LARGE), ByteRange(0, 20 * BLOCK)
        world.reader.want(file, ahead, Priority.AHEAD)
        await trio.testing.wait_all_tasks_blocked()
        world.reader.withdraw(file, ahead)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.read, LARGE, 5, 3 * BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            await world.bridge.call(world.source.open_gate)
        await world.idle()
        assert len(world.source.reads) == len(SIZES) + 1

    run(test)


def test_what_is_wanted_by_others_stays(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        await hold_all_slots(world)
        file = world.file(LARGE)
        world.reader.want(file, ByteRange(0, 24 * BLOCK), Priority.AHEAD)  # three flights of eight blocks
        await trio.testing.wait_all_tasks_blocked()
        world.reader.want(file, ByteRange(0, 1), Priority.DEMAND)
        world.reader.want(file, ByteRange(9 * BLOCK, 9 * BLOCK + 1), Priority.WARM)
        assert world.reader.withdraw(file, ByteRange(0, 24 * BLOCK)) == 8 * BLOCK
        await let(world)
        assert sum(wanted.length for wanted in world.source.reads[len(SIZES) :]) == 16 * BLOCK

    run(test)


def test_what_has_begun_comes(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        world.source.plans = [when_let]
        file = world.file(LARGE)
        world.reader.want(file, ByteRange(0, 1), Priority.AHEAD)
        await world.source.reached.wait()
        assert world.reader.withdraw(file, ByteRange(0, 1)) == 0
        await let(world)
        assert world.reader.has(file, range(1))

    run(test)
