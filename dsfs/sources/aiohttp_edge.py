"""The edge of aiohttp: its errors by our names, bodies as they come, who gets credentials, the environment's proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from dsfs.errors import SourceError, SourceTimeout, SourceUnavailable, SourceUnsupported
from dsfs.sources.certificates import NOT_TRUSTED


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: who gets credentials. ValueError for what is no URL."""
    parts = URL(url, encoded=True)
    return parts.scheme, None if parts.host is None else parts.host.lower(), parts.port


def proxy_of(url: str) -> str | None:
    """The proxy of the environment for a URL, for when aiohttp is told not to look there."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


async def chunks(answer: aiohttp.ClientResponse, what: str) -> AsyncIterator[bytes]:
    """The body as it comes. Raises what ``translated`` makes of a failure."""
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise translated(error, what) from harmless(error)


def translated(error: Exception, what: str) -> SourceError:
    """An error of aiohttp by our names. ``what`` is for people: a URL without its query."""
    if isinstance(error, TimeoutError):  # aiohttp's time-outs are among its connection errors too
        return SourceTimeout(f"{what}: nothing answered in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return SourceUnavailable(f"{what}: {NOT_TRUSTED}")
    if isinstance(error, ValueError):
        return SourceUnsupported(f"{what}: this URL cannot be asked for ({type(error).__name__})")
    return SourceUnavailable(f"{what}: cannot be reached or broke off ({type(error).__name__})")


def harmless(error: Exception) -> Exception | None:
    """The error as a cause, if its text surely holds no URL, which may be signed: a system call's, a broken body's."""
    if isinstance(error, ValueError | aiohttp.ConnectionTimeoutError):  # the latter is an OSError, and names the URL
        return None
    return error if isinstance(error, OSError | aiohttp.ClientPayloadError) else None
