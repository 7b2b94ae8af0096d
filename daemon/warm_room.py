"""Whether what is to be warmed could be here at all: told with the numbers, before a byte of it is fetched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import trio

from dsfs.cache.node import NodeTier
from dsfs.cache.space import whole_space
from dsfs.datasets.selection import CATALOG, Found, Totals
from dsfs.errors import CacheFull
from dsfs.fetch.origin import Origin
from dsfs.manifest.sizes import size_text


async def check_room(tier: NodeTier, totals: Totals, found: Callable[[], Found], origin: Origin) -> None:
    """Refuse what would push itself out again: all of a selection must fit, beside what cannot be evicted.

    ``found`` gives what ``totals`` was measured of. Raises CacheFull with the numbers.
    """
    need, quota = totals.space_bytes, origin.quota_bytes
    statistics = tier.statistics()
    limit, room, pinned = statistics.limit_bytes, tier.room_bytes, tier.index.pinned_whole_bytes
    crowded = limit < statistics.size_bytes >= need
    raise_it = "make room on its disk, or --min-free less" if crowded else "raise --cache-size"
    what = f"{size_text(need)} in {totals.files} files do not fit"
    if need > room:
        own = f", {size_text(limit - room)} of which it needs itself" if need <= limit else ""
        raise CacheFull(f"{what} into a cache of {size_text(limit)}{own} (name less of it, or {raise_it})")
    if quota is not None and need > quota:
        raise CacheFull(f"{what} into its quota of {size_text(quota)} (name less of it, or raise spec.cache.quota)")
    try:
        if quota is not None:
            others = await trio.to_thread.run_sync(_other_bytes, tier, found(), origin, limiter=CATALOG)
            if others + need > quota:
                raise CacheFull(
                    f"{what} into its quota of {size_text(quota)}, of which others of its files have "
                    f"{size_text(others)} (dsfs evict them, name less of it, or raise spec.cache.quota)"
                )
        if pinned:
            more = await trio.to_thread.run_sync(_unpinned_space, tier, found(), origin, limiter=CATALOG)
            if more and more > room - pinned:
                raise CacheFull(
                    f"{what} beside what is pinned: that takes {size_text(pinned)} of {size_text(room)} that the "
                    f"cache has for files (name less of it, dsfs unpin something, or {raise_it})"
                )
    except OSError as error:
        raise CacheFull(f"the cache's index cannot be read: {error.strerror or error}") from error


def _other_bytes(tier: NodeTier, found: Found, origin: Origin) -> int:
    """What the quota counts of a dataset's files beside these."""
    with contextlib.suppress(OSError):  # then it goes by what was written before
        tier.index.flush(time.time())
    held_bytes = tier.index.held_bytes(origin.id, (origin.key_of(path, row.tag) for path, row in found))
    return tier.index.owner_bytes(origin.id) - held_bytes


def _unpinned_space(tier: NodeTier, found: Found, origin: Origin) -> int:
    """What more would be pinned if these were too."""
    spaces = ((origin.key_of(path, row.tag), whole_space(row.size or 0, tier.block_bytes)) for path, row in found)
    return tier.index.unpinned_space(spaces)
