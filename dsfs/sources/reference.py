"""REFERENCE: another dataset, or a directory of it, under a name of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from dsfs.errors import ConfigError
from dsfs.model import ListingPage, SourceObject, path_parts
from dsfs.sources.base import Source, closing, walk
from dsfs.sources.wrapped import WrappedSource

SCHEME = "dataset://"


def parse_reference(uri: str) -> tuple[str, str, str]:
    """``dataset://namespace/name[/path]`` → (namespace, name, path). Raises ConfigError."""
    namespace, _, rest = uri.removeprefix(SCHEME).partition("/")
    name, _, path = rest.partition("/")
    path = path.strip("/")
    if not uri.startswith(SCHEME) or not namespace or not name or (path and path_parts(path) is None):
        raise ConfigError(f"{uri}: is not dataset://NAMESPACE/NAME or dataset://NAMESPACE/NAME/PATH")
    return namespace, name, path


class ReferenceSource(WrappedSource):
    """Reads what the other dataset reads, with its credentials. ``path`` is the directory to show, "" for all of it."""

    def __init__(self, source: Source, uri: str, path: str) -> None:
        # Cached bytes are shared: the origin puts ``path`` back before a key is made.
        super().__init__(source, uri, source.identity)
        self._path = path

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        async with closing(self._source.list_directory(self._inner(directory))) as pages:
            async for page in pages:
                yield self._outer(page)

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        async with closing(walk(self.list_directory) if self._path else self._source.list_tree()) as pages:
            async for page in pages:
                yield page

    async def stat(self, path: str) -> SourceObject | None:
        found = await self._source.stat(self._inner(path))
        return None if found is None else replace(found, path=path)

    def _inner(self, path: str) -> str:
        return f"{self._path}/{path}" if self._path and path else self._path or path

    def _outer(self, page: ListingPage) -> ListingPage:
        if not self._path:
            return page
        below = len(self._path) + 1
        return ListingPage(
            tuple(replace(obj, path=obj.path[below:]) for obj in page.objects),
            tuple(path[below:] for path in page.complete),
            tuple((path[below:], why) for path, why in page.refused),
        )
