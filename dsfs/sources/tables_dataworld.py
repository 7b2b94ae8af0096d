"""data.world: the files of one dataset as they were uploaded, and tables that are named as CSV (its API v0).

Version tag of a file: its ``updated`` and size in the dataset. The file's own answer is tied to that by asking for the
dataset again when its ETag is first seen; from then on the ETag is pinned for the life of the source.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from dsfs.errors import SourceChanged, SourceMissing, SourceUnavailable, SourceUnsupported
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.aiohttp_edge import chunks
from dsfs.sources.answers import body_place, copy_body, has_open_end
from dsfs.sources.archive_tree import Tree
from dsfs.sources.base import Sink
from dsfs.sources.http_client import (
    HttpClient,
    body_up_to,
    check_not_compressed,
    proves_nothing,
    raise_for,
    tag_of,
)
from dsfs.sources.tables_export import EXPORT_BYTES_MAX, TOO_LARGE, Exports
from dsfs.sources.timeouts import Timeouts

_LISTING_BYTES_MAX: Final = 64 * MiB
_REMEDY: Final = "give token in a Secret, or set DW_AUTH_TOKEN (data.world, Settings, Advanced)"
_TABLES: Final = "tables"  # the directory that tables are shown in


class DataWorldSource:
    """``files`` of a dataset, and ``tables/NAME.csv`` for each table that the dataset's option names."""

    revision = ""  # the API names no revision of a dataset

    def __init__(
        self, endpoint: str, owner: str, dataset: str, tables: tuple[str, ...], token: str, timeouts: Timeouts
    ) -> None:
        self._endpoint = endpoint
        self._place = f"{owner}/{dataset}"
        self._tables = {f"{_TABLES}/{table}.csv": table for table in tables}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = HttpClient(endpoint, headers, timeouts, own_credentials=True)
        self._files: dict[str, SourceObject] | None = None
        self._tree = Tree()
        self._pins: dict[tuple[str, str], str] = {}  # path and version tag → the tag of the answer seen first
        self.uri = f"dataworld://{self._place}"
        self.identity = f"dataworld:{endpoint}:{self._place}"
        self._exports = Exports(self._fetch_table, self.uri)

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        if not directory:
            self._exports.forget()
        if not directory or self._files is None:
            await self._list()
        for page in self._tree.directory(directory, self.uri):
            yield page

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        self._exports.forget()
        await self._list()
        for page in self._tree.pages():
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        files = await self._list() if self._files is None else self._files
        if not path or self._tree.is_directory(path):
            return SourceObject(path, Kind.DIRECTORY)
        return await self._exports.stat(path) if path in self._tables else files.get(path)

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        if obj.path in self._tables:
            await self._exports.read(obj, wanted, sink)
            return
        what, size, key = f"{self.uri}/{obj.path}", obj.size or 0, (obj.path, obj.version_tag)
        headers = {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        if (pinned := self._pins.get(key)) is not None and pinned.startswith('"'):
            headers["If-Match"] = pinned
        url = f"{self._endpoint}/file_download/{self._place}/{quote(obj.path, safe='')}"
        async with self._client.request("GET", url, headers) as answer:
            raise_for(answer, what, size=size, reading=True, remedy=_REMEDY)
            check_not_compressed(answer, what)
            seen = tag_of(answer, size)
            if proves_nothing(seen, size) or key not in self._pins:
                # Asked after the answer began: what the dataset says now held when it began, too.
                if (await self._list()).get(obj.path) != obj:
                    raise SourceChanged(f"{what}: another version is there now")
                self._pins.setdefault(key, seen)
            if self._pins[key] != seen:
                raise SourceChanged(f"{what}: {seen} is there now, {self._pins[key]} before")
            place = body_place(
                answer.status, answer.headers.get("Content-Range"), answer.content_length, size, wanted, what
            )
            await copy_body(chunks(answer, what), place, wanted, sink, what, open_end=has_open_end(answer.headers))

    async def close(self) -> None:
        """See ``Source``."""
        await self._client.close()

    async def _list(self) -> dict[str, SourceObject]:
        async with self._client.request("GET", f"{self._endpoint}/datasets/{self._place}") as answer:
            raise_for(answer, self.uri, remedy=_REMEDY)
            check_not_compressed(answer, self.uri)
            data = await body_up_to(answer, _LISTING_BYTES_MAX, self.uri)
        try:
            files = {found.path: found for found in map(_file, json.loads(data).get("files") or ())}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceUnavailable(f"{self.uri}: the answer is no dataset (check the endpoint)") from error
        tree = Tree()
        for found in files.values():
            if found.path not in self._tables:
                tree.add(found)
        for path in self._tables:
            tree.add(SourceObject(path, Kind.FILE, None))
        self._files, self._tree = files, tree
        return files

    async def _fetch_table(self, path: str) -> bytes:
        what, query = f"{self.uri}/{path}", quote(f"SELECT * FROM {self._tables[path]}", safe="")
        url = f"{self._endpoint}/sql/{self._place}?query={query}"
        async with self._client.request("GET", url, {"Accept": "text/csv"}) as answer:
            if answer.status == 400:
                raise SourceMissing(f"{what}: HTTP 400, there is no such table")
            raise_for(answer, what, remedy=_REMEDY)
            check_not_compressed(answer, what)
            try:
                return await body_up_to(answer, EXPORT_BYTES_MAX, what)
            except SourceUnsupported as error:
                raise SourceUnsupported(f"{error} ({TOO_LARGE})") from None


def _file(item: dict[str, Any]) -> SourceObject:
    name, size, updated = item["name"], item["sizeInBytes"], item.get("updated") or item.get("created") or ""
    if not isinstance(name, str) or not isinstance(size, int):
        raise ValueError("a file without name or size")
    try:
        mtime_ns = int(datetime.fromisoformat(updated).timestamp() * 1000) * 10**6
    except ValueError:
        mtime_ns = 0
    return SourceObject(name, Kind.FILE, size, mtime_ns, f"{updated}|{size}")
