"""Whether a dataset is entitled to cached bytes: asked once, again for other credentials, by one reader for all."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dsfs.errors import SourceError, SourceRefused, SourceUnavailable
from dsfs.fetch.entitlement import Entitlement


class Source:
    """Says yes or no, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.refuses = False
        self.gate: trio.Event | None = None

    async def ask(self) -> None:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.refuses:
            raise SourceRefused("no")


def test_many_readers_ask_once() -> None:
    async def main() -> None:
        source, entitlement = Source(), Entitlement()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(entitlement.prove, source.ask)
        assert (source.asked, entitlement.proven) == (1, True)

    trio.run(main)


def test_a_refusal_is_told_and_not_kept() -> None:
    async def main() -> None:
        source, entitlement = Source(), Entitlement()
        source.refuses = True
        for _ in range(2):
            with pytest.raises(SourceRefused):
                await entitlement.prove(source.ask)
            assert not entitlement.proven
        source.refuses = False
        await entitlement.prove(source.ask)
        assert entitlement.proven

    trio.run(main)


def test_an_answer_to_old_credentials_says_nothing_about_new_ones() -> None:
    async def main() -> None:
        source, entitlement = Source(), Entitlement()
        source.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(entitlement.prove, source.ask)
            await trio.testing.wait_all_tasks_blocked()
            old = entitlement.epoch
            entitlement.begin_anew()
            entitlement.note(old)
            assert not entitlement.proven
            source.gate.set()
        assert (source.asked, entitlement.proven) == (2, True)

    trio.run(main)


def test_what_is_written_down_is_not_asked_again() -> None:
    async def main() -> None:
        source, entitlement = Source(), Entitlement()
        written: list[bool] = []

        async def recall() -> bool:
            return bool(written)

        entitlement.recall = recall
        entitlement.remember = lambda: written.append(True)
        await entitlement.prove(source.ask)
        entitlement.begin_anew()
        await entitlement.prove(source.ask)
        assert (source.asked, written) == (1, [True])

    trio.run(main)


@pytest.mark.parametrize(
    ("trouble", "stays"), [(None, True), (SourceUnavailable("gone"), True), (SourceRefused("not any more"), False)]
)
def test_what_was_proven_is_asked_again_now_and_then(trouble: SourceError | None, stays: bool) -> None:
    """Only a refusal takes it back, on disk too; an origin that cannot be reached is served from the cache."""

    async def main() -> None:
        source, entitlement = Source(), Entitlement()
        written: list[bool] = []

        async def recall() -> bool:
            return bool(written)

        async def forget() -> None:
            written.clear()

        async def ask() -> None:
            if trouble is not None:
                raise trouble

        entitlement.recall, entitlement.forget = recall, forget
        entitlement.remember = lambda: written.append(True)
        await entitlement.prove(source.ask)
        assert await entitlement.confirm(ask) is stays
        assert (entitlement.proven, bool(written)) == (stays, stays)
        source.refuses = True
        if not stays:
            with pytest.raises(SourceRefused):
                await entitlement.prove(source.ask)

    trio.run(main)


def test_a_refusal_of_old_credentials_takes_nothing_from_new_ones() -> None:
    async def main() -> None:
        source, entitlement = Source(), Entitlement()
        await entitlement.prove(source.ask)

        async def ask() -> None:
            entitlement.begin_anew()  # they have changed while it was asked
            entitlement.note(entitlement.epoch)
            raise SourceRefused("the old ones")

        await entitlement.confirm(ask)
        assert entitlement.proven

    trio.run(main)
