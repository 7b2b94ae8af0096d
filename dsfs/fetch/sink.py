"""Where one flight's bytes land: cut into blocks, shown to those who wait, written to the node tier."""

from __future__ import annotations

from collections.abc import Callable

from dsfs.bridge import Bridge
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier
from dsfs.errors import SourceUnavailable
from dsfs.fetch.origin import RemoteFile
from dsfs.ranges import ByteRange, block_range
from dsfs.sources.base import Buffer


class FlightSink:
    """Takes one range, contiguous from its start, on the network side.

    ``target`` is the partial object that blocks are published into; None for an object that is stored whole once all
    of it is here (``store_whole``), or not at all. ``position`` is how far the source came, so a retry can go on there.
    """

    def __init__(
        self,
        bridge: Bridge,
        tier: NodeTier,
        file: RemoteFile,
        wanted: ByteRange,
        target: BlockMap | None,
        landed: Callable[[int, memoryview], None],
    ) -> None:
        self.position = wanted.start
        self.keep = True
        self._bridge = bridge
        self._tier = tier
        self._file = file
        self._wanted = wanted
        self._target = target
        self._landed = landed
        self._block_bytes = tier.block_bytes
        self._partial = bytearray()

    async def write(self, offset: int, data: Buffer) -> None:
        """See ``sources.base.Sink``."""
        if offset != self.position or offset + len(data) > self._wanted.stop:
            raise SourceUnavailable(
                f"{self._file.origin.source.uri}: the source wrote bytes {offset}-{offset + len(data)} where "
                f"{self.position}-{self._wanted.stop} were due"
            )
        view = memoryview(data).toreadonly()
        while view:
            block = self.position // self._block_bytes
            place = block_range(block, self._file.size_bytes, self._block_bytes)
            count = min(place.stop - self.position, len(view))
            if not self._partial and count == place.length:
                await self._land(block, view[:count])
            else:
                self._partial += view[:count]
                if self.position + count == place.stop:
                    whole, self._partial = self._partial, bytearray()
                    await self._land(block, memoryview(whole).toreadonly())
            self.position += count
            view = view[count:]

    async def _land(self, block: int, data: memoryview) -> None:
        self._bridge.soon(self._landed, block, data)  # who waits need not wait for the disk
        if self._target is not None and self.keep:
            try:
                await self._bridge.to_disk(self._tier.publish, self._target, block, data, self._file.origin.id)
            except OSError as error:
                self.keep = False
                self._bridge.soon(self._tier.note_trouble, error)

    async def store_whole(self, data: Buffer) -> None:
        """Keep a small object that was fetched as a whole."""
        try:
            await self._bridge.to_disk(
                self._tier.put_whole, self._file.key, self._file.size_bytes, data, self._file.origin.id
            )
        except OSError as error:
            self._bridge.soon(self._tier.note_trouble, error)
