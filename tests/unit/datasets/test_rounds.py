"""Who asks for a round gets one that begins later, or hears that there is none."""

from __future__ import annotations

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
