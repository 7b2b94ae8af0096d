"""How a flight gets its blocks through the shared tier: from there, or from the origin and into it for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio

from dsfs.cache.allowance import SetAside
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier
from dsfs.cache.shared_file import GROUP_BLOCKS, Group, group_blocks
from dsfs.fetch.content import ContentChecks
from dsfs.fetch.disk import DISK
from dsfs.fetch.flight import Flight
from dsfs.fetch.from_origin import FromOrigin
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.room import Room
from dsfs.fetch.shared import Busy, SharedTier
from dsfs.model import Tier
from dsfs.ranges import block_count

_SHARE_OF_WAITING = 0.5  # of the time that a fetch has, what it may spend waiting for other nodes


class FromShared:
    """File side only. What nodes share is a block group, so a flight through here is one."""

    def __init__(
        self,
        shared: SharedTier,
        tier: NodeTier,
        room: Room,
        checks: ContentChecks,
        from_origin: FromOrigin,
        deadline_s: float,
    ) -> None:
        self._shared = shared
        self._tier = tier
        self._room = room
        self._checks = checks
        self._from_origin = from_origin
        self._deadline_s = deadline_s
        checks.on_doubt = self._forget

    def takes(self, file: RemoteFile) -> bool:
        """Whether a file goes through the shared tier now. One that was not what it should be comes from the origin
        until it is."""
        return self._shared.usable and bool(file.origin.shared_area) and not self._is_doubted(file)

    def _is_doubted(self, file: RemoteFile) -> bool:
        return file.key in self._checks.doubted

    async def _forget(self, file: RemoteFile) -> None:
        """What was shared of a file before all of it was seen to be wrong is not to reach other nodes, nor us again."""
        if file.origin.shared_area:
            block_bytes = self._tier.block_bytes
            numbers = range(-(-block_count(file.size_bytes, block_bytes) // GROUP_BLOCKS))
            groups = (Group(file.key, number, file.size_bytes, block_bytes) for number in numbers)
            await self._shared.forget(file.origin.shared_area, groups)

    def group(self, file: RemoteFile, blocks: range) -> Group | None:
        """What these blocks are in the shared tier; None: they are no block group, or the file does not go through."""
        number = blocks.start // GROUP_BLOCKS
        if self.takes(file) and blocks == group_blocks(number, file.size_bytes, self._tier.block_bytes):
            return Group(file.key, number, file.size_bytes, self._tier.block_bytes)
        return None

    def first_group(self, file: RemoteFile, groups: int) -> int:
        """With which of so many groups of a file this node begins when nobody waits."""
        return self._shared.first_group(file.key, groups)

    async def bring(self, flight: Flight, group: Group) -> Busy | None:
        """From the shared tier if it is there, else from the origin and into the shared tier; Busy: another node
        brings it just now, and what that has to be waited for without."""
        found = await self._shared.find(flight.file.origin.shared_area, group, bring=flight.patient)
        if isinstance(found, Busy):
            if flight.patient:
                return found
            found = None
        if isinstance(found, list):
            await self._keep_shared(flight, found)
            return None
        flight.bringing = found
        try:
            await self._from_origin.bring(flight)
            if found is not None and not self._is_doubted(flight.file):
                await self._shared.publish(found, [flight.data[block] for block in flight.blocks])
                if self._is_doubted(flight.file):  # since all of it is here, which this was the last of
                    await self._forget(flight.file)
        finally:
            flight.bringing = None
            if found is not None:
                await self._shared.give_up(found)
        return None

    async def wait(self, flight: Flight, busy: Busy) -> None:
        """For another node, until it has brought the group or is not worth the waiting any longer."""
        began_s = trio.current_time()
        deadline_s = began_s + self._deadline_s * _SHARE_OF_WAITING - flight.waited_s
        flight.patient = await self._shared.wait(busy, deadline_s)
        flight.waited_s += trio.current_time() - began_s

    async def _keep_shared(self, flight: Flight, found: Sequence[memoryview]) -> None:
        """Show the blocks that the shared tier had, and put them into the node tier."""
        file, tier = flight.file, self._tier
        flight.tier = Tier.SHARED
        file.origin.count_shared(sum(len(data) for data in found))
        blocks = dict(zip(flight.blocks, found, strict=True))
        async with self._room.held(flight) as room:
            if room is not None and flight.is_whole:  # stored before it is shown, as a passthrough open needs the file
                whole = b"".join(found)
                await self._store(lambda: room.stored(tier.put_whole(file.key, len(whole), whole, file.origin.id)))
            flight.show(blocks)
            target = self._room.target(file) if room is not None and not flight.is_whole else None
            if room is not None and target is not None:
                await self._store(partial(_publish_all, tier, target, blocks, file.origin.id, room))
            if room is None or tier.in_trouble:
                for block, data in blocks.items():
                    self._from_origin.freshly(flight, block, data, keep=False)
            self._checks.once_complete(file, target)

    async def _store(self, work: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(work, limiter=DISK)
            self._tier.note_success()
        except OSError as error:
            self._tier.note_trouble(error)


def _publish_all(
    tier: NodeTier, target: BlockMap, blocks: Mapping[int, memoryview], owner: str, room: SetAside
) -> None:
    for block, data in blocks.items():
        room.stored(tier.publish(target, block, data, owner))
