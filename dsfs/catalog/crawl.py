"""Source → rows: the whole tree in the background, one directory or one name when somebody looks. Runs on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dsfs.catalog.lookup import join
from dsfs.catalog.writer import CatalogWriter
from dsfs.errors import SourceMissing
from dsfs.model import SourceObject
from dsfs.sources.base import Source, closing

_STATS_IN_FLIGHT = 32
_RESOLVE_BATCH = 512


async def crawl(source: Source, writer: CatalogWriter, answered: Callable[[], None]) -> None:
    """List everything and seal. Raises SourceError when the source fails; what was listed stays, so call again.

    ``answered`` is called when the first page is in the catalog.
    """
    async with closing(source.list_tree()) as pages:
        async for page in pages:
            await asyncio.to_thread(writer.add, page)
            if source.revision:
                await asyncio.to_thread(writer.name_revision, source.revision)
            answered()
    while unresolved := await asyncio.to_thread(writer.unresolved, _RESOLVE_BATCH):
        paths = await asyncio.to_thread(_paths, writer, unresolved)
        await resolve(source, writer, paths)
    await asyncio.to_thread(writer.seal)


async def list_directory(source: Source, writer: CatalogWriter, directory: str, progressed: Callable[[], None]) -> None:
    """List one directory now. Readers see its names when it is whole; ``progressed`` is called after each page.

    The crawl beside this may be faster in a large one, as it asks for several pages at once: then that will do.
    """
    async with closing(source.list_directory(directory)) as pages:
        async for page in pages:
            await asyncio.to_thread(writer.add, page)
            progressed()
            if await asyncio.to_thread(writer.is_listed, directory):
                return


async def find(source: Source, writer: CatalogWriter, path: str) -> SourceObject | None:
    """Ask for one name in a directory that is not listed yet; None when it is certain that there is none."""
    obj = await source.stat(path)
    if obj is not None:
        await asyncio.to_thread(writer.add_found, obj)
    return obj


async def resolve(source: Source, writer: CatalogWriter, paths: Sequence[str]) -> None:
    """Learn sizes and version tags of names that a listing gave without them; names that are dead links go."""
    gate = asyncio.Semaphore(_STATS_IN_FLIGHT)

    async def one(path: str) -> None:
        async with gate:
            try:
                obj = await source.stat(path)
            except SourceMissing:
                obj = None
        if obj is None:
            await asyncio.to_thread(writer.forget_unresolved, path)
        else:
            await asyncio.to_thread(writer.add_found, obj)

    try:
        async with asyncio.TaskGroup() as group:
            for path in paths:
                group.create_task(one(path))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures  # callers know SourceError and CatalogError, and no groups of them


def _paths(writer: CatalogWriter, names: Sequence[tuple[int, bytes]]) -> list[str]:
    return [join(writer.path_of(parent), name) for parent, name in names]


def sibling_paths(writer: CatalogWriter, parent: int, directory: str, name: bytes, limit: int) -> list[str]:
    """A name and those behind it in its directory whose size is not known: whoever asks for one asks for more."""
    return [join(directory, sibling) for _parent, sibling in writer.unresolved(limit, parent, name)]
