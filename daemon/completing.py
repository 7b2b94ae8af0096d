"""The rest of a directory of small files, brought in behind readers that take them in no order."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from weakref import WeakKeyDictionary

import structlog
import trio

from daemon.warming import Warming
from dsfs.cache.node import NodeTier
from dsfs.cache.space import whole_space
from dsfs.catalog.lookup import Catalog
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG, Totals, small_below
from dsfs.errors import CatalogError
from dsfs.fetch.flight import SMALL_BLOCKS
from dsfs.prefetch.completion import Samples, fits

log = structlog.get_logger()


class Completing:
    """File side only. Of each dataset one directory at a time."""

    def __init__(self, warming: Warming, tier: NodeTier, nursery: trio.Nursery) -> None:
        self._warming = warming
        self._tier = tier
        self._nursery = nursery
        self._largest = SMALL_BLOCKS * tier.block_bytes
        self._besides = whole_space(self._largest + 1, tier.block_bytes) - self._largest
        """Of a small file on disk, beside its bytes, at most."""
        self._looks: WeakKeyDictionary[Dataset, trio.Lock] = WeakKeyDictionary()
        self._turns: WeakKeyDictionary[Dataset, trio.Lock] = WeakKeyDictionary()

    def look(self, dataset: Dataset, directories: Sequence[int], samples: Samples) -> None:
        """Many files below each of these were read, the nearest first: bring the rest where that is worth it."""
        self._nursery.start_soon(self._look, dataset, directories, samples)

    async def _look(self, dataset: Dataset, directories: Sequence[int], samples: Samples) -> None:
        catalog = dataset.catalog
        wanted = []
        async with self._looks.setdefault(dataset, trio.Lock()):  # in order: a directory before those above it
            for directory in directories:
                try:
                    count = partial(_count, catalog.file, directory, self._largest)
                    files, size_bytes, above = await trio.to_thread.run_sync(count, limiter=CATALOG)
                except (CatalogError, sqlite3.Error) as error:  # it is only a guess that is missed
                    log.warning("small files cannot be counted", dataset=dataset.manifest.id, reason=str(error))
                    return
                if samples.measured(directory, files) and fits(size_bytes, self._room_bytes(dataset)):
                    samples.brought(directory, files, above)
                    wanted.append((directory, Totals(files, size_bytes, size_bytes + files * self._besides)))
        async with self._turns.setdefault(dataset, trio.Lock()):
            for directory, totals in wanted:
                if dataset.catalog is catalog:
                    found = partial(small_below, catalog.file, directory, self._largest)
                    await self._warming.complete(dataset, catalog, totals, found)

    def _room_bytes(self, dataset: Dataset) -> int:
        limit = self._tier.statistics().limit_bytes
        quota = dataset.origin.quota_bytes
        return limit if quota is None else min(limit, 2 * quota)  # all of its quota is its own


def _count(catalog_file: str, directory: int, largest: int) -> tuple[int, int, list[int]]:
    """Small files below a directory, their bytes, and the directories above it."""
    with closing(Catalog(catalog_file)) as catalog:
        return *catalog.count_small_below(directory, largest), catalog.directories_above(directory)
