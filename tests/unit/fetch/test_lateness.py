"""What is late, and who is asked twice."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from dsfs.errors import SourceError, SourceRefused, SourceUnavailable
from dsfs.fetch.hedge import Try, hedged
from dsfs.fetch.lateness import LEAST_S, Lateness, stood_still


def test_nothing_is_late_while_little_is_known() -> None:
    lateness = Lateness()
    for _ in range(7):
        lateness.came(0.001)
        assert lateness.late_s == math.inf
    lateness.came(0.001)
    assert lateness.late_s == LEAST_S


def test_late_is_what_takes_twice_as_long_as_nearly_all_others() -> None:
    lateness = Lateness()
    for number in range(1, 101):
        lateness.came(number / 10)
    assert lateness.late_s == pytest.approx(19)
    for _ in range(128):  # of long ago
        lateness.came(1.0)
    assert lateness.late_s == pytest.approx(2)


def test_one_of_twenty_is_asked_for_twice() -> None:
    lateness = Lateness()
    while lateness.take():
        pass
    taken = 0
    for _ in range(1000):
        lateness.came(0.1)
        taken += lateness.take()
    assert taken == pytest.approx(50, abs=1)


def test_a_clock_that_is_looked_at_late_says_nothing_of_the_source() -> None:
    assert stood_still(1.0, 21.0)
    assert not stood_still(1.0, 1.01)


def after(seconds: float, result: str | Exception, *, begins: bool = True) -> Try[str]:
    async def work(begun: Callable[[], None]) -> str:
        await trio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        if begins:
            begun()
            await trio.sleep(seconds)
        return result

    return work


GONE, REFUSED, BUG = SourceUnavailable("gone"), SourceRefused("refused"), RuntimeError("bug")


@pytest.mark.parametrize(
    ("first", "second", "brought", "counted"),
    [
        (after(0.1, "first"), after(0.1, "second"), "first", []),  # it is not late
        (after(5, "first"), after(0.1, "second"), "second", [True]),
        (after(5, "first", begins=False), after(0.1, "second", begins=False), "second", [True]),
        (after(0.7, "first"), after(5, "second"), "first", [False]),
        (after(0.7, GONE), after(0.5, "second"), "second", [True]),  # one of two is enough
        (after(0.7, "first"), after(0.1, GONE), "first", [False]),
        (after(0.1, GONE), after(0.1, "second"), GONE, []),  # who failed at once is not late
        (after(0.7, GONE), after(0.5, REFUSED), GONE, []),
        (after(5, "first"), after(0.1, BUG), BUG, [True]),
    ],
)
def test_whoever_gets_somewhere_first_goes_on(
    first: Try[str], second: Try[str], brought: str | Exception, counted: list[bool]
) -> None:
    async def main() -> None:
        lateness, found = Lateness(), list[bool]()
        for _ in range(8):
            lateness.came(0.1)

        async def ask(waited_for: bool) -> str:
            return await hedged(lateness, first, second, lambda: waited_for, found.append)

        await ends(lambda: ask(True), brought)
        assert found == counted

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def ends(ask: Callable[[], Awaitable[str]], wanted: str | Exception) -> None:
    if isinstance(wanted, Exception):
        with pytest.raises(type(wanted), match=str(wanted)):
            await ask()
    else:
        assert await ask() == wanted


@pytest.mark.parametrize("faster", ["first", "second"])
def test_when_both_get_somewhere_one_goes_on(faster: str) -> None:
    """The news of a network thread come whether or not the one that they are of was cancelled just before."""

    async def main() -> None:
        lateness, begun_by = Lateness(), dict[str, Callable[[], None]]()
        for _ in range(8):
            lateness.came(0.1)

        def asking(name: str) -> Try[str]:
            async def work(begun: Callable[[], None]) -> str:
                begun_by[name] = begun
                await trio.sleep(5)
                return name

            return work

        async def news() -> None:
            await trio.sleep(1)
            begun_by[faster]()
            for begun in begun_by.values():
                begun()

        found = list[bool]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(news)
            assert await hedged(lateness, asking("first"), asking("second"), lambda: True, found.append) == faster
        assert found == [faster == "second"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_who_is_not_waited_for_is_not_asked_twice() -> None:
    async def main() -> None:
        lateness, asked = Lateness(), 0
        for _ in range(8):
            lateness.came(0.1)

        async def second(begun: Callable[[], None]) -> str:
            nonlocal asked
            asked += 1
            raise SourceError("nobody asked for it")

        found = list[bool]()
        assert await hedged(lateness, after(5, "first"), second, lambda: False, found.append) == "first"
        assert (asked, found) == (0, [])

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_who_cancels_cancels_both() -> None:
    async def main() -> None:
        lateness = Lateness()
        for _ in range(8):
            lateness.came(0.1)
        with trio.move_on_after(2) as scope:
            await hedged(lateness, after(50, "first"), after(50, "second"), lambda: True, lambda _second: None)
        assert scope.cancelled_caught

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
