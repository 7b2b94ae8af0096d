"""One fetch that many waiters share: which blocks are on their way, and what becomes of them."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby

import structlog
import trio

from dsfs import metrics
from dsfs.bridge import Bridge
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier, map_space, space_of
from dsfs.cache.shared_file import GROUP_BLOCKS, Group, group_blocks
from dsfs.errors import CacheFull, SourceError, SourceTimeout, SourceUnavailable
from dsfs.fetch.buffers import Buffers
from dsfs.fetch.carry import Carrier
from dsfs.fetch.entitlement import Unread
from dsfs.fetch.fresh import Fresh
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.fetch.queue import FetchQueue, Priority, Ticket
from dsfs.fetch.shared import Bringing, Busy, SharedTier
from dsfs.fetch.sink import BlockSink, WholeSink
from dsfs.fetch.stream import Streams
from dsfs.model import Tier
from dsfs.ranges import ByteRange, MiB, block_count, block_range, runs
from dsfs.sources.answers import WholeAnswer
from dsfs.sources.digest import digest_of

log = structlog.get_logger()

SMALL_BLOCKS = 4
"""An object of up to so many blocks is fetched whole on first use and stored as two renamed files."""
LONGEST_RUN_BLOCKS = 8
"""Blocks in one request. 8 MiB from loopback: one request of 8 MiB moved 1.9 times as much as eight of 1 MiB."""

_FILLING_RUNS = 4
_SHARE_OF_WAITING = 0.5  # of the time that a fetch has, what it may spend waiting for other nodes
_FILLING_PAUSE_S = 0.1
_FRESH_BYTES = 64 * MiB

DISK = trio.CapacityLimiter(8)  # threads that wait for the cache's disk


@dataclass(slots=True, eq=False)
class Flight:
    """Blocks of one object on their way. ``data`` holds those that have landed, until the flight is forgotten."""

    file: RemoteFile
    blocks: range
    ticket: Ticket
    started_s: float
    """On trio's clock."""
    first: int
    """The block that was asked for: it is fetched before those that come along with it."""
    group: Group | None = None
    """What these blocks are in the shared tier, if they may go through it."""
    tier: Tier = Tier.ORIGIN
    """Where its blocks come from."""
    waited_s: float = 0.0
    """For other nodes."""
    patient: bool = True
    """Whether it would wait for another node."""
    data: dict[int, memoryview] = field(default_factory=dict)
    error: SourceError | None = None
    done: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    joined: bool = False
    """Whether somebody else asked for it too."""

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
        self,
        nursery: trio.Nursery,
        bridge: Bridge,
        tier: NodeTier,
        queue: FetchQueue,
        deadline_s: float,
        shared: SharedTier | None = None,
        longest_read_s: float = math.inf,
    ) -> None:
        self._nursery = nursery
        self._bridge = bridge
        self._tier = tier
        self._queue = queue
        self._carrier = Carrier(bridge, tier)
        self._buffers = Buffers(tier.block_bytes, _FRESH_BYTES // tier.block_bytes)
        self.fresh = Fresh(_FRESH_BYTES, tier.block_bytes)
        self.deadline_s = deadline_s
        self.longest_read_s = longest_read_s
        """What the kernel allows a read that makes progress."""
        self.streams = Streams(
            nursery, bridge, tier, self._carrier, self._buffers, self.fresh, deadline_s, self._reserve
        )
        self._shared = shared
        self._by_block: dict[tuple[str, int], Flight] = {}
        self._hashing: set[BlockMap] = set()
        self._hashers = trio.CapacityLimiter(1)

    @property
    def under_way(self) -> int:
        """Blocks that are on their way, and streams."""
        return len(self._by_block) + self.streams.under_way

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
                flight.joined = True
                if priority < flight.ticket.priority:
                    self._queue.raise_priority(flight.ticket, priority)
        total = block_count(file.size_bytes, self._tier.block_bytes)
        if absent and total <= SMALL_BLOCKS:
            absent = [block for block in range(total) if (file.key, block) not in self._by_block]
        for run, first in self._runs(file, absent, priority):
            flight = self._start(file, run, first, priority)
            for block in run:
                flights[block] = flight
        return flights

    def _runs(self, file: RemoteFile, absent: list[int], priority: Priority) -> list[tuple[range, int]]:
        """What to fetch at once, in which order, and which block of it first.

        With a shared tier: whole block groups, as those are what nodes share; what nobody waits for yet begins on each
        node with another group, so that they bring different parts.
        """
        if not absent or self._shared is None or not self._shares(file):
            return [(run, run.start) for run in runs(absent, LONGEST_RUN_BLOCKS)]
        found: list[tuple[range, int]] = []
        for number, inside in groupby(absent, lambda block: block // GROUP_BLOCKS):
            group, wanted = group_blocks(number, file.size_bytes, self._tier.block_bytes), list(inside)
            if any((file.key, block) in self._by_block for block in group):  # begun while there was no shared tier
                found += ((run, run.start) for run in runs(wanted, LONGEST_RUN_BLOCKS))
            else:
                found.append((group, wanted[0]))
        if priority is Priority.WARM:
            turn = self._shared.first_group(file.key, len(found))
            found = found[turn:] + found[:turn]
        return found

    def _shares(self, file: RemoteFile) -> bool:
        return self._shared is not None and self._shared.usable and bool(file.origin.shared_area)

    def fill(self, file: RemoteFile, missing: Callable[[], Sequence[int]]) -> None:
        """Bring in the rest of a file behind its readers; a few flights at a time, as all of them may be thousands."""
        self._nursery.start_soon(self._fill, file, missing)

    async def _fill(self, file: RemoteFile, missing: Callable[[], Sequence[int]]) -> None:
        middle = 0
        if self._shared is not None and self._shares(file):  # nodes that fill the same file begin at different places
            groups = -(-block_count(file.size_bytes, self._tier.block_bytes) // GROUP_BLOCKS)
            middle = self._shared.first_group(file.key, groups) * GROUP_BLOCKS
        step = _FILLING_RUNS * LONGEST_RUN_BLOCKS
        for start, stop in ((middle, sys.maxsize), (0, middle)):
            last = start - 1
            # Asked anew each time: readers bring in blocks meanwhile, which must not be fetched twice. And not further
            # ahead than they come along: what leaves memory before it is read is read from the disk again.
            await self._until_read(file)
            while blocks := [block for block in missing() if last < block < stop][:step]:
                last = blocks[-1]
                flights = self.ensure(file, blocks, Priority.WARM)
                try:
                    for block, flight in flights.items():
                        await flight.block(block)
                except SourceError:
                    return  # logged by the flight; whoever reads there will hear of it
                await self._until_read(file)

    async def _until_read(self, file: RemoteFile) -> None:
        while self.fresh.awaited(file.key):  # noqa: ASYNC110  # what is awaited is mostly time itself
            await trio.sleep(_FILLING_PAUSE_S)

    def _start(self, file: RemoteFile, blocks: range, first: int, priority: Priority) -> Flight:
        wanted = self._range(file, blocks)
        ticket = self._queue.ticket(priority, wanted.length, file.origin)
        flight = Flight(file, blocks, ticket, trio.current_time(), first)
        number = blocks.start // GROUP_BLOCKS
        if self._shares(file) and blocks == group_blocks(number, file.size_bytes, self._tier.block_bytes):
            flight.group = Group(file.key, number, file.size_bytes, self._tier.block_bytes)
        for block in blocks:
            self._by_block[file.key, block] = flight
        self._nursery.start_soon(self._fly, flight)
        return flight

    def _range(self, file: RemoteFile, blocks: range) -> ByteRange:
        first = block_range(blocks.start, file.size_bytes, self._tier.block_bytes)
        last = block_range(blocks.stop - 1, file.size_bytes, self._tier.block_bytes)
        return ByteRange(first.start, last.stop)

    def withdraw(self, file: RemoteFile, blocks: Iterable[int]) -> int:
        """Read-ahead that nobody will come to: what has not begun, and nobody else has asked for, does not begin. The
        bytes of that."""
        given_up = 0
        for flight in {self._by_block.get((file.key, block)) for block in blocks}:
            if flight is None or flight.joined or flight.ticket.granted.is_set() or flight.scope.cancel_called:
                continue
            if flight.ticket.priority is Priority.AHEAD:
                flight.scope.cancel()
                self._forget(flight)  # at once: who comes now has a flight that flies
                given_up += self._range(file, flight.blocks).length
        return given_up

    def _forget(self, flight: Flight) -> None:
        for block in flight.blocks:
            if self._by_block.get((flight.file.key, block)) is flight:
                del self._by_block[flight.file.key, block]

    async def _fly(self, flight: Flight) -> None:
        with flight.scope:
            await self._fly_on(flight)

    async def _fly_on(self, flight: Flight) -> None:
        file = flight.file
        try:
            while True:
                async with self._queue.turn(flight.ticket):
                    busy = await self._share_or_fetch(flight)
                if busy is None:
                    break
                await self._wait(flight, busy)
            if flight.tier is Tier.ORIGIN:
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
            self._forget(flight)
            flight.changed.unpark_all()

    async def _share_or_fetch(self, flight: Flight) -> Busy | None:
        """From the shared tier if it is there, else from the origin and into the shared tier; Busy: another node
        brings it just now, and what that has to be waited for without."""
        shared, group, area = self._shared, flight.group, flight.file.origin.shared_area
        if shared is None or group is None or not area:
            await self._fetch_and_keep(flight, None)
            return None
        found = await shared.find(area, group, bring=flight.patient)
        if isinstance(found, Busy):
            if flight.patient:
                return found
            found = None
        if isinstance(found, list):
            await self._keep_shared(flight, found)
            return None
        try:
            await self._fetch_and_keep(flight, found)
            if found is not None:
                await shared.publish(found, [flight.data[block] for block in flight.blocks])
        finally:
            if found is not None:
                await shared.give_up(found)
        return None

    async def _wait(self, flight: Flight, busy: Busy) -> None:
        """For another node, without a share of the budget; then the flight has a place in the queue again."""
        assert self._shared is not None
        began_s = trio.current_time()
        deadline_s = began_s + self.deadline_s * _SHARE_OF_WAITING - flight.waited_s
        flight.patient = await self._shared.wait(busy, deadline_s)
        flight.waited_s += trio.current_time() - began_s
        ticket = flight.ticket
        flight.ticket = self._queue.ticket(ticket.priority, ticket.size_bytes, ticket.source)

    async def _keep_shared(self, flight: Flight, found: Sequence[memoryview]) -> None:
        """Show the blocks that the shared tier had, and put them into the node tier."""
        file, tier = flight.file, self._tier
        flight.tier = Tier.SHARED
        file.origin.count_shared(sum(len(data) for data in found))
        blocks = dict(zip(flight.blocks, found, strict=True))
        async with self._room(flight) as room:
            if room and self._is_whole(flight):  # stored before it is shown, as a passthrough open needs the file
                await self._store(tier.put_whole, file.key, file.size_bytes, b"".join(found), file.origin.id)
            flight.data.update(blocks)
            flight.changed.unpark_all()
            target = self._target(flight) if room and not self._is_whole(flight) else None
            if target is not None:
                await self._store(_publish_all, tier, target, blocks, file.origin.id)
            self._check_once_complete(file, target)

    async def _store(self, function: Callable[..., None], *args: object) -> None:
        try:
            await trio.to_thread.run_sync(function, *args, limiter=DISK)
            self._tier.note_success()
        except OSError as error:
            self._tier.note_trouble(error)

    def _is_whole(self, flight: Flight) -> bool:
        total = block_count(flight.file.size_bytes, self._tier.block_bytes)
        return len(flight.blocks) == total <= SMALL_BLOCKS

    @asynccontextmanager
    async def _room(self, flight: Flight) -> AsyncIterator[bool]:
        """Whether the node tier has room for a flight; held as long as the context lasts."""
        file, tier = flight.file, self._tier
        space = space_of(self._range(file, flight.blocks).length) + map_space(file.size_bytes, tier.block_bytes)
        reserved = await self._reserve(file.origin, file.key, space)
        try:
            yield reserved
        finally:
            if reserved:
                tier.release(space)

    async def _fetch_and_keep(self, flight: Flight, bringing: Bringing | None) -> None:
        file = flight.file
        async with self._room(flight) as room:
            if self._is_whole(flight):
                await self._bring_whole(flight, keep=room)
            else:
                target = self._target(flight) if room else None
                if await self._bring_blocks(flight, target, bringing):
                    return
            file.origin.count_fetched(self._range(file, flight.blocks).length)

    async def _bring_whole(self, flight: Flight, *, keep: bool) -> None:
        file, tier = flight.file, self._tier
        sink = WholeSink(file)
        epoch = file.origin.entitlement.epoch

        async def bring() -> tuple[memoryview, OSError | None]:
            nonlocal epoch
            epoch = file.origin.entitlement.epoch
            return await self._carrier.whole(file, sink, keep=keep)

        data, trouble = await patiently(file.origin, bring, self.deadline_s - flight.waited_s)
        file.origin.entitlement.note(epoch)
        if trouble is not None:
            tier.note_trouble(trouble)
        elif keep:
            tier.note_success()
        for block in flight.blocks:
            place = block_range(block, file.size_bytes, tier.block_bytes)
            flight.data[block] = data[place.start : place.stop]
        flight.changed.unpark_all()  # nobody waits until the others have it too

    async def _bring_blocks(self, flight: Flight, target: BlockMap | None, bringing: Bringing | None) -> bool:
        """As ranges, or from a stream where the server has no ranges; whether a stream brought (and counted) them."""
        file = flight.file
        fits = target is not None and file.size_bytes <= self._tier.room_bytes
        if target is not None and fits:
            try:
                async with self.streams.first_range(file.origin):
                    if not self.streams.rangeless(file.origin):
                        await self._bring_ranges(flight, target, bringing, refuse_whole=True)
                        return False
            except WholeAnswer:
                self.streams.note_rangeless(file.origin)
            if await self._from_stream(flight, target, bringing):
                return True
        await self._bring_ranges(flight, target, bringing, refuse_whole=False)
        return False

    async def _from_stream(self, flight: Flight, target: BlockMap, bringing: Bringing | None) -> bool:
        def landed(block: int, data: memoryview) -> None:  # whose credentials brought it, the stream notes
            flight.data[block] = data
            flight.changed.unpark_all()
            if bringing is not None:
                bringing.landed = len(flight.data)

        left = [block for block in flight.blocks if block not in flight.data]
        brought = await self.streams.bring(flight.file, left, target, landed)
        self._check_once_complete(flight.file, target)
        return brought

    async def _bring_ranges(
        self, flight: Flight, target: BlockMap | None, bringing: Bringing | None, *, refuse_whole: bool
    ) -> None:
        file = flight.file
        deadline_s = trio.current_time() + self.deadline_s - flight.waited_s
        epoch = file.origin.entitlement.epoch

        def landed(block: int, data: memoryview) -> None:
            file.origin.entitlement.note(epoch)
            if file.origin.first_range is not None:
                file.origin.first_range.set()
            flight.data[block] = data
            if target is not None:
                self.fresh.add(file.key, block, data)
            flight.changed.unpark_all()
            if bringing is not None:
                bringing.landed = len(flight.data)

        for part in (range(flight.first, flight.blocks.stop), range(flight.blocks.start, flight.first)):
            if part:
                sink = BlockSink(
                    self._bridge,
                    self._tier,
                    file,
                    self._range(file, part),
                    target,
                    landed,
                    self._buffers,
                    refuse_whole=refuse_whole,
                )

                async def carry(sink: BlockSink = sink) -> None:  # a retry goes on where the last try ended
                    nonlocal epoch
                    epoch = file.origin.entitlement.epoch
                    await self._carrier.blocks(file, sink)

                await patiently(file.origin, carry, deadline_s - trio.current_time())
                if sink.keep:
                    self._tier.note_success()
        self._check_once_complete(file, target)

    def _check_once_complete(self, file: RemoteFile, obj: BlockMap | None) -> None:
        if obj is not None and obj.complete and obj not in self._hashing:
            self._hashing.add(obj)
            self._nursery.start_soon(self._check_content, file, obj)

    async def _check_content(self, file: RemoteFile, obj: BlockMap) -> None:
        """Drop a large object that is not what its source lists, once all of it is here.

        Behind its readers, one object at a time. What was read before, and is read meanwhile, was of one version
        as far as the source's headers say; that is all that can be said of it.
        """
        try:
            digest = digest_of(file.origin.source, file.obj)
            if digest is None or await trio.to_thread.run_sync(
                digest.is_of_file, obj.fd, file.size_bytes, limiter=self._hashers
            ):
                return
            metrics.CORRUPT_BLOCKS.inc()
            log.warning(
                "what the source sent is not what it lists, dropped",
                dataset=file.origin.id,
                path=file.obj.path,
                listed=f"{digest.algorithm}:{digest.hex}",
            )
            if not obj.unlinked:  # else another may have its name by now
                await trio.to_thread.run_sync(self._tier.drop, file.key, limiter=DISK)
        except OSError as error:
            self._tier.note_trouble(error)
        finally:
            self._hashing.discard(obj)

    async def knock(self, file: RemoteFile) -> None:
        """Have the source give one byte of a file to this dataset's own credentials. Raises the SourceError if not."""

        async def read_a_byte() -> None:
            await self._bridge.call(file.origin.source.read, file.obj, ByteRange(0, 1), Unread())

        await patiently(file.origin, read_a_byte, self.deadline_s)
        file.origin.count_fetched(1)

    async def _reserve(self, origin: Origin, key: str, space: int) -> bool:
        """Room in the node tier; False: what comes is served without being kept."""
        quota = origin.quota_bytes
        # A dataset beyond its quota keeps what it has. Read in a new order each epoch, a part that stays is hit
        # quota/size of the time, where one that turns over is hit hardly ever.
        if quota is not None and self._tier.index.owner_bytes(origin.id) + space > quota:
            return False
        if self._tier.reserve(space):
            return True
        try:
            await trio.to_thread.run_sync(self._tier.make_room, space, key, limiter=DISK)
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


def _publish_all(tier: NodeTier, target: BlockMap, blocks: Mapping[int, memoryview], owner: str) -> None:
    for block, data in blocks.items():
        tier.publish(target, block, data, owner)
