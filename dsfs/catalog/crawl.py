"""Source → rows: the whole tree in the background, one directory or one name when somebody looks. Runs on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog

from dsfs.catalog.lookup import join
from dsfs.catalog.writer import CatalogWriter
from dsfs.errors import (
    DsfsError,
    SourceDeclined,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
    first_of,
)
from dsfs.model import ListingPage, SourceObject
from dsfs.sources.base import Source, closing, walk
from dsfs.sources.retry import one_of_many

log = structlog.get_logger()

_STATS_IN_FLIGHT = 32
_TOGETHER = 128  # names; then it is looked where somebody wants more
_ODD_TRIED_AGAIN = 8  # of all: where more are declined, trying each again would take hours, and they are so for good
_DECLINED_AT_FIRST = 1000  # names, while no other has a size: then it is not the names, and the rest would take hours
_OF_ONE_NAME = (SourceRefused, SourceUnsupported, SourceDeclined)
"""What a source that is there may say of a name, and give all others."""


async def at_once() -> None:
    """Gives way to nobody."""


async def crawl(
    source: Source,
    writer: CatalogWriter,
    answered: Callable[[], None],
    give_way: Callable[[], Awaitable[None]] = at_once,
) -> None:
    """List everything and seal. Raises SourceError when the source fails; what was listed stays, so call again.

    Single names that the source refuses, or of which it does not say what it takes to read them, are sealed as such.

    ``answered`` is called when the first page is in the catalog. ``give_way`` is waited for before some names are asked
    for one by one that nobody has looked at.
    """
    ahead: asyncio.Task[None] | None = None
    await asyncio.to_thread(writer.begin)
    try:
        async with closing(source.list_tree()) as pages:
            async for page in pages:
                await asyncio.to_thread(writer.add, page)
                if source.revision:
                    await asyncio.to_thread(writer.name_revision, source.revision)
                answered()
                if writer.wanted and (ahead is None or ahead.done()):
                    ahead = asyncio.create_task(_resolve_wanted(source, writer))
        if ahead is not None:
            await ahead
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
    after = await _resolve_all(source, writer, give_way, 0)
    while found := await asyncio.to_thread(writer.found_directories):
        for directory in found:
            await _list_found(source, writer, directory)
        after = await _resolve_all(source, writer, give_way, after)
    await _check_refused(source, writer)
    await asyncio.to_thread(writer.seal)


async def _check_refused(source: Source, writer: CatalogWriter) -> None:
    """Raises what was said of the first of them where it is not single names that are refused: the credentials are."""
    if (error := writer.refusal()) is not None:
        async with closing(source.list_tree()) as pages:  # not the root's names, which may be of dsfs's own making
            await anext(pages, None)
        if not await asyncio.to_thread(writer.refuses_single_names):
            raise error


async def _list_found(source: Source, writer: CatalogWriter, directory: str) -> None:
    """A directory that only a look at its name has shown to be one: no listing named it as such."""
    async with closing(walk(source.list_directory, directory)) as pages:
        try:
            async for page in pages:
                await asyncio.to_thread(writer.add, page)
        except SourceMissing:
            pass  # it is gone again
        except SourceRefused as error:
            writer.refuse(directory, str(error))
            return
    await asyncio.to_thread(writer.add, ListingPage((), (directory,)))


async def _resolve_wanted(source: Source, writer: CatalogWriter) -> None:
    """Beside the listing: only what somebody looks at, as names come first."""
    while paths := await asyncio.to_thread(_wanted_paths, writer):
        with contextlib.suppress(SourceError):  # whoever looks at the name is told
            await resolve(source, writer, paths)


async def _resolve_all(
    source: Source, writer: CatalogWriter, give_way: Callable[[], Awaitable[None]], after: int
) -> int:
    """All that is left of names with numbers above one, where somebody looks first; the number of the last of them.

    A name that its server refuses, or that is wrong in itself, does not keep the others; raises the first that is
    wrong and not to be sealed so.
    """
    failure: SourceError | None = None
    alive = some_known = False
    while True:
        if not some_known and writer.refusals.declined >= _DECLINED_AT_FIRST:
            some_known = await _is_any_known(source, writer)
        if writer.refusals.are_many or (not some_known and writer.refusals.declined >= _DECLINED_AT_FIRST):
            raise writer.refusal() or SourceError(f"{source.uri}: very many names are refused")
        paths = await asyncio.to_thread(_wanted_paths, writer)
        if not paths:
            await give_way()
            paths = await asyncio.to_thread(_wanted_paths, writer)
        if not paths:
            after, paths = await asyncio.to_thread(_next_paths, writer, after)
        if not paths:
            break
        try:
            await resolve(source, writer, paths, alive=alive)
            alive = True
        except _OF_ONE_NAME:
            alive = True  # and the writer knows
        except SourceUnavailable:
            raise
        except SourceError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return after


async def _is_any_known(source: Source, writer: CatalogWriter) -> bool:
    """Whether any name has a size. The last ones are looked at before it is said that none has: they may be of another
    directory than those that came first."""
    if not await asyncio.to_thread(writer.refuses_single_names):
        rows = await asyncio.to_thread(writer.unresolved, 0, _STATS_IN_FLIGHT, "DESC")
        with contextlib.suppress(*_OF_ONE_NAME):  # the writer knows
            await resolve(source, writer, _paths(writer, [row[1:] for row in rows]), alive=True)
    return await asyncio.to_thread(writer.refuses_single_names)


async def list_directory(source: Source, writer: CatalogWriter, directory: str, progressed: Callable[[], None]) -> None:
    """List one directory now. Readers see its names when it is whole; ``progressed`` is called after each page.

    The crawl beside this may be faster in a large one, as it asks for several pages at once: then that will do.
    """
    async with closing(source.list_directory(directory)) as pages:
        async for page in pages:
            await asyncio.to_thread(partial(writer.add, page, of_all=False))
            progressed()
            if await asyncio.to_thread(writer.is_listed, directory):
                return


async def find(source: Source, writer: CatalogWriter, path: str) -> SourceObject | None:
    """Ask for one name in a directory that is not listed yet; None when it is certain that there is none."""
    obj = await source.stat(path)
    if obj is not None:
        await asyncio.to_thread(writer.add_found, {path: obj})
    return obj


async def resolve(source: Source, writer: CatalogWriter, paths: Sequence[str], *, alive: bool = False) -> None:
    """Learn sizes and version tags of names that a listing gave without them; names that are dead links go.

    ``alive``: the source has answered just now. One that does not is not asked again for every name.

    Raises SourceUnavailable at once; what is wrong with one name alone when all of them were asked for, and what the
    writer was told of where that is all that is.
    """
    gate = asyncio.Semaphore(_STATS_IN_FLIGHT)
    found: dict[str, SourceObject | None] = {}
    writing = asyncio.Lock()
    wrong: list[SourceError] = []
    unexpected: list[tuple[str, Exception]] = []

    def go_on(error: SourceError, _delay_s: float) -> bool:
        many = isinstance(error, SourceDeclined) and writer.refusals.declined >= _ODD_TRIED_AGAIN
        return alive and not many and not isinstance(error, SourceTimeout)

    async def one(path: str) -> None:
        nonlocal alive
        async with gate:
            try:
                found[path] = await one_of_many(partial(source.stat, path), go_on)
                alive = True
            except SourceMissing:
                found[path] = None
            except _OF_ONE_NAME as error:
                writer.refuse(path, str(error), type(error))
                wrong.append(error)
            except SourceUnavailable:
                raise
            except SourceError as error:
                wrong.append(error)
            except Exception as error:  # of one name: the others are asked for all the same
                unexpected.append((path, error))
        async with writing:  # one transaction for all that have come while the last one was written
            if found:
                some = dict(found)
                found.clear()
                await asyncio.to_thread(writer.add_found, some)

    try:
        async with asyncio.TaskGroup() as group:
            for path in paths:
                group.create_task(one(path))
    except ExceptionGroup as failures:
        # Callers know SourceError and CatalogError, and no groups of them.
        raise first_of(failures, DsfsError) or failures.exceptions[0] from failures
    if unexpected:
        path, error = unexpected[0]
        log.error("a name failed unexpectedly", source=source.uri, path=ascii(path), of=len(unexpected), exc_info=error)
        wrong.append(SourceError(f"{source.uri}: {path!r}: {type(error).__name__} in the daemon (see its log)"))
    if wrong:
        raise min(wrong, key=lambda error: isinstance(error, _OF_ONE_NAME))


def _wanted_paths(writer: CatalogWriter) -> list[str]:
    """Names behind the one that somebody asked for last: whoever asks for one asks for more."""
    while (wanted := writer.next_wanted()) is not None:
        parent, name = wanted
        if paths := _paths(writer, writer.unresolved_in(parent, name, _TOGETHER)):
            return paths
    return []


def _next_paths(writer: CatalogWriter, after: int) -> tuple[int, list[str]]:
    """The next of all names, and the number of the last of them."""
    rows = writer.unresolved(after, _TOGETHER)
    if not rows:
        return after, []
    last, _parent, _name = rows[-1]
    return last, _paths(writer, [(parent, name) for _ino, parent, name in rows])


def _paths(writer: CatalogWriter, names: Sequence[tuple[int, bytes]]) -> list[str]:
    return [join(writer.path_of(parent), name) for parent, name in names]
