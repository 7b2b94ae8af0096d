"""A range of a file of a hub: resolved to where its bytes lie, proven to be the listed version, copied to the sink.

Hubs keep large files on content hosts (a CDN, an object store) and answer with a redirect whose URL is signed and good
for minutes or hours. It is kept for the file until it expires, so that each range costs one request and not two.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

import aiohttp
from cachetools import LRUCache

from dsfs.errors import RetryLater, SourceChanged, SourceUnavailable
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.aiohttp_edge import chunks
from dsfs.sources.answers import (
    body_place,
    check_not_coded,
    copy_body,
    has_open_end,
    parse_content_range,
    retry_after_s,
)
from dsfs.sources.base import Buffer, Sink
from dsfs.sources.hub import REDIRECTS_MAX, HubClient, joined, redirect_of

VERIFIED_MAX_BYTES: Final = 4 * MiB
"""Files up to this size that come whole are checked against their hash before they count; larger come in pieces."""
_HASHED_IN_LOOP_BYTES: Final = 64 * KiB
_LINKS_MAX: Final = 4096
_HUB_HEADERS: Final = frozenset({"X-Repo-Commit", "X-Error-Code"})
# Of a content host: the signature is meant, not our token; and what is gone there may have moved. 400: S3 says so to a
# session token that expired.
_REFUSALS: Final = frozenset({400, 401, 403, 404, 410})
_UNKNOWN_LIFE_S: Final = 300.0  # of a signed URL that does not say when it expires
_EXPIRY_MARGIN_S: Final = 30.0  # a request that starts just before the end, and clocks that differ


class Proof(Protocol):
    """Knows the version that was listed from another one, by what the hub says of a file."""

    async def hub_says(self, answer: aiohttp.ClientResponse, final: bool) -> None:
        """Look at an answer of the hub itself, a redirect unless ``final``. Raises SourceChanged, SourceError."""

    def complete(self) -> bool:
        """Whether what was said is enough."""

    def holds(self, data: bytes) -> bool:
        """Whether a whole file is the listed one, as far as its hash is known."""


class _LinkExpired(Exception):
    """A content host does not take its signed URL (any more). Nothing was written."""


class HubReader:
    """Reads ranges for one source."""

    def __init__(self, client: HubClient, check: Callable[[aiohttp.ClientResponse], None]) -> None:
        """``check`` raises the error behind an answer of the hub itself."""
        self._client = client
        self._check = check
        self._links: LRUCache[tuple[str, str], tuple[str, float]] = LRUCache(_LINKS_MAX)

    async def read(self, url: str, obj: SourceObject, wanted: ByteRange, sink: Sink, proof: Proof, what: str) -> None:
        """``url`` is where the hub resolves the file. Writes to the sink only what is proven. Raises SourceError."""
        key = (url, obj.version_tag)
        try:
            await self._read(self._link(key), key, obj, wanted, sink, proof, what)
        except _LinkExpired:
            self._links.pop(key, None)
            try:
                await self._read(None, key, obj, wanted, sink, proof, what)
            except _LinkExpired as expired:
                self._links.pop(key, None)
                raise SourceUnavailable(
                    f"{what}: the content host refuses the URL that the hub signed ({expired})"
                ) from None

    def _link(self, key: tuple[str, str]) -> str | None:
        link, until_s = self._links.get(key, ("", 0.0))
        return link if time.time() < until_s else None

    async def _read(
        self,
        link: str | None,
        key: tuple[str, str],
        obj: SourceObject,
        wanted: ByteRange,
        sink: Sink,
        proof: Proof,
        what: str,
    ) -> None:
        target, proven = link or key[0], link is not None  # a link was kept because the hub's answer was the proof
        headers = {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        for _ in range(REDIRECTS_MAX + 1):
            async with self._client.send("GET", target, what, headers) as answer:
                location = redirect_of(answer)
                owned = self._client.owns(target)
                # A mirror may lead to the hub that it mirrors: what speaks like a hub is one, whatever its name.
                hub = owned or bool(_HUB_HEADERS & answer.headers.keys())
                if location is None and not owned and answer.status in _REFUSALS and (link is not None or not hub):
                    raise _LinkExpired(f"HTTP {answer.status}")
                if hub:
                    if location is None:
                        self._check(answer)
                    await proof.hub_says(answer, location is None)
                    proven = proven or proof.complete()
                if location is None:
                    if not hub:
                        _check_content_host(answer, what)
                    _check_range(answer, obj.size or 0, what)
                    if not proven:
                        raise SourceUnavailable(f"{what}: the hub does not say which version it gives")
                    await self._copy(answer, obj.size or 0, wanted, sink, proof, what)
                    return
            following = joined(target, location, what)
            if proven and hub and not self._client.owns(following):
                self._links[key] = (following, expiry_s(following, time.time()) - _EXPIRY_MARGIN_S)
            target = following
        raise SourceUnavailable(f"{what}: the hub leads in a circle (more than {REDIRECTS_MAX} redirects)")

    async def _copy(
        self, answer: aiohttp.ClientResponse, size: int, wanted: ByteRange, sink: Sink, proof: Proof, what: str
    ) -> None:
        check_not_coded(answer.headers, what)
        place = body_place(
            answer.status, answer.headers.get("Content-Range"), answer.content_length, size, wanted, what
        )
        open_end = has_open_end(answer.headers)
        if place.length != size or size > VERIFIED_MAX_BYTES:
            await copy_body(chunks(answer, what), place, wanted, sink, what, open_end=open_end)
            return
        held = Held()
        await copy_body(chunks(answer, what), place, place, held, what, open_end=open_end)
        data = held.data()
        fits = proof.holds(data) if size <= _HASHED_IN_LOOP_BYTES else await asyncio.to_thread(proof.holds, data)
        if not fits:
            raise SourceUnavailable(f"{what}: the bytes that came are not those of the hash that was listed")
        await sink.write(wanted.start, memoryview(data)[wanted.start : wanted.stop])


class Held:
    """A sink that keeps what is written until it is proven."""

    def __init__(self) -> None:
        self._pieces: list[Buffer] = []

    async def write(self, offset: int, data: Buffer) -> None:
        self._pieces.append(data)

    def data(self) -> bytes:
        return b"".join(self._pieces)


def _check_content_host(answer: aiohttp.ClientResponse, what: str) -> None:
    if answer.status in (429, 503):
        raise RetryLater(
            f"{what}: HTTP {answer.status}, the content host asks for patience", patience_s(answer.headers)
        )
    if answer.status not in (200, 206, 416):
        raise SourceUnavailable(f"{what}: HTTP {answer.status} from the content host")


def _check_range(answer: aiohttp.ClientResponse, size: int, what: str) -> None:
    if answer.status == 416:
        place = parse_content_range(answer.headers.get("Content-Range"))
        if place is not None and place.total is not None and place.total != size:
            raise SourceChanged(f"{what} has {place.total} bytes now, {size} when it was listed")
        raise SourceUnavailable(f"{what}: HTTP 416 for a range that lies inside the file")


_RATE_LIMIT = re.compile(r"\br=(\d{1,9})\b.*?\bt=(\d{1,9})\b")


def patience_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server wants to be left alone: Retry-After, else the hub's ``RateLimit: "api";r=0;t=55``."""
    asked = retry_after_s(headers)
    limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(limit[2]) if asked is None and limit is not None and int(limit[1]) == 0 else asked


def expiry_s(url: str, now_s: float) -> float:
    """Unix seconds until which a signed URL is good, from what its query says; a guess where it says nothing.

    CloudFront and OSS: ``Expires=UNIX``. S3: ``X-Amz-Date`` and ``X-Amz-Expires`` (seconds). Aliyun's CDN:
    ``auth_key=UNIX-…``.
    """
    query = {key.lower(): values[0] for key, values in parse_qs(urlsplit(url).query).items()}
    try:
        if "x-amz-expires" in query and "x-amz-date" in query:
            signed = datetime.strptime(query["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return signed.timestamp() + int(query["x-amz-expires"])
        if "expires" in query:
            return float(int(query["expires"]))
        if "auth_key" in query:
            return float(int(query["auth_key"].partition("-")[0]))
    except (ValueError, OverflowError):
        return now_s
    return now_s + _UNKNOWN_LIFE_S
