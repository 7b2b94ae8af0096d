"""One HTTP request and what its answer says: redirects, proxies, credentials for their own host alone, errors."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import netrc
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Final, Protocol
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import MultiMapping
from yarl import URL

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceDeclined,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.ranges import KiB
from dsfs.sources.aiohttp_edge import chunks, harmless, origin_of, proxy_of, translated
from dsfs.sources.answers import (
    ContentRange,
    check_not_coded,
    check_whole,
    content_coding,
    has_open_end,
    parse_content_range,
    retry_after_s,
)
from dsfs.sources.http_heads import Heads
from dsfs.sources.timeouts import Timeouts
from dsfs.sources.wire_head import Head
from dsfs.sources.wire_request import Proof

CONNECTIONS: Final = 128
AT_ONCE_IF_CLOSING: Final = 4
"""Requests that are not answered yet. Where each of them needs a new connection, more than the server has room for in
its backlog (often 5) wait for a second, until their SYN is sent again."""
_CLOSING: Final = 2  # answers, one after the other
REDIRECTS_MAX: Final = 10
_IN_URLS: Final = "%:/?#[]@!$&'()*+,;=-._~"  # RFC 3986
_OF_THE_MOMENT: Final = (408, 416, 421, 425)
"""Below 500, and yet of the connection or of what came before, not of the name that was asked for."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)
USER_AGENT: Final = "dsfs"
_NO_HEADERS: Final[Mapping[str, str]] = {}
_UNPROVABLE: Final = "size {size}"
_CODED_TAG: Final = re.compile(r"(\".*\") ([a-z0-9-]+(?:,[a-z0-9-]+)*)", re.DOTALL)


class Answered(Protocol):
    """The head of an answer, whichever client it came by."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> MultiMapping[str]: ...

    @property
    def content_length(self) -> int | None: ...


class HttpClient:
    """Requests of one dataset. ``headers``, credentials among them, are sent to the origin of ``root`` and to no other.

    ``own_credentials`` says that netrc is not to be asked, as an Authorization is among the headers, or none is wanted.
    """

    def __init__(self, root: str, headers: Mapping[str, str], timeouts: Timeouts, *, own_credentials: bool) -> None:
        self._origin = origin_of(root)
        self._headers = dict(headers)
        self._timeouts = timeouts
        self._own_credentials = own_credentials
        self._session: aiohttp.ClientSession | None = None
        parts = URL(root, encoded=True)
        self._authority = parts.raw_authority.rpartition("@")[2]
        self._base = f"{parts.scheme}://{parts.raw_authority}"
        self._plain: bool | None = None
        self._asks_environment = not own_credentials
        self._closings = 0
        self._few = asyncio.Semaphore(AT_ONCE_IF_CLOSING)
        self._heads: Heads | None = None
        lines = {"Host": self._authority, "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        self._constant = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **self._headers}.items())

    @property
    def closes(self) -> bool:
        """Whether the server ends each connection after one answer, as far as is known."""
        return self._closings >= _CLOSING

    @asynccontextmanager
    async def request(
        self, method: str, url: str, headers: Mapping[str, str] = _NO_HEADERS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One answer, redirects followed here: what we send to our own host must not reach another."""
        async with AsyncExitStack() as stack:
            async with self._few if self.closes else nullcontext():  # until it answers: then it has been accepted
                answer = await stack.enter_async_context(self._requested(method, url, headers))
            yield answer

    @asynccontextmanager
    async def _requested(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._plain is None:
            self._plain, self._asks_environment = await asyncio.to_thread(self._look_around)
        target = url
        what = without_query(url)
        for _ in range(REDIRECTS_MAX + 1):
            try:
                own = origin_of(target) == self._origin
                sent = {"Accept-Encoding": "identity", **headers, **(self._headers if own else {})}
                answer = await self._opened().request(
                    method, URL(target, encoded=True), headers=sent, allow_redirects=False, proxy=self._proxy(target)
                )
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise translated(error, what) from harmless(error)
            if own:  # where a redirect leads to says nothing of our own host
                self._closings = self._closings + 1 if _closes(answer) else 0
            try:
                following = answer.headers.get("Location") if answer.status in _REDIRECTS else None
                if following is None:
                    yield answer
                    return
            finally:
                # A body that was read to its end gives its connection back; of any other we know not how much comes.
                answer.close() if not answer.content.at_eof() else answer.release()
            try:
                # As it was given, but for what no URL has: quoting it anew would break what was signed.
                following = quote(following, _IN_URLS, errors="surrogateescape")
                target = str(URL(urljoin(target, following).partition("#")[0], encoded=True))
            except ValueError as error:
                raise SourceUnavailable(f"{what} leads to something that is no URL") from error
            if urlsplit(target).scheme not in ("http", "https"):
                raise SourceUnsupported(f"{what} leads to something that is not HTTP")
        raise SourceUnavailable(f"{what} leads in a circle (more than {REDIRECTS_MAX} redirects)")

    async def head(self, url: str) -> Head | None:
        """The answer to a HEAD request for little processor time; None: ``request`` has to ask."""
        wire = None if self.closes else self.wire_head("HEAD", url, _NO_HEADERS)
        if wire is None:
            return None
        host, port, request = wire
        if self._heads is None:
            self._heads = Heads(host, port)
        answer = await self._heads.ask(request + b"\r\n")
        if answer is None or answer.status not in _REDIRECTS:
            return answer
        with contextlib.suppress(ValueError):  # no URL: ``request`` says so
            if urlsplit(urljoin(url, answer.headers.get("Location", ""))).path != f"{urlsplit(url).path}/":
                self._heads.rest()  # one that has its files elsewhere would be asked twice for each
        return None

    def wire_head(self, method: str, url: str, headers: Mapping[str, str]) -> tuple[str, int, bytes] | None:
        """Host, port and the head of a request to our own host, for ``sources.wire``; None for what it cannot do.

        That is TLS, a proxy, and what netrc says; before the first ``request`` nothing is known of the last two.
        """
        if not self._plain or not url.startswith(self._base):
            return None
        _scheme, host, port = self._origin
        varying = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name not in self._headers)
        head = f"{method} {url[len(self._base) :] or '/'} HTTP/1.1\r\n{self._constant}{varying}"
        return host or "", port or 80, head.encode("latin-1")

    def _look_around(self) -> tuple[bool, bool]:
        """Whether our own host is reached as the URL says, and whether the environment has a word for others."""
        scheme, host, _port = self._origin
        proxies = getproxies()
        proxied = bool(proxies.get("http")) and not proxy_bypass(self._authority)
        plain = scheme == "http" and host is not None and not proxied
        if self._own_credentials:
            return plain, False
        return plain and not _in_netrc(host or ""), bool(proxies) or os.path.exists(_netrc_path())

    async def close(self) -> None:
        """Give back connections."""
        if self._heads is not None:
            self._heads.close()
        if self._session is not None:
            await self._session.close()

    def _proxy(self, url: str) -> str | None:
        """Of the environment, which aiohttp is told not to look at where credentials are our own."""
        return proxy_of(url) if self._own_credentials else None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.idle_s
                ),
                # Proxies and netrc. With a header of our own netrc must not be asked: aiohttp takes two for an error.
                # Nor where there is none: it would be looked for in a thread, for each request.
                trust_env=self._asks_environment,
                auto_decompress=False,  # the bytes of the file as they are, or none
                read_bufsize=256 * KiB,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _netrc_path() -> str:
    return os.environ.get("NETRC") or os.path.expanduser("~/.netrc")


def _in_netrc(host: str) -> bool:
    """Whether there are credentials for a host, or a file that only aiohttp can make something of."""
    try:
        return netrc.netrc(_netrc_path()).authenticators(host) is not None
    except FileNotFoundError:
        return False
    except (OSError, netrc.NetrcParseError):
        return True


def _closes(answer: aiohttp.ClientResponse) -> bool:
    """RFC 9112, section 9.3."""
    said = ",".join(answer.headers.getall("Connection", ())).lower()
    old = answer.version is not None and answer.version < (1, 1)
    return "close" in said or (old and "keep-alive" not in said)


def without_query(url: str) -> str:
    """A URL for people: behind its "?" may be a signature."""
    return url.partition("?")[0]


def told_apart(headers: Mapping[str, str] | None) -> str:
    """What a source's identity has for the headers that are sent with each request: another answer may come to others,
    and need not say so."""
    if not headers:
        return ""
    sent = sorted((key.lower(), value) for key, value in headers.items())
    return f" headers {hashlib.sha256(json.dumps(sent).encode()).hexdigest()[:16]}"


def tag_of(answer: Answered, size: int) -> str:
    """The version that an answer is of: a strong ETag, with what its bytes are stored coded with (``"1a" gzip``); else
    the weak one and Last-Modified with the size."""
    etag = answer.headers.get("ETag", "").strip()
    if _is_strong(etag):
        coding = content_coding(answer.headers)
        return f"{etag} {coding}" if coding else etag
    modified = answer.headers.get("Last-Modified", "").strip()
    if etag or modified:
        return f"{etag}|{modified}|{size}"
    return _UNPROVABLE.format(size=size)


def etag_in(tag: str) -> str:
    """The strong ETag that a version tag is made of; "" where there is none in it."""
    if _is_strong(tag):
        return tag
    match = _CODED_TAG.fullmatch(tag)
    return match[1] if match else ""


def codings_of(tag: str) -> tuple[str, ...]:
    """The Content-Encoding that answers of a version may have, "" for none."""
    match = None if _is_strong(tag) else _CODED_TAG.fullmatch(tag)
    return (match[2],) if match else ("", "identity")


def _is_strong(etag: str) -> bool:
    return len(etag) >= 2 and etag.startswith('"') and etag.endswith('"')


def proof_of(tag: str, size: int) -> Proof | None:
    """What headers say that ``tag_of`` an answer of this size is this tag; None where that cannot be said so. What its
    bytes are coded with is ``codings_of`` it."""
    if proves_nothing(tag, size):
        return (("etag", ("",)), ("last-modified", ("",)))
    if strong := etag_in(tag):
        return (("etag", (strong,)),)
    etag, _, rest = tag.partition("|")
    modified, _, said_size = rest.partition("|")
    if _is_strong(etag) or said_size != str(size):
        return None
    return (("etag", (etag,)), ("last-modified", (modified,)))


def proves_nothing(tag: str, size: int) -> bool:
    """Whether a tag is of an answer with neither ETag nor Last-Modified."""
    return tag == _UNPROVABLE.format(size=size)


def check_not_compressed(answer: Answered, what: str, tag: str = "") -> None:
    """Raises SourceUnavailable for a body that is not the bytes of the file.

    ``tag`` is of the version that was listed. Where that says that they are stored coded, an answer that is coded so
    has them (RFC 9110, section 8.4), and ranges and lengths are of them (section 14). Whoever compresses on the way
    does not know how long it will be, so one that does not say that is none.
    """
    coding = content_coding(answer.headers)
    stored = coding in codings_of(tag) and not (coding and has_open_end(answer.headers))
    check_not_coded(answer.headers, without_query(what), stored=stored)


def check_probe(answer: Answered, place: ContentRange | None, what: str, tag: str) -> None:
    """Raises SourceUnsupported where the answer to a request for one byte, by which a file is to be listed with this
    tag, shows that what its server sends is not what it stores."""
    try:
        check_not_compressed(answer, what, tag)
    except SourceUnavailable as error:
        raise SourceUnsupported(str(error)) from error
    part = None if place is None else place.range
    if part is not None and content_coding(answer.headers) and answer.content_length != part.length:
        raise SourceUnsupported(f"{without_query(what)}: compressed on its way, though that was not asked for")


async def body_up_to(answer: aiohttp.ClientResponse, limit_bytes: int, what: str) -> bytes:
    """A whole body; SourceUnsupported for one that is longer than that, SourceUnavailable for a part of one."""
    check_whole(answer.status, what)
    found = bytearray()
    async for chunk in chunks(answer, what):
        found += chunk
        if len(found) > limit_bytes:
            raise SourceUnsupported(f"{what} is larger than {limit_bytes} bytes")
    if answer.content_length not in (None, len(found)):
        raise SourceUnavailable(f"{what}: the answer ended at byte {len(found)} of {answer.content_length}")
    return bytes(found)


def raise_for(
    answer: Answered,
    what: str,
    *,
    size: int | None = None,
    reading: bool = False,
    remedy: str = "give username and password, token, or a header such as X-API-Key in a Secret; or use netrc",
) -> None:
    """The error behind a status, if there is one. ``reading``: what was listed is asked for, so gone means changed."""
    status = answer.status
    if status in (200, 206):
        return
    what = without_query(what)
    shown = f"{what}: HTTP {status}"
    if status in (401, 403, 407):
        raise SourceRefused(f"{shown} ({remedy})")
    if status in (404, 410):
        raise SourceChanged(f"{shown}, it is gone") if reading else SourceMissing(f"{shown}, it is not there")
    if status == 412:
        raise SourceChanged(f"{shown}, another version is there now")
    if status == 416:
        place = parse_content_range(answer.headers.get("Content-Range"))
        if place is not None and place.total is not None and place.total != size:
            raise SourceChanged(f"{what} has {place.total} bytes now, {size} when it was listed")
    if status in (429, 503):
        raise RetryLater(f"{shown}, the server asks for patience", retry_after_s(answer.headers))
    if 400 <= status < 500 and status not in _OF_THE_MOMENT:
        raise SourceDeclined(shown)
    raise SourceUnavailable(shown)
