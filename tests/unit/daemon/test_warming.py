"""Warm-ups that are ended: whoever waits for that hears of it, whoever has ended them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from daemon.warming import State, Warming
from dsfs.cache.node import NodeTier
from dsfs.catalog.lookup import Catalog
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import Found, Totals
from dsfs.fetch.reader import Reader

PREHEAT = "preheat-team-data"
SOON_S = 5.0


def served(directory: Path, use: Callable[[Warming, Dataset, trio.Nursery], Awaitable[None]]) -> None:
    """By one server, of a dataset that is never wholly listed."""

    async def serve() -> None:
        manifest = SimpleNamespace(id="team/data", namespace="team", name="data")
        events = {"settled": trio.Event(), "swapped": trio.Event()}
        dataset = cast(Dataset, SimpleNamespace(manifest=manifest, message="", origin=None, **events))
        async with trio.open_nursery() as nursery:
            tier, reader = cast(NodeTier, SimpleNamespace()), cast(Reader, SimpleNamespace(block_bytes=1))
            use_of = Warming(str(directory), tier, reader, nursery, lambda: {"team/data": dataset})
            await use(use_of, dataset, nursery)
            nursery.cancel_scope.cancel()

    trio.run(serve)


async def nothing() -> None:
    return


def nothing_found() -> Found:
    yield from ()


def test_a_preheat_that_waits_for_the_listing_is_ended_at_once(tmp_path: Path) -> None:
    async def use(warming: Warming, dataset: Dataset, nursery: trio.Nursery) -> None:
        nursery.start_soon(warming.keep_warm, dataset, nothing)
        await trio.testing.wait_all_tasks_blocked()
        job = warming.job(PREHEAT)
        job.scope.cancel()
        with trio.fail_after(SOON_S):
            await job.finished.wait()
        assert job.state is State.CANCELLED

    served(tmp_path, use)


def test_who_waits_for_the_end_of_a_preheat_hears_that_its_dataset_is_gone(tmp_path: Path) -> None:
    async def use(warming: Warming, dataset: Dataset, nursery: trio.Nursery) -> None:
        gone = trio.CancelScope()

        async def keep_warm() -> None:
            with gone:
                await warming.keep_warm(dataset, nothing)

        nursery.start_soon(keep_warm)
        await trio.testing.wait_all_tasks_blocked()
        job = warming.job(PREHEAT)
        gone.cancel()
        with trio.fail_after(SOON_S):
            await job.finished.wait()
        assert (job.state, warming.jobs()) == (State.CANCELLED, [])

    served(tmp_path, use)


def test_who_waits_for_the_end_of_a_completion_hears_that_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_for_ever(*_args: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("daemon.warming.check_room", look_for_ever)

    async def use(warming: Warming, dataset: Dataset, nursery: trio.Nursery) -> None:
        async with trio.open_nursery() as others:
            others.start_soon(warming.complete, dataset, cast(Catalog, None), Totals(1, 1, 4096), nothing_found)
            await trio.testing.wait_all_tasks_blocked()
            (job,) = warming.jobs()
            others.cancel_scope.cancel()
        assert job.finished.is_set()
        assert job.state is State.CANCELLED

    served(tmp_path, use)


def test_the_end_of_a_preheat_is_not_that_of_the_one_that_follows_it(tmp_path: Path) -> None:
    """A manifest that has changed ends one and begins another at once, and which comes first nobody can say."""

    async def use(warming: Warming, dataset: Dataset, nursery: trio.Nursery) -> None:
        before = trio.CancelScope()

        async def keep_warm() -> None:
            with before:
                await warming.keep_warm(dataset, nothing)

        nursery.start_soon(keep_warm)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(warming.keep_warm, dataset, nothing)
        await trio.testing.wait_all_tasks_blocked()
        following = warming.job(PREHEAT)
        before.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert warming.job(PREHEAT) is following
        assert not following.finished.is_set()

    served(tmp_path, use)


def test_what_was_asked_for_does_not_end_with_the_server(tmp_path: Path) -> None:
    async def use(warming: Warming, dataset: Dataset, nursery: trio.Nursery) -> None:
        job = await warming.start("team/data", "", None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert job.ended_s is None, "or a note that is written just then would leave it out"

    served(tmp_path, use)
    (noted,) = json.loads((tmp_path / "warm.json").read_text())
    assert noted["dataset"] == "team/data"
