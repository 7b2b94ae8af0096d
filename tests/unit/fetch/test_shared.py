"""Several nodes over one shared directory, in one process: who brings what, who dies, what hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from dsfs.cache.shared_file import DamagedGroup, Group, check_group
from dsfs.cache.shared_layout import PUBLIC, opened_directory
from dsfs.fetch.shared import Bringing, Busy, Patience, SharedTier
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.fetch.shared_room import Times, Unusable

BLOCK = 1000
KEY = "5a" * 32
TIMES = Times(operation_s=1.0, probe_s=0.05, upkeep_s=0.05, fresh_s=0.0)
PATIENCE = Patience(beat_s=0.05, stale_s=2.4, progress_s=5.0, longest_pause_s=0.02)


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def group(number: int) -> Group:
    return Group(KEY, number, 1000 * 8 * BLOCK, BLOCK)


def content(number: int) -> list[bytes]:
    return [random.Random(f"{number} {block}").randbytes(BLOCK) for block in range(8)]


@asynccontextmanager
async def node(root: Path, limit: int = 1 << 30, times: Times = TIMES) -> AsyncIterator[SharedTier]:
    """One node; dead when the context ends: what it held stays as it is."""
    disk = SharedDisk(str(root), lambda _root: limit, times)
    await disk.open()
    tier = SharedTier(disk, PATIENCE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.run)
        nursery.start_soon(tier.run)
        yield tier
        nursery.cancel_scope.cancel()


async def obtain(tier: SharedTier, number: int, bring: Callable[[Bringing], Awaitable[list[bytes]]]) -> list[bytes]:
    """As a flight does."""
    while True:
        found = await tier.find(PUBLIC, group(number), bring=True)
        if isinstance(found, Busy):
            assert await tier.wait(found, trio.current_time() + 20)
            continue
        assert found is not None
        if isinstance(found, list):
            return [bytes(block) for block in found]
        blocks = await bring(found)
        await tier.publish(found, blocks)
        return blocks


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # what a thread or the upkeep does has no event
            await trio.sleep(0.02)


def test_each_group_is_brought_once_and_once_more_for_each_holder_that_died(tmp_path: Path) -> None:
    brought: Counter[int] = Counter()
    deaths: Counter[int] = Counter()

    async def live(seed: int) -> None:
        """A node that reads everything in an order of its own, and dies now and then in the middle of a fetch."""
        rng = random.Random(seed)
        left = list(range(24))
        rng.shuffle(left)
        while left:
            async with node(tmp_path) as tier:

                async def bring(bringing: Bringing) -> list[bytes]:
                    number = bringing.group.number
                    brought[number] += 1
                    await trio.sleep(rng.random() * 0.01)
                    if rng.random() < 0.15:
                        deaths[number] += 1
                        raise Died
                    return content(number)

                try:
                    while left:
                        assert await obtain(tier, left[-1], bring) == content(left[-1])
                        left.pop()
                except Died:
                    continue

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for seed in range(4):
                nursery.start_soon(live, seed)

    trio.run(main)
    assert set(brought) == set(range(24))
    assert deaths.total() > 0
    for number, times in brought.items():
        assert times == 1 + deaths[number], number


class Died(Exception):
    """A node goes away and gives nothing back."""


def test_what_is_damaged_is_found_without_a_reader(tmp_path: Path) -> None:
    """Every way in which a file can be another than its name says; and none that is right goes."""

    async def bring(bringing: Bringing) -> list[bytes]:
        return content(bringing.group.number)

    async def main() -> None:
        async with node(tmp_path) as tier:
            for number in range(8):
                await obtain(tier, number, bring)
            paths = {number: Path(group(number).path(f"{tmp_path}/{PUBLIC}")) for number in range(8)}
            whole = paths[0].read_bytes()
            paths[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            paths[1].write_bytes(paths[1].read_bytes()[:-1])
            paths[2].write_bytes(b"torn")
            paths[3].write_bytes(paths[4].read_bytes())
            paths[5].write_bytes(whole[:56] + bytes(4) + whole[60:])  # blocks of no size
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tier.scrub, 0.001)
                await until(lambda: sorted(n for n, path in paths.items() if path.exists()) == [4, 6, 7])
                nursery.cancel_scope.cancel()
            for number in range(8):
                assert await obtain(tier, number, bring) == content(number)

    trio.run(main)


def test_links_that_somebody_else_puts_there_lead_a_node_nowhere(tmp_path: Path) -> None:
    """File servers give the root of a volume to everybody. What lies behind the links is the node's own."""
    root, outside = tmp_path / "shared", tmp_path / "outside"
    for number in range(4):
        path = outside / group(number).path(PUBLIC)
        path.parent.mkdir(parents=True)
        path.write_text("precious")

    def contents() -> dict[str, str]:
        return {str(path): path.read_text() if path.is_file() else "" for path in outside.rglob("*")}

    precious = contents()

    async def main() -> None:
        async with node(root, limit=1 << 30) as tier:
            (root / "private").rename(root / "aside")
            (root / "private/x").mkdir(parents=True)
            for path in (outside / PUBLIC).iterdir():
                (root / "private/x" / path.name).symlink_to(path)
            for _often in range(50):
                tier._check_one()
            assert contents() == precious

            holding = [await tier.find(PUBLIC, group(number), bring=True) for number in range(3)]
            (root / PUBLIC).rename(root / "aside/public")
            (root / PUBLIC).symlink_to(outside / PUBLIC)
            for each in holding:
                assert isinstance(each, Bringing)
            published, given_up, busy = (each for each in holding if isinstance(each, Bringing))
            assert not await tier.wait(Busy(busy.lease.path, busy.lease.look), trio.current_time() + 1)
            await tier.publish(published, content(0))
            await tier.give_up(given_up)
            await tier.forget(PUBLIC, [group(number) for number in range(4)])
            assert await tier.find(PUBLIC, group(3), bring=True) is None
            for _often in range(50):
                tier._check_one()
            await until(lambda: "link" in tier.disk.statistics().trouble)
        assert contents() == precious

    trio.run(main)


def test_a_head_that_its_disk_cannot_read_is_damage_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of that file: else it would count as trouble of the whole directory."""
    path = tmp_path / f"{'ab' * 32}.0"
    path.write_bytes(b"dsfsgrp1")

    def bad(*_whatever: object) -> bytes:
        raise OSError(errno.EIO, "a bad disk")

    monkeypatch.setattr("os.pread", bad)
    with opened_directory(str(tmp_path), "") as fd, pytest.raises(DamagedGroup):
        check_group(str(path), fd)


def test_who_is_slow_but_alive_is_waited_for_and_who_brings_nothing_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as slow, node(tmp_path) as other:
            holding = await slow.find(PUBLIC, group(1), bring=True)
            assert isinstance(holding, Bringing)
            busy = await other.find(PUBLIC, group(1), bring=True)
            assert isinstance(busy, Busy)
            done = trio.Event()

            async def wait() -> None:
                assert await other.wait(busy, trio.current_time() + 20)
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                for landed in range(1, 9):
                    await trio.sleep(PATIENCE.stale_s / 3)
                    holding.landed = landed
                    assert not done.is_set(), "it lives and goes on"
                await slow.publish(holding, content(1))
            found = await other.find(PUBLIC, group(1), bring=True)
            assert isinstance(found, list)
            assert [bytes(block) for block in found] == content(1)

            stuck = await slow.find(PUBLIC, group(2), bring=True)
            assert isinstance(stuck, Bringing)
            other.patience = Patience(0.05, 0.8, progress_s=1.0, longest_pause_s=0.02)
            busy = await other.find(PUBLIC, group(2), bring=True)
            assert isinstance(busy, Busy)
            assert not await other.wait(busy, trio.current_time() + 20), "it lives, and its origin hangs"
            await slow.give_up(stuck)
            assert await other.wait(busy, trio.current_time() + 20)
            assert isinstance(await other.find(PUBLIC, group(2), bring=False), type(None))

    trio.run(main)
    assert not list(tmp_path.rglob("*.lease"))


def test_two_nodes_keep_within_the_limit_and_readers_go_on(tmp_path: Path) -> None:
    limit = 40 * 12288  # a group takes three pages

    async def main() -> None:
        async with node(tmp_path, limit) as one, node(tmp_path, limit) as two:

            async def read(tier: SharedTier, seed: int) -> None:
                rng = random.Random(seed)
                for _round in range(200):
                    number = rng.randrange(200)
                    found = await tier.find(PUBLIC, group(number), bring=True)
                    if isinstance(found, Bringing):
                        await tier.publish(found, content(number))
                    elif isinstance(found, list):
                        assert [bytes(block) for block in found] == content(number)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, one, 1)
                nursery.start_soon(read, two, 2)
            for tier in (one, two):
                await until(lambda: 0 < tier.disk.statistics().used_bytes <= limit)  # noqa: B023  # awaited here
            # Each has counted what the other published after its last look when it looks again.
            await until(lambda: 0 < used() <= limit + 2 * 12288)

    def used() -> int:
        sizes = 0
        for path in (tmp_path / "public").rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # evicted while we look
                sizes += path.stat().st_blocks * 512 if path.is_file() else 0
        return sizes

    trio.run(main)


def test_what_hangs_is_given_up_for_all_at_once_and_used_again(tmp_path: Path) -> None:
    """The threads stay where they are, and are few; nobody waits for them."""

    async def main() -> None:
        async with node(tmp_path) as tier:
            disk, hang, inside = tier.disk, threading.Event(), Counter[str]()

            def stuck() -> None:
                inside["threads"] += 1
                hang.wait()

            async def gives_up() -> None:
                with pytest.raises(Unusable):
                    await disk.call(stuck)
                inside["told"] += 1

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for _number in range(100):
                        nursery.start_soon(gives_up)
            assert inside["told"] == 100
            assert inside["threads"] <= 16
            await until(lambda: disk.usable)  # the directory itself is well
            assert isinstance(await tier.find(PUBLIC, group(3), bring=True), Bringing)
            for _round in range(5):
                await until(lambda: disk.usable or "hang" in disk.statistics().trouble)
                async with trio.open_nursery() as nursery:
                    for _number in range(16):
                        nursery.start_soon(gives_up)
            assert inside["threads"] <= 48
            assert not disk.usable
            assert "hang" in disk.statistics().trouble
            hang.set()
            await until(lambda: disk.usable)

    trio.run(main)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EROFS])
def test_errors_stop_what_they_are_about(tmp_path: Path, code: int) -> None:
    async def main() -> None:
        async with node(tmp_path, times=Times(probe_s=1e6)) as tier:
            holding = await tier.find(PUBLIC, group(1), bring=True)
            assert isinstance(holding, Bringing)
            await tier.publish(holding, content(1))

            def fails() -> None:
                raise OSError(code, os.strerror(code))

            for _number in range(3):
                with pytest.raises(Unusable):
                    await tier.disk.call(fails)
            assert os.strerror(code) in tier.disk.statistics().trouble
            writing = code in (errno.ENOSPC, errno.EROFS)
            assert tier.usable == writing
            assert (await tier.find(PUBLIC, group(1), bring=True) is not None) == writing, "it is read all the same"
            assert await tier.find(PUBLIC, group(2), bring=True) is None, "nobody waits for what cannot be written"

    trio.run(main)
