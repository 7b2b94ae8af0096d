"""Files that a list names (``urls.txt``, a JSON or CSV index), on the list's host or on others.

Version tags. With a sha256 in the list: ``sha256:<hex>:<size>``. With a size but no sha256: size, time and place as
listed. With neither: what a HEAD says, as in ``http``. Whole files are *not* checked against their sha256 here, for a
source gives out ranges (``fetch`` does once all of one is here); also the ETag that a listed version was first seen
with is pinned for the life of the source, and another one is SourceChanged. So within one life no two versions mix;
across lives the list is believed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

import structlog
from yarl import URL

from dsfs.errors import ConfigError, SourceChanged, SourceUnsupported
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.aiohttp_edge import chunks
from dsfs.sources.answers import body_place, content_coding, copy_body, has_open_end, http_date_ns, parse_content_range
from dsfs.sources.archive_tree import Tree
from dsfs.sources.base import Sink
from dsfs.sources.digest import Digest
from dsfs.sources.http_client import (
    HttpClient,
    body_up_to,
    check_not_compressed,
    check_probe,
    etag_in,
    proves_nothing,
    raise_for,
    tag_of,
    told_apart,
    without_query,
)
from dsfs.sources.http_list_file import Entry, format_of, parse_list
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = structlog.get_logger()

LIST_BYTES_MAX: Final = 256 * MiB  # about 2,000,000 files with sha256
_LISTED: Final = "listed:"
_SHA256: Final = "sha256:"


class HttpListSource:
    """The files of one list. The list is read once, and again when somebody lists the root or the tree anew."""

    revision = ""  # a list has no name of its own here

    def __init__(
        self,
        url: str,
        listed: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        secret: Mapping[str, str] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """``listed`` is the value of the option: ``true`` (the URL is the list), or where it is below the URL. As to
        ``headers`` and ``secret`` see ``HttpSource``."""
        self._list_url = _list_url(url, listed)
        kind = format_of(self._list_url)
        if kind is None:
            raise ConfigError("HTTP: a list must end in .txt, .json or .csv (see option list)")
        self._kind = kind
        sent = {**(headers or {}), **(secret or {})}
        if authorization is not None:
            sent["Authorization"] = authorization
        self._client = HttpClient(self._list_url, sent, timeouts, own_credentials="Authorization" in sent)
        self._loading = asyncio.Lock()
        self._entries: dict[str, Entry] | None = None
        self._tree = Tree()
        self._etag = ""  # of the list that is loaded
        self._pins: dict[tuple[str, str], str] = {}  # path and version tag → the tag of the answer seen first
        self._said_weak = False
        self.uri = without_query(self._list_url)
        self.identity = f"http-list:{self._list_url}{told_apart(headers)}"

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        await self._load(anew=not directory)
        for page in self._tree.directory(directory, self.uri):
            yield page

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        await self._load(anew=True)
        for page in self._tree.pages():
            yield page
            await asyncio.sleep(0)  # a list of a million has other readers beside it

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``. Asks the origin only when the list does not say the size."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if path_parts(path) is None:
            return None
        entries = await self._load()
        if self._tree.is_directory(path):
            return SourceObject(path, Kind.DIRECTORY)
        entry = entries.get(path)
        if entry is None:
            return None
        return self._listed(entry) if entry.size is not None else await self._head(entry)

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``."""
        if not obj.version_tag.startswith(_SHA256):
            return None
        return Digest("sha256", obj.version_tag.removeprefix(_SHA256).partition(":")[0])

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        entry = (await self._load()).get(obj.path)
        if entry is None:
            raise SourceChanged(f"{self.uri} does not name {obj.path!r} any more")
        what, size = without_query(entry.url), obj.size or 0
        believed = obj.version_tag.startswith((_LISTED, _SHA256))
        if believed and obj.version_tag != _listed_tag(entry, size):
            raise SourceChanged(f"{self.uri} names another version of {obj.path!r} now")
        key = (obj.path, obj.version_tag)
        pinned = self._pins.get(key) if believed else obj.version_tag
        headers = {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        if pinned is not None and (etag := etag_in(pinned)):
            headers["If-Match"] = etag
        async with self._client.request("GET", entry.url, headers) as answer:
            raise_for(answer, what, size=size, reading=True)
            seen = tag_of(answer, size)
            # A list does not say how a file is stored, so of a listed version its first answer does, and is pinned.
            check_not_compressed(answer, what, seen if pinned is None else pinned)
            if pinned is not None or not content_coding(answer.headers):
                # Asked again: another read may have pinned it while this one waited for its answer.
                pinned = self._pins.get(key) if believed else obj.version_tag
                if pinned is not None and pinned != seen:
                    raise SourceChanged(f"{what}: {seen} is there now, {pinned} before")
                place = body_place(
                    answer.status, answer.headers.get("Content-Range"), answer.content_length, size, wanted, what
                )
                if believed:
                    self._pins[key] = seen
                await copy_body(chunks(answer, what), place, wanted, sink, what, open_end=has_open_end(answer.headers))
                return
        await self._pin_coded(entry, key, size)  # without a connection in hand: all of them may be waiting for this
        await self.read(obj, wanted, sink)

    async def _pin_coded(self, entry: Entry, key: tuple[str, str], size: int) -> None:
        """Pin a version that is stored coded. Raises SourceUnsupported where one byte shows that it was coded on its
        way: an answer may be as long as was listed by chance."""
        what = without_query(entry.url)
        async with self._client.request("GET", entry.url, {"Range": "bytes=0-0"}) as answer:
            raise_for(answer, what, size=size, reading=True)
            seen, said = tag_of(answer, size), answer.headers.get("Content-Range")
            check_probe(answer, parse_content_range(said), what, seen)
            body_place(answer.status, said, answer.content_length, size, ByteRange(0, 1), what)
            self._pins.setdefault(key, seen)

    async def close(self) -> None:
        """See ``Source``."""
        await self._client.close()

    # -- the list -------------------------------------------------------------------------------------------------

    async def _load(self, *, anew: bool = False) -> Mapping[str, Entry]:
        if self._entries is None or anew:
            async with self._loading:
                if self._entries is None or anew:
                    await self._fetch()
        assert self._entries is not None
        return self._entries

    async def _fetch(self) -> None:
        what = self.uri
        known = {"If-None-Match": self._etag} if self._etag and self._entries is not None else {}
        async with self._client.request("GET", self._list_url, known) as answer:
            if answer.status == 304 and known:
                return
            raise_for(answer, what)
            check_not_compressed(answer, what)
            data = await body_up_to(answer, LIST_BYTES_MAX, what)
            etag = answer.headers.get("ETag", "").strip()
        # In a thread: a list of a million takes seconds, and most of them give the loop its turns.
        entries, tree = await asyncio.to_thread(self._understood, data)
        self._entries, self._tree, self._etag = entries, tree, etag

    def _understood(self, data: bytes) -> tuple[dict[str, Entry], Tree]:
        entries: dict[str, Entry] = {}
        tree = Tree()
        weak = False
        for entry in parse_list(data, self._kind, self._list_url):
            if entry.path.endswith("/"):
                tree.add(SourceObject(entry.path.rstrip("/"), Kind.DIRECTORY))
                continue
            entries[entry.path] = entry
            weak = weak or (entry.size is not None and not entry.sha256 and not entry.mtime_ns)
            tree.add(self._listed(entry) if entry.size is not None else SourceObject(entry.path, Kind.FILE, None))
        if weak and not self._said_weak:
            self._said_weak = True
            log.warning("the list has sizes alone, changes between two mounts are not noticed", source=self.uri)
        return entries, tree

    def _listed(self, entry: Entry) -> SourceObject:
        size = entry.size or 0
        return SourceObject(entry.path, Kind.FILE, size, entry.mtime_ns, _listed_tag(entry, size))

    async def _head(self, entry: Entry) -> SourceObject | None:
        what = without_query(entry.url)
        async with self._client.request("HEAD", entry.url) as answer:
            size = answer.content_length
            if answer.status in (404, 410):
                return None
            told = None
            if answer.status == 200 and size is not None and "Content-Encoding" not in answer.headers:
                told = self._answered(entry, size, tag_of(answer, size), answer.headers.get("Last-Modified"))
                if size:
                    return told
            # Signed URLs allow GET alone; some servers say no length to a HEAD, or that of an empty answer.
            if answer.status not in (200, 400, 403, 405, 501):
                raise_for(answer, what)
        async with self._client.request("GET", entry.url, {"Range": "bytes=0-0"}) as answer:
            if answer.status in (404, 410):
                return None
            place = parse_content_range(answer.headers.get("Content-Range"))
            if answer.status == 416 and (place is None or not place.total):
                size = 0  # no byte to give: it is empty
            else:
                raise_for(answer, what)
                size = answer.content_length if answer.status == 200 else place.total if place is not None else None
            if size is None:
                raise SourceUnsupported(
                    f"{what}: the server does not say how long it is (write its size into the list)"
                )
            if told is not None and size == 0:
                return told  # a 416 has neither ETag nor time of the file
            tag = tag_of(answer, size)
            check_probe(answer, place, what, tag)
            return self._answered(entry, size, tag, answer.headers.get("Last-Modified"))

    def _answered(self, entry: Entry, size: int, tag: str, modified: str | None) -> SourceObject:
        if proves_nothing(tag, size) and not self._said_weak:
            self._said_weak = True
            log.warning("the server has neither ETag nor Last-Modified, changes are not noticed", source=self.uri)
        if entry.sha256:
            tag = _listed_tag(entry, size)
        return SourceObject(entry.path, Kind.FILE, size, entry.mtime_ns or http_date_ns(modified), tag)


def _listed_tag(entry: Entry, size: int) -> str:
    """The version as the list says it. The place belongs to it where there is no hash: a moved file is another one."""
    if entry.sha256:
        return f"{_SHA256}{entry.sha256}:{size}"
    place = hashlib.sha256(entry.url.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{_LISTED}{size}@{entry.mtime_ns}:{place}"


def _list_url(url: str, listed: str) -> str:
    try:
        root = URL(url)
        if root.scheme not in ("http", "https") or not root.host:
            raise ConfigError("HTTP: the URI must begin with http://HOST/ or https://HOST/")
        plain = str(root.with_user(None).with_fragment(None))
        if listed.lower() == "true":
            return plain
        directory = plain if urlsplit(plain).path.endswith("/") else f"{plain.partition('?')[0]}/"
        found = URL(urljoin(directory, listed))
    except ValueError as error:
        raise ConfigError(f"HTTP: the URI or option list is not a URL ({type(error).__name__})") from None
    if found.origin() != root.origin():
        # The list says where bytes come from and gets the credentials: it belongs to the host that was named.
        raise ConfigError("HTTP: option list must be on the host of the URI")
    return str(found.with_fragment(None))
