"""Byte ranges of S3 objects: over sockets, through obstore, or through aiobotocore for what obstore does not take.

Sockets are for endpoints without TLS, once a library has found the way there and the keys. obstore wants 206 with a
matching Content-Range, and it tidies keys (``a/`` becomes ``a``), so it is asked only for keys that its tidying leaves
alone.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import obstore
import structlog
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError
from multidict import CIMultiDict
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from dsfs.errors import SourceChanged, SourceError, SourceTimeout, SourceUnavailable
from dsfs.model import SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.answers import body_place, check_not_coded, copy_body, has_open_end, http_date_ns, retry_after_s
from dsfs.sources.base import Buffer, Sink
from dsfs.sources.s3_client import PAYER_HEADER, CredentialsExpired, Opened, S3Connection, of_status, translated
from dsfs.sources.s3_sign import Keys, path_of, signed
from dsfs.sources.told_digests import ToldDigests
from dsfs.sources.told_headers import of_amz_headers
from dsfs.sources.wire_head import Head
from dsfs.sources.wire_request import NotForWire, WireRequest

log = structlog.get_logger()

# How much obstore gathers before Python hears of it: one hop between the runtimes a MiB.
PIECE_BYTES: Final = 1 * MiB
_CREDENTIALS_LIVE: Final = timedelta(minutes=10)  # obstore asks again when less than 5 minutes are left

_KEYS_USED_S: Final = 120.0  # of keys that change: as long as they are used without a look whether they still hold

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,60})</Code>")
# Debug output of object_store for answers whose headers it does not accept (object_store::client::get::GetResultError).
_HEADERS_NOT_LIKED = re.compile(
    r"source: (?:NotPartial|NoContentRange|ParseContentRange|UnexpectedRange|InvalidRangeRequest|Header\b|Invalid\w+)"
    r"|non-partial response|Content-Range|[Hh]eader"
)


def plain_etag(text: str | None) -> str:
    """An ETag without its quotes: servers disagree on them between a listing and an answer."""
    return (text or "").strip().strip('"')


_VERSION = ";versionId="


def tag_of(etag: str | None, size: int, mtime_ns: int, version_id: str = "") -> str:
    """The ETag; size and time for a server without (``rclone serve s3`` over a store without hashes).

    With a ``version_id`` that very version is read, whatever the key shows now.
    """
    tag = plain_etag(etag) or f"{size}@{mtime_ns}"
    return f"{tag}{_VERSION}{version_id}" if version_id else tag


def etag_in(tag: str) -> str | None:
    """The ETag in a version tag, without quotes."""
    return None if "@" in tag else tag.partition(_VERSION)[0]


def version_in(tag: str) -> str:
    """The version id in a version tag; empty if there is none."""
    return tag.partition(_VERSION)[2]


@dataclass(frozen=True, slots=True)
class _Plain:
    """The way to an endpoint without TLS or a proxy."""

    host: str
    port: int
    authority: str
    base: str
    region: str
    keys: Keys | None


class S3Reader:
    """Reads ranges of one bucket. Which library it uses for a server is decided once and kept."""

    def __init__(self, connection: S3Connection, told: ToldDigests) -> None:
        self._connection = connection
        self._told = told
        self._plain: _Plain | None = None
        self._redirects = False
        self._store: S3Store | None = None
        self._store_of: Opened | None = None
        self.obstore_refused = False

    async def read(self, key: str, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source.read``."""
        what = f"s3://{self._connection.bucket}/{key}"
        await self._connection.with_credentials(
            # an expired token is said before the first byte
            lambda opened: self._read_somehow(opened, key, obj, wanted, sink, what)
        )

    async def _read_somehow(
        self, opened: Opened, key: str, obj: SourceObject, wanted: ByteRange, sink: Sink, what: str
    ) -> None:
        self._plain = None if self._connection.sse else await _plain_way(opened)
        if self.obstore_refused or self._connection.sse or path_parts(key) is None or not key.isprintable():
            await self._read_with_client(opened, key, obj, wanted, sink, what)
            return
        try:
            await self._read_with_obstore(opened, key, obj, wanted, sink, what)
        except _NotLikedError as refusal:
            # Nothing is written yet. The client checks the same answer by its own rules; if they hold, it stays.
            await self._read_with_client(opened, key, obj, wanted, sink, what)
            if not self.obstore_refused:
                self.obstore_refused = True
                log.info(
                    "the slower S3 client is used for this server", bucket=self._connection.bucket, reason=str(refusal)
                )

    def asking(self, key: str, obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        """See ``WireSource``. The first read, and one every two minutes where keys change, goes by a library."""
        way = self._plain
        if way is None or self._redirects or (way.keys is not None and way.keys.expires_s < time.time()):
            return None
        if path_parts(key) is None or not key.isprintable():
            return None  # servers and libraries disagree on how these are written and signed
        if version_in(obj.version_tag):
            return None
        what = f"s3://{self._connection.bucket}/{key}"
        etag = etag_in(obj.version_tag)
        headers = {"range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        if etag is not None:
            headers["if-match"] = f'"{etag}"'
        whole = wanted == ByteRange(0, obj.size or 0)
        if whole:
            headers["x-amz-checksum-mode"] = "ENABLED"
        if self._connection.requester_pays:
            headers[PAYER_HEADER] = "requester"
        path = path_of(way.base, self._connection.bucket, key)
        sent = signed(way.authority, path, headers, way.keys, way.region)
        lines = [f"GET {path} HTTP/1.1", "user-agent: dsfs", "accept-encoding: identity"]
        lines += [f"{name}: {value}" for name, value in sent.items()]
        size = obj.size or 0

        def judge(answer: Head) -> None:
            if 300 <= answer.status < 400:
                self._redirects = True
                raise NotForWire("the server redirects")
            if answer.status not in (200, 206):
                code = _CODE.search(answer.document.decode("utf-8", "replace"))
                later = retry_after_s(answer.headers)
                error = of_status(answer.status, code[1] if code else "", what, reading=True, retry_after=later)
                if isinstance(error, CredentialsExpired):
                    self._plain = None  # the library renews them
                    raise NotForWire("the session has expired")
                raise error
            # A Content-Encoding belongs to the object: S3 hands out the stored bytes and so do we.
            modified_ns = http_date_ns(answer.headers.get("Last-Modified"))
            _check_version(
                obj, tag_of(answer.headers.get("ETag") if etag is not None else None, size, modified_ns), what
            )
            if whole:
                self._told.note(obj, of_amz_headers(answer.headers))

        head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
        proof = None if etag is None else (("etag", (f'"{etag}"', etag)),)
        return WireRequest(way.host, way.port, head, what, size, judge, self._connection.timeouts, proof, "amz")

    # -- obstore --------------------------------------------------------------------------------------------------

    async def _read_with_obstore(
        self, opened: Opened, key: str, obj: SourceObject, wanted: ByteRange, sink: Sink, what: str
    ) -> None:
        etag = etag_in(obj.version_tag)
        options: dict[str, Any] = {"range": (wanted.start, wanted.stop)}
        if etag is not None:
            options["if_match"] = f'"{etag}"'
        if version := version_in(obj.version_tag):
            options["version"] = version
        try:
            # The store has no limit for the answer's head alone, and its own clock stops while Python is busy.
            async with asyncio.timeout(self._connection.timeouts.connect_s + self._connection.timeouts.idle_s):
                result = await obstore.get_async(self._store_for(opened), key, options=options)  # type: ignore[arg-type]  # a TypedDict that exists in stubs only
        except TimeoutError as error:
            raise SourceTimeout(f"{what}: nothing answered in time") from error
        except ValueError as error:
            raise _NotLikedError(str(error).splitlines()[0]) from error
        except (BaseError, OSError) as error:
            raise _translated_obstore(error, what) from error
        meta = result.meta
        mtime_ns = int(meta["last_modified"].timestamp()) * 10**9
        _check_version(obj, tag_of(meta["e_tag"] if etag is not None else None, meta["size"], mtime_ns), what)
        if meta["size"] != obj.size:
            raise SourceChanged(f"{what} has {meta['size']} bytes now, {obj.size} when it was listed")
        if tuple(result.range) != tuple(wanted):
            raise SourceUnavailable(f"{what}: asked for bytes {wanted.start}-{wanted.stop}, got {result.range}")
        # obstore tells no headers but the Content-Range, which a body without a length need not keep to.
        await copy_body(_pieces(result, wanted, what), wanted, wanted, sink, what, open_end=True)

    def _store_for(self, opened: Opened) -> S3Store:
        if self._store is None or self._store_of is not opened:
            self._store_of = opened
            timeouts = self._connection.timeouts
            access: dict[str, Any] = {"skip_signature": True}
            if opened.keys is not None:
                access = {"credential_provider": _provider(opened.keys)}
            self._store = S3Store(
                self._connection.bucket,
                endpoint=opened.endpoint,
                region=opened.region,
                virtual_hosted_style_request=False,
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=timeouts.connect_s),
                    "read_timeout": timedelta(seconds=timeouts.idle_s),
                    "timeout": timedelta(days=1),  # of a whole request; it cannot be switched off
                    **({} if opened.authorities is None else {"root_certificate": opened.authorities}),
                },
                request_payer=self._connection.requester_pays,
                retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
                **access,
            )
        return self._store

    # -- aiobotocore ----------------------------------------------------------------------------------------------

    async def _read_with_client(
        self, opened: Opened, key: str, obj: SourceObject, wanted: ByteRange, sink: Sink, what: str
    ) -> None:
        etag = etag_in(obj.version_tag)
        condition = {"IfMatch": f'"{etag}"'} if etag is not None else {}
        if version := version_in(obj.version_tag):
            condition["VersionId"] = version
        try:
            answer = await opened.client.get_object(
                Bucket=self._connection.bucket,
                Key=key,
                Range=f"bytes={wanted.start}-{wanted.stop - 1}",
                **condition,
                **self._connection.sse,
            )
        except (BotoCoreError, ClientError, TimeoutError, OSError) as error:
            raise translated(error, what, reading=True) from error
        async with answer["Body"] as body:
            headers = CIMultiDict(answer["ResponseMetadata"]["HTTPHeaders"])
            # A Content-Encoding belongs to the object: S3 hands out the stored bytes and so do we.
            check_not_coded(headers, what, stored=True)
            length = headers.get("content-length")
            place = body_place(
                answer["ResponseMetadata"]["HTTPStatusCode"],
                headers.get("content-range"),
                int(length) if length and length.isdecimal() else None,
                obj.size or 0,
                wanted,
                what,
            )
            modified_ns = http_date_ns(headers.get("last-modified"))
            _check_version(
                obj, tag_of(headers.get("etag") if etag is not None else None, obj.size or 0, modified_ns), what
            )
            await copy_body(_chunks(body, what), place, wanted, sink, what, open_end=has_open_end(headers))


class _NotLikedError(Exception):
    """obstore does not take this answer or this key; nothing was read of it."""


async def _plain_way(opened: Opened) -> _Plain | None:
    parts = urlsplit(opened.endpoint)
    if parts.scheme != "http" or not parts.hostname or parts.username or parts.query:
        return None
    authority = parts.netloc
    if getproxies().get("http") and not proxy_bypass(authority):
        return None
    keys = None
    if opened.keys is not None:
        found = await opened.keys.get_frozen_credentials()
        expires_s = time.time() + _KEYS_USED_S if hasattr(opened.keys, "refresh_needed") else math.inf
        keys = Keys(found.access_key, found.secret_key, found.token, expires_s)
    base = parts.path.rstrip("/")
    return _Plain(parts.hostname, parts.port or 80, authority.removesuffix(":80"), base, opened.region, keys)


def _check_version(obj: SourceObject, tag: str, what: str) -> None:
    if tag != obj.version_tag.partition(_VERSION)[0]:
        raise SourceChanged(f"{what}: version {tag} is there now, {obj.version_tag} was listed")


async def _pieces(result: obstore.GetResult, wanted: ByteRange, what: str) -> AsyncIterator[Buffer]:
    try:
        if wanted.length <= PIECE_BYTES:
            # Without the stream's copy and hop: obstore alone gives 6,000 ranges of 110 kB a second, by stream 3,600.
            yield memoryview(await result.buffer_async())
            return
        async for piece in result.stream(min_chunk_size=PIECE_BYTES):
            yield piece
    except (BaseError, OSError) as error:
        raise _translated_obstore(error, what, begun=True) from error


async def _chunks(body: Any, what: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in body.iter_chunks(PIECE_BYTES):  # up to so much, whatever is here
            yield chunk
    except (aiohttp.ClientError, BotoCoreError, TimeoutError, OSError) as error:
        timed_out = isinstance(error, (TimeoutError, ReadTimeoutError))
        kind = SourceTimeout if timed_out else SourceUnavailable
        raise kind(f"{what}: {'the answer stopped' if timed_out else 'the answer broke off'}") from error


def _translated_obstore(error: Exception, what: str, *, begun: bool = False) -> SourceError | _NotLikedError:
    """obstore tells its failures apart in text only: the status, S3's code, and the debug form of its source."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status is not None:
        return of_status(int(status[1]), code[1] if code else "", what, reading=True)
    if isinstance(error, PreconditionError):
        return of_status(412, "", what)
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return of_status(403, "", what)
    if isinstance(error, FileNotFoundError):
        return of_status(404, code[1] if code else "", what, reading=True)
    if "kind: Timeout" in text or "TimedOut" in text:
        return SourceTimeout(f"{what}: nothing answered in time")
    if not begun and "HTTP error" not in text and _HEADERS_NOT_LIKED.search(text):
        return _NotLikedError(text.splitlines()[0])
    return SourceUnavailable(f"{what}: {'the answer broke off' if begun else 'cannot be reached or broke off'}")


def _provider(keys: Any) -> Any:
    """obstore's way to credentials that boto's chain found and refreshes."""

    async def ask() -> dict[str, Any]:
        frozen = await keys.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIVE,
        }

    return ask
