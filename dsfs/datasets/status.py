"""What there is to say of a dataset, in numbers."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass

import trio

from dsfs.catalog.lookup import Catalog
from dsfs.errors import CatalogError
from dsfs.model import Phase

_COUNTING = trio.CapacityLimiter(2)  # of their own: who asks for a df must not wait for scans


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """A snapshot for people and metrics; sizes in bytes."""

    revision: str
    phase: Phase
    message: str
    files: int
    bytes: int
    skipped: int
    refusal: str = ""
    """What the source does not let be looked at, in a sentence."""


async def status_of(catalog: Catalog, phase: Phase, message: str) -> DatasetStatus:
    """Of a revision that is shown. One that cannot be read is told as such: so are all others then."""
    try:
        refusal = catalog.refusal
        if catalog.sealed:
            files, size, skipped = catalog.totals()
        else:
            files, size, skipped = await trio.to_thread.run_sync(_totals_of, catalog.file, limiter=_COUNTING)
    except (CatalogError, sqlite3.Error) as error:
        return DatasetStatus(catalog.revision, Phase.FAILED, f"its catalog cannot be read: {error}", 0, 0, 0)
    return DatasetStatus(catalog.revision, phase, message, files, size, skipped, refusal)


def _totals_of(file: str) -> tuple[int, int, int]:
    """As ``Catalog.totals``, over a connection of its own: counting must not hold up look-ups."""
    with closing(Catalog(file)) as catalog:
        return catalog.totals()
