"""A range of one object, from wherever it is: node tier, a flight under way, the origin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import structlog
import trio

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.complete import CachedObject
from dsfs.cache.damage import DamagedObject
from dsfs.cache.node import NodeTier
from dsfs.errors import SourceTimeout
from dsfs.fetch.disk_read import DiskRead, read_now, read_waiting
from dsfs.fetch.filling import fill
from dsfs.fetch.flight import Flight
from dsfs.fetch.flights import Flights
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.others import wait_for, wait_for_storing
from dsfs.fetch.owners import Owners
from dsfs.fetch.queue import Priority
from dsfs.fetch.unchecked import check, to_fetch
from dsfs.model import Tier
from dsfs.ranges import ByteRange, block_range, blocks_of
from dsfs.sources.base import Buffer

log = structlog.get_logger()
T = TypeVar("T")

_GRACE_S = 0.5
_SOON_S = 1.0
"""Until what has come and is stored has been heard of."""
_EARLY_SHARE = 8  # of a block, at least: the kernel begins with little, and comes back for more at once
_ROUNDS = 5  # a block can be evicted between its arrival and its reading, but hardly five times in a row


class Reader:
    """Reads. File side only."""

    def __init__(self, tier: NodeTier, flights: Flights) -> None:
        self._tier = tier
        self._flights = flights
        self.owners = Owners(tier)

    @property
    def block_bytes(self) -> int:
        return self._tier.block_bytes

    def try_read(self, file: RemoteFile, wanted: ByteRange, into: memoryview) -> bool:
        """Fill ``into`` if that needs neither network nor disk, but for opening the object; False: use ``read``."""
        if not file.origin.entitlement.proven:
            return False
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is None or not DiskRead(self._tier, file, wanted, obj).now(into):
            return False
        self._is_unproven(file, obj)  # a server before this one had no time for it
        return True

    def from_disk(self, file: RemoteFile, wanted: ByteRange) -> DiskRead | None:
        """How to get a range from the node tier, which is likely to have it; None: use ``read``. Never blocks."""
        if not file.origin.entitlement.proven:
            return None
        obj = self._tier.open_at_once(file.key, file.size_bytes, file.origin.id)
        if obj is None:
            tier, blocks = self._tier, blocks_of(wanted, self._tier.block_bytes)
            if file.key in tier.unproven or tier.never_had(file.key) or self._flights.bring(file.key, blocks):
                return None
        elif obj.missing(wanted):
            return None
        else:
            self._is_unproven(file, obj)  # a server before this one had no time for it
        return DiskRead(self._tier, file, wanted, obj)

    def is_coming(self, file: RemoteFile, wanted: ByteRange) -> bool:
        """Whether some of a range is on its way, so that the disk need not be asked for it."""
        return self._flights.bring(file.key, blocks_of(wanted, self._tier.block_bytes))

    def try_pieces(self, file: RemoteFile, wanted: ByteRange) -> list[Buffer] | None:
        """A range that has just been fetched, without a copy; None: ask ``try_read``."""
        if self._flights.fresh.is_empty or not file.origin.entitlement.proven:
            return None
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is None or obj.missing(wanted):
            return None
        pieces = self._flights.fresh.pieces(file.key, file.size_bytes, wanted)
        if pieces is not None:
            file.origin.count_read(Tier.NODE, wanted.length)
        return pieces

    async def read(self, file: RemoteFile, wanted: ByteRange) -> list[Buffer]:
        """The bytes of a range inside the object, in pieces: blocks that were on their way are not copied.

        Raises the SourceError that kept them away; SourceTimeout when even a turn to ask was not to be had in time.
        """
        return await self._in_time(file, partial(self._read, file, wanted))

    async def _in_time(self, file: RemoteFile, work: Callable[[], Awaitable[T]]) -> T:
        # A little more than a flight has, so that what it knows of the cause comes first.
        asked_s = trio.current_time()
        patience_s = self._flights.deadline_s + _GRACE_S
        with (
            trio.move_on_after(patience_s) as scope,
            self._flights.streams.following(file.key, scope, patience_s, self._flights.longest_read_s),
        ):
            return await work()
        error, last = file.origin.no_answer(self._flights.deadline_s), file.origin.last_error
        if last is None or last.heard_s < asked_s or isinstance(last.error, SourceTimeout):
            raise error
        # Said of any file of the source: it may be why, and need not be true of this one.
        raise SourceTimeout(f"{error}; meanwhile: {last.error}") from last.error

    async def _read(self, file: RemoteFile, wanted: ByteRange) -> list[Buffer]:
        blocks = blocks_of(wanted, self._tier.block_bytes)
        for _round in range(_ROUNDS):
            obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
            missing = list(blocks) if obj is None else await to_fetch(self._tier, obj, wanted)
            missing = self._nowhere(file, missing)
            if obj is not None:
                self._is_unproven(file, obj)
            pieces = await self._pieces(file, obj, wanted, missing)
            if pieces is not None:
                return pieces
            log.debug("block went away under a reader", dataset=file.origin.id, path=file.obj.path)
        # The cache is too small for what is read at once: take all of it from flights, which nobody can evict.
        pieces = await self._pieces(file, None, wanted, list(blocks))
        assert pieces is not None
        return pieces

    def _nowhere(self, file: RemoteFile, blocks: Sequence[int]) -> list[int]:
        """Those of these blocks, which the node tier has not, that are not in memory either; all of them once it has
        room, as it keeps them then."""
        if file.origin.is_kept:
            return list(blocks)
        return [block for block in blocks if not self._flights.fresh.is_only_here(file.key, block)]

    async def _pieces(
        self, file: RemoteFile, obj: CachedObject | None, wanted: ByteRange, missing: list[int]
    ) -> list[Buffer] | None:
        """Missing blocks from flights, the others from ``obj``; None when one of those went away."""
        asked_s = trio.current_time()
        early_bytes = self._early_bytes(file, wanted, missing)
        flights = dict(self._flights.ensure(file, missing, Priority.DEMAND, handed_out=True, early_bytes=early_bytes))
        blocks = blocks_of(wanted, self._tier.block_bytes)
        absent = frozenset(missing)  # a flight may bring what is here too, and nobody has to wait for that
        pieces: list[Buffer] = []
        read: list[tuple[Tier, int]] = []  # counted once it is given out: a round that fails is done again
        position = wanted.start
        for block in blocks:
            place = block_range(block, file.size_bytes, self._tier.block_bytes)
            part = ByteRange(max(position, place.start), min(place.stop, wanted.stop))
            if part.length == 0:
                continue  # read together with the block before
            if block in absent:
                try:
                    data, tier = await self._landed(file, flights, block, part.stop - place.start, asked_s)
                except (DamagedObject, OSError) as error:  # of what a courier has stored
                    log.debug("stored and not to be read", dataset=file.origin.id, reason=str(error))
                    return None
                pieces.append(data[part.start - place.start : part.stop - place.start])
                read.append((tier, part.length))
                self._flights.fresh.given(file.key, block, part.length, at_end=part.stop == place.stop)
            elif (data_here := self._flights.fresh.block(file.key, block)) is not None:
                pieces.append(data_here[part.start - place.start : part.stop - place.start])
                read.append((self._flights.fresh.tier_of(file.key, block), part.length))
                if self._flights.fresh.is_only_here(file.key, block):
                    self._flights.fresh.given(file.key, block, part.length, at_end=part.stop == place.stop)
            elif obj is None:
                return None  # it was here only
            else:
                fresh, key = self._flights.fresh, file.key
                following = next((b for b in blocks if b > block and (b in absent or fresh.is_only_here(key, b))), None)
                if following is None:
                    part = ByteRange(part.start, wanted.stop)
                else:
                    part = ByteRange(part.start, following * self._tier.block_bytes)
                buffer = bytearray(part.length)
                if not await read_waiting(self._tier, obj, part, memoryview(buffer)):
                    return None
                pieces.append(buffer)
                read.append((Tier.NODE, part.length))
            position = part.stop
        await self._prove(file, wanted)
        for tier, size_bytes in read:
            file.origin.count_read(tier, size_bytes)
        return pieces

    async def _prove(self, file: RemoteFile, wanted: ByteRange) -> None:
        """Before bytes are handed out that another dataset may have brought: this one must be entitled to them too.

        What it has just fetched itself has proven that already. Raises the SourceError that says it is not.
        """
        if file.size_bytes:
            file.origin.read_last = file
        if not file.origin.entitlement.proven and file.size_bytes:
            await file.origin.entitlement.prove(lambda: self._ask(file, blocks_of(wanted, self._tier.block_bytes)))

    async def _ask(self, file: RemoteFile, blocks: Iterable[int]) -> None:
        """Have the source give a byte to this dataset's own credentials, if none is on its way: a lane stores what has
        come before this side hears of it, and who finds it then need not ask."""
        flight = self._flights.asking(file, blocks)
        with trio.move_on_after(_SOON_S):
            while flight is not None and not (flight.done or file.origin.entitlement.proven):
                await flight.changed.park()
        if not file.origin.entitlement.proven:
            await self._flights.from_origin.knock(file)

    async def confirm(self, origin: Origin) -> None:
        """Whether a dataset may still be given what the cache has: access that the origin takes back while credentials
        stay as they are shows in nothing else. A request for one byte."""
        file = origin.read_last
        if file is None or not origin.entitlement.proven:
            return  # whoever reads next asks
        if not await origin.entitlement.confirm(lambda: self._flights.from_origin.knock(file)):
            log.warning("access is refused now, nothing cached is handed out", dataset=origin.id, path=file.obj.path)

    def _early_bytes(self, file: RemoteFile, wanted: ByteRange, missing: Sequence[int]) -> int:
        """How much of the first block that is missing is to be shown before all of it is here; 0: that is no gain."""
        if not missing:
            return 0
        place = block_range(missing[0], file.size_bytes, self._tier.block_bytes)
        needed = max(self._tier.block_bytes // _EARLY_SHARE, min(wanted.stop, place.stop) - place.start)
        return needed if needed <= place.length // 2 else 0

    async def _landed(
        self, file: RemoteFile, flights: dict[int, Flight], block: int, stop: int, asked_s: float
    ) -> tuple[memoryview, Tier]:
        """One block of a flight, up to ``stop`` in it at least, and where it came from."""
        data = await wait_for(self._flights, file, flights, block, asked_s, lambda flight: flight.block(block, stop))
        return data, flights[block].tier

    def comes_at_once(self, file: RemoteFile) -> bool:
        """Whether a file that was just looked for in vain needs nothing but a fetch of its only block."""
        return (
            0 < file.size_bytes <= self._tier.block_bytes
            and file.origin.entitlement.proven
            and not self._tier.knows(file.key)
            and not file.origin.shared_area
            and bool(self._nowhere(file, [0]))
        )

    def is_absent(self, file: RemoteFile) -> bool:
        """Whether a file is known not to be here, nor on its way, and needs nothing but a fetch of its only block."""
        return self.comes_at_once(file) and self._tier.never_had(file.key) and not self._flights.bring(file.key, [0])

    def from_flight(self, file: RemoteFile, wanted: ByteRange, into: memoryview, flight: Flight) -> bool:
        """Fill ``into`` with what a flight of ``begin`` has brought, if it is in memory still."""
        if not file.origin.entitlement.proven:
            return False
        if (data := flight.data.get(0)) is not None:
            into[:] = data[wanted.start : wanted.stop]
        elif flight.stored is None:
            return False
        else:
            try:
                if not read_now(self._tier, flight.stored, wanted, into):
                    return False
            except (DamagedObject, OSError):  # who reads it the long way is told
                return False
        file.origin.read_last = file
        file.origin.count_read(flight.tier, wanted.length)
        return True

    def begin(self, file: RemoteFile) -> Flight | None:
        """A flight for such a file; None when it has not begun, so that who waits has to look at the clock, or is
        another dataset's, whose errors need not be this one's."""
        flight = self._flights.ensure(file, [0], Priority.DEMAND)[0]
        own = flight.file.origin is file.origin
        return flight if own and flight.ticket.granted and not flight.done else None

    async def fetch_whole(self, file: RemoteFile, priority: Priority) -> None:
        """Have all of an object in the node tier, or as much as it takes. Raises as ``read`` does."""
        await self._in_time(file, partial(self._fetch_whole, file, priority))

    def _here(self, file: RemoteFile) -> CachedObject | None:
        """The object if any of it may be here; what is known never to have been is not looked for."""
        return None if self._tier.never_had(file.key) else self._tier.open(file.key, file.size_bytes, file.origin.id)

    async def _fetch_whole(self, file: RemoteFile, priority: Priority) -> None:
        missing = self._nowhere(file, await self.missing(file))
        asked_s = trio.current_time()
        flights = dict(self._flights.ensure(file, missing, priority))
        for block in missing:  # bytes are there before the file is
            await wait_for_storing(self._flights, file, flights, block, asked_s, priority)
        await self._prove(file, ByteRange(0, file.size_bytes))

    async def missing(self, file: RemoteFile) -> Sequence[int]:
        """The blocks of an object that are not here. Checks what another boot wrote, so it may wait for the disk."""
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        whole = ByteRange(0, file.size_bytes)
        return blocks_of(whole, self._tier.block_bytes) if obj is None else await to_fetch(self._tier, obj, whole)

    def asked_for(self, file: RemoteFile) -> AbstractContextManager[None]:
        """What is brought of a file meanwhile is to stay here, before somebody reads it too."""
        return self._tier.index.asked_for(file.key)

    def ask_for(self, files: Iterable[RemoteFile]) -> None:
        """What is here of these files is to stay."""
        self._tier.index.ask_for(file.key for file in files)

    async def bring(self, file: RemoteFile, blocks: range, priority: Priority) -> bool:
        """Have blocks fetched, and wait until they are stored; False: they could not be kept. Raises the SourceError
        that ended a flight."""
        asked_s = trio.current_time()
        flights = dict(self._flights.ensure(file, blocks, priority))
        for block in blocks:
            await wait_for_storing(self._flights, file, flights, block, asked_s, priority)
        if not all(flights[block].kept for block in blocks):
            return self.has(file, blocks)
        self._tier.index.use(file.key, file.origin.id)  # the flight may have been another dataset's
        return True

    def has(self, file: RemoteFile, blocks: range) -> bool:
        """Whether blocks are in the node tier."""
        obj = self._here(file)
        size = self._tier.block_bytes
        return obj is not None and not obj.missing(ByteRange(blocks.start * size, blocks.stop * size))

    def incomplete(self, files: Iterable[RemoteFile], *, uses: bool = True) -> list[RemoteFile]:
        """Those of which something is missing; the others count as used, unless not. For any thread; waits for the
        disk."""
        return [
            file
            for file in files
            if not self._tier.holds_all(file.key, file.size_bytes, file.origin.id if uses else None)
        ]

    def want(self, file: RemoteFile, wanted: ByteRange, priority: Priority) -> int:
        """Have a range brought in; nobody waits for it. How many blocks of it were missing."""
        obj = self._here(file)
        missing: Sequence[int]
        # What was written under another boot is checked by whoever reads it, and need not come again.
        missing = blocks_of(wanted, self._tier.block_bytes) if obj is None else obj.absent(wanted)
        missing = self._nowhere(file, missing)
        early_bytes = self._early_bytes(file, wanted, missing) if priority is Priority.DEMAND else 0
        self._flights.ensure(file, missing, priority, early_bytes=early_bytes)
        return len(missing)

    def withdraw(self, file: RemoteFile, unread: ByteRange) -> int:
        """Take back what was wanted ahead of a reader that is gone, as far as it has not begun; the bytes of that."""
        return self._flights.withdraw(file, blocks_of(unread.clipped(file.size_bytes), self._tier.block_bytes))

    def cached_bytes(self, owner: str) -> int:
        """How much of a dataset's files is in the node tier, in bytes."""
        return self._tier.index.owner_bytes(owner)

    def fill(self, file: RemoteFile) -> None:
        """Have all that is missing of a file brought in, when nothing better is to be done."""
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is not None:
            self._flights.nursery.start_soon(
                fill, self._flights, file, lambda: obj.absent(ByteRange(0, file.size_bytes))
            )

    def expect(self, origin: Origin) -> None:
        """Files of a dataset are going to be read."""
        self._flights.expect(origin.source)

    def note_use(self, file: RemoteFile) -> None:
        """Somebody read an object without asking here."""
        self._tier.index.use(file.key, file.origin.id)

    def present_bytes(self, file: RemoteFile) -> int:
        """How much of an object is in the node tier, in bytes."""
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        return 0 if obj is None else obj.present_bytes()

    def complete(self, file: RemoteFile) -> CachedObject | None:
        """The object if every byte of it is here and checked, and this dataset is known to be entitled to it."""
        if not file.origin.entitlement.proven:
            return None
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is None or not obj.complete or self._tier.is_cut_off(obj) or self._is_unproven(file, obj):
            return None
        return obj

    def _is_unproven(self, file: RemoteFile, obj: CachedObject) -> bool:
        """Whether an object was not compared yet with what its source says it is; then that begins now."""
        if file.key not in self._tier.unproven:
            return False
        self._flights.checks.once_complete(file, obj)
        return True

    async def check_all(self, file: RemoteFile) -> None:
        """Check what was written under another boot, so that the object can become complete. Waits for the disk."""
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if isinstance(obj, BlockMap):
            await check(self._tier, obj, obj.unchecked())
        if obj is not None and obj.complete:
            await self._prove(file, ByteRange(0, file.size_bytes))
