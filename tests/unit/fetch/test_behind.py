"""Blocks that are stored while others come: who puts them goes on, and who leaves waits for all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import trio

from dsfs.bridge import network_side
from dsfs.fetch.behind import _MOST_BLOCKS, Behind

MOST = _MOST_BLOCKS
DATA = memoryview(b"block")


class Disk:
    """Stores a block when it is let; in place of the bridge, of which only its threads are of interest here."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.let = threading.Event()
        self.stored: list[int] = []
        self.refuses: set[int] = set()

    def storing(self, function: Any, *args: Any) -> Future[Any]:
        return self._pool.submit(function, *args)

    def store(self, block: int, data: memoryview) -> None:
        assert data == DATA
        self.let.wait()
        if block in self.refuses:
            raise OSError(5, "the disk refuses")
        self.stored.append(block)

    def behind(self) -> Behind:
        bridge: Any = self
        return Behind(bridge)


@pytest.fixture
def disk() -> Iterator[Disk]:
    with ThreadPoolExecutor(2) as pool:
        disk = Disk(pool)
        yield disk
        disk.let.set()


def put(disk: Disk, behind: Behind, blocks: int) -> None:
    with behind:
        for block in range(blocks):
            behind.put(disk.store, block, DATA)


def test_who_puts_does_not_wait_and_who_leaves_does(disk: Disk) -> None:
    with disk.behind():
        pass  # with nothing put there is nothing to wait for
    behind = disk.behind()
    with behind:
        for block in range(MOST):
            behind.put(disk.store, block, DATA)
        assert disk.stored == []
        disk.let.set()
    assert sorted(disk.stored) == list(range(MOST))


def test_no_more_than_so_many_are_under_way(disk: Disk) -> None:
    behind = disk.behind()
    passed = threading.Event()

    def one_more() -> None:
        behind.put(disk.store, MOST, DATA)
        passed.set()

    with behind:
        for block in range(MOST):
            behind.put(disk.store, block, DATA)
        thread = threading.Thread(target=one_more)
        thread.start()
        assert not passed.wait(0.1)
        disk.let.set()
        assert passed.wait(10)
        thread.join()
    assert sorted(disk.stored) == list(range(MOST + 1))


def test_what_storing_raises_comes_out_once_all_is_over(disk: Disk) -> None:
    disk.refuses = {1}
    disk.let.set()
    behind = disk.behind()
    with pytest.raises(OSError, match="refuses"):
        put(disk, behind, 4)
    assert sorted(disk.stored) == [0, 2, 3]
    with behind:  # a retry goes on with the same one
        behind.put(disk.store, 4, DATA)
    assert 4 in disk.stored


def test_what_the_receiver_raises_comes_first_and_all_is_over_then_too(disk: Disk) -> None:
    disk.refuses = {0}
    behind = disk.behind()
    with pytest.raises(EOFError), behind:  # noqa: PT012
        behind.put(disk.store, 0, DATA)
        behind.put(disk.store, 1, DATA)
        disk.let.set()
        raise EOFError
    assert disk.stored == [1]


def test_on_the_network_side_too(disk: Disk) -> None:
    async def work() -> None:
        behind = disk.behind()
        async with behind:
            for block in range(MOST):
                await behind.put_here(disk.store, block, DATA)
            assert disk.stored == []
            more = asyncio.ensure_future(behind.put_here(disk.store, MOST, DATA))
            await asyncio.sleep(0.1)
            assert not more.done()
            disk.let.set()
            await more
        assert sorted(disk.stored) == list(range(MOST + 1))
        disk.refuses = {0}
        with pytest.raises(OSError, match="refuses"):
            async with behind:
                await behind.put_here(disk.store, 0, DATA)

    asyncio.run(work())


@pytest.mark.parametrize("where", ["while it receives", "while it leaves"])
def test_who_is_cancelled_waits_for_what_is_being_stored(disk: Disk, where: str) -> None:
    async def receive(disk: Disk, behind: Behind) -> None:
        async with behind:
            for block in range(4):
                await behind.put_here(disk.store, block, DATA)
            if where == "while it receives":
                await asyncio.Event().wait()

    async def work() -> None:
        task = asyncio.ensure_future(receive(disk, disk.behind()))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        assert not task.done(), "the disk is not done"
        disk.let.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(disk.stored) == [0, 1, 2, 3]

    asyncio.run(work())


def test_a_server_that_ends_stores_only_what_has_begun() -> None:
    begun, let = threading.Semaphore(0), threading.Event()
    stored: list[int] = []

    def store(block: int, _data: memoryview) -> None:
        begun.release()
        let.wait()
        stored.append(block)

    async def scenario() -> None:
        async with network_side() as bridge:
            behind = Behind(bridge)
            with behind:
                for block in range(6):
                    behind.put(store, block, DATA)
                for _thread in range(2):
                    begun.acquire()
                bridge.store_no_more()
                let.set()
            assert sorted(stored) == [0, 1]

    trio.run(scenario)
