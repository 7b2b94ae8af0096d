"""fsspec beyond memory://: local files, archives, chained URLs, and what it does not know."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from dsfs.errors import ConfigError, SourceMissing, SourceUnsupported
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.sources.base import Source, is_of_this_node
from dsfs.sources.registry import build_source
from tests.sources.sinks import names_in, read_range, tree_of


def using(uri: str, use: Callable[[Source], Awaitable[None]], **options: str) -> None:
    async def run() -> None:
        source = build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), {})
        await use(source)
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("form", ["fsspec+file://{}", "file://{}"])
def test_local(tmp_path: Path, form: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/f").write_bytes(b"content")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {path: obj.kind for path, obj in tree.items()} == {"sub": Kind.DIRECTORY, "sub/f": Kind.FILE}
        assert tree["sub/f"].mtime_ns
        assert await read_range(source, tree["sub/f"], 1, 7) == b"ontent"
        assert await source.stat("sub/f") == tree["sub/f"]

    using(form.format(tmp_path), use)


@pytest.mark.parametrize("form", ["zip://*::file://{}", "fsspec+zip://::file://{}"])
def test_archive(tmp_path: Path, form: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", b"first")
        archive.writestr("sub/b.txt", b"second")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"a.txt", "sub", "sub/b.txt"}
        assert await read_range(source, tree["sub/b.txt"], 0, 6) == b"second"
        assert await names_in(source, "sub") == {"sub/b.txt": Kind.FILE}
        assert await source.stat("none") is None

    using(form.format(tmp_path / "x.zip"), use)


def test_inside_of_an_archive_and_one_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("sub/b.txt", b"second")

    async def directory(source: Source) -> None:
        assert set(await tree_of(source)) == {"b.txt"}

    async def file(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"b.txt"}
        assert await read_range(source, tree["b.txt"], 0, 6) == b"second"

    using(f"zip://sub::file://{tmp_path}/x.zip", directory)
    using(f"zip://sub/b.txt::file://{tmp_path}/x.zip", file)


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    async def use(source: Source) -> None:
        with pytest.raises(SourceMissing):
            await tree_of(source)

    using(f"zip://*::file://{tmp_path}/none.zip", use)


@pytest.mark.parametrize(
    ("uri", "says"),
    [("nosuch://x", "knows no protocol 'nosuch'"), ("dropbox://x", "dropbox://.*(install|requires)")],
)
def test_protocols_that_are_not_here(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri), {})


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("filecache::https://evil/d/", {"cache_storage": "/etc/cron.d", "same_names": "true"}),
        ("simplecache://x", {}),
        ("zip://a::blockcache::https://h/x.zip", {}),
        ("dir://d", {"target_protocol": "filecache", "target_options": "{}"}),
        ("tar://a", {"fo": "simplecache::https://h/x.tar"}),
        ("memory://d", {"link": "x", "more": '{"url": "filecache::memory://y"}'}),
        ("dir://d", {"target_protocol": "dir", "target_options": '{"x": [{"target_protocol": "cached"}]}'}),
    ],
)
def test_nothing_is_written_where_a_manifest_says(uri: str, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="keeps copies of its own"):
        build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), {})


def test_the_same_path_of_another_account_is_another_file() -> None:
    def identity(namespace: str, secret_name: str, **secret: str) -> str:
        spec = SourceSpec(type=SourceType.FSSPEC, uri="ftp://host/d")
        return build_source(spec, secret, namespace=namespace, secret_name=secret_name).identity

    mine = identity("a", "s", username="me", password="x")
    assert mine == identity("a", "s", username="me", password="y"), "a password that changes keeps what is cached"
    others = {
        identity("b", "s", username="me", password="x"),
        identity("a", "t", username="me", password="x"),
        identity("a", "s", username="you", password="x"),
        identity("a", "u", token="x"),
        identity("a", ""),
    }
    assert len(others - {mine}) == 5
    assert identity("a", "") == "fsspec:ftp://host/d"


def test_a_file_of_which_nobody_says_how_long_it_is_is_none_that_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fsspec's own HTTP file system has it of a server that tells no Content-Length."""
    (tmp_path / "x").write_bytes(b"something")
    info = LocalFileSystem.info
    monkeypatch.setattr(LocalFileSystem, "info", lambda self, path, **more: {**info(self, path, **more), "size": None})

    async def use(source: Source) -> None:
        with pytest.raises(SourceUnsupported, match="how long"):
            await source.stat("x")

    using(f"file://{tmp_path}", use)


def test_options_that_say_which_server_it_is_belong_to_what_it_is() -> None:
    def identity(uri: str, secret: dict[str, str] | None = None, **options: str) -> str:
        source = build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), secret or {})
        return source.identity

    plain = identity("fsspec+memory://data")
    assert plain == "fsspec:memory://data"
    one, other = (identity("fsspec+memory://data", base_url=f"https://{host}/") for host in ("a", "b"))
    assert len({plain, one, other}) == 3
    secret = {"password": "fake-password"}
    mine = identity("fsspec+memory://data", secret, base_url="https://a/")
    assert mine != one, "who logs in may be shown another tree"
    assert mine == identity("fsspec+memory://data", {"password": "another-fake"}, base_url="https://a/")


@pytest.mark.parametrize("uri", ["file:///x", "fsspec+file:///x", "zip://a b::file:///x.zip", "memory://x"])
def test_what_lies_on_this_node_is_known_whatever_is_around_it(uri: str) -> None:
    assert is_of_this_node(f"fsspec:{uri}")
    assert is_of_this_node(f"fsspec:{uri} below a/b")
    assert is_of_this_node(f"fsspec:{uri} with 0123456789abcdef as 0123456789abcdef")
    assert not is_of_this_node("fsspec:zip://*::http://h/x.zip")
