"""The way to one bucket: credentials as boto finds them, the region, an aiobotocore client, and S3's errors as ours."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import ClientConnectorCertificateError, ServerDisconnectedError
from botocore import UNSIGNED
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from pydantic import AwareDatetime, BaseModel, ConfigDict, field_validator

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
    one_line,
)
from dsfs.sources.answers import retry_after_s
from dsfs.sources.certificates import NOT_TRUSTED, authorities_of_the_system, named_authorities
from dsfs.sources.s3_parse import listings_parsed_here
from dsfs.sources.timeouts import Timeouts

log = structlog.get_logger()
T = TypeVar("T")

DEFAULT_REGION: Final = "us-east-1"
CONNECTIONS: Final = 64
_RENEWALS: Final = 2  # within one request

_REFUSED_CODES: Final = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "401",
        "403",
    }
)
_EXPIRED_CODES: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_LATER_CODES: Final = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "503", "429"})
_MISSING_CODES: Final = frozenset({"NoSuchKey", "NoSuchVersion", "NotFound", "404"})


@cache
def _models() -> Any:
    """What botocore knows of S3's requests, for all clients of this process: 12 MB in memory, and 0.1 s to read."""
    return get_session().get_component("data_loader")


class CredentialsExpired(SourceRefused):
    """A session token has lived its time. Whoever knows where it came from may have another."""


class S3Options(BaseModel):
    """``source.options`` of type S3. ``revision`` is a time.

    ``provider`` and ``syncMode`` are BaizeAI/dataset's and change nothing here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint: str | None = None
    region: str | None = None
    anonymous: Literal["true", "false"] = "false"
    revision: AwareDatetime | None = None
    requesterPays: Literal["true", "false"] = "false"  # noqa: N815  # the key as users write it
    provider: str = ""
    syncMode: str = ""  # noqa: N815  # the key as users write it

    @field_validator("anonymous", "requesterPays", mode="before")
    @classmethod
    def _any_case(cls, value: str) -> str:
        return value.lower()  # YAML's True is text here


PAYER_HEADER: Final = "x-amz-request-payer"


def _pay(request: Any, **_: object) -> None:
    """Requester Pays: the header that agrees to be billed, on every request of the client."""
    request.headers[PAYER_HEADER] = "requester"


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A client that stands, and what a second library needs to ask the same bucket. ``keys`` is None for anonymous."""

    client: Any
    endpoint: str
    region: str
    keys: Any | None
    of_session: bool
    """The keys come with a token, and live as long as that."""
    authorities: bytes | None
    """Certificates (PEM) of the authorities that were named for it, beside those that everybody knows."""
    stack: AsyncExitStack
    """Closes the client."""


class S3Connection:
    """Opens on first use, once; also again after it failed."""

    def __init__(self, bucket: str, options: S3Options, credentials: Mapping[str, str], timeouts: Timeouts) -> None:
        self.bucket = bucket
        self.timeouts = timeouts
        self._options = options
        self._credentials = credentials
        self.sse = _customer_key(credentials.get("sse-customer-key", ""))
        """What a HEAD or GET of an object needs besides, for objects that are encrypted with the reader's own key."""
        self._lock = asyncio.Lock()
        self._opened: Opened | None = None
        self._asked: Counter[Opened] = Counter()  # requests under way
        # What a Secret has given comes with another source.
        self._may_renew = "access-key" not in credentials and options.anonymous != "true"

    @property
    def requester_pays(self) -> bool:
        return self._options.requesterPays == "true"

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return f"bucket {self.bucket}" + (f" at {self._options.endpoint}" if self._options.endpoint else "")

    async def opened(self) -> Opened:
        if self._opened is not None:
            return self._opened
        async with self._lock:
            if self._opened is None:
                try:
                    self._opened = await self._open()
                except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: an endpoint that is no URL
                    raise translated(error, self.place) from error
            return self._opened

    async def with_credentials(self, ask: Callable[[Opened], Awaitable[T]]) -> T:
        """Ask; when the session token has expired by then, again with a new one from where that came from.

        It may expire once more meanwhile. Raises what ``ask`` raises.
        """
        for _ in range(_RENEWALS if self._may_renew else 0):
            try:
                return await self._ask(ask)
            except CredentialsExpired:
                if self._opened is not None and not self._opened.of_session:
                    raise  # a bare 400, of something else
        return await self._ask(ask)

    async def close(self) -> None:
        standing = [*self._asked, *([] if self._opened is None else [self._opened])]
        self._opened = None
        for opened in standing:
            await opened.stack.aclose()

    async def _ask(self, ask: Callable[[Opened], Awaitable[T]]) -> T:
        opened = await self.opened()
        self._asked[opened] += 1
        try:
            return await ask(opened)
        except CredentialsExpired:
            if self._may_renew and opened.of_session and self._opened is opened:
                self._opened = None  # so that the next one has them looked for anew
            raise
        finally:
            self._asked[opened] -= 1
            if not self._asked[opened]:
                del self._asked[opened]
                if self._opened is not opened:
                    await opened.stack.aclose()

    async def _open(self) -> Opened:
        session = get_session()
        session.register_component("data_loader", _models())
        listings_parsed_here(session)
        if key := self._credentials.get("access-key"):
            session.set_credentials(key, self._credentials["secret-key"], self._credentials.get("session-token"))
        keys = None if self._options.anonymous == "true" else await session.get_credentials()
        if keys is None and self._options.anonymous != "true":
            log.info("no S3 credentials found, reading anonymously", bucket=self.bucket)
        region = self._options.region or session.get_config_variable("region")
        authorities = await asyncio.to_thread(_certificates, _authorities(session))
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._client(session, keys, region or DEFAULT_REGION))
            # A region from the environment is that of most buckets, and need not be that of this one.
            if self._options.region is None or ".amazonaws.com" in client.meta.endpoint_url:
                found = await self._region_of_bucket(client)
                if found not in (None, region or DEFAULT_REGION):
                    region = found
                    client = await stack.enter_async_context(self._client(session, keys, region))
            of_session = keys is not None and bool((await keys.get_frozen_credentials()).token)
            endpoint = client.meta.endpoint_url
            return Opened(client, endpoint, region or DEFAULT_REGION, keys, of_session, authorities, stack.pop_all())

    def _client(self, session: Any, keys: Any | None, region: str) -> Any:
        endpoint = self._options.endpoint
        config = AioConfig(
            connect_timeout=self.timeouts.connect_s,
            read_timeout=self.timeouts.idle_s,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # sources.retry is the one that retries
            s3={"addressing_style": "path" if endpoint else "auto"},
            # A range has no checksum of its own, and third-party servers stumble over the question.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **({"signature_version": UNSIGNED} if keys is None else {}),
        )
        if self._options.requesterPays == "true":
            session.register("before-sign.s3", _pay)
        verify = _authorities(session) or authorities_of_the_system()
        return session.create_client("s3", endpoint_url=endpoint, region_name=region, verify=verify, config=config)

    async def _region_of_bucket(self, client: Any) -> str | None:
        """AWS says it to everybody, even with a refusal; asked because obstore does not follow its redirects."""
        try:
            answer = await client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            answer = error.response
        headers: Mapping[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return headers.get("x-amz-bucket-region")


def _customer_key(text: str) -> dict[str, Any]:
    """The parameters of SSE-C for a key in base64. Raises ConfigError, which does not show it."""
    if not text:
        return {}
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise ConfigError("S3: sse-customer-key must be 32 bytes in base64 (openssl rand -base64 32 makes one)")
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}


def translated(error: Exception, what: str, *, reading: bool = False) -> SourceError:
    """What botocore raised, as a SourceError. ``reading``: a listed object was asked for, so "none" means "changed"."""
    if isinstance(error, ClientError):
        return _of_answer(error, what, reading)
    if isinstance(error, (ConnectTimeoutError, ReadTimeoutError, TimeoutError)):
        return SourceTimeout(f"{what}: nothing answered in time")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
        return SourceRefused(f"{what}: {error} (give access-key and secret-key in a Secret, or set AWS_…)")
    if isinstance(error, SSLError) and isinstance(error.kwargs.get("error"), ClientConnectorCertificateError):
        return SourceUnavailable(f"{what}: {NOT_TRUSTED}")
    if isinstance(error, (BotoConnectionError, HTTPClientError)):
        return SourceUnavailable(f"{what}: {_unreached(error)}")
    if isinstance(error, (BotoCoreError, ValueError)):
        return SourceUnsupported(f"{what}: {one_line(str(error))}")
    return SourceUnavailable(f"{what}: the answer broke off or is no answer of an S3 server ({type(error).__name__})")


def _unreached(error: BotoConnectionError | HTTPClientError) -> str:
    """Who it was that did not answer, and why. Of a URL no more than host and port: the rest may be a secret."""
    proxy = error.kwargs.get("proxy_url")
    parts = urlsplit(proxy or error.kwargs.get("endpoint_url") or "")
    where = f"{'the proxy ' if proxy else ''}{parts.netloc.rpartition('@')[2]}" or "the server"
    why, inner = type(error).__name__, error.kwargs.get("error")
    while isinstance(inner, Exception):
        why = _reason(inner) or why
        inner = getattr(inner, "os_error", None) or inner.__cause__
    hint = {("http", _NO_ANSWER): ": https?", ("https", _NO_TLS): ": http?"}.get((parts.scheme, why), "")
    return f"{where} cannot be reached or broke off ({why}; look at the option endpoint{hint})"


_NO_ANSWER: Final = "closed the connection without an answer"
_NO_TLS: Final = "answers no TLS"
_NOT_TLS_REASONS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})


def _reason(error: Exception) -> str | None:
    """In the system's words, without the addresses that asyncio puts into its own."""
    if isinstance(error, ServerDisconnectedError):
        return _NO_ANSWER
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)  # aiohttp's own has none, the one in it has
        return _NO_TLS if reason in _NOT_TLS_REASONS else f"TLS: {reason or type(error).__name__}"
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None


def _of_answer(error: ClientError, what: str, reading: bool) -> SourceError:
    said = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    code, status = str(said.get("Code", "")), int(metadata.get("HTTPStatusCode", 0))
    headers = {key.title(): value for key, value in metadata.get("HTTPHeaders", {}).items()}
    return of_status(status, code, what, reading=reading, retry_after=retry_after_s(headers))


def of_status(
    status: int, code: str, what: str, *, reading: bool = False, retry_after: float | None = None
) -> SourceError:
    """The error behind an HTTP status and the ``<Code>`` in S3's error document."""
    shown = f"{code or 'no error code'}, HTTP {status}"
    if code == "NoSuchBucket":
        return SourceMissing(f"{what}: there is no such bucket ({shown})")
    if code in _LATER_CODES or status in (429, 503):
        return RetryLater(f"{what}: the server asks for patience ({shown})", retry_after)
    if code in _EXPIRED_CODES:
        return CredentialsExpired(f"{what}: the session token has expired ({shown}); give a new one")
    if code == "400":  # without a document, as any answer to a HEAD: S3 says so of a token that has lived its time
        return CredentialsExpired(
            f"{what}: refused without a reason ({shown}): an expired session token, or a missing sse-customer-key"
        )
    if code in _REFUSED_CODES or status in (401, 403):
        return SourceRefused(f"{what}: access refused ({shown}); check access-key and secret-key, or anonymous")
    if status in (412, 416) or code in ("PreconditionFailed", "InvalidRange"):
        return SourceChanged(f"{what}: another version is there now ({shown})")
    if code in _MISSING_CODES or status in (404, 410):
        return (
            SourceChanged(f"{what}: is gone ({shown})") if reading else SourceMissing(f"{what}: is not there ({shown})")
        )
    if 300 <= status < 400:
        return SourceUnsupported(f"{what}: is elsewhere ({shown}); set the option region or endpoint")
    return SourceUnavailable(f"{what}: the server failed ({shown})")


def _authorities(session: Any) -> str | None:
    """The file that boto's users name (AWS_CA_BUNDLE, or ``ca_bundle`` of their profile), or everybody's."""
    return session.get_config_variable("ca_bundle") or named_authorities()


def _certificates(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise SourceUnavailable(f"certificates {file}: cannot be read: {error.strerror}") from error
