"""Large files of servers without ranges: one GET from byte 0 that publishes block after block, for all who wait.

Such a server answers every range with the whole file. Asked for each flight's range, it would send a file of n flights
n/2 times. So the first such answer is broken off and remembered, and flights wait for their blocks from one stream.

Nothing can resume a stream: one that breaks starts again from 0, and what the cache has is received and not stored.
It needs room in the cache for all that is missing; without, flights ask for their ranges as if nothing were known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.cache.allowance import SetAside
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.damage import DamagedObject
from dsfs.cache.mapfile import State
from dsfs.cache.node import NodeTier
from dsfs.errors import SourceError, SourceUnavailable
from dsfs.fetch.buffers import Buffers
from dsfs.fetch.carry import Carrier
from dsfs.fetch.disk import DISK
from dsfs.fetch.fresh import Fresh
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.fetch.place import Place
from dsfs.fetch.room import Room
from dsfs.fetch.sink import BlockSink
from dsfs.model import Tier
from dsfs.ranges import ByteRange, block_range
from dsfs.sources.answers import WholeAnswer
from dsfs.sources.wire_request import as_wire

log = structlog.get_logger()

_REMEMBERED_S: Final = 600.0  # a server may change its mind; asking it costs one answer that is broken off
_LINGER_S: Final = 30.0
_FIRST_ANSWER_S: Final = 1.0  # how long the second request of a source waits to learn what the first did
Landed = Callable[[int, memoryview], None]


@dataclass(slots=True, eq=False)
class _Stream:
    """``passed`` blocks have come, and ``settled`` of them are stored, or could not be; those who wait for others are
    in ``waiting``."""

    file: RemoteFile
    target: BlockMap
    started_s: float
    awaited_s: float
    """When somebody waited last."""
    passed: int = 0
    settled: int = 0
    waiting: dict[int, list[Landed]] = field(default_factory=dict)
    error: SourceError | None = None
    refused: bool = False
    """The cache has no room for it."""
    done: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Streams:
    """All streams of the node, one for a file. File side only; ``nursery`` outlives every reader."""

    def __init__(
        self,
        nursery: trio.Nursery,
        bridge: Bridge,
        tier: NodeTier,
        room: Room,
        carrier: Carrier,
        buffers: Buffers,
        fresh: Fresh,
        deadline_s: float,
    ) -> None:
        self._nursery = nursery
        self._bridge = bridge
        self._tier = tier
        self._room = room
        self._carrier = carrier
        self._buffers = buffers
        self._fresh = fresh
        self._deadline_s = deadline_s
        self._by_key: dict[str, _Stream] = {}
        self._followers: dict[str, list[tuple[trio.CancelScope, float, float]]] = {}

    @property
    def under_way(self) -> int:
        return len(self._by_key)

    def note_rangeless(self, origin: Origin) -> None:
        """The origin answered a range with a whole file."""
        if not origin.is_rangeless:
            log.info("the server ignores ranges, large files are read as one stream", dataset=origin.id)
        origin.rangeless_until_s = trio.current_time() + _REMEMBERED_S

    @asynccontextmanager
    async def first_range(self, origin: Origin) -> AsyncIterator[None]:
        """Around asking for a range: the first one goes alone, as each that is broken off costs what is on the way
        (2 MiB on loopback). Not for long: a server that is slow to answer is asked by all."""
        if as_wire(origin.source) is None:  # others know ranges, or break off for nothing
            yield
        elif origin.first_range is None:
            origin.first_range = trio.Event()
            try:
                yield
            except WholeAnswer:
                self.note_rangeless(origin)  # before the others go on
                raise
            finally:
                origin.first_range.set()
        else:
            with trio.move_on_after(_FIRST_ANSWER_S):
                await origin.first_range.wait()
            yield

    @contextmanager
    def following(self, key: str, scope: trio.CancelScope, patience_s: float, longest_s: float) -> Iterator[None]:
        """A reader's time limit counts from the last block of its file's stream, not from when it asked.

        A stream comes to the byte 900 M of a file when it does; failing the reader before would only make it ask again.
        So it ends ``patience_s`` after the last progress, whatever that adds up to, but within ``longest_s``, which is
        what the kernel allows.
        """
        entry = (scope, patience_s, trio.current_time() + longest_s)
        followers = self._followers.setdefault(key, [])
        followers.append(entry)
        try:
            yield
        finally:
            followers.remove(entry)
            if not followers:
                self._followers.pop(key, None)

    async def bring(self, file: RemoteFile, blocks: Iterable[int], target: BlockMap, landed: Landed) -> bool:
        """Give ``landed`` each of these blocks, from the cache or from the stream, and wait until it is stored; False:
        there is no room for a stream.

        Raises the SourceError that ended the stream.
        """
        left = set(blocks)
        streamed = -1  # the last one

        def came(block: int, data: memoryview) -> None:
            nonlocal streamed
            streamed = block
            left.discard(block)
            landed(block, data)

        while left:
            for block in sorted(left):
                data = await self._cached(file, target, block)
                if data is not None:
                    left.discard(block)
                    landed(block, data)
            if left:
                streamed = -1
                stream = self._by_key.get(file.key) or self._start(file, target)
                await self._wait(stream, target, left, came)
                if stream.refused:
                    return False
                while not stream.done and stream.settled <= streamed:
                    await stream.changed.park()
        return True

    async def _cached(self, file: RemoteFile, target: BlockMap, block: int) -> memoryview | None:
        if target.state(block) != State.PRESENT:
            return None
        data = self._fresh.block(file.key, block)
        if data is not None:
            return data
        place = block_range(block, file.size_bytes, self._tier.block_bytes)
        buffer = bytearray(place.length)
        try:
            there = await trio.to_thread.run_sync(target.read, place, memoryview(buffer), limiter=DISK)
        except (DamagedObject, OSError) as error:
            gone = await trio.to_thread.run_sync(self._tier.drop_unreadable, target, error, limiter=DISK)
            dropped = ", and was dropped" if gone else ""
            raise SourceUnavailable(f"{file.origin.id}: a cached block cannot be read{dropped}") from error
        return memoryview(buffer).toreadonly() if there else None

    async def _wait(self, stream: _Stream, target: BlockMap, left: set[int], came: Landed) -> None:
        """Until all of ``left`` came or the stream is over."""
        asked = list(left)
        for block in asked:
            stream.waiting.setdefault(block, []).append(came)
        try:
            while not stream.done and any(block >= stream.passed for block in left):
                stream.awaited_s = trio.current_time()
                await stream.changed.park()
            while not stream.done and left:  # went by before we came: from the cache, or from the next stream
                if any(target.state(block) == State.PRESENT for block in left):
                    return
                stream.awaited_s = trio.current_time()
                await stream.changed.park()
        finally:
            stream.awaited_s = trio.current_time()
            for block in asked:
                stream.waiting[block].remove(came)
                if not stream.waiting[block]:
                    del stream.waiting[block]
        if left and stream.error is not None:
            raise stream.error

    def _start(self, file: RemoteFile, target: BlockMap) -> _Stream:
        now_s = trio.current_time()
        stream = self._by_key[file.key] = _Stream(file, target, now_s, now_s)
        self._nursery.start_soon(self._run, stream)
        return stream

    async def _run(self, stream: _Stream) -> None:
        file, origin = stream.file, stream.file.origin
        scope = trio.CancelScope()
        epoch = origin.entitlement.epoch

        def landed(block: int, data: memoryview) -> None:
            now_s = trio.current_time()
            origin.entitlement.note(epoch)
            origin.count_fetched(len(data))
            stream.passed = block + 1
            scope.deadline = now_s + self._deadline_s
            for follower, patience_s, until_s in self._followers.get(file.key, ()):
                follower.deadline = max(follower.deadline, min(now_s + patience_s, until_s))
            waiting = stream.waiting.get(block)
            if waiting:
                stream.awaited_s = now_s
                for came in list(waiting):
                    came(block, data)
            self._fresh.add(file.key, block, data, Tier.ORIGIN if self._tier.in_trouble else Tier.NODE)
            stream.changed.unpark_all()
            # What ran long costs as much to do again: it is given up later.
            if not stream.waiting and now_s - stream.awaited_s > max(_LINGER_S, stream.awaited_s - stream.started_s):
                stream.scope.cancel()

        def settled(block: int) -> None:
            stream.settled = max(stream.settled, block + 1)
            stream.changed.unpark_all()

        async def carry(room: SetAside) -> None:
            nonlocal epoch
            epoch = origin.entitlement.epoch
            stream.passed = 0
            whole = ByteRange(0, file.size_bytes)
            place = Place(lambda: stream.target, room)
            sink = BlockSink(self._bridge, self._tier, file, whole, place, landed, self._buffers, settled=settled)
            await self._carrier.blocks(file, sink)

        try:
            with stream.scope:
                absent_bytes = file.size_bytes - stream.target.present_bytes()
                async with self._room.held_for(file, absent_bytes) as room:
                    if room is None:
                        stream.refused = True
                        return
                    await patiently(origin, partial(carry, room), self._deadline_s, scope)
        except SourceError as error:
            stream.error = error
            origin.rangeless_until_s = 0.0  # another server may answer now
        except Exception as error:  # as in a flight: those who wait get EIO, the log the traceback
            log.exception("stream failed unexpectedly", dataset=origin.id, path=file.obj.path)
            stream.error = SourceUnavailable(f"{origin.id}: {type(error).__name__} in the daemon (see its log)")
        finally:
            stream.done = True
            del self._by_key[file.key]
            stream.changed.unpark_all()
