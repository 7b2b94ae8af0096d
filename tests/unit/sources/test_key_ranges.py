"""A listing by several requests at once gives what one by one would: nothing lost, nothing complete too early."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsfs.errors import SourceRefused, SourceUnavailable
from dsfs.model import Kind, SourceObject, path_parts
from dsfs.sources.key_ranges import KeyPage, KeyRanges
from tests.servers.listing_server import filer_order

PARTS = st.sampled_from(["a", "a-", "b", "é", "日", "x0", "x1", "x2", "x3", "x10", "\ue000", ""])
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(lambda key: key not in ("", "/"))
ODD_PARTS = st.sampled_from(
    [
        "a",
        "a\0",
        "\x01",
        "\U0010ffff",
        "a\U0010ffff",
        "a\U0010ffffz",
        "\ud7ff",
        "\ue000b",
        "x" * 1000,
        "x" * 1000 + "y",
        "",
    ]
)
ODD_KEYS = st.lists(ODD_PARTS, min_size=1, max_size=3).map("/".join).filter(lambda key: key not in ("", "/"))
BOUND_S = 20


class Store:
    """Keys in one order, listed in pages of ``page_keys``; answers come back in an order of its own."""

    def __init__(self, keys: list[str], page_keys: int, order: Callable[[str], str] = str) -> None:
        self.order = order
        self.keys = sorted(keys, key=order)
        self.page_keys = page_keys
        self.before: Callable[[str, str, int], None] = lambda after, token, limit: None
        self.asked = 0
        self.most = self.now = 0
        self.slowness = itertools.cycle((3, 0, 1, 5, 2))

    async def ask(self, after: str, token: str, limit: int) -> KeyPage:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(next(self.slowness)):
                await asyncio.sleep(0)
            self.before(after, token, limit)
        finally:
            self.now -= 1
        count = limit or self.page_keys
        start = bisect_right(self.keys, self.order(token or after), key=self.order) if token or after else 0
        keys = self.keys[start : start + count]
        objects: list[SourceObject | None] = [
            SourceObject(key.removesuffix("/"), Kind.DIRECTORY if key.endswith("/") else Kind.FILE) for key in keys
        ]
        return KeyPage(keys, objects, keys[-1] if start + count < len(self.keys) else "")


def listed(store: Store) -> tuple[set[str], list[str]]:
    """Files and directories, and what was said to be complete; checks that nothing new comes behind that."""

    async def work() -> tuple[set[str], list[str]]:
        ranges = KeyRanges(store.ask, "", at_once=5)
        shown: set[str] = set()
        complete: list[str] = []
        async for page in ranges.pages():
            for obj in page.objects:
                if path_parts(obj.path) is not None and obj.path not in shown:
                    above = obj.path.rpartition("/")[0]
                    assert above not in complete or obj.path in may_come_late, (
                        f"{obj.path} behind the end of its directory"
                    )
                    assert not above or above in shown
                    shown.add(obj.path)
            complete += page.complete
        assert ranges.found == bool(store.asked and shown) or not shown
        return shown, complete

    may_come_late: set[str] = getattr(store, "may_come_late", set())
    return asyncio.run(asyncio.wait_for(work(), BOUND_S))


def paths_of(keys: list[str]) -> set[str]:
    paths = set()
    for key in keys:
        parts = path_parts(key.removesuffix("/"))
        if parts is not None:
            paths.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return paths


def directories_of(keys: list[str]) -> set[str]:
    paths = {""}
    for key in keys:
        parts = path_parts(key.removesuffix("/"))
        if parts is not None:
            paths.update("/".join(parts[:depth]) for depth in range(1, len(parts) + key.endswith("/")))
    return paths


@given(st.lists(KEYS, unique=True, max_size=60), st.integers(1, 4), st.sampled_from([str, filer_order]))
@settings(deadline=None, max_examples=100)
def test_all_keys_and_all_directories(keys: list[str], page_keys: int, order: Callable[[str], str]) -> None:
    """``filer_order``: that of a server over a file system, which is not the order of bytes."""
    shown, complete = listed(Store(keys, page_keys, order))
    assert shown == paths_of(keys)
    assert set(complete) == directories_of(keys)
    assert complete[-1] == ""


@given(st.lists(ODD_KEYS, unique=True, min_size=20, max_size=60), st.integers(1, 3))
@example(["a", "a/a", "\U0010ffff/a", "\U0010ffff/a\U0010ffffz"], 1)
@settings(deadline=None, max_examples=100)
def test_keys_that_hold_what_ranges_are_cut_with(keys: list[str], page_keys: int) -> None:
    shown, complete = listed(Store(keys, page_keys))
    assert shown == paths_of(keys)
    assert set(complete) == directories_of(keys)


@given(
    st.lists(KEYS, unique=True, min_size=20, max_size=60),
    st.lists(KEYS, unique=True, min_size=1, max_size=30),
    st.lists(st.integers(0, 1000), min_size=10, max_size=40),
    st.integers(2, 4),
)
@settings(deadline=None, max_examples=100)
def test_what_was_there_all_the_time_is_listed(
    keys: list[str], others: list[str], moments: list[int], page_keys: int
) -> None:
    """While ``others`` come and go, one of them at each request."""
    stable = [key for key in keys if key not in others]
    store = Store(stable, page_keys)
    store.may_come_late = paths_of(others)  # type: ignore[attr-defined]
    changes = itertools.cycle(moments)

    def change(after: str, token: str, limit: int) -> None:
        key = others[next(changes) % len(others)]
        at = bisect_left(store.keys, key)
        if at < len(store.keys) and store.keys[at] == key:
            del store.keys[at]
        else:
            insort(store.keys, key)

    store.before = change
    shown, _complete = listed(store)
    assert paths_of(stable) <= shown <= paths_of(stable + others)


def test_nothing_begins_in_a_range_that_has_ended() -> None:
    """Its last page waits for whoever takes pages, and says that the directory is complete."""
    store = Store([f"d/{i:03}" for i in range(50)], 10)

    async def work() -> list[str]:
        ended, answered = asyncio.Event(), asyncio.Event()

        async def ask(after: str, token: str, limit: int) -> KeyPage:
            if after and not limit:
                await ended.wait()
                store.keys = ["d/9999"]
            page = await store.ask(after, token, limit)
            if after and not limit:
                answered.set()
            elif not limit and not page.following:
                ended.set()
            return page

        pages = KeyRanges(ask, "", at_once=2).pages()
        shown = [obj.path for obj in (await anext(pages)).objects]
        await answered.wait()
        complete: tuple[str, ...] = ()
        async for page in pages:
            assert not page.objects or not complete
            shown += [obj.path for obj in page.objects]
            complete += page.complete
        assert complete == ("d", "")
        return shown

    shown = asyncio.run(asyncio.wait_for(work(), BOUND_S))
    assert shown == ["d", *(f"d/{i:03}" for i in range(50))]


@pytest.mark.parametrize(
    "keys",
    [
        [f"{i:06}" for i in range(3000)],
        [f"train/n{i // 100:04}/{i % 100:03}.jpg" for i in range(3000)],
        [f"{i % 5}/{i:05}" for i in range(3000)],
    ],
    ids=["flat", "classes", "a few directories"],
)
def test_it_does_ask_at_once(keys: list[str]) -> None:
    store = Store(keys, 50)
    shown, _ = listed(store)
    assert paths_of(keys) == shown
    assert store.most == 5
    assert store.asked < 4 * len(keys) / 50, "most requests are for pages"


def test_a_small_listing_costs_no_more_requests() -> None:
    store = Store([f"{i:03}" for i in range(150)], 50)
    listed(store)
    assert store.asked == 3


def test_a_server_that_knows_no_beginning_is_listed_by_one() -> None:
    keys = [f"{i:06}" for i in range(1000)]
    store = Store(keys, 50)
    ask = store.ask

    async def ignoring(after: str, token: str, limit: int) -> KeyPage:
        return await ask("", token, limit)

    store.ask = ignoring  # type: ignore[method-assign]
    shown, _ = listed(store)
    assert shown == set(keys)


def test_a_server_that_refuses_the_questions_is_listed_by_one() -> None:
    keys = [f"{i:06}" for i in range(1000)]
    store = Store(keys, 50)

    def refuse(after: str, token: str, limit: int) -> None:
        if after:
            raise SourceRefused("no beginning here")

    store.before = refuse
    shown, _ = listed(store)
    assert shown == set(keys)
    assert store.asked < 25


def test_one_failure_does_not_cost_the_listing() -> None:
    keys = [f"{i:06}" for i in range(1000)]
    store = Store(keys, 50)
    failures = {7: 2, 12: 1}

    def fail(after: str, token: str, limit: int) -> None:
        if failures.get(store.asked):
            failures[store.asked] -= 1
            raise SourceUnavailable("for a moment")

    store.before = fail
    shown, _ = listed(store)
    assert shown == set(keys)


def test_a_failure_that_stays_is_told_and_nothing_goes_on() -> None:
    store = Store([f"{i:06}" for i in range(1000)], 50)

    def refuse(after: str, token: str, limit: int) -> None:
        if store.asked > 10:
            raise SourceRefused("no more")

    store.before = refuse

    async def work() -> None:
        with pytest.raises(SourceRefused, match="no more"):
            async for _page in KeyRanges(store.ask, "").pages():
                pass
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(work())
