"""The seam between dsfs and wherever bytes live: what a source promises, and where it writes what it reads."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, runtime_checkable

from dsfs.errors import SourceError, SourceMissing, SourceRefused, SourceTimeout
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange
from dsfs.sources.retry import one_of_many

Buffer = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where a source writes one range of one object. Checks that offsets are contiguous and lengths fit."""

    async def write(self, offset: int, data: Buffer) -> None:
        """Take the bytes at this offset of the object. ``data`` may be kept: the source must not change it later.

        Offsets start at the start of the wanted range and go on without gaps; what is outside of it is an error of
        the source and raises SourceUnavailable.
        """


class Source(Protocol):
    """A place that can list objects and read byte ranges of them.

    Runs on asyncio. Every method may be cancelled at any await and leaves nothing behind. Failures are the
    ``SourceError`` family, raised with the library's exception as their cause, and their text names the URL without
    any secret. A source sets its own connect and idle timeouts, so that no call hangs for ever; it retries
    nothing but one page of a long listing (``sources.retry``).
    """

    identity: str
    """What cached bytes are addressed by: the same for two datasets of one origin, else different. No secrets."""

    uri: str
    """For people: where a dataset comes from, without secrets."""

    @property
    def revision(self) -> str:
        """What is listed, where the source has a name for it (a commit), known once something was listed; else ""."""

    def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """The names directly in a directory ("" is the root). The last page has the directory in ``complete``.

        Raises SourceMissing when there is no such directory. For a root that exists but is empty, one empty page.
        """

    def list_tree(self) -> AsyncIterator[ListingPage]:
        """Every name of the dataset, directories included; each directory is in ``complete`` of some page.

        A source without a cheaper way uses ``walk(self.list_directory)``.
        """

    async def stat(self, path: str) -> SourceObject | None:
        """One name, or None when it is certain that there is none. A name that is file and prefix is the directory."""

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """Write exactly ``wanted`` (not empty, inside the object) of the version ``obj.version_tag`` to the sink.

        ``sink.write`` publishes: it is called only with bytes whose version is proven already (a response whose
        headers carry the ETag, a piece of a local file after another fstat). Raises SourceChanged when the origin has
        another version, or for certain no such object any more. What was written before an error stays valid.
        """

    async def close(self) -> None:
        """Give back connections. Called once, when no other call is under way."""


@runtime_checkable
class NamesRevisions(Protocol):
    """A source that has names of its own for what it lists, and looks up once which one that is."""

    def go_on_at(self, revision: str) -> None:
        """List and read this revision, wherever its branch is by now. Called before anything is asked of the source."""


def go_on_at(source: Source, revision: str) -> None:
    """As ``NamesRevisions.go_on_at``, of a source that may be none."""
    if isinstance(source, NamesRevisions):
        source.go_on_at(revision)


@runtime_checkable
class LooksUpRevisions(Protocol):
    """A source that may be given a name that costs a long search: too long for somebody who reads."""

    def read_at(self, revision: str) -> None:
        """What is read was listed as this revision, before this source was made. What is listed next need not be."""


def read_at(source: Source, revision: str) -> None:
    """As ``LooksUpRevisions.read_at``, of a source that may be none."""
    if isinstance(source, LooksUpRevisions):
        source.read_at(revision)


@asynccontextmanager
async def closing(pages: AsyncIterator[ListingPage]) -> AsyncIterator[AsyncIterator[ListingPage]]:
    """Have a listing ended by whoever leaves it: after a cancel it may still have requests under way."""
    try:
        yield pages
    finally:
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


_OF_THIS_NODE = re.compile(r"(^|\bof )(directory:|fsspec:(.*::)?(fsspec\+)?(file|local|memory):)")


def is_of_this_node(identity: str) -> bool:
    """Whether a source's identity may name something else on another node: a local directory, mounted or not."""
    return _OF_THIS_NODE.search(identity) is not None


async def walk(
    list_directory: Callable[[str], AsyncIterator[ListingPage]], root: str = ""
) -> AsyncIterator[ListingPage]:
    """A whole tree from a source that lists one directory at a time.

    A directory that is not there, as it went meanwhile or is a dead link of an index, is shown empty; one that is
    refused is told as such. One that fails before it has given anything is asked for again. But not the root: whoever
    waits for that tries again, or is told.
    """
    waiting = [root]
    while waiting:
        begin = partial(_begin, list_directory, directory := waiting.pop())
        try:
            pages, page = await begin() if directory == root else await one_of_many(begin, _is_quick)
            async with closing(pages):
                while page is not None:
                    waiting.extend(
                        obj.path for obj in page.objects if obj.kind is Kind.DIRECTORY and path_parts(obj.path)
                    )
                    yield page
                    page = await anext(pages, None)
        except SourceMissing:
            if directory == root:
                raise
            yield ListingPage((), (directory,))
        except SourceRefused as error:
            if directory == root:
                raise
            yield ListingPage((), (), ((directory, str(error)),))


def _is_quick(error: SourceError, _delay_s: float) -> bool:
    """Whether a failure has not taken its time already."""
    return not isinstance(error, SourceTimeout)


async def _begin(
    list_directory: Callable[[str], AsyncIterator[ListingPage]], directory: str
) -> tuple[AsyncIterator[ListingPage], ListingPage | None]:
    """A listing, and its first page."""
    pages = list_directory(directory)
    try:
        return pages, await anext(pages, None)
    except BaseException:
        async with closing(pages):
            raise
