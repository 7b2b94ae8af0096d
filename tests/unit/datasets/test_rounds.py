"""Who asks for a round gets one that begins later, or hears that there is none."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
import trio.testing

from dsfs.datasets.rounds import Rounds
from dsfs.errors import CatalogError


def test_a_round_that_has_begun_does_not_count() -> None:
    async def main() -> None:
        rounds, told = Rounds(), []

        async def ask() -> None:
            await rounds.one_more()
            told.append("done")

        rounds.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await rounds.asked()
            rounds.end(None)
            await trio.testing.wait_all_tasks_blocked()
            assert not told
            rounds.begin()
            rounds.end(None)
        assert told == ["done"]

    trio.run(main)


def test_who_waits_when_there_are_no_more_rounds_is_told_and_so_is_who_comes_later() -> None:
    """A dataset that is deleted while a resync of it is asked for and has not begun: the request must not hang."""

    async def main() -> None:
        rounds, told = Rounds(), []

        async def ask() -> None:
            with pytest.raises(CatalogError, match="gone"):
                await rounds.one_more()
            told.append("gone")

        rounds.begin()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await rounds.asked()
                rounds.stop(CatalogError("gone"))
            await ask()
        assert told == ["gone", "gone"]

    trio.run(main)


def test_what_is_refused_is_asked_for_ever_more_seldom_until_something_changes() -> None:
    async def main() -> None:
        rounds = Rounds()
        rounds.ask_for_reader()
        begun: list[float] = []

        async def look(for_s: int) -> None:
            """Somebody looks each second, and each round ends at once."""
            for _ in range(for_s):
                rounds.ask_for_refused()
                with trio.move_on_after(0.5):
                    await rounds.asked()
                    begun.append(trio.current_time() - began_s)
                    rounds.begin()
                    rounds.end(None)
                await trio.sleep_until(trio.current_time() // 1 + 1)

        await rounds.asked()
        rounds.begin()
        rounds.end(None)
        began_s = trio.current_time()
        await look(6000)
        pauses = [after - before for before, after in pairwise(begun)]
        assert len(begun) < 20
        assert pauses == sorted(pauses)
        assert pauses[0] <= 12
        assert pauses[-1] <= 602
        rounds.changed()
        begun.clear()
        began_s = trio.current_time()
        await look(620)
        assert len(begun) >= 5

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
