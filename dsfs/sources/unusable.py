"""A source that could not be built: its dataset is shown, FAILED, with the reason."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dsfs.errors import SourceUnsupported
from dsfs.model import ListingPage, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink


class UnusableSource:
    """Answers everything with the reason why it cannot be used."""

    revision = ""

    def __init__(self, uri: str, reason: str) -> None:
        self.uri = uri
        self.identity = f"unusable:{uri}"
        self.reason = reason

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        raise SourceUnsupported(self.reason)
        yield ListingPage(())  # makes this an asynchronous generator

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        raise SourceUnsupported(self.reason)
        yield ListingPage(())  # makes this an asynchronous generator

    async def stat(self, path: str) -> SourceObject | None:
        raise SourceUnsupported(self.reason)

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        raise SourceUnsupported(self.reason)

    async def close(self) -> None:
        return
