"""Listing a source whole: the first time while it is looked at, later beside the revision that is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.catalog.crawl import crawl
from dsfs.catalog.diff import (
    Changes,
    ManyChanges,
    adopt_numbers,
    changes,
    keep_below_refused,
    keep_unreadable,
    newly_refused,
)
from dsfs.catalog.lookup import INO_BITS, ROOT_INO, Catalog
from dsfs.catalog.writer import CatalogWriter
from dsfs.datasets.selection import CATALOG
from dsfs.datasets.store import DatasetStore, new_revision, remove_catalog
from dsfs.errors import CatalogError, DsfsError, SourceRefused, SourceUnavailable, SourceUnsupported
from dsfs.fetch.origin import Origin
from dsfs.manifest.schema import Manifest
from dsfs.sources.base import Source

log = structlog.get_logger()

_TOLD_NAMES = 10_000  # more changes than that stay on the disk


def first_catalog(store: DatasetStore, manifest: Manifest, *, lost: bool) -> CatalogWriter:
    """The catalog of the first revision. Raises CatalogError, OSError when the disk refuses, and there is no spare one.

    ``lost``: the kernel knows numbers that a catalog gave which is there no more; none of them is given again.
    """
    try:
        return new_catalog(store.directory_of(manifest), lost=lost)
    except (CatalogError, OSError) as error:
        spare = store.spare_of(manifest)
        if spare is None:
            raise
        log.warning("catalog kept with what runs, as the cache takes none", dataset=manifest.id, reason=str(error))
        return new_catalog(spare, lost=lost)


def new_catalog(directory: str, *, lost: bool = False) -> CatalogWriter:
    """The catalog of a revision that begins now."""
    now_s = time.time()
    name = new_revision(now_s)
    first_ino = _numbers_of(now_s) if lost else ROOT_INO + 1
    return CatalogWriter.create(f"{directory}/{name}.sqlite", name, int(now_s * 1e9), first_ino)


def _numbers_of(now_s: float) -> int:
    """Where the numbers of this second begin, far behind those of any listing: 16,384 for each of half a year, so that
    those of two losses are different, unless so many names were given to both that listing them takes longer."""
    return 1 << (INO_BITS - 1) | int(now_s) % (1 << 24) << (INO_BITS - 26)


async def list_all(
    bridge: Bridge, origin: Origin, source: Source, writer: CatalogWriter, answered: Callable[[], None]
) -> None:
    """Crawl and seal; what a source was not expected to raise counts as its failure. Raises SourceError, CatalogError.

    ``source`` is the one of ``origin``, or the one that is to take its place: all of it counts there as one request.
    ``answered`` is called on the network side, when there is something to look at.
    """
    with origin.counted():
        try:
            await bridge.call(crawl, source, writer, answered, bridge.giving_way())
        except (DsfsError, trio.Cancelled):
            raise
        except Exception as error:
            log.exception("listing failed unexpectedly", dataset=origin.id)
            reason = f"{origin.id}: {type(error).__name__} in the daemon (see its log)"
            raise SourceUnavailable(reason) from error


async def list_beside(
    bridge: Bridge, origin: Origin, source: Source, directory: str, known: Sequence[Catalog]
) -> tuple[str, Changes | ManyChanges]:
    """The catalog of the next revision, sealed, and what it changes in the one that is shown.

    ``known`` are the revisions whose numbers readers may know, the one that is shown first: what is unchanged keeps its
    number, and none is given a second time. Raises DsfsError, also where the source refuses what is shown; then
    nothing of it stays behind.
    """
    shown = known[0]
    writer = await trio.to_thread.run_sync(new_catalog, directory, limiter=CATALOG)
    try:
        await list_all(bridge, origin, source, writer, _nobody_looks)
        first_free = max(catalog.next_ino() for catalog in known)
        await trio.to_thread.run_sync(adopt_numbers, writer.file, shown.file, first_free, limiter=CATALOG)
        await trio.to_thread.run_sync(_keep_refused, writer.file, shown.file, limiter=CATALOG)
        found = await trio.to_thread.run_sync(changes, writer.file, shown.file, _TOLD_NAMES, limiter=CATALOG)
    except BaseException:  # a cancel too: nothing of a round that did not end stays behind
        writer.close()
        remove_catalog(writer.file)
        raise
    return writer.file, found


def _keep_refused(new_file: str, shown_file: str) -> None:
    """What is shown is not taken away by a source that refuses it now, or has trouble with it: a file that cannot be
    read any more stays as it was, and the rest moves on. Raises SourceRefused, SourceUnsupported."""
    with closing(Catalog(new_file)) as catalog:
        if not (catalog.refused or catalog.unreadable):
            return
        if (ino := newly_refused(new_file, shown_file)) is not None:
            if not catalog.is_refused(ino):  # and may be for good: not listed again and again for that
                raise SourceUnsupported(f"{catalog.path_of(ino)} cannot be listed any more; {catalog.refusal}")
            raise SourceRefused(f"{catalog.path_of(ino)} is there no more for these credentials; {catalog.refusal}")
    keep_below_refused(new_file, shown_file)
    keep_unreadable(new_file, shown_file)


def _nobody_looks() -> None:
    return
