"""Another source of which no more than the paths are shown differently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink, Source, go_on_at, read_at
from dsfs.sources.digest import Digest, ask_digest, digest_of, may_tell
from dsfs.sources.wire_request import WireRequest, as_wire, at_once_of


class WrappedSource(ABC):
    """Asks another source by the path that a file has there. Each kind lists and finds what it shows."""

    def __init__(self, source: Source, uri: str, identity: str) -> None:
        self.identity = identity
        self.uri = uri
        self._source = source

    @property
    def revision(self) -> str:
        return self._source.revision

    def go_on_at(self, revision: str) -> None:
        go_on_at(self._source, revision)

    def read_at(self, revision: str) -> None:
        read_at(self._source, revision)

    @abstractmethod
    def _inner(self, path: str) -> str:
        """The path there of one here. Raises SourceMissing where the other source has none."""

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        await self._source.read(self._there(obj), wanted, sink)

    def at_once(self) -> int | None:
        return at_once_of(self._source)

    def asking(self, obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        wire = as_wire(self._source)
        return None if wire is None else wire.asking(self._there(obj), wanted)

    def digest_of(self, obj: SourceObject) -> Digest | None:
        return digest_of(self._source, self._there(obj))

    def may_tell(self, obj: SourceObject) -> bool:
        return may_tell(self._source, self._there(obj))

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        return await ask_digest(self._source, self._there(obj))

    async def close(self) -> None:
        await self._source.close()

    def _there(self, obj: SourceObject) -> SourceObject:
        return replace(obj, path=self._inner(obj.path))
