"""One fetch that many waiters share: which blocks are on their way, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier, map_space, space_of
from dsfs.errors import CacheFull, SourceError, SourceTimeout, SourceUnavailable
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.fetch.queue import FetchQueue, Priority, Ticket
from dsfs.fetch.sink import BlockSink, WholeSink, bring_whole
from dsfs.ranges import ByteRange, block_count, block_range, runs

log = structlog.get_logger()

SMALL_BLOCKS = 4
"""An object of up to so many blocks is fetched whole on first use and stored as two renamed files."""
LONGEST_RUN_BLOCKS = 8
"""Blocks in one request. 8 MiB from loopback: one request of 8 MiB moved 1.9 times as much as eight of 1 MiB."""

_FILLING_RUNS = 4

DISK = trio.CapacityLimiter(8)  # threads that wait for the cache's disk


@dataclass(slots=True, eq=False)
class Flight:
    """Blocks of one object on their way. ``data`` holds those that have landed, until the flight is forgotten."""

    file: RemoteFile
    blocks: range
    ticket: Ticket
    started_s: float
    """On trio's clock."""
    data: dict[int, memoryview] = field(default_factory=dict)
    error: SourceError | None = None
    done: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def block(self, block: int) -> memoryview:
        """Wait for one block. Raises the SourceError that ended the flight."""
        while block not in self.data:
            if self.error is not None:
                raise self.error
            await self.changed.park()
        return self.data[block]

    async def end(self) -> None:
        """Wait until all of it is stored, or could not be. Raises the SourceError that ended the flight."""
        while not self.done:
            await self.changed.park()
        if self.error is not None:
            raise self.error


class Flights:
    """All fetches of the node. File side only; ``nursery`` outlives every reader, so a reader that goes away does
    not end what others wait for."""

    def __init__(
        self, nursery: trio.Nursery, bridge: Bridge, tier: NodeTier, queue: FetchQueue, deadline_s: float
    ) -> None:
        self._nursery = nursery
        self._bridge = bridge
        self._tier = tier
        self._queue = queue
        self.deadline_s = deadline_s
        self._by_block: dict[tuple[str, int], Flight] = {}

    @property
    def under_way(self) -> int:
        """Blocks that are on their way."""
        return len(self._by_block)

    def ensure(self, file: RemoteFile, blocks: Iterable[int], priority: Priority) -> Mapping[int, Flight]:
        """A flight for each of these blocks (ascending); those that are not on their way yet start."""
        flights: dict[int, Flight] = {}
        absent: list[int] = []
        for block in blocks:
            flight = self._by_block.get((file.key, block))
            if flight is None:
                absent.append(block)
            else:
                flights[block] = flight
                if priority < flight.ticket.priority:
                    self._queue.raise_priority(flight.ticket, priority)
        total = block_count(file.size_bytes, self._tier.block_bytes)
        if absent and total <= SMALL_BLOCKS:
            absent = [block for block in range(total) if (file.key, block) not in self._by_block]
        for run in runs(absent, LONGEST_RUN_BLOCKS):
            flight = self._start(file, run, priority)
            for block in run:
                flights[block] = flight
        return flights

    def fill(self, file: RemoteFile, missing: Callable[[], Sequence[int]]) -> None:
        """Bring in the rest of a file behind its readers; a few flights at a time, as all of them may be thousands."""
        self._nursery.start_soon(self._fill, file, missing)

    async def _fill(self, file: RemoteFile, missing: Callable[[], Sequence[int]]) -> None:
        step, last = _FILLING_RUNS * LONGEST_RUN_BLOCKS, -1
        # Asked anew each time: readers bring in blocks meanwhile, which must not be fetched twice.
        while blocks := [block for block in missing() if block > last][:step]:
            last = blocks[-1]
            flights = self.ensure(file, blocks, Priority.WARM)
            try:
                for block, flight in flights.items():
                    await flight.block(block)
            except SourceError:
                return  # logged by the flight; whoever reads there will hear of it

    def _start(self, file: RemoteFile, blocks: range, priority: Priority) -> Flight:
        wanted = self._range(file, blocks)
        ticket = self._queue.ticket(priority, wanted.length, file.origin)
        flight = Flight(file, blocks, ticket, trio.current_time())
        for block in blocks:
            self._by_block[file.key, block] = flight
        self._nursery.start_soon(self._fly, flight)
        return flight

    def _range(self, file: RemoteFile, blocks: range) -> ByteRange:
        first = block_range(blocks.start, file.size_bytes, self._tier.block_bytes)
        last = block_range(blocks.stop - 1, file.size_bytes, self._tier.block_bytes)
        return ByteRange(first.start, last.stop)

    async def _fly(self, flight: Flight) -> None:
        file = flight.file
        try:
            async with self._queue.turn(flight.ticket):
                await self._fetch_and_keep(flight)
            self._queue.note(file.origin, answered=True)
        except SourceError as error:
            self._queue.note(file.origin, answered=not isinstance(error, SourceTimeout))
            flight.error = error
            log.warning(
                "fetch failed",
                dataset=file.origin.id,
                path=file.obj.path,
                offset=flight.blocks.start * self._tier.block_bytes,
                error=type(error).__name__,
                reason=str(error),
            )
        except Exception as error:  # a bug here must not end the server; its readers get EIO, the log the traceback
            log.exception("fetch failed unexpectedly", dataset=file.origin.id, path=file.obj.path)
            flight.error = SourceUnavailable(f"{file.origin.id}: {type(error).__name__} in the daemon (see its log)")
        finally:
            flight.done = True
            if flight.error is None and len(flight.data) < len(flight.blocks):
                flight.error = SourceTimeout(f"{file.origin.id}: the server stops")
            for block in flight.blocks:
                del self._by_block[file.key, block]
            flight.changed.unpark_all()

    async def _fetch_and_keep(self, flight: Flight) -> None:
        file, tier = flight.file, self._tier
        wanted = self._range(file, flight.blocks)
        whole = wanted.length == file.size_bytes and len(flight.blocks) <= SMALL_BLOCKS
        space = space_of(wanted.length) + map_space(file.size_bytes, tier.block_bytes)
        reserved = await self._reserve(file.origin, space)
        try:
            if whole:
                await self._bring_whole(flight, keep=reserved)
            else:
                await self._bring_blocks(flight, wanted, self._target(flight) if reserved else None)
            file.origin.count_fetched(wanted.length)
        finally:
            if reserved:
                tier.release(space)

    async def _bring_whole(self, flight: Flight, *, keep: bool) -> None:
        file, tier = flight.file, self._tier
        sink = WholeSink(file)
        data, trouble = await patiently(
            file.origin,
            lambda: self._bridge.call(bring_whole, self._bridge, tier, file, sink, keep),
            self.deadline_s,
        )
        if trouble is not None:
            tier.note_trouble(trouble)
        elif keep:
            tier.note_success()
        for block in flight.blocks:
            place = block_range(block, file.size_bytes, tier.block_bytes)
            flight.data[block] = data[place.start : place.stop]

    async def _bring_blocks(self, flight: Flight, wanted: ByteRange, target: BlockMap | None) -> None:
        file = flight.file

        def landed(block: int, data: memoryview) -> None:
            flight.data[block] = data
            flight.changed.unpark_all()

        sink = BlockSink(self._bridge, self._tier, file, wanted, target, landed)

        async def read_rest() -> None:  # a retry goes on where the last try ended
            rest = ByteRange(sink.position, wanted.stop)
            if rest.length:
                await self._bridge.call(file.origin.source.read, file.obj, rest, sink)
                sink.check_end()

        await patiently(file.origin, read_rest, self.deadline_s)
        if sink.keep:
            self._tier.note_success()

    async def _reserve(self, origin: Origin, space: int) -> bool:
        """Room in the node tier; False: what comes is served without being kept."""
        quota = origin.quota_bytes
        # A dataset beyond its quota keeps what it has. Read in a new order each epoch, a part that stays is hit
        # quota/size of the time, where one that turns over is hit hardly ever.
        if quota is not None and self._tier.index.owner_bytes(origin.id) + space > quota:
            return False
        if self._tier.reserve(space):
            return True
        try:
            await trio.to_thread.run_sync(self._tier.make_room, space, limiter=DISK)
        except (CacheFull, OSError):
            return False
        return True

    def _target(self, flight: Flight) -> BlockMap | None:
        file = flight.file
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is None:
            try:
                obj = self._tier.create(file.key, file.size_bytes)
            except OSError as error:
                self._tier.note_trouble(error)
        return obj if isinstance(obj, BlockMap) else None
