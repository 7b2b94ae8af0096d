"""REFERENCE: another dataset, or a directory of it, under a name of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from dsfs.errors import ConfigError
from dsfs.model import ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink, Source, closing, go_on_at, walk
from dsfs.sources.digest import Digest, ask_digest, digest_of, may_tell
from dsfs.sources.wire_request import WireRequest, as_wire, at_once_of

SCHEME = "dataset://"


def parse_reference(uri: str) -> tuple[str, str, str]:
    """``dataset://namespace/name[/path]`` → (namespace, name, path). Raises ConfigError."""
    namespace, _, rest = uri.removeprefix(SCHEME).partition("/")
    name, _, path = rest.partition("/")
    path = path.strip("/")
    if not uri.startswith(SCHEME) or not namespace or not name or (path and path_parts(path) is None):
        raise ConfigError(f"{uri}: is not dataset://NAMESPACE/NAME or dataset://NAMESPACE/NAME/PATH")
    return namespace, name, path


class ReferenceSource:
    """Reads what the other dataset reads, with its credentials. ``path`` is the directory to show, "" for all of it."""

    def __init__(self, source: Source, uri: str, path: str) -> None:
        self.identity = source.identity  # cached bytes are shared: the origin puts ``path`` back before a key is made
        self.uri = uri
        self._source = source
        self._path = path

    @property
    def revision(self) -> str:
        return self._source.revision

    def go_on_at(self, revision: str) -> None:
        go_on_at(self._source, revision)

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

    def _inner(self, path: str) -> str:
        return f"{self._path}/{path}" if self._path and path else self._path or path

    def _outer(self, page: ListingPage) -> ListingPage:
        if not self._path:
            return page
        below = len(self._path) + 1
        return ListingPage(
            tuple(replace(obj, path=obj.path[below:]) for obj in page.objects),
            tuple(path[below:] for path in page.complete),
        )
