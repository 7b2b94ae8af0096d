"""Whose what lies in the node tier is, counted anew when datasets show something else. In threads, as it takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import trio

from dsfs.cache.marks import Marks
from dsfs.cache.node import NodeTier
from dsfs.fetch.disk import DISK

_RECOUNT = trio.CapacityLimiter(1)  # takes minutes for a million files, and nobody waits for it


class Owners:
    """File side only."""

    def __init__(self, tier: NodeTier) -> None:
        self._tier = tier

    async def count_for(self, owner: str, other: str) -> None:
        """What a dataset has in the node tier is another's too from now on: a clone has the bytes of its original."""
        await self._count(partial(self._tier.index.share, owner, other), DISK)

    async def count_only(self, owner: str, shown: Callable[[], Marks]) -> None:
        """All but what a dataset shows is not its own in the node tier. ``shown`` is called in a thread, if there is
        anything to look for."""
        if self._tier.index.owner_bytes(owner):
            await self._count(lambda: self._tier.index.disown_others(owner, shown()), _RECOUNT)

    async def count_no_more(self, owner: str, keys: Callable[[], Iterable[str]]) -> None:
        """What a dataset does not show any more is not its own in the node tier. ``keys`` is called in a thread."""

        def until_cancelled() -> Iterator[str]:
            for key in keys():
                trio.from_thread.check_cancelled()
                yield key

        await self._count(lambda: self._tier.index.disown(owner, until_cancelled()), _RECOUNT)

    async def _count(self, work: Callable[[], None], limiter: trio.CapacityLimiter) -> None:
        """In a thread. A disk that refuses is trouble of the cache, and of nobody who asks."""
        try:
            await trio.to_thread.run_sync(work, limiter=limiter)
        except OSError as error:
            self._tier.note_trouble(error)
