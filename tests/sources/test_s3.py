"""What only S3 has: buckets, credentials, markers, keys that are no paths."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from dsfs.errors import ConfigError, SourceChanged, SourceError, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Source
from dsfs.sources.digest import Digest
from dsfs.sources.registry import build_source
from dsfs.sources.s3 import S3Source
from tests.servers.hostile import etag_of, hostile
from tests.servers.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, credentials, seaweedfs
from tests.sources.sinks import names_in, read_range, tree_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_other_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine, and no question to an instance metadata service."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


def build(server: S3Server, uri: str, secret: dict[str, str] | None = None, **options: str) -> Source:
    options = {"endpoint": server.endpoint, "region": "us-east-1", **options}
    return build_source(SourceSpec(type=SourceType.S3, uri=uri, options=options), secret or {})


def using(source: Source, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


def failing(source: Source, kind: type[SourceError], says: str, *, reading: bool = True) -> None:
    async def use(source: Source) -> None:
        obj = SourceObject("f", size=3, version_tag="0" * 32)
        reads = [read_range(source, obj, 0, 1)] if reading else []
        for call in (names_in(source, ""), source.stat("f"), *reads):
            with pytest.raises(kind, match=says) as caught:
                await call
            assert SECRET_KEY not in str(caught.value)
            assert "\n" not in str(caught.value)

    using(source, use)


def test_a_bucket_that_is_not_there_is_named(server: S3Server) -> None:
    failing(
        build(server, "s3://nosuch/prefix", credentials()), SourceMissing, r"nosuch.*no such bucket", reading=False
    )  # a GET says NoSuchKey here


def test_credentials_that_are_wrong_are_refused(server: S3Server) -> None:
    failing(build(server, "s3://bucket", {"access-key": ACCESS_KEY, "secret-key": "wrong"}), SourceRefused, "refused")
    failing(build(server, "s3://bucket", {"access-key": "nobody", "secret-key": "wrong"}), SourceRefused, "refused")


def test_credentials_of_the_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put("env/f", b"content")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert await read_range(source, tree["f"], 0, 7) == b"content"

    using(build(server, "s3://bucket/env"), use)


def test_without_credentials_it_reads_anonymously(server: S3Server) -> None:
    failing(build(server, "s3://bucket/env"), SourceRefused, "refused")
    failing(build(server, "s3://bucket/env", credentials(), anonymous="true"), SourceRefused, "refused")


def test_secrets_lose_white_space(server: S3Server) -> None:
    server.put("strip/f", b"content")

    async def use(source: Source) -> None:
        assert set(await tree_of(source)) == {"f"}

    secret = {key: f" {value}\n" for key, value in credentials().items()}
    using(build(server, "s3://bucket/strip", secret, provider="MINIO", syncMode="copy"), use)


def test_markers_and_files_beside_prefixes(server: S3Server) -> None:
    for key in ("mark/", "mark/empty/", "mark/full/", "mark/full/f", "mark/a-b"):
        server.put(key, b"" if key.endswith("/") else b"x")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {path: obj.kind for path, obj in tree.items()} == {
            "empty": Kind.DIRECTORY,
            "full": Kind.DIRECTORY,
            "full/f": Kind.FILE,
            "a-b": Kind.FILE,
        }
        assert await names_in(source, "") == {"empty": Kind.DIRECTORY, "full": Kind.DIRECTORY, "a-b": Kind.FILE}
        assert await names_in(source, "empty") == {}
        found = await source.stat("empty")
        assert found is not None
        assert found.kind is Kind.DIRECTORY

    using(build(server, "s3://bucket/mark", credentials()), use)


def test_more_than_one_page(server: S3Server) -> None:
    for i in range(1100):
        server.put(f"many/{i % 3}/{i:05}", b"")

    async def use(source: Source) -> None:
        assert len(await tree_of(source)) == 1103
        pages = [page async for page in source.list_tree()]
        assert pages[0].complete  # a directory need not wait for the end

    using(build(server, "s3://bucket/many", credentials()), use)


def test_an_endpoint_that_nobody_listens_on(server: S3Server) -> None:
    failing(build(server, "s3://bucket", credentials(), endpoint="http://127.0.0.1:1"), SourceUnavailable, "reached")


def test_the_prefix_is_a_directory_and_not_a_beginning(server: S3Server) -> None:
    server.put("pre/f", b"x")
    server.put("prefix/g", b"x")

    async def use(source: Source) -> None:
        assert set(await tree_of(source)) == {"f"}
        with pytest.raises(SourceChanged):
            await read_range(source, SourceObject("none", size=3, version_tag="0" * 32), 0, 1)

    using(build(server, "s3://bucket/pre", credentials()), use)


@pytest.mark.parametrize(
    ("uri", "options", "secret", "says"),
    [
        ("s3://", {}, {}, "names no bucket"),
        ("s3://b", {"endpiont": "x"}, {}, "endpiont.*known are endpoint, region"),
        ("s3://b", {"anonymous": "yes"}, {}, "anonymous"),
        ("s3://b", {"endpoint": "minio at 9000"}, {}, "must be a URL"),
        ("s3://b", {"endpoint": "127.0.0.1:9000/b"}, {}, "must be a URL"),
        ("s3://b", {"endpoint": "minio:port"}, {}, "must be a URL"),
        ("s3://b", {"endpoint": "minio:99999"}, {}, "must be a URL"),
        ("s3://b", {"endpoint": "http:/minio:9000"}, {}, "must be a URL"),
        ("s3://b", {"endpoint": "ftp://minio"}, {}, "must be a URL"),
        ("s3://b", {"endpoint": ".."}, {}, "must be a URL"),
        ("s3://b", {"endpoint": "https://"}, {}, "must be a URL"),
        ("s3://b", {}, {"access-key": "k"}, "no secret-key"),
        ("s3://b", {}, {"secret-key": "k"}, "no access-key"),
    ],
)
def test_what_cannot_be_built(uri: str, options: dict[str, str], secret: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_source(SourceSpec(type=SourceType.S3, uri=uri, options=options), secret)


@pytest.mark.parametrize("host", ["s3.wasabisys.com", "minio:9000", "127.0.0.1:9000", "[::1]:9000", "localhost"])
def test_an_endpoint_may_be_a_host_over_https(host: str) -> None:
    def identity(endpoint: str) -> str:
        spec = SourceSpec(type=SourceType.S3, uri="s3://bucket/a", options={"endpoint": endpoint})
        return build_source(spec, {}).identity

    assert identity(host) == identity(f"https://{host}") == f"s3:https://{host}:bucket/a/"


def test_a_uri_may_name_one_key(server: S3Server) -> None:
    server.put("single/one.file", b"content")
    server.put("single/one.file-beside", b"not of this dataset")

    async def use(source: Source) -> None:
        file = (await tree_of(source))["one.file"]
        assert await names_in(source, "") == {"one.file": Kind.FILE}
        assert await source.stat("one.file") == file
        assert await source.stat("another") is None
        assert await read_range(source, file, 1, 4) == b"ont"
        assert isinstance(source, S3Source)
        assert source.asking(file, ByteRange(0, 7)) is not None
        assert source.digest_of(file) == Digest("md5", hashlib.md5(b"content").hexdigest())
        await source.ask_digest(file)

    using(build(server, "s3://bucket/single/one.file", credentials()), use)

    async def later(source: Source) -> None:
        """As by a server that has not listed it."""
        assert isinstance(source, S3Source)
        obj = SourceObject("one.file", size=7, version_tag=hashlib.md5(b"content").hexdigest())
        assert source.asking(obj, ByteRange(0, 7)) is None
        assert await read_range(source, obj, 0, 7) == b"content"
        server.put("single/one.file", b"changed")
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 0, 7)
        server.delete("single/one.file")
        server.put("single/one.file/one.file", b"content")
        assert set(await tree_of(source)) == {"one.file"}
        assert await read_range(source, obj, 0, 7) == b"content"

    using(build(server, "s3://bucket/single/one.file", credentials()), later)

    async def none(source: Source) -> None:
        for listing in (tree_of(source), names_in(source, "")):
            with pytest.raises(SourceMissing, match="nothing under this prefix"):
                await listing

    using(build(server, "s3://bucket/single/one.file-beside/", credentials()), none)
    using(build(server, "s3://bucket/single/two.file", credentials()), none)


def test_requester_pays_agrees_on_every_request() -> None:
    with hostile() as server:
        server.files["/bucket/file"] = b"paid for"
        listed = SourceObject("file", size=8, version_tag=etag_of(b"paid for").strip('"'))

        async def read(source: Source) -> None:
            with pytest.raises(SourceMissing):  # this server speaks no listings
                async for _page in source.list_tree():
                    pass
            assert await read_range(source, listed, 0, 8) == b"paid for"

        options = {"endpoint": server.url.rstrip("/"), "region": "us-east-1", "requesterPays": "true"}
        spec = SourceSpec(type=SourceType.S3, uri="s3://bucket", options=options)
        using(build_source(spec, credentials()), read)
        assert len(server.asked) >= 2
        assert all(asked.headers.get("x-amz-request-payer") == "requester" for asked in server.asked)
