"""Room in the node tier for what is fetched, and where it goes there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from dsfs.cache.allowance import SetAside
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier
from dsfs.cache.space import map_space, space_of
from dsfs.errors import CacheFull
from dsfs.fetch.disk import DISK
from dsfs.fetch.flight import Flight
from dsfs.fetch.origin import Origin, RemoteFile

_REMEMBERED_S = 5.0  # that there was no room: the next flight finds out again


class Room:
    """File side only."""

    def __init__(self, tier: NodeTier, expect: Callable[[RemoteFile], None]) -> None:
        self._tier = tier
        self._expect = expect

    @asynccontextmanager
    async def held(self, flight: Flight) -> AsyncIterator[SetAside | None]:
        """As ``held_for``, for what a flight brings; and whether that is kept is remembered of its origin."""
        origin = flight.file.origin
        async with self.held_for(flight.file, flight.wanted.length) as room:
            self._note(origin, room)
            try:
                yield room
            finally:
                self._note(origin, room)

    @asynccontextmanager
    async def held_for(self, file: RemoteFile, size_bytes: int) -> AsyncIterator[SetAside | None]:
        """Room in the node tier for so much of a file, as long as the context lasts; None: what comes is served without
        being kept."""
        space = space_of(size_bytes) + map_space(file.size_bytes, self._tier.block_bytes)
        if not await self._reserve(file.origin, file.key, space):
            yield None
            return
        room = SetAside(space, self._tier.release)
        try:
            yield room
        finally:
            room.give_back()

    def _note(self, origin: Origin, room: SetAside | None) -> None:
        if room is None or self._tier.in_trouble:
            origin.unkept_until_s = trio.current_time() + _REMEMBERED_S

    async def _reserve(self, origin: Origin, key: str, space: int) -> bool:
        if self._beyond_quota(origin, space):
            return False
        if self._tier.reserve(space):
            return True
        try:
            await trio.to_thread.run_sync(self._tier.make_room, space, key, limiter=DISK)
        except (CacheFull, OSError):
            return False
        return True

    def try_reserve(self, origin: Origin, space: int) -> bool:
        """Set so much space aside, where that takes no eviction; False: ``held`` may."""
        return not self._beyond_quota(origin, space) and self._tier.reserve(space)

    def _beyond_quota(self, origin: Origin, space: int) -> bool:
        """A dataset beyond its quota keeps what it has. Read in a new order each epoch, a part that stays is hit
        quota/size of the time, where one that turns over is hit hardly ever."""
        quota = origin.quota_bytes
        return quota is not None and self._tier.index.owner_bytes(origin.id) + space > quota

    def target(self, file: RemoteFile) -> BlockMap | None:
        """Where the blocks of a large object are stored; None: nowhere, the disk refuses."""
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is None:
            try:
                self._expect(file)
                obj = self._tier.create(file.key, file.size_bytes)
            except OSError as error:
                self._tier.note_trouble(error)
        return obj if isinstance(obj, BlockMap) else None
