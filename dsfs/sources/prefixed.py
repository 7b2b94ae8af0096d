"""A source below a leading directory: ``mountOptions.path`` of a manifest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from dsfs.errors import SourceMissing
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.sources.base import Source, closing
from dsfs.sources.wrapped import WrappedSource


class PrefixedSource(WrappedSource):
    """Shows everything of another source under ``prefix`` ("a" or "a/b")."""

    def __init__(self, source: Source, prefix: str) -> None:
        super().__init__(source, source.uri, f"{source.identity} below {prefix}")  # a path here is another one there
        self._prefix = prefix
        parts = prefix.split("/")
        self._above = ["/".join(parts[:count]) for count in range(len(parts))]  # "", "a", … without the prefix itself

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
