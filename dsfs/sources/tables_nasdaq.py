"""Nasdaq Data Link (formerly Quandl): tables of one vendor as CSV files, through its bulk export.

``/datatables/V/T.json?qopts.export=true`` tells where a zip of the whole table lies and whether it is made yet; the zip
holds one CSV. The key goes into the header X-Api-Token and never into a URL; the link is signed and never shown.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import AsyncIterator
from typing import Any, Final

from dsfs.errors import RetryLater, SourceMissing, SourceRefused, SourceUnavailable, SourceUnsupported
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.base import Sink
from dsfs.sources.http_client import HttpClient, body_up_to, check_not_compressed, raise_for
from dsfs.sources.tables_export import EXPORT_BYTES_MAX, TOO_LARGE, Exports
from dsfs.sources.timeouts import Timeouts

_REMEDY: Final = "give token in a Secret, or set NASDAQ_DATA_LINK_API_KEY; premium tables need a subscription"
_WAIT_S: Final = 10.0  # what Nasdaq's own client waits for an export that is being made is 30


class _KeyRefused(SourceRefused):
    """The key is refused, and so is each table that is asked for with it."""


class NasdaqSource:
    """``TABLE.csv`` for each table. A size is known once the table was exported, for which it is fetched whole."""

    revision = ""  # each table has a time of its own

    def __init__(
        self, endpoint: str, vendor: str, tables: tuple[str, ...], token: str, timeouts: Timeouts, *, series: bool
    ) -> None:
        self._base = f"{endpoint}/{'datasets' if series else 'datatables'}/{vendor}"
        self._series = series
        self._tables = {f"{table}.csv": table for table in tables}
        headers = {"X-Api-Token": token} if token else {}
        self._client = HttpClient(endpoint, headers, timeouts, own_credentials=True)
        self.uri = f"nasdaq://{vendor}"
        self.identity = f"nasdaq:{self._base}"
        self._exports = Exports(self._fetch, self.uri)

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. What was named; whether it is there its ``stat`` says. An API that is silent, or refuses the
        key or each table, has no listing all the same: a mount of it would have files, and EIO for each."""
        if directory:
            raise SourceMissing(f"{self.uri} has no directory {directory!r}")
        await self._knock()
        self._exports.forget()
        yield ListingPage(tuple(SourceObject(path, Kind.FILE, None) for path in self._tables), ("",))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        async for page in self.list_directory(""):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        return await self._exports.stat(path) if path in self._tables else None

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        await self._exports.read(obj, wanted, sink)

    async def close(self) -> None:
        """See ``Source``."""
        await self._client.close()

    async def _knock(self) -> None:
        """Until a table answers: a subscription may be missing for some of them, and their ``stat`` tells so."""
        refusal: SourceRefused | None = None
        for table in self._tables.values():
            try:
                # What it tells of a table, as that has no export made. One that is not there is told by its ``stat``.
                with contextlib.suppress(SourceMissing):
                    await self._get(f"{self._base}/{table}/metadata.json", f"{self.uri}/{table}", EXPORT_BYTES_MAX)
                return
            except _KeyRefused:
                raise
            except SourceRefused as error:
                refusal = refusal or error
        if refusal is not None:
            raise refusal

    async def _fetch(self, path: str) -> bytes:
        table = self._tables.get(path)
        if table is None:
            raise SourceMissing(f"{self.uri} has no table {path!r}")
        what = f"{self.uri}/{table}"
        if self._series:
            return await self._get(f"{self._base}/{table}.csv", what, EXPORT_BYTES_MAX)
        told = await self._get(f"{self._base}/{table}.json?qopts.export=true", what, 64 * KiB)
        packed = await self._get(_link_of(told, what), f"{what} (its export)", EXPORT_BYTES_MAX)
        return _csv_of(packed, what)

    async def _get(self, url: str, what: str, limit_bytes: int) -> bytes:
        async with self._client.request("GET", url) as answer:
            # Codes QEA…: the key is missing or not known; told with 400 (docs.data.nasdaq.com, error codes).
            if answer.status == 401 or (answer.status == 400 and b"QEA" in await body_up_to(answer, 64 * KiB, what)):
                raise _KeyRefused(f"{what}: HTTP {answer.status}, the key was refused ({_REMEDY})")
            raise_for(answer, what, remedy=_REMEDY)
            check_not_compressed(answer, what)
            try:
                return await body_up_to(answer, limit_bytes, what)
            except SourceUnsupported as error:
                raise SourceUnsupported(f"{error} ({TOO_LARGE})") from None


def _link_of(told: bytes, what: str) -> str:
    """Where the zip lies. RetryLater while it is being made for the first time."""
    try:
        file: Any = json.loads(told)["datatable_bulk_download"]["file"]
        status, link = str(file["status"]).lower(), file["link"]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceUnavailable(f"{what}: the answer about its export cannot be understood") from error
    # "regenerating" has a link to the export before; it is whole and right for its own time.
    if isinstance(link, str) and link.startswith(("https://", "http://")) and status in ("fresh", "regenerating"):
        return link
    raise RetryLater(f"{what}: its export is being made", _WAIT_S)


def _csv_of(packed: bytes, what: str) -> bytes:
    """The one CSV in the zip; never more than EXPORT_BYTES_MAX is inflated."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) != 1:
                raise SourceUnsupported(f"{what}: its export holds {len(members)} files, not one")
            with archive.open(members[0]) as file:
                data = file.read(EXPORT_BYTES_MAX + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceUnavailable(f"{what}: its export is no zip that can be read") from error
    if len(data) > EXPORT_BYTES_MAX:
        raise SourceUnsupported(f"{what} is larger than {EXPORT_BYTES_MAX} bytes ({TOO_LARGE})")
    return data
