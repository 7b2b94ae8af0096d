"""One fetch for all who wait, and what becomes of them when it fails, stalls, or the cache refuses.

Everything is real but the source, which is a fake at the seam: it says when it was reached and goes on when it is let.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from dsfs.bridge import Bridge, network_side
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.node import NodeTier
from dsfs.errors import SourceChanged, SourceError, SourceRefused, SourceTimeout, SourceUnavailable
from dsfs.fetch.flight import SMALL_BLOCKS
from dsfs.fetch.flights import LONGEST_RUN_BLOCKS, Flights
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import ATTEMPTS
from dsfs.fetch.queue import FetchQueue, Limits, Priority
from dsfs.fetch.reader import Reader
from dsfs.fetch.sink import BlockSink
from dsfs.model import ListingPage, SourceObject, object_key
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink

BLOCK = 4096
DEADLINE_S = 30.0
SMALL = SMALL_BLOCKS * BLOCK - 10
LARGE = 6 * BLOCK + 100
PIECE = 1000  # what the source writes at once: fits no block

Plan = Callable[["FakeSource", SourceObject, ByteRange, Sink], Awaitable[None]]


def content(size: int) -> bytes:
    return bytes(at % 251 + 1 for at in range(size))


class FakeSource:
    """Answers each read as the next plan says, and in full once there is none left."""

    identity = "fake"
    uri = "fake://source"

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.plans: list[Plan] = []
        self.reads: list[ByteRange] = []
        self.reached = trio.Event()
        self.cancelled = 0
        self.gate = asyncio.Event()

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        assert wanted.length > 0, "a source is never asked for an empty range"
        self.reads.append(wanted)
        self.bridge.soon(self.reached.set)
        try:
            await (self.plans.pop(0) if self.plans else in_full)(self, obj, wanted, sink)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def open_gate(self) -> None:
        self.gate.set()

    async def stat(self, path: str) -> SourceObject | None:
        raise NotImplementedError

    def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        raise NotImplementedError

    def list_tree(self) -> AsyncIterator[ListingPage]:
        raise NotImplementedError

    async def close(self) -> None:
        return


async def in_full(_source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
    data = content(obj.size or 0)
    for at in range(wanted.start, wanted.stop, PIECE):
        await sink.write(at, data[at : min(at + PIECE, wanted.stop)])


async def when_let(source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
    await source.gate.wait()
    await in_full(source, obj, wanted, sink)


async def half_a_block_at_once(source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
    middle = wanted.start + BLOCK // 2
    await in_full(source, obj, ByteRange(wanted.start, middle), sink)
    await when_let(source, obj, ByteRange(middle, wanted.stop), sink)


async def never(_source: FakeSource, _obj: SourceObject, _wanted: ByteRange, _sink: Sink) -> None:
    await asyncio.Event().wait()


def failing(error: SourceError, after_bytes: int = 0) -> Plan:
    async def plan(source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        if after_bytes:
            await in_full(source, obj, ByteRange(wanted.start, wanted.start + after_bytes), sink)
        raise error

    return plan


def failing_when_let(error: SourceError) -> Plan:
    async def plan(source: FakeSource, _obj: SourceObject, _wanted: ByteRange, _sink: Sink) -> None:
        await source.gate.wait()
        raise error

    return plan


@dataclass
class World:
    source: FakeSource
    bridge: Bridge
    tier: NodeTier
    flights: Flights
    reader: Reader
    clock: trio.testing.MockClock
    origin: Origin

    def file(self, size: int) -> RemoteFile:
        obj = SourceObject(f"file of {size}", size=size, version_tag="1")
        return RemoteFile(object_key("fake", obj.path, "1"), size, obj, self.origin)

    async def read(self, size: int, start: int, stop: int) -> None:
        """Reads, and asserts that it is right."""
        got = b"".join(await self.reader.read(self.file(size), ByteRange(start, stop)))
        assert got == content(size)[start:stop]

    async def landed(self, size: int) -> None:
        """Have all of it, and have it written: waiters are told before the disk is."""
        await self.reader.fetch_whole(self.file(size), Priority.WARM)
        await self.idle()

    async def idle(self) -> None:
        while self.flights.under_way:
            await trio.lowlevel.checkpoint()


Test = Callable[[World], Awaitable[None]]


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs a test in a world of its own, and sees that nothing is left in flight or reserved."""

    @asynccontextmanager
    async def world(limit: int, rate: float, clock: trio.testing.MockClock) -> AsyncIterator[World]:
        for name in ("catalogs", "index", *(f"objects/{fan:02x}" for fan in range(256))):
            os.makedirs(f"{tmp_path}/{name}")
        index = Index(f"{tmp_path}/index")
        tier = NodeTier(Layout(str(tmp_path), -1), index, lambda: limit, b"b" * 16, BLOCK)
        async with network_side() as bridge, trio.open_nursery() as nursery:
            source = FakeSource(bridge)
            queue = FetchQueue(Limits(64 * BLOCK, 8, 8))
            # where the clock runs, the deadline is out of the way
            flights = Flights(nursery, bridge, tier, queue, 1e12 if rate else DEADLINE_S)
            origin = Origin(source, "test", "flights")
            yield World(source, bridge, tier, flights, Reader(tier, flights), clock, origin)
            while flights.under_way:  # as ``idle``, whatever the test did
                await trio.lowlevel.checkpoint()
            assert (queue.in_flight, queue.bytes_in_flight) == (0, 0)
            assert tier.statistics().reserved_bytes == 0
        index.close(0.0)

    def runner(test: Test, *, limit: int = 1 << 30, rate: float = 0.0) -> None:
        clock = trio.testing.MockClock(rate=rate)

        async def main() -> None:
            async with world(limit, rate, clock) as there:
                await test(there)

        trio.run(main, clock=clock)

    return runner


FAST = 10_000.0  # virtual seconds in a second: for the pauses between tries, where the deadline is far


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_readers_of_one_block_share_one_fetch(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [when_let]
        async with trio.open_nursery() as nursery:
            for start in range(5):
                nursery.start_soon(world.read, size, start, 100)
            await world.source.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            await world.bridge.call(world.source.open_gate)
        assert len(world.source.reads) == 1

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_reader_that_is_cancelled_does_not_cancel_what_others_wait_for(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [when_let]
        first = trio.CancelScope()

        async def read_first() -> None:
            with first:
                await world.read(size, 0, 100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_first)
            await world.source.reached.wait()
            nursery.start_soon(world.read, size, 0, 100)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert first.cancelled_caught
            await world.bridge.call(world.source.open_gate)
        assert (len(world.source.reads), world.source.cancelled) == (1, 0)

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_nobody_waits_for_any_more_is_kept_for_the_next(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [when_let]
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.read, size, 0, 100)
                await world.source.reached.wait()
                scope.cancel()
        await world.bridge.call(world.source.open_gate)
        await world.landed(size)
        fetches = len(world.source.reads)
        await world.read(size, 0, size)
        assert len(world.source.reads) == fetches
        assert world.source.reads[0].start == 0

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_error_reaches_all_who_wait_and_nobody_after(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [failing_when_let(SourceRefused("no"))]
        errors: list[SourceError] = []

        async def fails() -> None:
            with pytest.raises(SourceRefused) as caught:
                await world.read(size, 0, 100)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _reader in range(3):
                nursery.start_soon(fails)
            await world.source.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            await world.bridge.call(world.source.open_gate)
        assert len(errors) == 3
        assert len(world.source.reads) == 1, "credentials that are refused are not tried again"
        await world.read(size, 0, 100)

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_reader_that_came_late_is_not_told_what_was_true_before(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        gone = failing(SourceUnavailable("gone"))
        world.source.plans = [failing_when_let(SourceUnavailable("gone"))] + [gone] * (ATTEMPTS - 1)
        world.reader.want(world.file(size), ByteRange(0, 100), Priority.AHEAD)
        await world.source.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.read, size, 0, 100)
            await trio.testing.wait_all_tasks_blocked()
            await world.bridge.call(world.source.open_gate)
        assert len(world.source.reads) == ATTEMPTS + 1

    run(test, rate=FAST)


@pytest.mark.parametrize("after_bytes", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_a_retry_goes_on_where_the_last_try_ended(run: Callable[..., None], after_bytes: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [failing(SourceUnavailable("reset"), after_bytes)]
        await world.read(LARGE, 0, LARGE)
        assert world.source.reads == [ByteRange(0, LARGE), ByteRange(after_bytes, LARGE)]
        await world.landed(LARGE)
        obj = world.reader.complete(world.file(LARGE))
        assert obj is not None
        assert os.pread(obj.fd, LARGE + 1, 0) == content(LARGE)

    run(test, rate=FAST)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_source_that_fails_behind_its_last_byte_is_not_asked_for_nothing(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [failing(SourceUnavailable("reset"), size)]
        await world.read(size, 0, size)
        assert world.source.reads == [ByteRange(0, size)]

    run(test, rate=FAST)


@pytest.mark.parametrize("start", [0, 10, 2 * BLOCK, 2 * BLOCK + 300])
def test_who_wants_the_beginning_of_a_block_does_not_wait_for_its_end(run: Callable[..., None], start: int) -> None:
    async def test(world: World) -> None:
        async def wants_all() -> None:
            await world.read(LARGE, start, start + BLOCK)
            assert world.source.gate.is_set()

        world.source.plans = [half_a_block_at_once]
        await world.read(LARGE, start, start + 100)
        assert not world.source.gate.is_set()
        assert world.reader.present_bytes(world.file(LARGE)) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wants_all)
            nursery.start_soon(world.read, LARGE, start, start + 100)
            await trio.testing.wait_all_tasks_blocked()
            await world.bridge.call(world.source.open_gate)
        await world.landed(LARGE)
        await world.read(LARGE, 0, LARGE)
        assert world.source.reads[0] == ByteRange(start // BLOCK * BLOCK, start // BLOCK * BLOCK + BLOCK)

    run(test)


def test_who_wants_the_beginning_of_what_was_wanted_ahead_gets_it_as_soon(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.source.plans = [half_a_block_at_once]
        world.reader.want(world.file(LARGE), ByteRange(0, BLOCK), Priority.AHEAD)
        await world.read(LARGE, 0, 100)
        assert not world.source.gate.is_set()
        await world.bridge.call(world.source.open_gate)

    run(test)


def test_the_beginning_of_a_block_is_served_though_its_end_does_not_come(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.source.plans = [failing(SourceChanged("other ETag"), BLOCK // 2)] * 2
        await world.read(LARGE, 0, 100)
        with pytest.raises(SourceChanged):
            await world.read(LARGE, 0, BLOCK)

    run(test)


def test_the_beginning_of_a_block_proves_who_asked_for_it(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.source.plans = [half_a_block_at_once]
        await world.read(LARGE, 0, 100)
        assert world.origin.entitlement.proven
        assert len(world.source.reads) == 1, "nothing is asked for only to prove it"
        await world.bridge.call(world.source.open_gate)

    run(test)


def test_blocks_that_landed_before_an_error_are_served_and_kept(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.source.plans = [failing(SourceChanged("other ETag"), 2 * BLOCK)] * 2
        with pytest.raises(SourceChanged):
            await world.read(LARGE, 0, LARGE)
        await world.idle()
        reads = len(world.source.reads)
        await world.read(LARGE, 0, 2 * BLOCK)
        assert len(world.source.reads) == reads

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_source_that_does_not_answer_ends_at_the_deadline(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        world.source.plans = [never]
        async with trio.open_nursery() as nursery:

            async def times_out() -> None:
                with pytest.raises(SourceTimeout):
                    await world.read(size, 0, 100)

            nursery.start_soon(times_out)
            await world.source.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            world.clock.jump(DEADLINE_S - 1)
            await trio.testing.wait_all_tasks_blocked()
            assert world.flights.under_way
            world.clock.jump(1.2)  # the flight's deadline, and not yet that of who waits for it
        assert world.source.cancelled == 1
        await world.read(size, 0, 100)

    run(test)


def test_what_is_wrong_with_another_file_is_not_what_is_wrong_with_this_one(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async def a_read_whose_flight_has_no_turn() -> None:
            world.origin.note_error(SourceChanged("other ETag"))
            world.clock.jump(DEADLINE_S + 1)
            await trio.sleep_forever()

        with pytest.raises(SourceTimeout, match="no answer within 30 s; meanwhile: other ETag"):
            await world.reader._in_time(world.file(SMALL), a_read_whose_flight_has_no_turn)

    run(test)


def test_a_small_object_is_fetched_whole_on_first_use(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.read(SMALL, 2 * BLOCK, 2 * BLOCK + 1)
        await world.idle()
        assert world.source.reads == [ByteRange(0, SMALL)]
        assert world.reader.complete(world.file(SMALL)) is not None
        await world.read(SMALL, 0, SMALL)
        assert len(world.source.reads) == 1

    run(test)


def test_a_small_object_stays_whole_however_slow_its_source_is(run: Callable[..., None]) -> None:
    """Ranges are short where a connection brings little; in parts it would be stored as a large one."""

    async def test(world: World) -> None:
        for _ in range(32):
            world.flights._queue._pace(world.origin).answered(2 << 20, 1e3, 1)
        assert world.flights._queue.range_bytes(world.origin) < BLOCK
        await world.read(SMALL, 0, 1)
        assert world.source.reads == [ByteRange(0, SMALL)]

    run(test)


def test_what_waited_for_a_small_object_reads_the_rest_of_it_from_memory(run: Callable[..., None]) -> None:
    """It may not be in the page cache; and it is held no longer than until it was given out."""

    async def test(world: World) -> None:
        file, fresh = world.file(SMALL), world.flights.fresh
        await world.read(SMALL, 0, BLOCK)
        await world.idle()
        assert fresh.used_bytes == SMALL - BLOCK
        pieces = world.reader.try_pieces(file, ByteRange(BLOCK, SMALL))
        assert pieces is not None
        assert b"".join(pieces) == content(SMALL)[BLOCK:]
        assert fresh.used_bytes == 0
        assert world.reader.try_pieces(file, ByteRange(0, BLOCK)) is None
        await world.read(SMALL, 0, SMALL)  # from the disk
        assert len(world.source.reads) == 1

    run(test)


def test_what_an_open_waited_for_is_not_held_in_memory(run: Callable[..., None]) -> None:
    """The kernel reads the file itself."""

    async def test(world: World) -> None:
        await world.reader.fetch_whole(world.file(SMALL), Priority.DEMAND)
        assert world.flights.fresh.used_bytes == 0
        assert world.reader.complete(world.file(SMALL)) is not None

    run(test)


def test_who_ends_waits_for_what_is_being_stored(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next server takes the cache over then, and nobody else may write there."""

    async def test(world: World) -> None:
        storing, go_on, stored = trio.Event(), threading.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()

        def slow(*_whatever: object) -> None:
            token.run_sync_soon(storing.set)
            assert go_on.wait(10)
            stored.set()

        monkeypatch.setattr(world.tier, "publish", slow)
        async with trio.open_nursery() as nursery:
            flights = Flights(nursery, world.bridge, world.tier, FetchQueue(Limits(64 * BLOCK, 8, 8)), DEADLINE_S)
            flights.ensure(world.file(LARGE), [0], Priority.DEMAND)
            await storing.wait()
            nursery.cancel_scope.cancel()
            threading.Timer(0.2, go_on.set).start()
        assert stored.is_set()

    run(test)


def test_a_reader_does_not_wait_for_the_disk(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks come while those before them are being stored, however long that takes."""

    async def test(world: World) -> None:
        go_on, publish = threading.Event(), world.tier.publish

        def slow(*args: Any) -> int:
            assert go_on.wait(10)
            return publish(*args)

        monkeypatch.setattr(world.tier, "publish", slow)
        await world.read(LARGE, 0, LARGE)
        assert not go_on.is_set()
        assert world.reader.present_bytes(world.file(LARGE)) == 0
        go_on.set()
        await world.reader.fetch_whole(world.file(LARGE), Priority.WARM)
        assert world.reader.complete(world.file(LARGE)) is not None

    run(test)


def test_nothing_holds_what_has_been_fetched_and_stored(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a range, and descriptors of files that are deleted, would stay until Python looks for cycles."""
    sinks: list[weakref.ref[BlockSink]] = []

    class Watched(BlockSink):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            sinks.append(weakref.ref(self))

    async def test(world: World) -> None:
        gc.disable()
        try:
            await world.landed(LARGE)
            assert [sink() for sink in sinks] == [None]
        finally:
            gc.enable()

    monkeypatch.setattr("dsfs.fetch.from_origin.BlockSink", Watched)
    run(test)


def test_of_a_large_object_only_what_is_read_and_in_long_requests(run: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.read(LARGE, 2 * BLOCK + 5, 3 * BLOCK + 5)
        assert world.source.reads == [ByteRange(2 * BLOCK, 4 * BLOCK)]
        size = (2 * LONGEST_RUN_BLOCKS + 1) * BLOCK
        world.source.reads.clear()
        await world.read(size, 0, size)
        assert sorted(world.source.reads) == [
            ByteRange(0, LONGEST_RUN_BLOCKS * BLOCK),
            ByteRange(LONGEST_RUN_BLOCKS * BLOCK, 2 * LONGEST_RUN_BLOCKS * BLOCK),
            ByteRange(2 * LONGEST_RUN_BLOCKS * BLOCK, size),
        ]

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_full_cache_serves_without_keeping(run: Callable[..., None], size: int) -> None:
    async def test(world: World) -> None:
        for times in (1, 2):
            for start in (0, 100):  # for a moment memory has it
                await world.read(size, start, start + 100)
                await world.idle()
                assert len(world.source.reads) == times
            assert world.reader.present_bytes(world.file(size)) == 0
            world.flights.fresh.forget(world.file(size).key)

    run(test, limit=BLOCK)


@pytest.mark.parametrize("call", ["write", "pwrite", "rename", "posix_fallocate"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_disk_that_refuses_costs_the_copy_and_not_the_read(
    run: Callable[..., None], size: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only below the cache's objects: the index has the same disk in life, and its own test."""
    real = getattr(os, call)

    def refuse(target: object, *args: object) -> object:
        name = target if isinstance(target, str) else os.readlink(f"/proc/self/fd/{target}")
        if "/objects/" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(target, *args)

    async def test(world: World) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            await world.read(size, 0, size)
            await world.idle()
            refused = call in (("pwrite", "rename") if size == SMALL else ("pwrite", "rename", "posix_fallocate"))
            assert bool(world.tier.statistics().trouble) is refused
        await world.read(size, 0, size)

    run(test)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("too_few", [1, BLOCK + 1])
def test_a_source_that_ends_early_without_saying_so_is_asked_for_the_rest(
    run: Callable[..., None], size: int, too_few: int
) -> None:
    """Breaks the contract of the seam; wrong bytes are what must not come of it."""

    async def short(source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        await in_full(source, obj, ByteRange(wanted.start, wanted.stop - too_few), sink)

    async def test(world: World) -> None:
        world.source.plans = [short]
        await world.read(size, 0, size)
        assert world.source.reads == [ByteRange(0, size), ByteRange(size - too_few, size)]

    run(test, rate=FAST)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_source_that_writes_at_another_place_is_refused(run: Callable[..., None], size: int, shift: int) -> None:
    async def elsewhere(_source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        await sink.write(wanted.start + shift, content(obj.size or 0)[:100])

    async def too_much(_source: FakeSource, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        await sink.write(wanted.start, content(wanted.length) + b"x")

    async def test(world: World) -> None:
        world.source.plans = [elsewhere, too_much]
        await world.read(size, 0, size)
        assert world.source.reads == [ByteRange(0, size)] * 3

    run(test, rate=FAST)
