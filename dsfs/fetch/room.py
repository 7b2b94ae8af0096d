"""Room in the node tier for what is fetched, and where it goes there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

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
        self._lock = threading.Lock()  # guards _set_aside
        self._set_aside: Counter[str] = Counter()
        """Bytes of each dataset."""

    @asynccontextmanager
    async def held(self, flight: Flight) -> AsyncIterator[SetAside | None]:
        """As ``held_for``, for what a flight brings; and whether that is kept is remembered of its origin."""
        origin = flight.file.origin
        counts = flight.is_whole or not origin.is_rangeless  # else a stream sets the same aside
        async with self.held_for(flight.file, flight.wanted.length, counts=counts) as room:
            self._note(origin, room)
            try:
                yield room
            finally:
                self._note(origin, room)

    @asynccontextmanager
    async def held_for(
        self, file: RemoteFile, size_bytes: int, *, counts: bool = True
    ) -> AsyncIterator[SetAside | None]:
        """Room in the node tier for so much of a file, as long as the context lasts; None: what comes is served without
        being kept. ``counts``: for the quota of its dataset too, before it is stored."""
        space = space_of(size_bytes)
        if not self._tier.knows(file.key):
            space += map_space(file.size_bytes, self._tier.block_bytes)
        room = await self._reserve(file.origin, file.key, space, counts)
        try:
            yield room
        finally:
            if room is not None:
                room.give_back()

    def _note(self, origin: Origin, room: SetAside | None) -> None:
        if room is None or self._tier.in_trouble:
            origin.unkept_until_s = trio.current_time() + _REMEMBERED_S

    async def _reserve(self, origin: Origin, key: str, space: int, counts: bool) -> SetAside | None:
        room = self.try_reserve(origin, space, counts=counts)
        if room is not None or self._beyond_quota(origin, space, counts):
            return room
        room = self._of(origin, space, counts)  # before it waits, as others of its dataset come meanwhile
        made = False
        try:
            await trio.to_thread.run_sync(self._tier.make_room, space, key, limiter=DISK)
            made = True
        except (CacheFull, OSError):
            return None
        finally:
            if not made and counts:
                self._counted(origin.id, -space)
        return room

    def try_reserve(self, origin: Origin, space: int, *, counts: bool = True) -> SetAside | None:
        """Set so much space aside, where that takes no eviction; None: ``held`` may."""
        if self._beyond_quota(origin, space, counts) or not self._tier.reserve(space):
            return None
        return self._of(origin, space, counts)

    def _of(self, origin: Origin, space: int, counts: bool) -> SetAside:
        if not counts:
            return SetAside(space, self._tier.release)

        def release(size_bytes: int) -> None:
            self._counted(origin.id, -size_bytes)
            self._tier.release(size_bytes)

        self._counted(origin.id, space)
        return SetAside(space, release)

    def _counted(self, dataset: str, space: int) -> None:
        with self._lock:
            self._set_aside[dataset] += space
            if not self._set_aside[dataset]:
                del self._set_aside[dataset]

    def _beyond_quota(self, origin: Origin, space: int, counts: bool) -> bool:
        """A dataset beyond its quota keeps what it has. Read in a new order each epoch, a part that stays is hit
        quota/size of the time, where one that turns over is hit hardly ever."""
        quota = origin.quota_bytes
        if quota is None:
            return False
        if counts:
            space += self._set_aside[origin.id]
        return self._tier.index.owner_bytes(origin.id) + space > quota

    def target(self, file: RemoteFile) -> BlockMap | None:
        """Where the blocks of a large object are stored; None: nowhere, the disk refuses."""
        obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
        if obj is None:
            try:
                obj = self._tier.create(file.key, file.size_bytes, partial(self._expect, file))
            except OSError as error:
                self._tier.note_trouble(error)
        return obj if isinstance(obj, BlockMap) else None
