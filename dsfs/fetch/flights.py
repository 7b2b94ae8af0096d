"""One fetch that many waiters share: which blocks are on their way, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.cache.node import NodeTier
from dsfs.cache.shared_file import GROUP_BLOCKS, group_blocks
from dsfs.errors import SourceError, SourceTimeout, SourceUnavailable
from dsfs.fetch.by_courier import ByCourier
from dsfs.fetch.content import ContentChecks
from dsfs.fetch.flight import SMALL_BLOCKS, Flight, range_of
from dsfs.fetch.from_origin import FromOrigin
from dsfs.fetch.from_shared import FromShared
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.pace import SMALL_BYTES
from dsfs.fetch.queue import FetchQueue, Priority
from dsfs.fetch.room import Room
from dsfs.fetch.shared import Busy, SharedTier
from dsfs.model import Tier
from dsfs.ranges import block_count, runs
from dsfs.sources.wire_request import at_once_of

log = structlog.get_logger()

LONGEST_RUN_BLOCKS = 8
"""Blocks in one request. 8 MiB from loopback: one request of 8 MiB moved 1.9 times as much as eight of 1 MiB."""
SHORTEST_RUN_BLOCKS = 2
"""From a source of which one connection brings little (``fetch.pace``)."""


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
        courier_argv: Sequence[str] = (),
    ) -> None:
        """``courier_argv`` starts the process that fetches small files; without, they come by lanes."""
        self.nursery = nursery
        self.deadline_s = deadline_s
        self.longest_read_s = longest_read_s
        """What the kernel allows a read that makes progress."""
        self._bridge = bridge
        self._tier = tier
        self._queue = queue
        self.checks = ContentChecks(nursery, bridge, tier)
        room = Room(tier, self.checks.expect)
        self.from_origin = FromOrigin(nursery, bridge, tier, room, self.checks, deadline_s)
        self._from_shared = (
            None if shared is None else FromShared(shared, tier, room, self.checks, self.from_origin, deadline_s)
        )
        self.fresh, self.streams = self.from_origin.fresh, self.from_origin.streams
        self.checks.forget = self.fresh.forget
        self._by_block: dict[tuple[str, int], Flight] = {}
        self.courier: ByCourier | None = None
        if courier_argv:
            self.courier = ByCourier(courier_argv, tier, room, queue, deadline_s, self._fly_soon, self._end)
            nursery.start_soon(self.courier.run)

    def expect(self, source: object) -> None:
        """Files of a source are going to be asked for."""
        if self.courier is not None:
            self.courier.expect(source)

    @property
    def under_way(self) -> int:
        """Blocks that are on their way, and streams."""
        return len(self._by_block) + self.streams.under_way

    @property
    def ending(self) -> bool:
        """Whether the server stops: no flight begins any more."""
        return self.nursery.cancel_scope.cancel_called

    def bring(self, key: str, blocks: Iterable[int]) -> bool:
        """Whether one of these blocks is on its way."""
        return any((key, block) in self._by_block for block in blocks)

    def asking(self, file: RemoteFile, blocks: Iterable[int]) -> Flight | None:
        """A flight that asks the origin, with this dataset's own credentials, for one of these blocks."""
        flights = (self._by_block.get((file.key, block)) for block in blocks)
        own = (flight for flight in flights if flight is not None and flight.file.origin is file.origin)
        return next((flight for flight in own if flight.ticket.granted and flight.group is None), None)

    def ensure(
        self,
        file: RemoteFile,
        blocks: Iterable[int],
        priority: Priority,
        *,
        handed_out: bool = False,
        early_bytes: int = 0,
    ) -> Mapping[int, Flight]:
        """A flight for each of these blocks (ascending); those that are not on their way yet start.

        ``early_bytes``: so much of the first of them is shown before the rest of it has come.
        """
        flights: dict[int, Flight] = {}
        absent: list[int] = []
        file_blocks = tuple(blocks)
        if file_blocks and priority is Priority.DEMAND:
            self._bridge.note_reader()
        if len(file_blocks) == 1 and file.size_bytes <= self._tier.block_bytes:
            return {file_blocks[0]: self._ensure_one(file, file_blocks[0], priority)}
        for block in file_blocks:
            flight = self._by_block.get((file.key, block))
            if flight is None:
                absent.append(block)
            else:
                flights[block] = flight
                flight.joined = True
                if block == flight.first == file_blocks[0] and not flight.ticket.granted:
                    flight.early_bytes = max(flight.early_bytes, early_bytes)
                if priority < flight.ticket.priority:
                    self._queue.raise_priority(flight.ticket, priority)
        total = block_count(file.size_bytes, self._tier.block_bytes)
        if absent and total <= SMALL_BLOCKS:
            absent = [block for block in range(total) if (file.key, block) not in self._by_block]
        for run, first in self._runs(file, absent, priority):
            flight = self._start(file, run, first, priority)
            flight.handed_out = handed_out
            flight.early_bytes = early_bytes if first == file_blocks[0] else 0
            for block in run:
                flights[block] = flight
        return flights

    def _ensure_one(self, file: RemoteFile, block: int, priority: Priority) -> Flight:
        """As ``ensure``, for a file that has no other block."""
        flight = self._by_block.get((file.key, block))
        if flight is None:
            return self._start(file, range(block, block + 1), block, priority)
        flight.joined = True
        if priority < flight.ticket.priority:
            self._queue.raise_priority(flight.ticket, priority)
        return flight

    def _runs(self, file: RemoteFile, absent: list[int], priority: Priority) -> list[tuple[range, int]]:
        """What to fetch at once, in which order, and which block of it first.

        With a shared tier: whole block groups, as those are what nodes share; what nobody waits for yet begins on each
        node with another group, so that they bring different parts.
        """
        shared = self._from_shared
        if not absent or shared is None or not shared.takes(file):
            return [(run, run.start) for run in runs(absent, self._run_blocks(file))]
        found: list[tuple[range, int]] = []
        for number, inside in groupby(absent, lambda block: block // GROUP_BLOCKS):
            group, wanted = group_blocks(number, file.size_bytes, self._tier.block_bytes), list(inside)
            if any((file.key, block) in self._by_block for block in group):  # begun while there was no shared tier
                found += ((run, run.start) for run in runs(wanted, self._run_blocks(file)))
            else:
                found.append((group, wanted[0]))
        if priority is Priority.WARM:
            turn = shared.first_group(file, len(found))
            found = found[turn:] + found[:turn]
        return found

    def _run_blocks(self, file: RemoteFile) -> int:
        if block_count(file.size_bytes, self._tier.block_bytes) <= SMALL_BLOCKS:
            return SMALL_BLOCKS  # in parts it would not be stored as a whole
        wanted = self._queue.range_bytes(file.origin) / self._tier.block_bytes
        return int(max(SHORTEST_RUN_BLOCKS, min(LONGEST_RUN_BLOCKS, wanted)))

    def first_block(self, file: RemoteFile) -> int:
        """Where this node begins with a file that nobody waits for: those that fill the same one begin at different
        places."""
        if self._from_shared is None or not self._from_shared.takes(file):
            return 0
        groups = -(-block_count(file.size_bytes, self._tier.block_bytes) // GROUP_BLOCKS)
        return self._from_shared.first_group(file, groups) * GROUP_BLOCKS

    def _start(self, file: RemoteFile, blocks: range, first: int, priority: Priority) -> Flight:
        block_bytes = self._tier.block_bytes
        wanted_bytes = range_of(file, blocks, block_bytes).length
        # a long body has been accepted, and takes its time
        at_once = at_once_of(file.origin.source) if wanted_bytes <= SMALL_BYTES else None
        ticket = self._queue.ticket(priority, wanted_bytes, file.origin, at_once)
        group = None if self._from_shared is None else self._from_shared.group(file, blocks)
        flight = Flight(file, blocks, block_bytes, ticket, trio.current_time(), first, group)
        for block in blocks:
            self._by_block[file.key, block] = flight
        if self.courier is not None and self.courier.takes(flight):
            self.courier.enter(flight)
        else:
            self._fly_soon(flight)
        return flight

    def _fly_soon(self, flight: Flight) -> None:
        flight.scope = trio.CancelScope()
        self.nursery.start_soon(self._fly, flight)

    def withdraw(self, file: RemoteFile, blocks: Iterable[int]) -> int:
        """Read-ahead that nobody will come to: what has not begun, and nobody else has asked for, does not begin. The
        bytes of that."""
        given_up = 0
        for flight in {self._by_block.get((file.key, block)) for block in blocks}:
            if flight is None or flight.joined or flight.ticket.granted or flight.done:
                continue
            if flight.ticket.priority is Priority.AHEAD:
                if flight.scope is None:
                    self._queue.leave(flight.ticket)
                    self._end(flight)
                elif flight.scope.cancel_called:
                    continue
                else:
                    flight.scope.cancel()
                    self._forget(flight)  # at once: who comes now has a flight that flies
                given_up += flight.wanted.length
        return given_up

    def _forget(self, flight: Flight) -> None:
        for block in flight.blocks:
            if self._by_block.get((flight.file.key, block)) is flight:
                del self._by_block[flight.file.key, block]

    async def _fly(self, flight: Flight) -> None:
        assert flight.scope is not None
        with flight.scope:
            await self._fly_on(flight)

    async def _fly_on(self, flight: Flight) -> None:
        file = flight.file
        if flight.ticket.priority is not Priority.DEMAND:
            await trio.lowlevel.cancel_shielded_checkpoint()  # what somebody waits for is asked for first
        try:
            while True:
                async with self._queue.turn(flight.ticket):
                    busy = await self._bring(flight)
                if busy is None:
                    break
                await self._wait(flight, busy)
            if flight.tier is Tier.ORIGIN:
                self._queue.answered(flight.ticket)
        except SourceError as error:
            self._queue.failed(flight.ticket, error)
            flight.fail(error)
        except Exception as error:  # a bug here must not end the server; its readers get EIO, the log the traceback
            log.exception("fetch failed unexpectedly", dataset=file.origin.id, path=file.obj.path)
            flight.error = SourceUnavailable(f"{file.origin.id}: {type(error).__name__} in the daemon (see its log)")
        finally:
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        """It has brought what it was to bring, or nothing more will come of it."""
        flight.done = True
        if flight.error is None and not flight.kept and len(flight.data) < len(flight.blocks):
            flight.error = SourceTimeout(f"{flight.file.origin.id}: the server stops")
        self._forget(flight)
        flight.changed.unpark_all()
        for call in flight.when_over:
            call()
        flight.when_over.clear()

    async def _bring(self, flight: Flight) -> Busy | None:
        shared_area = flight.file.origin.shared_area  # it may have been taken away since the flight began
        if self._from_shared is not None and flight.group is not None and shared_area:
            return await self._from_shared.bring(flight, flight.group)
        await self.from_origin.bring(flight)
        return None

    async def _wait(self, flight: Flight, busy: Busy) -> None:
        """For another node, without a share of the budget; then the flight has a place in the queue again."""
        assert self._from_shared is not None
        await self._from_shared.wait(flight, busy)
        ticket = flight.ticket
        flight.ticket = self._queue.ticket(ticket.priority, ticket.size_bytes, ticket.source, ticket.at_once)
