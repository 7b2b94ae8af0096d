"""A source below a leading directory: ``mountOptions.path`` of a manifest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from dsfs.errors import SourceMissing
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink, Source, closing, go_on_at
from dsfs.sources.digest import Digest, ask_digest, digest_of, may_tell
from dsfs.sources.wire_request import WireRequest, as_wire, at_once_of


class PrefixedSource:
    """Shows everything of another source under ``prefix`` ("a" or "a/b")."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.identity = f"{source.identity} below {prefix}"  # a path here is another one there
        self.uri = source.uri
        self._source = source
        self._prefix = prefix
        parts = prefix.split("/")
        self._above = ["/".join(parts[:count]) for count in range(len(parts))]  # "", "a", … without the prefix itself

    @property
    def revision(self) -> str:
        return self._source.revision

    def go_on_at(self, revision: str) -> None:
        go_on_at(self._source, revision)

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        if directory in self._above:
            yield self._leading(directory)
            return
        async with closing(self._source.list_directory(self._inner(directory))) as pages:
            async for page in pages:
                yield self._outer(page)

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        async with closing(self._source.list_tree()) as pages:
            async for page in pages:
                yield self._outer(page)
        for directory in self._above:
            yield self._leading(directory)

    async def stat(self, path: str) -> SourceObject | None:
        if path == self._prefix or path in self._above:
            return SourceObject(path, Kind.DIRECTORY)
        if not path.startswith(f"{self._prefix}/"):
            return None
        found = await self._source.stat(self._inner(path))
        return None if found is None else self._shown(found)

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        await self._source.read(replace(obj, path=self._inner(obj.path)), wanted, sink)

    def at_once(self) -> int | None:
        return at_once_of(self._source)

    def asking(self, obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        wire = as_wire(self._source)
        return None if wire is None else wire.asking(replace(obj, path=self._inner(obj.path)), wanted)

    def digest_of(self, obj: SourceObject) -> Digest | None:
        return digest_of(self._source, replace(obj, path=self._inner(obj.path)))

    def may_tell(self, obj: SourceObject) -> bool:
        return may_tell(self._source, replace(obj, path=self._inner(obj.path)))

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        return await ask_digest(self._source, replace(obj, path=self._inner(obj.path)))

    async def close(self) -> None:
        await self._source.close()

    def _leading(self, directory: str) -> ListingPage:
        below = f"{directory}/" if directory else ""
        name = self._prefix[len(below) :].split("/")[0]
        return ListingPage((SourceObject(below + name, Kind.DIRECTORY),), (directory,))

    def _inner(self, path: str) -> str:
        if path == self._prefix:
            return ""
        if not path.startswith(f"{self._prefix}/"):
            raise SourceMissing(f"{self.uri}: nothing is at {path!r}, all of it is under {self._prefix!r}")
        return path[len(self._prefix) + 1 :]

    def _shown(self, obj: SourceObject) -> SourceObject:
        return replace(obj, path=f"{self._prefix}/{obj.path}")

    def _outer(self, page: ListingPage) -> ListingPage:
        complete = tuple(f"{self._prefix}/{path}" if path else self._prefix for path in page.complete)
        refused = tuple((f"{self._prefix}/{path}", why) for path, why in page.refused)
        return ListingPage(tuple(self._shown(obj) for obj in page.objects), complete, refused)
