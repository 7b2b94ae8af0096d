"""``http(s)://host/dir/`` with a directory index, or one file. Version tag: ETag, else Last-Modified with the size."""

from __future__ import annotations

import codecs
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import structlog
from yarl import URL

from dsfs.errors import (
    ConfigError,
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.answers import body_place, copy_body, http_date_ns, parse_content_range, retry_after_s
from dsfs.sources.base import Sink, walk
from dsfs.sources.http_index import IndexParser
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = structlog.get_logger()

CONNECTIONS: Final = 128
REDIRECTS_MAX: Final = 10
_PARSED_AT_ONCE: Final = 16 * KiB  # html.parser takes about 10 ms for so much, and the loop has other readers
_SAFE: Final = "/!$&'()*+,:=@~"  # RFC 3986 pchar but ";", which some servers cut at
_NO_HEADERS: Final[Mapping[str, str]] = {}
# What a header must not do here: change which bytes come, or under which framing.
_RESERVED_HEADERS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "if-match", "if-none-match", "if-range"}
    | {"if-modified-since", "if-unmodified-since", "range", "te", "transfer-encoding", "upgrade", "expect"}
)
_TOKEN_CHARACTERS: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def http_source(spec: SourceSpec, credentials: Mapping[str, str], **_: object) -> HttpSource:
    """Options are sent as headers, but for ``syncMode``. Raises ConfigError."""
    headers = {key: value for key, value in spec.options.items() if key != "syncMode"}
    for key, value in headers.items():
        if not key or not set(key) <= _TOKEN_CHARACTERS or not value.isprintable() or not value.isascii():
            raise ConfigError(f"HTTP: option {key!r} cannot be sent as a header (use ASCII letters, digits and -)")
        if key.lower() in _RESERVED_HEADERS:
            raise ConfigError(f"HTTP: option {key!r} is a header that dsfs sets itself (leave it out)")
    if token := credentials.get("token"):
        authorization = f"Bearer {token}"
    elif credentials.get("username") or credentials.get("password"):
        pair = f"{credentials.get('username', '')}:{credentials.get('password', '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    else:
        authorization = None
    if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
        raise ConfigError("HTTP: the token in the Secret is not plain ASCII text (check it for stray characters)")
    return HttpSource(spec.uri, headers=headers, authorization=authorization)


class HttpSource:
    """A tree of files under one URL. Redirects are followed; headers and credentials stay with the host of the URL."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        try:
            parsed = URL(url)  # percent-encodes what the user did not
        except ValueError as error:
            raise ConfigError(f"HTTP: {url.partition('?')[0]} is not a URL ({error})") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError("HTTP: the URI must begin with http://HOST/ or https://HOST/")
        self._root = str(parsed.with_user(None).with_fragment(None))
        self._headers = dict(headers or {})
        if authorization is not None:
            self._headers["Authorization"] = authorization
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None
        self._single: bool | None = None  # whether the URL is one file; None: not asked yet
        self._said_weak = False
        self.uri = self._root
        self.identity = f"http:{self._root}"

    # -- Source ---------------------------------------------------------------------------------------------------

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. Sizes are unknown: an index has them rounded, if at all."""
        if await self._is_single():
            if directory:
                raise SourceMissing(f"{self._root} is a file and has no directory {directory!r}")
            found = await self.stat(self._single_name())
            if found is None:
                raise SourceMissing(f"{self._root} is not there")
            yield ListingPage((found,), ("",))
            return
        url = self._url(directory, slash=True)
        async with self._request("GET", url, {"Accept": "text/html"}) as answer:
            _raise_for(answer, url)
            if answer.content_type not in ("text/html", "application/xhtml+xml"):
                raise SourceUnsupported(
                    f"{url} is no directory index (it is {answer.content_type}; name one file instead)"
                )
            parser = IndexParser(str(answer.url), directory)
            decoder = _decoder(answer.charset)
            async for chunk in _chunks(answer, url):
                for start in range(0, len(chunk), _PARSED_AT_ONCE):
                    parser.feed(decoder.decode(chunk[start : start + _PARSED_AT_ONCE]))
                if found_names := parser.take():
                    yield ListingPage(tuple(found_names))
            parser.feed(decoder.decode(b"", True))
            parser.close()
            yield ListingPage(tuple(parser.take()), (directory,))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``. A directory that is linked and not there is shown empty: indexes do that."""
        async for page in walk(self._list_if_there):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if await self._is_single():
            return await self._stat_url(path, self._root) if path == self._single_name() else None
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
        headers = {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        if obj.version_tag.startswith('"'):
            headers["If-Match"] = obj.version_tag
        async with self._request("GET", url, headers) as answer:
            _raise_for(answer, url, size=size, reading=True)
            encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise SourceUnavailable(f"{url}: compressed answer ({encoding}), though none was asked for")
            # The version before the place: of another version no other sign can be trusted.
            self._check_version(obj, answer, size, url)
            place = body_place(
                answer.status, answer.headers.get("Content-Range"), answer.content_length, size, wanted, url
            )
            await copy_body(_chunks(answer, url), place, wanted, sink, url)

    async def close(self) -> None:
        """See ``Source``."""
        if self._session is not None:
            await self._session.close()

    # -- what is there --------------------------------------------------------------------------------------------

    async def _is_single(self) -> bool:
        """Whether the URL is a file. A URL without a "/" at its end may be both; the server decides."""
        if self._single is None:
            if urlsplit(self._root).path.endswith("/"):
                self._single = False
            else:
                found = await self._stat_url(self._single_name(), self._root)
                self._single = found is not None and found.kind is Kind.FILE
        return self._single

    def _single_name(self) -> str:
        raw = urlsplit(self._root).path.rpartition("/")[2]
        return os.fsdecode(unquote_to_bytes(raw)).replace("/", "_") or "index"

    async def _list_if_there(self, directory: str) -> AsyncIterator[ListingPage]:
        try:
            async for page in self.list_directory(directory):
                yield page
        except SourceMissing:
            if not directory:
                raise
            yield ListingPage((), (directory,))

    async def _stat_url(self, path: str, url: str) -> SourceObject | None:
        async with self._request("HEAD", url) as answer:
            if _slash_added(url, str(answer.url)):
                return SourceObject(path, Kind.DIRECTORY)
            if answer.status in (404, 410):
                return None
            encoded = answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
            if answer.status == 200 and answer.content_length is not None and not encoded:
                return self._file(path, answer, answer.content_length)
            # Signed URLs and some frameworks allow GET alone; and some say no length to a HEAD.
            if answer.status not in (200, 400, 403, 405, 501):
                _raise_for(answer, url)
        return await self._stat_by_get(path, url)

    async def _stat_by_get(self, path: str, url: str) -> SourceObject | None:
        async with self._request("GET", url, {"Range": "bytes=0-0"}) as answer:
            if _slash_added(url, str(answer.url)):
                return SourceObject(path, Kind.DIRECTORY)
            if answer.status in (404, 410):
                return None
            place = parse_content_range(answer.headers.get("Content-Range"))
            if answer.status == 416 and (place is None or not place.total):
                return self._file(path, answer, 0)  # no byte to give: it is empty
            _raise_for(answer, url)
            size = answer.content_length if answer.status == 200 else place.total if place is not None else None
            if size is None:
                raise SourceUnsupported(f"{url}: the server does not say how long it is")
            return self._file(path, answer, size)

    async def _is_directory(self, path: str) -> bool:
        url = self._url(path, slash=True)
        async with self._request("HEAD", url) as answer:
            if answer.status in (404, 410):
                return False
            if answer.status not in (405, 501):
                _raise_for(answer, url)
                return answer.status == 200
        async with self._request("GET", url) as answer:
            if answer.status in (404, 410):
                return False
            _raise_for(answer, url)
            return answer.status == 200

    def _file(self, path: str, answer: aiohttp.ClientResponse, size: int) -> SourceObject:
        tag = _tag_of(answer, size)
        if tag == _UNPROVABLE.format(size=size) and not self._said_weak:
            self._said_weak = True
            log.warning("the server has neither ETag nor Last-Modified, changes are not noticed", source=self.uri)
        return SourceObject(path, Kind.FILE, size, http_date_ns(answer.headers.get("Last-Modified")), tag)

    def _check_version(self, obj: SourceObject, answer: aiohttp.ClientResponse, size: int, url: str) -> None:
        if _tag_of(answer, size) != obj.version_tag:
            raise SourceChanged(f"{url}: {_tag_of(answer, size)} is there now, {obj.version_tag} was listed")

    # -- requests -------------------------------------------------------------------------------------------------

    def _url(self, path: str, *, slash: bool = False) -> str:
        base = self._root
        if path or slash:
            base = base.partition("?")[0].rstrip("/") + "/"
            base += quote(os.fsencode(path), safe=_SAFE) + ("/" if slash and path else "")
            if not path and "?" in self._root:
                base += "?" + self._root.partition("?")[2]
        return base

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, headers: Mapping[str, str] = _NO_HEADERS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One answer, redirects followed here: what we send to our own host must not reach another."""
        target = url
        for _ in range(REDIRECTS_MAX + 1):
            own = _origin(target) == _origin(self._root)
            sent = {"Accept-Encoding": "identity", **headers, **(self._headers if own else {})}
            try:
                answer = await self._opened().request(
                    method, URL(target, encoded=True), headers=sent, allow_redirects=False, proxy=self._proxy(target)
                )
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise _translated(error, url) from error
            try:
                following = answer.headers.get("Location") if answer.status in (301, 302, 303, 307, 308) else None
                if following is None:
                    yield answer
                    return
            finally:
                # A body that was read to its end gives its connection back; of any other we know not how much comes.
                answer.close() if not answer.content.at_eof() else answer.release()
            target = str(URL(urljoin(target, following)).with_fragment(None))
            if urlsplit(target).scheme not in ("http", "https"):
                raise SourceUnsupported(f"{url} leads to something that is not HTTP")
        raise SourceUnavailable(f"{url} leads in a circle (more than {REDIRECTS_MAX} redirects)")

    def _proxy(self, url: str) -> str | None:
        """The proxy of the environment, for when aiohttp is told not to look there."""
        parts = urlsplit(url)
        if "Authorization" not in self._headers or proxy_bypass(parts.netloc):
            return None
        return getproxies().get(parts.scheme)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.idle_s
                ),
                # Proxies and netrc. With a header of our own netrc must not be asked: aiohttp takes two for an error.
                trust_env="Authorization" not in self._headers,
                auto_decompress=False,  # the bytes of the file as they are, or none
                read_bufsize=256 * KiB,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


_UNPROVABLE: Final = "size {size}"


def _tag_of(answer: aiohttp.ClientResponse, size: int) -> str:
    etag = answer.headers.get("ETag", "").strip()
    if len(etag) >= 2 and etag.startswith('"') and etag.endswith('"'):
        return etag
    modified = answer.headers.get("Last-Modified", "").strip()
    if etag or modified:
        return f"{etag}|{modified}|{size}"
    return _UNPROVABLE.format(size=size)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = URL(url)
    return parts.scheme, parts.host, parts.port


def _slash_added(asked: str, answered: str) -> bool:
    """Whether a redirect led from a name to the same name with "/": that is how servers say "directory"."""
    return urlsplit(answered).path == urlsplit(asked).path + "/"


def _decoder(charset: str | None) -> codecs.IncrementalDecoder:
    try:
        if charset and codecs.lookup(charset).name != "utf-8":
            return codecs.getincrementaldecoder(charset)("replace")
    except LookupError:
        log.debug("unknown charset of an index taken for UTF-8", charset=charset[:40] if charset else "")
    return codecs.getincrementaldecoder("utf-8")("surrogateescape")


async def _chunks(answer: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _translated(error, url) from error


def _raise_for(answer: aiohttp.ClientResponse, url: str, *, size: int | None = None, reading: bool = False) -> None:
    """The error behind a status, if there is one. ``reading``: what was listed is asked for, so gone means changed."""
    status = answer.status
    if status in (200, 206):
        return
    shown = f"{url}: HTTP {status}"
    if status in (401, 403, 407):
        raise SourceRefused(f"{shown} (give username and password, or token, in a Secret; or use netrc)")
    if status in (404, 410):
        raise SourceChanged(f"{shown}, it is gone") if reading else SourceMissing(f"{shown}, it is not there")
    if status == 412:
        raise SourceChanged(f"{shown}, another version is there now")
    if status == 416:
        place = parse_content_range(answer.headers.get("Content-Range"))
        if place is not None and place.total is not None and place.total != size:
            raise SourceChanged(f"{url} has {place.total} bytes now, {size} when it was listed")
    if status in (429, 503):
        raise RetryLater(f"{shown}, the server asks for patience", retry_after_s(answer.headers))
    raise SourceUnavailable(shown)


def _translated(error: Exception, url: str) -> SourceError:
    if isinstance(error, TimeoutError):  # aiohttp's time-outs are among its connection errors too
        return SourceTimeout(f"{url}: nothing answered in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return SourceUnavailable(f"{url}: the certificate of the server is not trusted")
    if isinstance(error, ValueError):
        return SourceUnsupported(f"{url}: {error}")
    return SourceUnavailable(f"{url}: cannot be reached or broke off ({type(error).__name__})")
