"""The connection to an S3 server."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from botocore.exceptions import ParamValidationError

from dsfs.errors import ConfigError, SourceUnavailable
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.s3 import S3Source, s3_source
from dsfs.sources.s3_client import S3Connection, S3Options, translated
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS
from tests.servers.authority import make_authority


def test_clients_share_what_botocore_knows() -> None:
    """A node has one for each dataset, and some that a resync has replaced."""

    async def loaders() -> list[object]:
        options = S3Options(endpoint="http://127.0.0.1:1", region="us-east-1", anonymous="true")
        connections = [S3Connection("bucket", options, {}, DEFAULT_TIMEOUTS) for _ in range(2)]
        try:
            return [(await connection.opened()).client._loader for connection in connections]
        finally:
            for connection in connections:
                await connection.close()

    first, second = asyncio.run(loaders())
    assert first is second


async def _told_by(endpoint: str) -> str:
    source = S3Source("vision", "", S3Options(endpoint=endpoint, region="us-east-1", anonymous="true"))
    try:
        with pytest.raises(SourceUnavailable) as told:
            async for _ in source.list_tree():
                pass
    finally:
        await source.close()
    return str(told.value)


def test_who_cannot_be_reached_is_said_and_why() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{closed.getsockname()[1]}"
        told = asyncio.run(_told_by(f"http://{where}/here"))
    reason = "Connection refused; look at the option endpoint"
    assert told == f"s3://vision/: {where} cannot be reached or broke off ({reason})"


def test_a_name_that_does_not_resolve_is_said() -> None:
    told = asyncio.run(_told_by("http://nobody.invalid:9000"))
    assert told.startswith("s3://vision/: nobody.invalid:9000 cannot be reached or broke off (")
    assert "name" in told.lower()
    assert "Error" not in told


async def _answer_in_the_clear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("https", "answers no TLS; look at the option endpoint: http?"),
        ("http", "closed the connection without an answer; look at the option endpoint: https?"),
    ],
)
def test_a_scheme_that_the_server_does_not_speak_is_said(tmp_path: Path, scheme: str, reason: str) -> None:
    async def told() -> tuple[str, str]:
        context = None
        if scheme == "http":
            made = make_authority(tmp_path)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(made.certificate, made.key)
        server = await asyncio.start_server(_answer_in_the_clear, "127.0.0.1", 0, ssl=context)
        async with server:
            where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return where, await _told_by(f"{scheme}://{where}")

    where, message = asyncio.run(told())
    assert message == f"s3://vision/: {where} cannot be reached or broke off ({reason})"


@pytest.mark.parametrize("uri", ["s3:// b c", "s3://b\u2028c/prefix", "s3://b:80", "s3://[/x", f"s3://{'b' * 256}"])
def test_what_is_no_bucket_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(ConfigError, match="is no bucket name") as told:
        s3_source(SourceSpec(type=SourceType.S3, uri=uri), {})
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    "bucket", ["b", "Old_Bucket", "with.dots-and_1", "arn:aws:s3:eu-west-1:123456789012:accesspoint:shared"]
)
def test_buckets_are_named_as_stores_allow(bucket: str) -> None:
    assert s3_source(SourceSpec(type=SourceType.S3, uri=f"s3://{bucket}/prefix"), {}).uri == f"s3://{bucket}/prefix/"


def test_what_botocore_says_is_one_line() -> None:
    said = translated(ParamValidationError(report="first\nsecond"), "s3://b/")
    assert str(said) == "s3://b/: Parameter validation failed:\\nfirst\\nsecond"
