"""Sources that show another one's paths differently: nothing else of what it says is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink, Source
from dsfs.sources.prefixed import PrefixedSource
from dsfs.sources.reference import ReferenceSource


class Refusing:
    """One directory in another one, which may not be listed."""

    identity = uri = "refusing"
    revision = ""

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        yield ListingPage((SourceObject("a/b", Kind.DIRECTORY),), (directory,), (("a/b", "not for you"),))

    def list_tree(self) -> AsyncIterator[ListingPage]:
        return self.list_directory("")

    async def stat(self, path: str) -> SourceObject | None:
        return SourceObject(path, Kind.DIRECTORY)

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        raise AssertionError("nothing is read here")

    async def close(self) -> None:
        return


@pytest.mark.parametrize(
    ("source", "directory", "there"),
    [
        (ReferenceSource(Refusing(), "dataset://x/y/a", "a"), "", "b"),
        (ReferenceSource(Refusing(), "dataset://x/y", ""), "a", "a/b"),
        (PrefixedSource(Refusing(), "p"), "p/a", "p/a/b"),
    ],
    ids=["a directory of another dataset", "another dataset", "below a directory"],
)
def test_what_is_refused_is_told_by_its_path_here(source: Source, directory: str, there: str) -> None:
    async def pages() -> list[ListingPage]:
        return [page async for page in source.list_directory(directory)]

    (page,) = asyncio.run(pages())
    assert page == ListingPage((SourceObject(there, Kind.DIRECTORY),), (directory,), ((there, "not for you"),))
