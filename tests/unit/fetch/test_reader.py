"""What a reader is given when something happens between its asking and its reading."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from dsfs import metrics
from dsfs.cache.blockmap import BlockMap, pread_all
from dsfs.cache.shared_layout import PUBLIC
from dsfs.cache.verify import is_right
from dsfs.errors import SourceError, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.fetch.disk_read import read_waiting
from dsfs.fetch.flights import Flights
from dsfs.fetch.origin import Origin
from dsfs.fetch.queue import FetchQueue, Limits, Priority
from dsfs.fetch.reader import Reader
from dsfs.fetch.shared import SharedTier
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink
from tests.unit.fetch.test_flights import (  # noqa: F401  # pytest finds fixtures by their names
    BLOCK,
    DEADLINE_S,
    FAST,
    LARGE,
    SMALL,
    FakeSource,
    World,
    _quiet_log,
    content,
    failing_when_let,
    in_full,
    run,
    when_let,
)


def read_bytes() -> float:
    samples = metrics.READ_BYTES.collect()[0].samples
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def in_cache(there: World) -> BlockMap:
    """The large file, with nothing of it in memory."""
    file = there.file(LARGE)
    obj = there.tier.open(file.key, LARGE, "")
    assert isinstance(obj, BlockMap)
    for block in range(LARGE // BLOCK + 1):
        there.flights.fresh.drop(file.key, block)
    return obj


async def of_another_boot(there: World, blocks: int) -> BlockMap:
    """The large file with so many of its blocks, none of which was checked since a boot."""
    await there.read(LARGE, 0, blocks * BLOCK)
    await there.idle()
    obj = in_cache(there)
    obj._distrust(b"another boot ...")
    return obj


def test_a_round_that_is_done_again_is_counted_once(run: Callable[..., None]) -> None:  # noqa: F811
    async def test(there: World) -> None:
        await there.read(LARGE, BLOCK, 2 * BLOCK)
        await there.idle()
        obj, before = in_cache(there), read_bytes()
        there.source.plans = [when_let]
        there.source.reached = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.read, LARGE, 0, 2 * BLOCK)
            await there.source.reached.wait()
            there.tier.drop_bad_block(obj, 1)
            await there.bridge.call(there.source.open_gate)
        assert len(there.source.reads) == 3, (
            "the block that went away was not fetched again: another round was not needed"
        )
        assert read_bytes() - before == 2 * BLOCK

    run(test)


def test_two_that_find_one_bad_block_fetch_it_once(
    run: Callable[..., None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[bool] = []
    both, fetched = threading.Barrier(2), threading.Event()

    def check(obj: BlockMap, block: int) -> bool:
        right = is_right(obj, block)
        found.append(right)
        if both.wait(10) == 1:
            fetched.wait(10)
        return right

    monkeypatch.setattr("dsfs.fetch.unchecked.is_right", check)

    async def test(there: World) -> None:
        obj = await of_another_boot(there, blocks=2)
        os.pwrite(obj.fd, b"wrong", BLOCK)
        reads = len(there.source.reads)

        async def read() -> None:
            await there.read(LARGE, BLOCK, BLOCK + 10)
            fetched.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
        assert found == [False, False]
        assert len(there.source.reads) == reads + 1

    run(test)


def test_a_block_that_is_checked_while_another_is_dropped_is_not_fetched(
    run: Callable[..., None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped = False

    def check(obj: BlockMap, block: int) -> bool:
        nonlocal dropped
        if not dropped and block == 1:
            dropped = True
            monkeypatch.setattr("dsfs.cache.blockmap.pread_all", punching(obj))
        return is_right(obj, block)

    def punching(obj: BlockMap) -> Callable[..., None]:
        def read(*arguments: object) -> None:
            monkeypatch.undo()
            obj.retract([2])  # what another thread does
            pread_all(*arguments)  # type: ignore[arg-type]

        return read

    monkeypatch.setattr("dsfs.fetch.unchecked.is_right", check)

    async def test(there: World) -> None:
        await of_another_boot(there, blocks=3)
        reads = len(there.source.reads)
        await there.read(LARGE, BLOCK, 2 * BLOCK)
        assert dropped
        assert len(there.source.reads) == reads

    run(test)


def test_bytes_that_came_for_old_credentials_prove_nothing_for_new_ones(run: Callable[..., None]) -> None:  # noqa: F811
    async def test(there: World) -> None:
        async def all_of_it(source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
            await in_full(source, obj, wanted, sink)
            await source.bridge.on_file_side(there.origin.entitlement.begin_anew)
            raise SourceUnavailable("reset behind the last byte")

        there.source.plans = [all_of_it]
        await there.read(SMALL, 0, SMALL)
        assert there.source.reads == [ByteRange(0, SMALL), ByteRange(0, 1)], "the new credentials were not asked"

    run(test, rate=FAST)


def when_proof_is_wanted(there: World) -> trio.Event:
    """Set once a reader wants to know whether the credentials are good."""
    wanted = trio.Event()

    async def recall() -> bool:
        wanted.set()
        return False

    there.origin.entitlement.recall = recall
    return wanted


def test_who_finds_what_is_stored_before_it_is_told_asks_for_nothing(run: Callable[..., None]) -> None:  # noqa: F811
    """The flight that has brought it will prove the credentials too."""

    async def test(there: World) -> None:
        asks = when_proof_is_wanted(there)
        there.source.plans = [when_let]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.read, SMALL, 0, 100)
            await there.source.reached.wait()
            there.tier.put_whole(there.file(SMALL).key, SMALL, content(SMALL), "")
            nursery.start_soon(there.read, SMALL, 0, 100)
            await asks.wait()
            await trio.testing.wait_all_tasks_blocked()
            await there.bridge.call(there.source.open_gate)
        assert len(there.source.reads) == 1
        assert there.origin.entitlement.proven

    run(test)


def test_what_a_failed_flight_has_not_proven_is_asked(run: Callable[..., None]) -> None:  # noqa: F811
    async def test(there: World) -> None:
        asks = when_proof_is_wanted(there)
        there.source.plans = [failing_when_let(SourceRefused("no"))]
        async with trio.open_nursery() as nursery:
            there.flights.ensure(there.file(SMALL), [0], Priority.WARM)
            await there.source.reached.wait()
            there.tier.put_whole(there.file(SMALL).key, SMALL, content(SMALL), "")
            nursery.start_soon(there.read, SMALL, 0, 100)
            await asks.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert len(there.source.reads) == 1
            await there.bridge.call(there.source.open_gate)
        assert there.source.reads == [ByteRange(0, SMALL), ByteRange(0, 1)]

    run(test)


@pytest.mark.parametrize("way", ["read", "bring", "fetch_whole"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("error", [SourceRefused, SourceMissing])
def test_who_joins_anothers_flight_does_not_share_its_refusal(
    run: Callable[..., None],  # noqa: F811
    error: type[SourceError],
    size: int,
    way: str,
) -> None:
    async def test(there: World) -> None:
        there.source.plans = [failing_when_let(error("no"))]
        theirs = there.file(size)
        mine = replace(theirs, origin=Origin(there.source, "test", "other"))

        async def refused() -> None:
            with pytest.raises(error):
                await there.reader.read(theirs, ByteRange(0, BLOCK))

        async def join() -> None:
            if way == "bring":
                await there.reader.bring(mine, range(1), Priority.WARM)
            elif way == "fetch_whole":
                await there.reader.fetch_whole(mine, Priority.DEMAND)
            else:
                assert b"".join(await there.reader.read(mine, ByteRange(0, BLOCK))) == content(size)[:BLOCK]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            await there.source.reached.wait()
            nursery.start_soon(join)
            await trio.testing.wait_all_tasks_blocked()
            await there.bridge.call(there.source.open_gate)
        await there.idle()
        assert there.reader.has(mine, range(1))
        if size == SMALL:
            assert len(there.source.reads) == 2, "all of it at once"

    run(test)


def test_a_range_of_what_is_on_disk_and_what_is_in_memory_only_is_here(run: Callable[..., None]) -> None:  # noqa: F811
    """As where a dataset has come to its quota."""

    async def test(there: World) -> None:
        await there.read(LARGE, 0, BLOCK)
        await there.idle()
        there.origin.may_hold(0)
        await there.read(LARGE, BLOCK, BLOCK + 10)
        await there.idle()
        assert not there.reader.has(there.file(LARGE), range(2))
        reads = len(there.source.reads)
        await there.read(LARGE, BLOCK // 2, BLOCK + BLOCK // 2)
        assert len(there.source.reads) == reads
        there.origin.may_hold(None)
        await there.read(LARGE, BLOCK, 2 * BLOCK)
        await there.idle()
        assert there.reader.has(there.file(LARGE), range(2)), "once there is room it is kept"

    run(test)


def test_a_stream_finds_a_cached_block_cut_off(run: Callable[..., None], tmp_path: Path) -> None:  # noqa: F811
    async def test(there: World) -> None:
        await there.read(LARGE, 0, BLOCK)
        await there.idle()
        file, obj = there.file(LARGE), in_cache(there)
        (tmp_path / "objects" / file.key[:2] / file.key).write_bytes(b"")
        with pytest.raises(SourceUnavailable, match="was dropped"):
            await there.flights.streams.bring(file, [0], obj, lambda _block, _data: None)
        await there.read(LARGE, 0, BLOCK)

    run(test)


def test_a_stream_drops_nothing_for_want_of_memory(
    run: Callable[..., None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_args: object) -> bool:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async def test(there: World) -> None:
        await there.read(LARGE, 0, BLOCK)
        await there.idle()
        file, obj = there.file(LARGE), in_cache(there)
        with monkeypatch.context() as patch:
            patch.setattr(BlockMap, "read", no_memory)
            with pytest.raises(SourceUnavailable, match=r"cannot be read$"):
                await there.flights.streams.bring(file, [0], obj, lambda _block, _data: None)
        assert there.tier.in_trouble
        assert there.reader.has(file, range(1))

    run(test)


def test_what_is_found_cut_off_is_counted_and_told_of(run: Callable[..., None]) -> None:  # noqa: F811
    """The kernel may have pages of it. Dropping it waits for the disk, so the loop does not do it."""
    told: list[tuple[str, bool]] = []

    async def test(there: World) -> None:
        await there.read(LARGE, 0, BLOCK)
        await there.idle()
        obj, before = in_cache(there), metrics.CORRUPT_BLOCKS._value.get()
        there.tier.on_bad = lambda key: told.append((key, threading.current_thread() is threading.main_thread()))
        os.ftruncate(obj.fd, 0)
        await there.read(LARGE, 0, BLOCK)
        assert told == [(obj.key, False)]
        assert metrics.CORRUPT_BLOCKS._value.get() == before + 1

    run(test)


def test_what_was_evicted_and_cannot_be_read_leaves_its_successor_alone(run: Callable[..., None]) -> None:  # noqa: F811
    async def test(there: World) -> None:
        await there.read(LARGE, 0, BLOCK)
        await there.idle()
        held = in_cache(there)
        there.tier.drop(held.key)
        os.ftruncate(held.fd, 0)
        await there.read(LARGE, 0, BLOCK)
        await there.idle()
        assert not await read_waiting(there.tier, held, ByteRange(0, BLOCK), memoryview(bytearray(BLOCK)))
        assert there.reader.has(there.file(LARGE), range(1))

    run(test)


def test_of_a_group_on_its_way_only_what_is_not_here_is_waited_for(
    run: Callable[..., None],  # noqa: F811
    tmp_path: Path,
) -> None:
    async def one_block_and_the_rest_when_let(
        source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink
    ) -> None:
        await in_full(source, obj, ByteRange(wanted.start, wanted.start + BLOCK), sink)
        await source.gate.wait()
        await in_full(source, obj, ByteRange(wanted.start + BLOCK, wanted.stop), sink)

    async def test(there: World) -> None:
        size = 16 * BLOCK
        await there.read(size, BLOCK, 2 * BLOCK)
        await there.idle()
        os.mkdir(tmp_path / "shared")
        disk = SharedDisk(str(tmp_path / "shared"), lambda _root: 1 << 30)
        await disk.open()
        there.origin.shared_area = PUBLIC
        queue = FetchQueue(Limits(64 * BLOCK, 8, 8))
        async with trio.open_nursery() as nursery:
            flights = Flights(nursery, there.bridge, there.tier, queue, DEADLINE_S, SharedTier(disk))
            there.source.plans = [one_block_and_the_rest_when_let]
            with trio.fail_after(10):
                pieces = await Reader(there.tier, flights).read(there.file(size), ByteRange(0, 2 * BLOCK))
            assert b"".join(pieces) == content(size)[: 2 * BLOCK]
            assert there.source.reads[1:] == [ByteRange(0, 8 * BLOCK)]
            await there.bridge.call(there.source.open_gate)

    run(test, rate=1.0)
