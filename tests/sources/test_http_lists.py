"""List files: text, JSON, CSV; other hosts; pins. Real nginx for the tree, a telling server for who was asked what."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dsfs.errors import ConfigError, SourceChanged, SourceMissing, SourceRefused, SourceUnsupported
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.sources.base import Source
from dsfs.sources.registry import build_source
from tests.servers.archive_files import FilesServer, files_server
from tests.servers.http_server import HttpServer, nginx
from tests.sources.sinks import names_in, read_range, tree_of


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def own() -> Iterator[FilesServer]:
    with files_server() as server:
        yield server


@pytest.fixture
def other() -> Iterator[FilesServer]:
    with files_server() as server:
        yield server


def using(
    uri: str, use: Callable[[Source], Awaitable[None]], secret: dict[str, str] | None = None, **options: str
) -> None:
    async def run() -> None:
        source = build_source(SourceSpec(type=SourceType.HTTP, uri=uri, options=options), secret or {})
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


def test_text_list_over_nginx(web: HttpServer) -> None:
    web.put("data/a b.txt", b"first")
    web.put("data/sub/c.bin", b"second!")
    web.put("else/d", b"third")
    lines = ["# what there is", "", "a b.txt", "./sub/c.bin", f"{web.url}else/d", "../x", "empty/"]
    web.put("data/urls.txt", "\r\n".join(lines).encode())
    place = web.url.removeprefix("http://").rstrip("/")

    async def use(source: Source) -> None:
        tree = await tree_of_shown(source)
        assert tree == {
            "a b.txt": Kind.FILE,
            "sub": Kind.DIRECTORY,
            "sub/c.bin": Kind.FILE,
            place: Kind.DIRECTORY,
            f"{place}/else": Kind.DIRECTORY,
            f"{place}/else/d": Kind.FILE,
            "../x": Kind.FILE,  # passed on: the catalog skips and counts it
            "empty": Kind.DIRECTORY,
        }
        for path, data in (("a b.txt", b"first"), ("sub/c.bin", b"second!"), (f"{place}/else/d", b"third")):
            obj = await source.stat(path)
            assert obj is not None
            assert obj.size == len(data)
            assert await read_range(source, obj, 1, len(data) - 1) == data[1:-1]
        assert await names_in(source, "sub") == {"sub/c.bin": Kind.FILE}
        assert await source.stat("nothing") is None
        assert await source.stat("../x") is None
        with pytest.raises(SourceMissing):
            await names_in(source, "nothing")

    using(f"{web.url}data/", use, list="urls.txt")
    using(f"{web.url}data", use, list="urls.txt")
    using(f"{web.url}data/urls.txt", use, list="true")


async def tree_of_shown(source: Source) -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    async for page in source.list_tree():
        found |= {obj.path: obj.kind for obj in page.objects}
    return found


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_sizes_from_the_list_need_no_request(own: FilesServer, kind: str) -> None:
    data = b"0123456789"
    digest = hashlib.sha256(data).hexdigest()
    own.put("base/x/f", data)
    if kind == "json":
        rows = [
            {"path": "x/f", "size": 10, "sha256": digest, "mtime": "2026-01-02T03:04:05Z"},
            {"name": "g", "size": 0},
        ]
        own.put("base/index.json", json.dumps(rows).encode())
    else:
        text = f'Path,Size,SHA256,mtime\nx/f,10,{digest.upper()},1767323045\n"g",0,,\n'
        own.put("base/index.csv", text.encode())

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert tree["x/f"].size == 10
        assert tree["x/f"].version_tag == f"sha256:{digest}:10"
        assert tree["x/f"].mtime_ns == 1_767_323_045 * 10**9
        assert tree["g"].size == 0
        assert await source.stat("x/f") == tree["x/f"]
        assert not own.asked_for("base/x/f")
        assert await read_range(source, tree["x/f"], 2, 5) == b"234"
        await tree_of(source)  # the list anew: the server says that it is the same
        assert [asked.headers.get("If-None-Match") is None for asked in own.asked_for(f"base/index.{kind}")] == [
            True,
            False,
        ]

    using(f"{own.url}base/", use, list=f"index.{kind}")


def test_other_hosts_get_no_credentials(own: FilesServer, other: FilesServer) -> None:
    own.username_password = "Bearer s3cret"
    own.put("list.json", json.dumps([{"path": "a", "size": 1}, {"path": "b", "url": f"{other.url}b?sig=x"}]).encode())
    own.put("a", b"A")
    other.put("b", b"BB")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert await read_range(source, tree["a"], 0, 1) == b"A"
        assert await read_range(source, tree["b"], 0, 2) == b"BB"
        assert all("Authorization" in asked.headers and "X-Mine" in asked.headers for asked in own.asked)
        assert other.asked
        assert all("Authorization" not in asked.headers and "X-Mine" not in asked.headers for asked in other.asked)

    using(f"{own.url}list.json", use, {"token": "s3cret"}, list="true", **{"X-Mine": "1"})

    async def refused(source: Source) -> None:
        with pytest.raises(SourceRefused) as caught:
            await tree_of(source)
        assert "wrong" not in str(caught.value)

    using(f"{own.url}list.json", refused, {"token": "wrong"}, list="true")


@pytest.mark.parametrize("believed", [True, False])
def test_another_version_is_an_error(own: FilesServer, believed: bool) -> None:
    old, new = b"old bytes", b"new bytes"
    row = {"path": "f", "size": 9, "sha256": hashlib.sha256(old).hexdigest()} if believed else {"path": "f"}
    own.put("list.json", json.dumps([row]).encode())
    own.put("f", old)

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await read_range(source, obj, 0, 4) == b"old "
        own.put("f", new)
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 4, 9)
        own.put("f", old)
        assert await read_range(source, obj, 4, 9) == b"bytes"
        own.put("f", b"longer than listed")
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 4, 9)
        del own.files["f"]
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 4, 9)
        own.put("list.json", json.dumps([{"path": "f", "size": 9, "sha256": "0" * 64}]).encode())
        assert (await tree_of(source))["f"].version_tag != obj.version_tag

    using(f"{own.url}list.json", use, list="true")


def test_first_sight_pins_among_readers_side_by_side(own: FilesServer) -> None:
    own.put("list.json", json.dumps([{"path": "f", "size": 4}]).encode())
    own.put("f", b"1234")

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await asyncio.gather(*(read_range(source, obj, 0, 4) for _ in range(8))) == [b"1234"] * 8
        assert not any("If-Match" in asked.headers for asked in own.asked_for("f")[:1])
        await read_range(source, obj, 0, 1)
        assert "If-Match" in own.asked_for("f")[-1].headers

    using(f"{own.url}list.json", use, list="true")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.json", "{}", "not a list"),
        ("l.json", "[1]", "entry 1"),
        ("l.json", "nonsense", "no JSON list"),
        ("l.json", '[{"path": "a", "sha256": "12"}]', "64 hex digits"),
        ("l.csv", "a,b\n1,2\n", "no column path"),
        ("l.txt", "ftp://host/x\n", "entry 1: its URL is not http"),
        ("l.json", '[{"path": "a", "size": 1}, {"path": "a", "size": 2}]', "entries 1 and 2"),
        ("l.txt", "http://me:secret@host/x\n", "carries a password"),
    ],
)
def test_a_wrong_list_is_one_line(own: FilesServer, name: str, text: str, says: str) -> None:
    own.put(name, text.encode())

    async def use(source: Source) -> None:
        with pytest.raises(SourceUnsupported, match=says) as caught:
            await tree_of(source)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)

    using(f"{own.url}{name}", use, list="true")


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("http://h/d/", {"list": "index.xml"}, "must end in"),
        ("http://h/d/", {"list": "true"}, "must end in"),
        ("http://h/d/", {"list": "http://other/l.txt"}, "on the host"),
        ("http://h/d/", {"list": "l.txt", "archive": "true"}, "together"),
        ("http://h/d.zip", {"archive": "yes"}, "true or false"),
    ],
)
def test_wrong_options(uri: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_source(SourceSpec(type=SourceType.HTTP, uri=uri, options=options), {})


def test_list_of_false_is_none(tmp_path: Path) -> None:
    source = build_source(SourceSpec(type=SourceType.HTTP, uri="http://h/d/", options={"list": "false"}), {})
    assert source.identity == "http:http://h/d/"
