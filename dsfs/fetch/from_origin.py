"""How a flight gets its blocks from the origin: whole, as ranges, or from a stream where the server has no ranges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

from dsfs.bridge import Bridge
from dsfs.cache.allowance import SetAside
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier
from dsfs.fetch.buffers import Buffers
from dsfs.fetch.carry import Carrier
from dsfs.fetch.content import ContentChecks
from dsfs.fetch.entitlement import Unread
from dsfs.fetch.flight import SMALL_BLOCKS, Flight, range_of
from dsfs.fetch.fresh import Fresh
from dsfs.fetch.hedge import Try, hedged
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.fetch.place import Place
from dsfs.fetch.queue import Priority
from dsfs.fetch.room import Room
from dsfs.fetch.sink import BlockSink, WholeSink
from dsfs.fetch.stream import Streams
from dsfs.ranges import ByteRange, MiB, block_range
from dsfs.sources.answers import WholeAnswer
from dsfs.sources.wire_request import as_wire

T = TypeVar("T")

_FRESH_BYTES: Final = 64 * MiB
_WHOLE_KEPT: Final = 8


class FromOrigin:
    """File side only; ``nursery`` outlives every reader."""

    def __init__(
        self,
        nursery: trio.Nursery,
        bridge: Bridge,
        tier: NodeTier,
        room: Room,
        checks: ContentChecks,
        deadline_s: float,
    ) -> None:
        self._bridge = bridge
        self._tier = tier
        self._room = room
        self._checks = checks
        self._deadline_s = deadline_s
        self._carrier = Carrier(bridge, tier)
        self._buffers = Buffers(tier.block_bytes, _FRESH_BYTES // tier.block_bytes)
        self._whole_buffers = Buffers(SMALL_BLOCKS * tier.block_bytes, _WHOLE_KEPT)
        self.fresh = Fresh(_FRESH_BYTES, tier.block_bytes)
        self.streams = Streams(nursery, bridge, tier, room, self._carrier, self._buffers, self.fresh, deadline_s)

    async def bring(self, flight: Flight) -> None:
        """Show all blocks of a flight, and put them into the node tier if it has room. Raises the SourceError."""
        async with self._room.held(flight) as room:
            if flight.is_whole:
                await self._bring_whole(flight, room)
            elif room is None:
                await self._bring_blocks(flight, None)
            else:
                await self._bring_blocks(flight, Place(partial(self._room.target, flight.file), room))

    async def _bring_whole(self, flight: Flight, room: SetAside | None) -> None:
        file, tier, keep = flight.file, self._tier, room is not None
        epoch = file.origin.entitlement.epoch
        at_once = flight.handed_out and len(flight.blocks) > 1  # then it takes longer to store it than to hand it out

        def landed(data: memoryview) -> None:
            file.origin.entitlement.note(epoch)
            if not flight.data:
                file.origin.count_fetched(len(data))
            places = {block: block_range(block, file.size_bytes, tier.block_bytes) for block in flight.blocks}
            blocks = {block: data[place.start : place.stop] for block, place in places.items()}
            if at_once or not keep or tier.in_trouble:
                for block, part in blocks.items():
                    self.freshly(flight, block, part, keep=keep)
            flight.show(blocks)

        def new_sink() -> WholeSink:
            return WholeSink(file, self._whole_buffers, partial(self._bridge.soon, landed) if at_once else None)

        sink = new_sink()

        async def whole(sink: WholeSink, begun: Callable[[], None]) -> tuple[WholeSink, OSError | None]:
            sink.on_all_here = partial(self._bridge.soon, begun)
            return sink, await self._carrier.whole(file, sink, room)

        async def bring() -> OSError | None:
            nonlocal epoch, sink
            if flight.told is not None:
                told, flight.told = flight.told, None
                raise told
            if sink.rest.length:  # else nothing is asked of the source, and nothing proven
                epoch = file.origin.entitlement.epoch
            sink, trouble = await self._hedged(flight, partial(whole, sink), lambda begun: whole(new_sink(), begun))
            return trouble

        trouble = await patiently(file.origin, bring, self._deadline_s - flight.waited_s)
        if trouble is not None:
            tier.note_trouble(trouble)
        elif keep:
            tier.note_success()
        if not at_once:
            landed(sink.whole())

    async def _bring_blocks(self, flight: Flight, place: Place | None) -> None:
        """As ranges, or from a stream where the server has no ranges."""
        file = flight.file
        if place is not None and file.size_bytes <= self._tier.room_bytes:
            try:
                async with self.streams.first_range(file.origin):
                    if not file.origin.is_rangeless:
                        await self._bring_ranges(flight, place, refuse_whole=True)
                        return
            except WholeAnswer:
                self.streams.note_rangeless(file.origin)
            place.make()
            target = place.made()
            if target is not None and await self._from_stream(flight, target):
                return
        await self._bring_ranges(flight, place, refuse_whole=False)

    async def _from_stream(self, flight: Flight, target: BlockMap) -> bool:
        def landed(block: int, data: memoryview) -> None:  # whose credentials brought it, the stream notes
            flight.show({block: data})

        left = [block for block in flight.blocks if block not in flight.data]
        brought = await self.streams.bring(flight.file, left, target, landed)
        self._checks.once_complete(flight.file, target)
        return brought

    async def _bring_ranges(self, flight: Flight, place: Place | None, *, refuse_whole: bool) -> None:
        file = flight.file
        deadline_s = trio.current_time() + self._deadline_s - flight.waited_s
        epoch = file.origin.entitlement.epoch

        def landed(block: int, data: memoryview) -> None:
            file.origin.entitlement.note(epoch)
            if block not in flight.data:  # here, as it is known to be cached before all of the flight is over
                file.origin.count_fetched(len(data))
            if file.origin.first_range is not None:
                file.origin.first_range.set()
            self.freshly(flight, block, data, keep=place is not None and not place.refused)
            flight.show({block: data})

        def came(beginning: memoryview) -> None:
            file.origin.entitlement.note(epoch)
            flight.show_early(beginning)

        def sink_of(part: range) -> BlockSink:
            return BlockSink(
                self._bridge,
                self._tier,
                file,
                range_of(file, part, self._tier.block_bytes),
                place,
                landed,
                self._buffers,
                refuse_whole=refuse_whole,
                early_bytes=flight.early_bytes if part.start == flight.first else 0,
                came=came,
            )

        async def blocks(sink: BlockSink, begun: Callable[[], None]) -> BlockSink:
            def landed_now(block: int, data: memoryview) -> None:
                begun()
                landed(block, data)

            sink.landed = landed_now
            await self._carrier.blocks(file, sink)
            return sink

        for part in (range(flight.first, flight.blocks.stop), range(flight.blocks.start, flight.first)):
            if part:
                sink = sink_of(part)

                async def carry(part: range = part) -> None:  # a retry goes on where the last try ended
                    nonlocal epoch, sink
                    epoch = file.origin.entitlement.epoch
                    left = range(sink.position // self._tier.block_bytes, part.stop)
                    sink = await self._hedged(flight, partial(blocks, sink), lambda begun: blocks(sink_of(left), begun))

                await patiently(file.origin, carry, deadline_s - trio.current_time())
                if sink.keep:
                    self._tier.note_success()
        if place is not None:
            place.make()
            self._checks.once_complete(file, place.made())

    def freshly(self, flight: Flight, block: int, data: memoryview, *, keep: bool) -> None:
        """What the node tier cannot keep has to be at hand for the next read; what nobody reads yet need not."""
        if keep and not self._tier.in_trouble:
            self.fresh.add(flight.file.key, block, data)
        elif flight.ticket.priority is not Priority.WARM:
            self.fresh.add(flight.file.key, block, data, flight.tier)

    async def _hedged(self, flight: Flight, first: Try[T], second: Try[T]) -> T:
        """As ``hedged``, where asking twice costs the source no more than a request."""
        origin = flight.file.origin
        if as_wire(origin.source) is None:
            return await first(lambda: None)
        return await hedged(
            origin.lateness, first, second, lambda: flight.ticket.priority is Priority.DEMAND, origin.count_hedged
        )

    async def knock(self, file: RemoteFile) -> None:
        """Have the source give one byte of a file to this dataset's own credentials. Raises the SourceError if not."""

        async def read_a_byte() -> None:
            with file.origin.held() as source:
                await self._bridge.call(source.read, file.obj, ByteRange(0, 1), Unread())

        await patiently(file.origin, read_a_byte, self._deadline_s)
        file.origin.count_fetched(1)
