"""HDFS over WebHDFS (also HttpFS and Knox). Version tag: length, modification time and inode number.

WebHDFS has no If-Match: a piece of up to 8 MiB is held until GETFILESTATUS, asked after its last byte, has proven that
the file is still the one that was listed. Paths below ``.snapshot`` never change, so they are what to name for data
that is written while it is read.

Users: ``user.name`` (simple authentication), a delegation token, or Basic for a gateway. Kerberos (SPNEGO) is not built
in: `hdfs fetchdt --webservice URL FILE` makes a delegation token, which goes into the Secret under ``token``. WebHDFS
takes it in the query (``delegation``), so no URL of a request is ever shown or logged, and no library error that
carries one is kept as a cause.
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

from dsfs.errors import (
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.answers import retry_after_s
from dsfs.sources.base import Sink, walk
from dsfs.sources.hadoop_answers import Standby, error_of, listed, name_of, object_of
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = structlog.get_logger()

PIECE_BYTES: Final = 8 * MiB  # three requests a piece: OPEN at the namenode and at the datanode, then the check
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


class WebHdfsSource:
    """``bases`` are the namenodes of one file system, in the order to try; who answered last is asked first."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        bases: tuple[str, ...],
        root: str,
        *,
        uri: str,
        user: str | None = None,
        token: str | None = None,
        basic: tuple[str, str] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._bases = bases
        self._root = root
        self._active = 0
        # With a token the user is in the token; another name beside it would be refused.
        self._who: Mapping[str, str] = {"delegation": token} if token else {"user.name": user} if user else {}
        self._headers = {"Authorization": f"Basic {b64encode(':'.join(basic).encode()).decode()}"} if basic else {}
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None
        self._batches = True  # until a namenode does not know LISTSTATUS_BATCH (Hadoop before 2.9)
        self._single: bool | None = None  # whether the root is one file; None: not asked yet
        self.uri = uri
        self.identity = f"webhdfs:{','.join(sorted(bases))}{root}"

    # -- Source ---------------------------------------------------------------------------------------------------

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. A page is what the namenode gives at once, 1000 names by default."""
        if directory and path_parts(directory) is None:
            raise SourceMissing(f"{self._shown(directory)} is no path")
        after = ""
        while True:
            entries, remaining = await self._entries(directory, after)
            objects, last = [], ""
            for entry in entries:
                name = name_of(entry)
                if name == "":  # a file was listed, and answers with itself
                    if directory or len(entries) != 1:
                        raise SourceMissing(f"{self._shown(directory)} is a file")
                    name = self._root.rpartition("/")[2]
                if name is not None:
                    last = name
                    found = object_of(entry, f"{directory}/{name}" if directory else name)
                    if found is not None:
                        objects.append(found)
            if not remaining:
                yield ListingPage(tuple(objects), (directory,))
                return
            if not last or last == after:
                raise SourceUnavailable(f"{self._shown(directory)}: the listing does not go on")
            after = last
            yield ListingPage(tuple(objects))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``. A directory that goes while the tree is walked is shown empty."""
        async for page in walk(self._list_if_there):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if path and path_parts(path) is None:
            return None
        if await self._is_single():
            single = self._root.rpartition("/")[2]
            return await self._status(path, self._root) if path == single else _DIRECTORY if not path else None
        try:
            return await self._status(path, self._full(path))
        except SourceMissing:
            if path:
                await self._status("", self._full(""))  # gone with its root is missing, and not "there is no such name"
                return None
            raise

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        full = self._root if await self._is_single() else self._full(obj.path)
        for start in range(wanted.start, wanted.stop, PIECE_BYTES):
            piece = ByteRange(start, min(start + PIECE_BYTES, wanted.stop))
            data: bytearray | None = None
            failed: SourceError | None = None
            try:
                data = await self._piece(full, piece)
            except (SourceUnavailable, SourceUnsupported) as error:
                failed = error  # a short answer of a file that was cut is a change
            except SourceMissing as error:
                raise SourceChanged(f"{self._shown(obj.path)} is gone") from error
            await self._check(obj, full, failed)
            assert data is not None
            await sink.write(start, data)

    async def close(self) -> None:
        """See ``Source``."""
        if self._session is not None:
            await self._session.close()

    # -- what is there --------------------------------------------------------------------------------------------

    async def _is_single(self) -> bool:
        if self._single is None:
            found = await self._status("", self._full(""))
            self._single = found is not None and found.kind is Kind.FILE
        return self._single

    async def _list_if_there(self, directory: str) -> AsyncIterator[ListingPage]:
        try:
            async for page in self.list_directory(directory):
                yield page
        except SourceMissing:
            if not directory:
                raise
            yield ListingPage((), (directory,))

    async def _entries(self, directory: str, after: str) -> tuple[list[Mapping[str, object]], int]:
        full, what = self._full(directory), self._shown(directory)
        if self._batches:
            try:
                parameters = {"op": "LISTSTATUS_BATCH"} | ({"startAfter": after} if after else {})
                return listed(await self._asked(full, parameters), directory, what)
            except SourceUnsupported:
                if after:
                    raise
                self._batches = False
        return listed(await self._asked(full, {"op": "LISTSTATUS"}), directory, what)

    async def _status(self, path: str, full: str) -> SourceObject | None:
        body = await self._asked(full, {"op": "GETFILESTATUS"})
        status = body.get("FileStatus") if isinstance(body, dict) else None
        if not isinstance(status, dict):
            raise SourceUnavailable(f"{self.uri}: {full}: that is no status")
        return object_of(status, path)

    async def _check(self, obj: SourceObject, full: str, failed: SourceError | None) -> None:
        """That the file is still the one that was listed. ``failed``: why its bytes did not come, if they did not."""
        what = self._shown(obj.path)
        try:
            now = await self._status(obj.path, full)
        except SourceMissing as error:
            raise SourceChanged(f"{what} is gone") from error
        except SourceError:
            if failed is not None:
                raise failed from None  # the first of two failures says more
            raise
        if now is None or now.version_tag != obj.version_tag:
            raise SourceChanged(f"{what} is not the file that was listed any more")
        if failed is not None:
            raise failed

    # -- bytes ----------------------------------------------------------------------------------------------------

    async def _piece(self, full: str, piece: ByteRange) -> bytearray:
        """Exactly these bytes, of whichever version. A datanode that fails is left out of the next attempt."""
        parameters = {"op": "OPEN", "offset": str(piece.start), "length": str(piece.length)}
        excluded: list[str] = []
        while True:
            if excluded:
                parameters["excludedatanodes"] = ",".join(excluded)
            try:
                async with self._answer(full, parameters) as answer:
                    return await self._body(answer, piece, self.uri)
            except _DatanodeFailed as failed:
                excluded.append(failed.address)
                if len(excluded) == DATANODES_TRIED:
                    raise failed.error from failed.error.__cause__
                log.debug("datanode failed, another is asked for", source=self.uri, datanode=failed.address)

    async def _body(self, answer: aiohttp.ClientResponse, piece: ByteRange, what: str) -> bytearray:
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise SourceUnavailable(f"{what}: compressed answer, though none was asked for")
        if answer.content_length not in (None, piece.length):
            raise SourceUnavailable(f"{what}: the answer has {answer.content_length} bytes for {piece.length}")
        data = bytearray()
        try:
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > piece.length:
                    break
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, what) from _cause(error)
        if len(data) != piece.length:
            raise SourceUnavailable(f"{what}: the answer has {len(data)} bytes or more for {piece.length}")
        return data

    # -- requests -------------------------------------------------------------------------------------------------

    async def _asked(self, full: str, parameters: Mapping[str, str]) -> object:
        """What the namenode answers, parsed."""
        what = f"{self.uri} ({parameters['op']})"
        async with self._answer(full, parameters) as answer:
            body = await _json(answer, what)
        if body is None:
            raise SourceUnavailable(f"{what}: the answer is not JSON (is WebHDFS served at this address?)")
        return body

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
        what = f"{self.uri} ({parameters['op']})"
        target = f"{base}/webhdfs/v1{quote(full) or '/'}?{urlencode({**parameters, **self._who})}"
        for _ in range(REDIRECTS_MAX + 1):
            own = _origin(target) == _origin(base)
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
            raise _translated(error, what) from _cause(error)

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

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"

    def _shown(self, path: str) -> str:
        whole = f"{self.uri}/{path}" if path else self.uri
        return whole.encode("utf-8", "backslashreplace").decode()


_DIRECTORY: Final = SourceObject("", Kind.DIRECTORY)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = URL(url, encoded=True)
    return parts.scheme, parts.host, parts.port


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
        raise _translated(error, what) from _cause(error)
    try:
        if len(data) > _PARSED_IN_LOOP_BYTES:
            return await asyncio.to_thread(json.loads, data)  # seconds for a million names
        parsed: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return parsed


def _cause(error: Exception) -> Exception | None:
    """The error, unless its text holds a request's URL, which may carry a token."""
    return None if isinstance(error, ValueError | aiohttp.ClientResponseError) else error


def _translated(error: Exception, what: str) -> SourceError:
    if isinstance(error, TimeoutError):
        return SourceTimeout(f"{what}: nothing answered in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return SourceUnavailable(f"{what}: the certificate of the server is not trusted (name its CA in SSL_CERT_FILE)")
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
        return SourceUnavailable(f"{what}: cannot be reached or broke off ({type(error).__name__})")
    return SourceUnavailable(f"{what}: the answer cannot be read ({type(error).__name__})")
