"""Sources that another has taken the place of: closed as soon as nothing is under way on them, and not before."""

from __future__ import annotations

import trio

from dsfs.bridge import Bridge, network_side
from dsfs.datasets.source_in_use import SourceInUse
from dsfs.fetch.origin import Origin
from dsfs.sources.base import Source


class Closable:
    identity = uri = "test://closable"

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


def beginning(bridge: Bridge) -> tuple[SourceInUse, Origin, Closable]:
    async def build() -> Source:
        return Closable()  # type: ignore[return-value]

    first = Closable()
    origin = Origin(first, "test", "data")  # type: ignore[arg-type]
    return SourceInUse(bridge, origin, build), origin, first


def test_what_nobody_holds_is_closed_at_once() -> None:
    async def main() -> None:
        async with network_side() as bridge:
            sources, origin, first = beginning(bridge)
            await sources.use(await sources.another())
            assert first.closed == 1
            assert origin.source is not first
            await sources.close()
            assert first.closed == 1
            assert origin.source.closed == 1  # type: ignore[attr-defined]

    trio.run(main)


def test_what_somebody_reads_stays_open_and_goes_with_the_next() -> None:
    async def main() -> None:
        async with network_side() as bridge:
            sources, origin, first = beginning(bridge)
            with origin.held() as held, origin.held():
                assert held is first
                for _round in range(3):
                    replaced = origin.source
                    await sources.use(await sources.another())
                    assert replaced is first or replaced.closed == 1  # type: ignore[attr-defined]
            assert first.closed == 0
            await sources.use(await sources.another())
            assert first.closed == 1

    trio.run(main)


def test_two_that_replace_at_once_close_each_once() -> None:
    async def main() -> None:
        async with network_side() as bridge:
            sources, origin, first = beginning(bridge)
            built = [await sources.another() for _ in range(6)]
            async with trio.open_nursery() as nursery:
                for each in built:
                    nursery.start_soon(sources.use, each)
            closed = [each.closed for each in [first, *built] if each is not origin.source]  # type: ignore[attr-defined]
            assert closed == [1] * 6

    trio.run(main)


def test_all_are_closed_at_the_end() -> None:
    async def main() -> None:
        async with network_side() as bridge:
            sources, origin, first = beginning(bridge)
            with origin.held():
                await sources.use(await sources.another())
            await sources.close()
            assert first.closed == 1

    trio.run(main)
