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


@pytest.mark.parametrize("takes_s", [0.1, 20])
def test_what_is_refused_is_asked_for_ever_more_seldom_until_something_changes(takes_s: float) -> None:
    async def main() -> None:
        rounds = Rounds()
        begun: list[float] = []

        async def look(for_s: int) -> None:
            """Somebody looks each second, also while a round is under way."""
            began_s = trio.current_time()
            begun.clear()
            rounds.begin()
            await trio.sleep(takes_s)
            rounds.end(None)
            while trio.current_time() < began_s + for_s:
                rounds.ask_for_refused()
                with trio.move_on_after(1) as pause:
                    await rounds.asked()
                if not pause.cancelled_caught:
                    begun.append(trio.current_time() - began_s)
                    rounds.begin()
                    rounds.ask_for_refused()
                    await trio.sleep(takes_s)
                    rounds.ask_for_refused()
                    rounds.end(None)

        await look(6000)
        assert 3 <= len(begun) < 20
        pauses = [after - before for before, after in pairwise(begun)]
        assert begun[0] >= max(5, 10 * takes_s)
        assert all(later > before - 0.01 for before, later in pairwise(pauses))
        assert pauses[-1] <= 602 + takes_s
        rounds.refuses_other()
        await look(620)
        assert len(begun) >= (5 if takes_s < 1 else 2)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
