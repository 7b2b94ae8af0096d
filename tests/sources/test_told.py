"""Hashes that servers tell in headers: with the bytes, or when they are asked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dsfs.errors import SourceRefused, SourceUnavailable
from dsfs.model import SourceObject
from dsfs.sources.digest import Digest, ask_digest, digest_of, may_tell
from dsfs.sources.http import HttpSource
from dsfs.sources.s3 import S3Options, S3Source
from tests.servers import hostile as h
from tests.sources.sinks import read_range

DATA = b"some bytes" * 1000
SHA256 = Digest("sha256", hashlib.sha256(DATA).hexdigest())
TOLD = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
ETAG = h.etag_of(DATA)


@pytest.fixture
def server() -> Iterator[h.Hostile]:
    with h.hostile() as server:
        server.files["/f"] = server.files["/bucket/f"] = DATA
        yield server


def telling(**headers: str) -> h.Behaviour:
    return lambda _asked, _data, answer: answer.with_headers(**headers)


def test_http_tells_with_the_bytes_and_when_asked(server: h.Hostile) -> None:
    server.always("/f", telling(Repr_Digest=f"sha-256=:{TOLD}:"))
    obj = SourceObject("f", size=len(DATA), version_tag=ETAG)

    async def use() -> None:
        source = HttpSource(server.url)
        try:
            assert digest_of(source, obj) is None
            assert await ask_digest(source, obj) == SHA256
            assert server.asked[-1].method == "HEAD"
            assert "sha-256" in server.asked[-1].headers["want-repr-digest"]
            await read_range(source, obj, 0, 10)
            assert digest_of(source, obj) == SHA256
        finally:
            await source.close()

    asyncio.run(use())


def sends_a_part(asked: h.Asked, data: bytes, answer: h.Answer) -> h.Answer:
    """Less than the whole that was asked for."""
    part = data[:10]
    place, md5 = f"bytes 0-9/{len(data)}", base64.b64encode(hashlib.md5(part).digest()).decode()
    return replace(answer, status=206, body=part).with_headers(Content_Range=place, Content_MD5=md5)


def test_a_part_has_another_md5_than_the_whole(server: h.Hostile) -> None:
    server.always("/f", telling(Content_MD5=base64.b64encode(hashlib.md5(DATA).digest()).decode()))
    obj = SourceObject("f", size=len(DATA), version_tag=ETAG)

    async def use() -> None:
        source = HttpSource(server.url)
        try:
            await read_range(source, obj, 0, 10)
            assert digest_of(source, obj) is None
            server.behave("/f", sends_a_part)
            with pytest.raises(SourceUnavailable):
                await read_range(source, obj, 0, len(DATA))
            assert digest_of(source, obj) is None
            await read_range(source, obj, 0, len(DATA))
            assert digest_of(source, obj) == Digest("md5", hashlib.md5(DATA).hexdigest())
        finally:
            await source.close()

    asyncio.run(use())


@pytest.mark.parametrize("kms", [False, True])
def test_s3_tells_when_asked_and_what_is_no_md5(server: h.Hostile, kms: bool) -> None:
    more = {"x_amz_server_side_encryption": "aws:kms"} if kms else {}
    server.always("/bucket/f", telling(x_amz_checksum_sha256=TOLD, x_amz_checksum_type="FULL_OBJECT", **more))
    obj = SourceObject("f", size=len(DATA), version_tag=ETAG.strip('"'))

    async def use() -> None:
        options = S3Options(endpoint=server.url.rstrip("/"), region="us-east-1", anonymous="true")
        source = S3Source("bucket", "", options)
        try:
            assert digest_of(source, obj) == Digest("md5", hashlib.md5(DATA).hexdigest())
            assert await ask_digest(source, obj) == SHA256
            assert server.asked[-1].method == "HEAD"
            assert server.asked[-1].headers["x-amz-checksum-mode"] == "ENABLED"
            assert (digest_of(source, obj) is None) is kms
            assert digest_of(source, replace(obj, version_tag="0123456789abcdef0123456789abcdef-7")) is None
        finally:
            await source.close()

    asyncio.run(use())


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_server_that_is_busy_has_not_said_that_it_has_no_hashes(server: h.Hostile, kind: str) -> None:
    for path in ("/f", "/bucket/f"):
        server.always(path, h.status(503))
    obj = SourceObject("f", size=len(DATA), version_tag=ETAG if kind == "http" else ETAG.strip('"'))

    async def use() -> None:
        options = S3Options(endpoint=server.url.rstrip("/"), region="us-east-1", anonymous="true")
        source = HttpSource(server.url) if kind == "http" else S3Source("bucket", "", options)
        try:
            for _ in range(10):
                with pytest.raises(SourceUnavailable):
                    await ask_digest(source, obj)
            assert may_tell(source, obj)
            for path in ("/f", "/bucket/f"):
                server.always(path, h.status(403))
            for _ in range(10):
                with contextlib.suppress(SourceRefused):
                    await ask_digest(source, obj)
            assert not may_tell(source, obj)
        finally:
            await source.close()

    asyncio.run(use())
