"""Hints over the end of a server, with a disk that refuses and notes that are not whole."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from daemon import hints as module
from daemon.hint_notes import HintNotes, Noted
from daemon.hints import Hints, Room
from dsfs.datasets.dataset import Dataset
from dsfs.fetch.reader import Reader
from dsfs.ranges import MiB

NAME = "team/data"


def served(directory: Path, use: Callable[[Hints, Dataset], Awaitable[None]]) -> None:
    """By one server, of a dataset whose files are all gone: nothing is fetched."""

    async def serve() -> None:
        settled = trio.Event()
        settled.set()
        dataset = SimpleNamespace(
            manifest=SimpleNamespace(id=NAME, namespace="team", name="data"),
            settled=settled,
            catalog=SimpleNamespace(file="", row=lambda _ino: None),
            on_touch=None,
        )
        async with trio.open_nursery() as nursery:
            reader = cast(Reader, SimpleNamespace(block_bytes=MiB, incomplete=lambda _files: []))
            hints = Hints(str(directory), reader, nursery, lambda: Room(MiB, MiB), lambda _dataset: "/data")
            await use(hints, cast(Dataset, dataset))
            nursery.cancel_scope.cancel()

    trio.run(serve)


async def ignore(work: Awaitable[object]) -> None:
    await work


def known(directory: Path) -> list[dict[str, Any]]:
    """What is written down."""
    return [json.loads(path.read_text()) for path in (directory / "hints").glob("*.json")]


def order_after(directory: Path) -> list[int]:
    """What the next server goes on with."""
    found: list[int] = []

    async def use(hints: Hints, dataset: Dataset) -> None:
        await hints.resume({NAME: dataset})
        found.extend((await hints.get(NAME)).order.since(0))

    served(directory, use)
    return found


@pytest.fixture(autouse=True)
def paths_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(_file: str, paths: list[str], _place: str) -> tuple[list[int], list[str]]:
        return [int(path) for path in paths], []

    monkeypatch.setattr(module, "_resolve", resolve)


def test_a_part_that_could_not_be_written_down_is_written_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "hints").touch()  # in the way of the directory

    async def use(hints: Hints, dataset: Dataset) -> None:
        hint = await hints.add(dataset, ["11", "12"], None, last=False)
        (tmp_path / "hints").unlink()
        await hints.add(dataset, ["13"], hint.id, last=False)

    served(tmp_path, use)
    assert order_after(tmp_path) == [11, 12, 13]


def test_a_part_that_could_not_be_written_down_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "hints").touch()

    async def use(hints: Hints, dataset: Dataset) -> None:
        await hints.add(dataset, ["11", "12"], None, last=False)
        (tmp_path / "hints").unlink()
        await hints.save()

    served(tmp_path, use)
    assert order_after(tmp_path) == [11, 12]


def test_parts_that_come_at_once_are_all_written_down(tmp_path: Path) -> None:
    async def use(hints: Hints, dataset: Dataset) -> None:
        hint = await hints.add(dataset, ["1"], None, last=False)
        async with trio.open_nursery() as nursery:
            for number in range(2, 6):
                nursery.start_soon(lambda number=number: hints.add(dataset, [str(number)], hint.id, last=False))

    served(tmp_path, use)
    assert sorted(order_after(tmp_path)) == [1, 2, 3, 4, 5]


def test_a_part_that_comes_before_its_hint_was_taken_up_again_waits_for_that(tmp_path: Path) -> None:
    ids: list[str] = []

    async def begin(hints: Hints, dataset: Dataset) -> None:
        ids.append((await hints.add(dataset, ["11"], None, last=False)).id)

    async def go_on(hints: Hints, dataset: Dataset) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: hints.add(dataset, ["12"], ids[0], last=True))
            await trio.sleep(0.2)  # it comes first
            await hints.resume({NAME: dataset})

    served(tmp_path, begin)
    served(tmp_path, go_on)
    assert order_after(tmp_path) == [11, 12]


def test_what_was_said_before_is_not_taken_for_what_is_said_now(tmp_path: Path) -> None:
    """A hint that comes before the server has taken up the one before."""

    async def use(hints: Hints, dataset: Dataset) -> None:
        newer = await hints.add(dataset, ["21", "22"], None, last=True)
        await hints.resume({NAME: dataset})
        assert [each["id"] for each in known(tmp_path)] == [newer.id], "and it is still written down"

    served(tmp_path, lambda hints, dataset: ignore(hints.add(dataset, ["11"], None, last=True)))
    served(tmp_path, use)
    assert order_after(tmp_path) == [21, 22]


def test_the_newest_of_two_is_gone_on_with(tmp_path: Path) -> None:
    """A server that died before the older one was removed."""
    notes = HintNotes(str(tmp_path / "hints"))
    notes.write(Noted("older", NAME, 1, 0, (), 0, whole=False), [1])
    os.utime(tmp_path / "hints/older.json", (1, 1))
    notes.write(Noted("newer", NAME, 1, 0, (), 0, whole=False), [2])
    assert order_after(tmp_path) == [2]


@pytest.mark.parametrize("text", ["{}", "[]", '{"unknown_paths": 1}', "x"])
def test_notes_that_make_no_sense_end_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "hints").mkdir()
    (tmp_path / "hints/a.json").write_text(text)
    (tmp_path / "hints/b.order").write_bytes(bytes(8))  # of a server that died before it wrote b.json
    assert HintNotes(str(tmp_path / "hints")).read() == []
    assert list((tmp_path / "hints").iterdir()) == []


def test_more_of_a_hint_that_was_replaced_is_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(hints: Hints, dataset: Dataset) -> None:
        older = await hints.add(dataset, ["11"], None, last=False)
        newer = await hints.add(dataset, ["21"], None, last=True)

        def resolve(_file: str, _paths: list[str], _place: str) -> tuple[list[int], list[str]]:
            raise AssertionError("nobody needs them")

        monkeypatch.setattr(module, "_resolve", resolve)
        assert await hints.add(dataset, ["12"], older.id, last=True) is None
        answer = module.replaced(dataset, older.id)
        assert (answer["id"], answer["dataset"], answer["state"]) == (older.id, NAME, "replaced")
        assert list(answer) == list(newer.as_json())

    served(tmp_path, use)
    assert order_after(tmp_path) == [21]


def test_a_hint_may_be_replaced_while_more_of_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(hints: Hints, dataset: Dataset) -> None:
        older = await hints.add(dataset, ["11"], None, last=False)
        resolve = module._resolve

        def overtaken(file: str, paths: list[str], place: str) -> tuple[list[int], list[str]]:
            monkeypatch.setattr(module, "_resolve", resolve)
            trio.from_thread.run(lambda: hints.add(dataset, ["21"], None, last=True))
            return resolve(file, paths, place)

        monkeypatch.setattr(module, "_resolve", overtaken)
        assert await hints.add(dataset, ["12"], older.id, last=True) is None

    served(tmp_path, use)
    assert order_after(tmp_path) == [21]
