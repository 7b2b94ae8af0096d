"""``http(s)://host/dir/`` with a directory index, or one file. Version tag: ETag, else Last-Modified with the size."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

import aiohttp
import structlog
from yarl import URL

from dsfs.errors import ConfigError, SourceChanged, SourceMissing, SourceRefused, SourceUnsupported
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange
from dsfs.sources.aiohttp_edge import chunks
from dsfs.sources.answers import body_place, check_whole, copy_body, has_open_end, http_date_ns, parse_content_range
from dsfs.sources.archive import ArchiveSource, refuse_unseekable
from dsfs.sources.base import Sink, Source, walk
from dsfs.sources.digest import Digest
from dsfs.sources.http_client import (
    AT_ONCE_IF_CLOSING,
    Answered,
    HttpClient,
    check_not_compressed,
    check_probe,
    codings_of,
    etag_in,
    proof_of,
    proves_nothing,
    raise_for,
    tag_of,
    told_apart,
    without_query,
)
from dsfs.sources.http_index import IndexParser
from dsfs.sources.http_lists import HttpListSource
from dsfs.sources.http_options import authorization_of, flag, headers_of, secret_headers_of
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts
from dsfs.sources.told_digests import ToldDigests
from dsfs.sources.told_headers import of_http_headers
from dsfs.sources.wire_head import Head
from dsfs.sources.wire_request import NotForWire, WireRequest

log = structlog.get_logger()

_WANTED_DIGESTS: Final = {
    "Want-Repr-Digest": "sha-256=9, sha-512=5",
    "Want-Digest": "sha-256, sha-512;q=0.5, md5;q=0.1",
}
_HTML: Final = ("text/html", "application/xhtml+xml")
_PAGES: Final = (".htm", ".html", ".xhtml")
_INDEXES: Final = (b"index.", b"default.")
_SAFE: Final = "/!$&'()*+,:=@~"  # RFC 3986 pchar but ";", which some servers cut at


def http_source(spec: SourceSpec, credentials: Mapping[str, str], **_: object) -> Source:
    """What ``list`` and ``archive`` say is behind the URL; neither: an index or one file. Raises ConfigError."""
    headers, authorization = headers_of(spec.options), authorization_of(credentials)
    secret = secret_headers_of(credentials, without_query(spec.uri))
    listed = spec.options.get("list", "").strip()
    archive = flag(spec.options, "archive")
    if listed.lower() not in ("", "false"):
        if archive:
            raise ConfigError("HTTP: options list and archive cannot be used together (leave one out)")
        return HttpListSource(spec.uri, listed, headers=headers, authorization=authorization, secret=secret)
    site = HttpSource(spec.uri, headers=headers, authorization=authorization, secret=secret)
    if archive:
        name = site.single_name()
        refuse_unseekable(name)
        return ArchiveSource(site, name)
    return site


class HttpSource:
    """A tree of files under one URL. Redirects are followed; headers and credentials stay with the host of the URL."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        secret: Mapping[str, str] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """``headers`` are part of what the source is; ``secret`` are such as well, but belong to who reads it."""
        try:
            parsed = URL(url)  # percent-encodes what the user did not
        except ValueError as error:
            raise ConfigError(f"HTTP: {url.partition('?')[0]} is not a URL ({error})") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError("HTTP: the URI must begin with http://HOST/ or https://HOST/")
        self._root = str(parsed.with_user(None).with_fragment(None))
        sent = {**(headers or {}), **(secret or {})}
        if authorization is not None:
            sent["Authorization"] = authorization
        self._client = HttpClient(self._root, sent, timeouts, own_credentials="Authorization" in sent)
        self._timeouts = timeouts
        self._redirects = False
        self._single: bool | None = None  # whether the URL is one file; None: not asked yet
        self._said_weak = False
        self._told = ToldDigests()
        self.uri = without_query(self._root)
        self.identity = f"http:{self._root}{told_apart(headers)}"

    # -- Source ---------------------------------------------------------------------------------------------------

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. Sizes are unknown: an index has them rounded, if at all."""
        if await self._is_single():
            if directory:
                raise SourceMissing(f"{self.uri} is a file and has no directory {directory!r}")
            found = await self.stat(self.single_name())
            if found is None:
                raise SourceMissing(f"{self.uri} is not there")
            yield ListingPage((found,), ("",))
            return
        url = self._url(directory, slash=True)
        async with self._client.request("GET", url, {"Accept": "text/html"}) as answer:
            raise_for(answer, url)
            check_whole(answer.status, without_query(url))
            check_not_compressed(answer, url)
            if answer.content_type not in _HTML:
                raise SourceUnsupported(
                    f"{without_query(url)} is no directory index (it is {answer.content_type}; name one file instead)"
                )
            parser = IndexParser(str(answer.url), directory, answer.charset)
            place = urlsplit(str(answer.url)).path
            is_index = _is_index(place, urlsplit(url).path)
            if not is_index and not place.endswith("/"):
                raise await self._astray(url, answer)
            async for chunk in chunks(answer, without_query(url)):
                await parser.parse(chunk)
                if found_names := parser.take():
                    is_index = True
                    yield ListingPage(tuple(found_names))
            parser.end()
            found_names = parser.take()
            if not (is_index or found_names):
                raise await self._astray(url, answer)
            if not directory:
                self._single = False
            framed = answer.content_length is not None or "Transfer-Encoding" in answer.headers
            parser.check_whole(without_query(url), answer.headers.get("Server", ""), framed=framed)
            yield ListingPage(tuple(found_names), (directory,))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        async for page in walk(self.list_directory):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if await self._is_single():
            return await self._stat_url(path, self._root) if path == self.single_name() else None
        if path_parts(path) is None:
            return None
        found = await self._stat_url(path, self._url(path))
        if found is None and await self._is_directory(path):
            return SourceObject(path, Kind.DIRECTORY)
        return found

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        url = self._root if await self._is_single() else self._url(obj.path)
        size = obj.size or 0
        async with self._client.request("GET", url, _range_headers(obj, wanted)) as answer:
            raise_for(answer, url, size=size, reading=True)
            check_not_compressed(answer, url, obj.version_tag)
            # The version before the place: of another version no other sign can be trusted.
            self._check_version(obj, answer, size, url)
            self._note_digest(obj, answer)
            what, open_end = without_query(url), has_open_end(answer.headers)
            place = body_place(
                answer.status, answer.headers.get("Content-Range"), answer.content_length, size, wanted, what
            )
            await copy_body(chunks(answer, what), place, wanted, sink, what, open_end=open_end)

    def at_once(self) -> int | None:
        """See ``WireSource``."""
        return AT_ONCE_IF_CLOSING if self._client.closes else None

    def asking(self, obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        """See ``WireSource``."""
        if self._single is None or self._redirects:
            return None
        url = self._root if self._single else self._url(obj.path)
        head = self._client.wire_head("GET", url, _range_headers(obj, wanted))
        if head is None:
            return None
        size = obj.size or 0

        def judge(answer: Head) -> None:
            if answer.status in (301, 302, 303, 307, 308):
                self._redirects = True
                raise NotForWire("the server redirects")
            raise_for(answer, url, size=size, reading=True)
            check_not_compressed(answer, url, obj.version_tag)
            self._check_version(obj, answer, size, url)
            self._note_digest(obj, answer)

        version = proof_of(obj.version_tag, size)
        proof = None if version is None else (*version, ("content-encoding", codings_of(obj.version_tag)))
        return WireRequest(*head, without_query(url), size, judge, self._timeouts, proof, "http")

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``."""
        return self._told.of(obj)

    def may_tell(self, obj: SourceObject) -> bool:
        """See ``AskedDigestSource``."""
        return self._told.worth_asking

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        """See ``AskedDigestSource``. A HEAD that says what it wants; servers that allow none have told nothing."""
        url = self._root if await self._is_single() else self._url(obj.path)
        async with self._client.request("HEAD", url, _WANTED_DIGESTS) as answer:
            found = None
            if answer.status in (429, 502, 503, 504):
                raise_for(answer, url)  # it cannot be known now
            if answer.status == 200:
                check_not_compressed(answer, url, obj.version_tag)
                self._check_version(obj, answer, obj.size or 0, url)
                found = of_http_headers(answer.headers, whole=True)
            self._told.asked(found)
            return found

    def _note_digest(self, obj: SourceObject, answer: Answered) -> None:
        # By what came, not by what was asked for: a server may send less, and that is refused only after this.
        self._told.note(obj, of_http_headers(answer.headers, whole=answer.content_length == obj.size))

    async def close(self) -> None:
        """See ``Source``."""
        await self._client.close()

    # -- what is there --------------------------------------------------------------------------------------------

    async def _is_single(self) -> bool:
        """Whether the URL is a file. A URL without a "/" at its end may be both; the server decides."""
        if self._single is None:
            if urlsplit(self._root).path.endswith("/"):
                self._single = False
            else:
                found = await self._stat_url(self.single_name(), self._root)
                if found is None:
                    return False  # a file may come there yet
                self._single = found.kind is Kind.FILE
        return self._single

    def single_name(self) -> str:
        """What the file is called when the URL is one."""
        raw = urlsplit(self._root).path.rpartition("/")[2]
        return os.fsdecode(unquote_to_bytes(raw)).replace("/", "_") or "index"

    async def _stat_url(self, path: str, url: str) -> SourceObject | None:
        answer: Answered | None = await self._client.head(url)
        if answer is None:
            async with self._client.request("HEAD", url) as followed:
                if _slash_added(url, str(followed.url)):
                    return SourceObject(path, Kind.DIRECTORY)
                if _is_page(path, followed, url):
                    return await self._stat_page(path, followed, url)
                answer = followed
        if answer.status in (404, 410):
            return None
        encoded = answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
        if answer.status == 200 and answer.content_length is not None and not encoded:
            told = self._file(path, answer, answer.content_length)
            if told.size:
                return told
            # Some frameworks answer a HEAD with an empty body, and so with its length, whatever a GET has.
            found = await self._stat_by_get(path, url)
            is_empty = found is not None and found.kind is Kind.FILE and found.size == 0
            return told if is_empty else found  # a 416 has neither ETag nor time of the file
        # Signed URLs and some frameworks allow GET alone; and some say no length to a HEAD.
        if answer.status not in (200, 400, 403, 405, 501):
            raise_for(answer, url)
        return await self._stat_by_get(path, url)

    async def _stat_page(self, path: str, answer: aiohttp.ClientResponse, url: str) -> SourceObject | None:
        """Of a name that leads to a page: another directory, or what says in its way that there is no such file. Raises
        SourceRefused where everything leads to one."""
        error = await self._astray(url, answer)
        if isinstance(error, SourceRefused):
            raise error
        return SourceObject(path, Kind.DIRECTORY) if urlsplit(str(answer.url)).path.endswith("/") else None

    async def _astray(self, url: str, answer: aiohttp.ClientResponse) -> SourceRefused | SourceMissing:
        """What to say of a name that leads to a page. One of a site that does not show its index either is a page to
        log in; else it is a dead link."""
        said = f"{without_query(url)} leads to {without_query(str(answer.url))}, a page that is not what was asked for"
        root = self._url("", slash=True)
        if self._single is not False or url == root:
            return SourceRefused(said)
        async with self._client.request("GET", root, {"Accept": "text/html"}) as index:
            is_open = index.status == 200 and _is_index(urlsplit(str(index.url)).path, urlsplit(root).path)
        return SourceMissing(said) if is_open else SourceRefused(said)

    async def _stat_by_get(self, path: str, url: str) -> SourceObject | None:
        async with self._client.request("GET", url, {"Range": "bytes=0-0"}) as answer:
            if _slash_added(url, str(answer.url)):
                return SourceObject(path, Kind.DIRECTORY)
            if answer.status in (404, 410):
                return None
            if _is_page(path, answer, url):
                return await self._stat_page(path, answer, url)
            place = parse_content_range(answer.headers.get("Content-Range"))
            if answer.status == 416 and (place is None or not place.total):
                return self._file(path, answer, 0)  # no byte to give: it is empty
            raise_for(answer, url)
            size = answer.content_length if answer.status == 200 else place.total if place is not None else None
            if size is None:
                raise SourceUnsupported(f"{without_query(url)}: the server does not say how long it is")
            check_probe(answer, place, url, tag_of(answer, size))
            return self._file(path, answer, size)

    async def _is_directory(self, path: str) -> bool:
        url = self._url(path, slash=True)
        async with self._client.request("HEAD", url) as answer:
            if answer.status in (404, 410):
                return False
            if answer.status not in (405, 501):
                raise_for(answer, url)
                check_whole(answer.status, url)
                return True
        async with self._client.request("GET", url) as answer:
            if answer.status in (404, 410):
                return False
            raise_for(answer, url)
            check_whole(answer.status, url)
            return True

    def _file(self, path: str, answer: Answered, size: int) -> SourceObject:
        tag = tag_of(answer, size)
        if proves_nothing(tag, size) and not self._said_weak:
            self._said_weak = True
            log.warning("the server has neither ETag nor Last-Modified, changes are not noticed", source=self.uri)
        return SourceObject(path, Kind.FILE, size, http_date_ns(answer.headers.get("Last-Modified")), tag)

    def _check_version(self, obj: SourceObject, answer: Answered, size: int, url: str) -> None:
        if tag_of(answer, size) != obj.version_tag:
            found = tag_of(answer, size)
            raise SourceChanged(f"{without_query(url)}: {found} is there now, {obj.version_tag} was listed")

    # -- requests -------------------------------------------------------------------------------------------------

    def _url(self, path: str, *, slash: bool = False) -> str:
        base = self._root
        if path or slash:
            base = base.partition("?")[0].rstrip("/") + "/"
            base += quote(os.fsencode(path), safe=_SAFE) + ("/" if slash and path else "")
            if not path and "?" in self._root:
                base += "?" + self._root.partition("?")[2]
        return base


def _range_headers(obj: SourceObject, wanted: ByteRange) -> dict[str, str]:
    headers = {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
    if etag := etag_in(obj.version_tag):
        headers["If-Match"] = etag
    return headers


def _slash_added(asked: str, answered: str) -> bool:
    """Whether a redirect led from a name to the same name with "/", here or elsewhere: that is how servers say
    "directory"."""
    name = unquote_to_bytes(urlsplit(asked).path.rpartition("/")[2])
    place = urlsplit(answered).path
    return bool(name) and place.endswith("/") and unquote_to_bytes(place[:-1].rpartition("/")[2]) == name


def _is_index(answered: str, asked: str) -> bool:
    """Whether the path that a redirect led to is surely of the index that was asked for, and of no page to log in.

    Servers add a "/" or take it away, name the file that the index is in, and lead to mirrors.
    """
    place, wanted = (unquote_to_bytes(path).rstrip(b"/") for path in (answered, asked))
    name, wanted_name = (path.rpartition(b"/")[2] for path in (place, wanted))
    return place == wanted or name.startswith(_INDEXES) or (answered.endswith("/") and name == wanted_name)


def _is_page(path: str, answer: aiohttp.ClientResponse, url: str) -> bool:
    """Whether a redirect led to a page in place of a file: to log in, or that says that it is not there.

    Whoever asks for pages gets them, and what is called as the file is taken for it.
    """
    asked, answered = urlsplit(url).path.rpartition("/")[2], urlsplit(str(answer.url)).path.rpartition("/")[2]
    is_html = answer.status < 400 and answer.content_type in _HTML
    return is_html and asked != answered and not path.lower().endswith(_PAGES)
