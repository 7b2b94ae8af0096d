"""A source that could not be built: its dataset is shown, FAILED, with the reason."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dsfs.errors import ConfigError, NotShared, SourceUnsupported
from dsfs.model import ListingPage, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink, Source
from dsfs.sources.digest import Digest, digest_of


class UnusableSource:
    """Answers everything with the reason why it cannot be used. What is cached of the source ``before`` keeps its keys,
    and its hashes; nobody gets any of it, as nothing proves that he may."""

    revision = ""

    def __init__(self, uri: str, error: ConfigError | str, before: Source | None = None) -> None:
        self.uri = uri
        self.identity = f"unusable:{uri}" if before is None else before.identity
        self.reason = str(error)
        self.is_taken_away = isinstance(error, NotShared)
        self._before: Source | None = before._before if isinstance(before, UnusableSource) else before

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

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``."""
        return None if self._before is None else digest_of(self._before, obj)

    def may_tell(self, obj: SourceObject) -> bool:
        """See ``AskedDigestSource``: that there is none is not known."""
        return True

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        """See ``AskedDigestSource``."""
        raise SourceUnsupported(self.reason)

    async def close(self) -> None:
        return
