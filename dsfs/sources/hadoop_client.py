"""Requests of WebHDFS: the namenode that serves, the datanode that has the bytes, and what each of them may be told.

The token (``delegation``) or the user is in the query, as WebHDFS takes it, so no URL of a request is ever shown or
logged, and no library error that carries one is kept as a cause.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import aiohttp
import structlog
from yarl import URL

from dsfs.errors import SourceError, SourceTimeout, SourceUnavailable, SourceUnsupported
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.aiohttp_edge import harmless, origin_of
from dsfs.sources.answers import check_not_coded, retry_after_s
from dsfs.sources.certificates import NOT_TRUSTED
from dsfs.sources.hadoop_answers import Standby, error_of
from dsfs.sources.timeouts import Timeouts

log = structlog.get_logger()

CONNECTIONS: Final = 128
DATANODES_TRIED: Final = 3  # as many as HDFS keeps copies
REDIRECTS_MAX: Final = 5
_JSON_MAX_BYTES: Final = 512 * MiB  # a directory of 1,000,000 files that an old namenode lists at once
_PARSED_IN_LOOP_BYTES: Final = 1 * MiB  # takes about 10 ms
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class _DatanodeFailed(SourceUnavailable):
    """The namenode sent us to a datanode that does not give the bytes; ``address`` is its host and port."""

    def __init__(self, error: SourceUnavailable, address: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.address = address


class WebHdfsClient:
    """Requests of one dataset. ``bases`` are the namenodes of one file system, in the order to try; who answered last
    is asked first. ``uri`` is what messages say, ``full`` an absolute path in HDFS.
    """

    def __init__(
        self,
        bases: tuple[str, ...],
        *,
        uri: str,
        user: str | None,
        token: str | None,
        basic: tuple[str, str] | None,
        timeouts: Timeouts,
    ) -> None:
        self._bases = bases
        self._uri = uri
        self._active = 0
        # With a token the user is in the token; another name beside it would be refused.
        self._who: Mapping[str, str] = {"delegation": token} if token else {"user.name": user} if user else {}
        self._headers = {"Authorization": f"Basic {b64encode(':'.join(basic).encode()).decode()}"} if basic else {}
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, full: str, parameters: Mapping[str, str]) -> object:
        """What the namenode answers, parsed."""
        what = f"{self._uri} ({parameters['op']})"
        async with self._answer(full, parameters) as answer:
            body = await _json(answer, what)
        if body is None:
            raise SourceUnavailable(f"{what}: the answer is not JSON (is WebHDFS served at this address?)")
        return body

    async def piece(self, full: str, piece: ByteRange) -> bytearray:
        """Exactly these bytes, of whichever version. A datanode that fails is left out of the next attempt."""
        parameters = {"op": "OPEN", "offset": str(piece.start), "length": str(piece.length)}
        excluded: list[str] = []
        while True:
            if excluded:
                parameters["excludedatanodes"] = ",".join(excluded)
            try:
                async with self._answer(full, parameters) as answer:
                    return await self._body(answer, piece, self._uri)
            except _DatanodeFailed as failed:
                excluded.append(failed.address)
                if len(excluded) == DATANODES_TRIED:
                    raise failed.error from failed.error.__cause__
                log.debug("datanode failed, another is asked for", source=self._uri, datanode=failed.address)

    async def _body(self, answer: aiohttp.ClientResponse, piece: ByteRange, what: str) -> bytearray:
        check_not_coded(answer.headers, what)
        if answer.content_length not in (None, piece.length):
            raise SourceUnavailable(f"{what}: the answer has {answer.content_length} bytes for {piece.length}")
        data = bytearray()
        try:
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > piece.length:
                    break
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, what) from harmless(error)
        if len(data) != piece.length:
            raise SourceUnavailable(f"{what}: the answer has {len(data)} bytes or more for {piece.length}")
        return data

    async def close(self) -> None:
        """Give back connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _answer(self, full: str, parameters: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The good answer of the first namenode that serves; an error of the body in the block is not retried."""
        last: SourceUnavailable | None = None
        for turn in range(len(self._bases)):
            number = (self._active + turn) % len(self._bases)
            try:
                answer = await self._followed(self._bases[number], full, parameters)
            except _DatanodeFailed:
                raise
            except SourceUnavailable as error:
                # "Is a standby" says less than why the other one, which should be active, does not answer.
                last = error if last is None or isinstance(last, Standby) else last
                continue
            self._active = number
            try:
                yield answer
            finally:
                answer.close() if not answer.content.at_eof() else answer.release()
            return
        assert last is not None
        raise last

    async def _followed(self, base: str, full: str, parameters: Mapping[str, str]) -> aiohttp.ClientResponse:
        """A 200, redirects followed here: what is for the namenode (Authorization, the token) goes to it alone.

        The namenode puts into a redirect what its datanode needs: the user, or a token of its own making.
        """
        what = f"{self._uri} ({parameters['op']})"
        target = f"{base}/webhdfs/v1{quote(full) or '/'}?{urlencode({**parameters, **self._who})}"
        for _ in range(REDIRECTS_MAX + 1):
            own = origin_of(target) == origin_of(base)
            try:
                answer = await self._sent(target, self._headers if own else {}, what)
                following = answer.headers.get("Location") if answer.status in _REDIRECTS else None
                if following is not None:
                    answer.close() if not answer.content.at_eof() else answer.release()
                    target = self._next(target, following, what)
                    continue
                if answer.status == 200:
                    return answer
                await _raise_for(answer, what)
            except Standby:
                raise
            except SourceUnavailable as error:
                if own or parameters["op"] != "OPEN":
                    raise
                raise _DatanodeFailed(error, urlsplit(target).netloc) from error.__cause__
        raise SourceUnavailable(f"{what} leads in a circle (more than {REDIRECTS_MAX} redirects)")

    def _next(self, target: str, location: str, what: str) -> str:
        try:
            following = URL(target, encoded=True).join(URL(location, encoded=True)).with_fragment(None)
            known = parse_qs(following.raw_query_string)
        except ValueError:
            raise SourceUnavailable(f"{what} leads to something that is no URL") from None
        if following.scheme not in ("http", "https"):
            raise SourceUnsupported(f"{what} leads to something that is not HTTP")
        if target.startswith("https:") and following.scheme != "https":
            raise SourceUnsupported(f"{what} leads from TLS to plain HTTP (set dfs.http.policy to HTTPS_ONLY)")
        shown = str(following)
        if "user.name" in self._who and not {"user.name", "delegation"} & set(known):
            shown += ("&" if following.raw_query_string else "?") + urlencode(self._who)
        return shown

    async def _sent(self, target: str, headers: Mapping[str, str], what: str) -> aiohttp.ClientResponse:
        try:
            return await self._opened().get(
                URL(target, encoded=True),
                headers={"Accept-Encoding": "identity", **headers},
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _translated(error, what) from harmless(error)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Made here and not when aiohttp was imported, so that SSL_CERT_FILE can name a company's own CA.
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=ssl.create_default_context()),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.idle_s
                ),
                trust_env=not self._headers,  # proxies and netrc; of two Authorizations aiohttp makes an error
                auto_decompress=False,
                read_bufsize=256 * KiB,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def _raise_for(answer: aiohttp.ClientResponse, what: str) -> None:
    try:
        body = await _json(answer, what)
    except SourceUnavailable:
        body = None
    finally:
        answer.close()
    negotiate = answer.headers.get("WWW-Authenticate", "").strip().lower().startswith("negotiate")
    raise error_of(answer.status, body, what, negotiate=negotiate, retry_after_s=retry_after_s(answer.headers))


async def _json(answer: aiohttp.ClientResponse, what: str) -> object:
    """Parsed; None for what is not JSON. Raises SourceUnavailable if the body breaks off."""
    data = bytearray()
    try:
        async for chunk in answer.content.iter_any():
            data += chunk
            if len(data) > _JSON_MAX_BYTES:
                raise SourceUnavailable(f"{what}: the answer has no end")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _translated(error, what) from harmless(error)
    try:
        if len(data) > _PARSED_IN_LOOP_BYTES:
            return await asyncio.to_thread(json.loads, data)  # seconds for a million names
        parsed: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return parsed


def _translated(error: Exception, what: str) -> SourceError:
    if isinstance(error, TimeoutError):
        return SourceTimeout(f"{what}: nothing answered in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return SourceUnavailable(f"{what}: {NOT_TRUSTED}")
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
        return SourceUnavailable(f"{what}: cannot be reached or broke off ({type(error).__name__})")
    return SourceUnavailable(f"{what}: the answer cannot be read ({type(error).__name__})")
