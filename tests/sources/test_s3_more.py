"""S3 beyond the plain: versions as of a time, keys of the reader's own, tokens that expire, regions that are found."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dsfs.errors import ConfigError, SourceError, SourceMissing, SourceRefused
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.base import Source
from dsfs.sources.registry import build_source
from tests.servers.s3_server import S3Server, credentials, seaweedfs
from tests.servers.token_server import DATA, TokenServer, token_server
from tests.sources.sinks import names_in, read_range, tree_of
from tests.sources.test_s3 import build, using

KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("weed-more")) as server:
        yield server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TokenServer]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    with token_server() as server:
        for name, value in server.environment(tmp_path / "token").items():
            monkeypatch.setenv(name, value)
        yield server


def at(server: TokenServer, secret: dict[str, str] | None = None) -> Source:
    spec = SourceSpec(type=SourceType.S3, uri="s3://bucket/", options={"endpoint": server.url})
    return build_source(spec, secret or {})


def test_a_token_that_expires_between_two_reads_is_renewed(aws: TokenServer) -> None:
    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await read_range(source, obj, 0, 1000) == DATA[:1000]
        assert {token for _region, token in aws.signed} == {"token-1"}
        aws.expired = aws.given
        assert await read_range(source, obj, 1000, 5000) == DATA[1000:5000]
        assert (aws.given, aws.signed[-1][1]) == (2, "token-2")
        aws.expired = aws.given
        assert set(await tree_of(source)) == {"f"}
        assert aws.signed[-1][1] == "token-3"

    using(at(aws), use)


def test_clients_of_expired_tokens_are_closed(aws: TokenServer) -> None:
    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            aws.expired = aws.given
            await asyncio.gather(*(read_range(source, obj, 0, 10) for _ in range(2)))
        assert aws.given > 20
        assert len(os.listdir("/proc/self/fd")) < before + 20

    using(at(aws), use)


@pytest.mark.parametrize("secret", [{}, {"access-key": "id", "secret-key": "fake", "session-token": "token-7"}])
def test_a_name_is_looked_up_with_a_token_that_has_expired(aws: TokenServer, secret: dict[str, str]) -> None:
    """A HEAD is refused without a document, so without the word that says why."""

    async def use(source: Source) -> None:
        await tree_of(source)
        aws.expired = max(7, aws.given)
        aws.given = 7
        if secret:
            with pytest.raises(SourceRefused, match="expired"):
                await source.stat("f")
        else:
            assert (await source.stat("f")) is not None
        assert (aws.given == 7) is bool(secret)

    using(at(aws, secret), use)


def test_a_token_from_a_secret_that_expires_is_a_refusal(aws: TokenServer) -> None:
    """Once: who gives another one is asked by the loop around this."""

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        aws.expired = 7
        with pytest.raises(SourceRefused, match="session token has expired") as caught:
            await read_range(source, obj, 0, 10)
        assert "token-7" not in str(caught.value)

    using(at(aws, {"access-key": "id", "secret-key": "fake", "session-token": "token-7"}), use)
    assert aws.given == 0
    with pytest.raises(ConfigError, match="session-token"):
        at(aws, {"session-token": "token-7"})


def test_keys_without_a_token_do_not_expire(aws: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ROLE_ARN")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
    aws.heads_refused = True

    async def use(source: Source) -> None:
        await tree_of(source)
        before = len(aws.signed)
        with pytest.raises(SourceRefused, match="refused without a reason"):
            await source.stat("f")
        # The prefix; and botocore asks where the bucket is, and once more. No client with other keys does.
        assert len(aws.signed) == before + 1 + 3

    using(at(aws), use)


def test_the_region_of_a_bucket_is_found(aws: TokenServer) -> None:
    aws.region = "eu-west-7"

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await read_range(source, obj, 0, 1000) == DATA[:1000]
        assert [region for region, _token in aws.signed][-2:] == ["eu-west-7"] * 2

    using(at(aws), use)


def test_versions_as_of_a_time(server: S3Server) -> None:
    server._client.create_bucket(Bucket="versions")
    server._client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})

    def put(key: str, text: str) -> None:
        server._client.put_object(Bucket="versions", Key=key, Body=text.encode())

    def next_second() -> datetime:
        time.sleep(1.1)  # S3 has times of whole seconds
        now = datetime.now(UTC)
        time.sleep(1.1)
        return now

    put("set/a", "first a")
    put("set/d/b", "first b")
    before = next_second()
    put("set/a", "second a, longer")
    put("set/c", "first c")
    server._client.delete_object(Bucket="versions", Key="set/d/b")
    after = next_second()
    put("set/a", "third a")

    async def shows(source: Source, wanted: dict[str, str]) -> None:
        tree = await tree_of(source)
        files = {path: obj for path, obj in tree.items() if obj.size}
        assert {path: await read_range(source, obj, 0, obj.size or 0) for path, obj in files.items()} == {
            path: text.encode() for path, text in wanted.items()
        }
        for path, obj in files.items():
            assert await source.stat(path) == obj
        assert await source.stat("none") is None
        assert set(await names_in(source, "")) >= {path.partition("/")[0] for path in wanted}

    for at, wanted in (
        (before, {"a": "first a", "d/b": "first b"}),
        (after, {"a": "second a, longer", "c": "first c"}),
    ):
        source = build(server, "s3://versions/set", credentials(), revision=at.isoformat())
        assert source.revision == at.isoformat()
        using(source, lambda source, wanted=wanted: shows(source, wanted))
    using(
        build(server, "s3://versions/set", credentials()),
        lambda source: shows(source, {"a": "third a", "c": "first c"}),
    )

    using(
        build(server, "s3://versions/set/a", credentials(), revision=after.isoformat()),
        lambda source: shows(source, {"a": "second a, longer"}),
    )

    async def nothing(source: Source) -> None:
        with pytest.raises(SourceMissing):
            await tree_of(source)

    using(build(server, "s3://versions/set/c", credentials(), revision=before.isoformat()), nothing)
    using(build(server, "s3://versions/set", credentials(), revision="2001-01-01T00:00:00Z"), nothing)
    with pytest.raises(ConfigError, match="revision"):
        build(server, "s3://versions/set", credentials(), revision="yesterday")


def test_objects_under_a_key_of_the_readers_own(server: S3Server) -> None:
    text = b"secret content" * 100
    server._client.put_object(
        Bucket="bucket", Key="sse/f", Body=text, SSECustomerAlgorithm="AES256", SSECustomerKey=b"k" * 32
    )

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await read_range(source, obj, 3, 900) == text[3:900]
        found = await source.stat("f")
        assert found is not None
        assert found.size == len(text)

    using(build(server, "s3://bucket/sse", {**credentials(), "sse-customer-key": KEY}), use)

    async def refused(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        with pytest.raises(SourceError):
            await read_range(source, obj, 3, 900)

    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    for secret in (credentials(), {**credentials(), "sse-customer-key": other}):
        using(build(server, "s3://bucket/sse", secret), refused)
    with pytest.raises(ConfigError, match="32 bytes") as caught:
        build(server, "s3://bucket/sse", {**credentials(), "sse-customer-key": "ZmFrZQ=="})
    assert "ZmFrZQ" not in str(caught.value)
