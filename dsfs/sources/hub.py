"""What the model hubs have in common: the environment, filters, one HTTP client whose token stays with its own host.

Speaks HTTP for ``huggingface`` and ``modelscope``, as their own libraries do: huggingface_hub (``utils/_http.py``,
``_pagination.py``, ``file_download.py``) and modelscope_hub (``_legacy_api.py``).
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from dsfs.errors import (
    ConfigError,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.manifest.schema import SourceSpec
from dsfs.model import path_parts
from dsfs.ranges import KiB, MiB
from dsfs.sources.aiohttp_edge import chunks, harmless, origin_of, proxy_of, translated
from dsfs.sources.answers import check_whole
from dsfs.sources.options import UnknownOption
from dsfs.sources.retry import one_of_many
from dsfs.sources.timeouts import Timeouts

CONNECTIONS: Final = 64
REDIRECTS_MAX: Final = 10
ANSWER_MAX_BYTES: Final = 512 * MiB  # ModelScope lists a whole model in one answer; 300 bytes a file
_PARSED_IN_LOOP_BYTES: Final = 64 * KiB  # json.loads takes about 0.5 ms for so much; more goes to a thread
_LINK_NEXT = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel="?next"?', re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Credentials = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Keys and values of a Secret, or what gives them. Looked at for each request: a rotated token counts at once."""


def environment(name: str) -> str:
    """A variable of the hubs' own convention (HF_TOKEN, HF_ENDPOINT, MODELSCOPE_…); "" when it is not set.

    DESIGN section 7 wants each source's own convention, and for the hubs there is no library below us that would do
    it, as botocore does for S3.
    """
    return os.environ.get(name, "").strip()


class TokenFile:
    """A file that holds a token (``~/.cache/huggingface/token``), read again when it changed.

    Looked at once a second at most: it is a small local file, and the loop has other readers.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._looked_s = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self._token: str | None = None

    def token(self) -> str | None:
        now_s = time.monotonic()
        if now_s - self._looked_s >= 1.0:
            self._looked_s = now_s
            self._look()
        return self._token

    def _look(self) -> None:
        try:
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen != self._seen:
                with open(self._path, encoding="utf-8") as file:
                    # As huggingface_hub cleans it: line breaks go, also in the middle.
                    self._token = file.read(4 * KiB).replace("\r", "").replace("\n", "").strip() or None
                self._seen = seen
        except (OSError, UnicodeDecodeError):
            self._seen, self._token = None, None


class Token:
    """The token of now: the Secret's, else what ``otherwise`` gives (the environment's own convention)."""

    def __init__(self, credentials: Credentials, otherwise: Callable[[], str | None], hub: str) -> None:
        """Raises ConfigError for a token that fits into no header."""
        self._credentials = credentials
        self._otherwise = otherwise
        self._hub = hub
        try:
            self.get()
        except SourceRefused as error:
            raise ConfigError(str(error)) from None

    def get(self) -> str | None:
        """Raises SourceRefused, which does not show it, for a token that fits into no header."""
        given = self._credentials() if callable(self._credentials) else self._credentials
        token = (given.get("token") or "").strip() or self._otherwise()
        if token and not (token.isascii() and token.isprintable() and not set(token) & set(' ",;\\')):
            raise SourceRefused(f"{self._hub}: the token is not plain ASCII text (check it for stray characters)")
        return token or None


def checked_options(spec: SourceSpec, known: Sequence[str], hub: str) -> dict[str, str]:
    """The options that are set. An empty value is what a template leaves behind for "not set". Raises ConfigError."""
    for key in spec.options:
        if key not in known:
            raise UnknownOption(hub, key, ", ".join(known))
    return {key: value for key, value in spec.options.items() if value}


def checked_endpoint(endpoint: str, hub: str) -> str:
    """``https://host[:port][/path]`` without a "/" at its end. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{hub}: the endpoint must be a URL such as https://hub.example.com")
    return endpoint.rstrip("/")


def checked_revision(revision: str, hub: str) -> str:
    """A branch, tag, ref or commit. What git allows in no ref is refused here: it would be another URL."""
    if not revision.isprintable() or " " in revision or path_parts(revision) is None or ".." in revision:
        raise ConfigError(f"{hub}: the revision is no name of a branch, tag or commit")
    return revision


def is_commit(revision: str) -> bool:
    """Whether it is a whole commit id, which never means another content."""
    return _COMMIT.fullmatch(revision) is not None


@dataclass(frozen=True, slots=True)
class Filters:
    """``include`` and ``exclude``: one glob each over the path in the repository, as both hubs' own tools match them.

    ``*`` matches "/" too, and a pattern that ends with "/" means all below it (huggingface_hub ``utils/_paths.py``).
    """

    include: str = ""
    exclude: str = ""

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def allow(self, path: str) -> bool:
        if self.include and not _matches(path, self.include):
            return False
        return not (self.exclude and _matches(path, self.exclude))


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)


class HubClient:
    """Requests to one hub and to wherever it redirects. ``auth`` gives the headers that only the hub's own host sees.

    Redirects are not followed by aiohttp but here, hop by hop, so that this rule has one place. ``what`` names the
    thing asked for in messages: URLs of content hosts are signed and belong in none.
    """

    def __init__(self, endpoint: str, auth: Callable[[], Mapping[str, str]], timeouts: Timeouts) -> None:
        self.endpoint = endpoint
        self._auth = auth
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    def owns(self, url: str) -> bool:
        """Whether this is the hub's own host: the token may go there."""
        return origin_of(url) == origin_of(self.endpoint)

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        what: str,
        headers: Mapping[str, str] | None = None,
        form: Sequence[tuple[str, str]] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, one answer; a redirect is an answer."""
        sent = {"User-Agent": "dsfs", "Accept-Encoding": "identity", **(headers or {})}
        if self.owns(url):
            sent.update(self._auth())
        try:
            answer = await self._opened().request(
                method,
                URL(url, encoded=True),
                headers=sent,
                data=None if form is None else aiohttp.FormData(form),
                allow_redirects=False,
                proxy=proxy_of(url),
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise translated(error, what) from harmless(error)
        try:
            yield answer
        finally:
            # A body that was read to its end gives its connection back; of any other we know not how much comes.
            answer.close() if not answer.content.at_eof() else answer.release()

    @asynccontextmanager
    async def follow(
        self, method: str, url: str, what: str, form: Sequence[tuple[str, str]] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of the API, redirects followed (a repository that was renamed, a mirror that sends us on)."""
        for _ in range(REDIRECTS_MAX + 1):
            async with self.send(method, url, what, {"Accept-Encoding": "gzip"}, form) as answer:
                location = redirect_of(answer)
                if location is None:
                    yield answer
                    return
            url = joined(url, location, what)
        raise SourceUnavailable(f"{what}: the hub leads in a circle (more than {REDIRECTS_MAX} redirects)")

    async def pages(
        self, url: str, what: str, check: Callable[[aiohttp.ClientResponse], None]
    ) -> AsyncIterator[list[Any]]:
        """The pages of a list, as ``Link: <…>; rel="next"`` chains them.

        Of the link only the query (the cursor) is used, on the URL that was asked: mirrors hand the original's links
        on unchanged, and the token must not follow them to another host.
        """

        async def ask() -> tuple[Any, str]:
            async with self.follow("GET", url, what) as answer:
                check(answer)
                return await read_json(answer, what), ", ".join(answer.headers.getall("Link", ()))

        base, seen = url.partition("?")[0], {url}
        while True:
            page, link = await ask() if len(seen) == 1 else await one_of_many(ask)
            if not isinstance(page, list):
                raise SourceUnavailable(f"{what}: the answer is no listing (check the endpoint)")
            yield page
            following = _LINK_NEXT.search(link)
            if following is None:
                return
            url = f"{base}?{following[1].partition('?')[2]}"
            if url in seen:
                raise SourceUnavailable(f"{what}: the listing is cut off, its next page is one that was there before")
            seen.add(url)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.idle_s
                ),
                trust_env=False,  # netrc must not answer for a content host; proxies are looked up by ``proxy_of``
                auto_decompress=False,  # the bytes of a file as they are, or none
                read_bufsize=256 * KiB,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def read_json(answer: aiohttp.ClientResponse, what: str) -> Any:
    """The document of an answer. Raises SourceUnavailable for what is none, or is longer than ``ANSWER_MAX_BYTES``."""
    check_whole(answer.status, what)
    body = bytearray()
    async for chunk in chunks(answer, what):
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            raise SourceUnavailable(f"{what}: the answer is longer than {ANSWER_MAX_BYTES // MiB} MiB")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise SourceUnavailable(f"{what}: compressed answer ({encoding}), though none was asked for")
    try:
        if len(body) <= _PARSED_IN_LOOP_BYTES and encoding != "gzip":
            return json.loads(body)
        return await asyncio.to_thread(_parse, bytes(body), encoding == "gzip")
    except (ValueError, zlib.error, RecursionError) as error:
        raise SourceUnavailable(f"{what}: the answer is not JSON (check the endpoint)") from error


def _parse(body: bytes, gzipped: bool) -> Any:
    if gzipped:
        unpacker = zlib.decompressobj(wbits=31)
        body = unpacker.decompress(body, ANSWER_MAX_BYTES)
        if not unpacker.eof:
            raise ValueError("cut off, or longer than anything that is expected")
    return json.loads(body)


def redirect_of(answer: aiohttp.ClientResponse) -> str | None:
    """Where an answer leads, if it leads anywhere."""
    return answer.headers.get("Location") if answer.status in (301, 302, 303, 307, 308) else None


def joined(url: str, location: str, what: str) -> str:
    """The URL that a redirect means. Raises SourceUnsupported."""
    try:
        # As it was given: quoting it anew would break what was signed.
        parts = URL(urljoin(url, location).partition("#")[0], encoded=True)
        usable = parts.scheme in ("http", "https") and bool(parts.host)
    except ValueError:
        usable = False
    if not usable:
        raise SourceUnsupported(f"{what}: the hub leads to something that is not HTTP")
    return str(parts)
