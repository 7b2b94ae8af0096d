"""data.world and Nasdaq Data Link, over a server made by hand that speaks what they document."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from dsfs.errors import (
    ConfigError,
    RetryLater,
    SourceChanged,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.sources import tables, tables_export, tables_nasdaq
from dsfs.sources.base import Source
from dsfs.sources.registry import build_source
from tests.servers.process import HOST, free_ports
from tests.servers.tables_server import TOKEN, TablesServer, tables_server
from tests.sources.sinks import names_in, read_range, tree_of

CSV = b"date,value\n" + b"".join(b"2026-01-%02d,%d\n" % (day, day) for day in range(1, 32))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TablesServer]:
    for name in ("DW_AUTH_TOKEN", "NASDAQ_DATA_LINK_API_KEY", "QUANDL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with tables_server() as server:
        yield server


def build(server: TablesServer, uri: str, token: str = TOKEN, **options: str) -> Source:
    api = server.url.replace("localhost", HOST) + ("v0" if uri.startswith("dataworld") else "api/v3")
    secret = {"token": token} if token else {}
    return build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options={"endpoint": api, **options}), secret)


def using(source: Source, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


async def refused(source: Source) -> None:
    with pytest.raises(SourceRefused, match="give token in a Secret") as caught:
        await tree_of(source)
    assert "wr0ng" not in str(caught.value)


def test_data_world(server: TablesServer) -> None:
    server.files = {"a b.csv": (CSV, "2026-01-02T03:04:05.678Z"), "ü.json": (b"{}", "2026-01-02T03:04:05Z")}
    server.sql = {"a_b": b"x,y\n1,2\n"}

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"a b.csv", "ü.json", "tables", "tables/a_b.csv"}
        assert tree["a b.csv"].size == len(CSV)
        assert tree["a b.csv"].mtime_ns == 1_767_323_045_678_000_000
        assert await source.stat("a b.csv") == tree["a b.csv"]
        assert await read_range(source, tree["a b.csv"], 0, len(CSV)) == CSV
        assert await read_range(source, tree["a b.csv"], 11, 20) == CSV[11:20]
        assert await read_range(source, tree["tables/a_b.csv"], 2, 8) == b"y\n1,2\n"
        assert await names_in(source, "tables") == {"tables/a_b.csv": Kind.FILE}
        assert await source.stat("nothing") is None
        assert not any(TOKEN in path for path, _ in server.asked)

    using(build(server, "dataworld://me/data", tables="a_b"), use)
    using(build(server, "dataworld://me/data", "wr0ng"), refused)
    using(build(server, "dataworld://me/other"), missing)


async def missing(source: Source) -> None:
    with pytest.raises(SourceMissing):
        await tree_of(source)


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("read_before", [True, False])
def test_data_world_changes(server: TablesServer, etags: bool, read_before: bool) -> None:
    server.etags = etags
    server.files = {"f": (b"old", "2026-01-01T00:00:00Z")}

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        if read_before:
            assert await read_range(source, obj, 0, 3) == b"old"
        server.files = {"f": (b"new", "2026-01-02T00:00:00Z")}
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 0, 3)
        new = (await tree_of(source))["f"]
        assert await read_range(source, new, 0, 3) == b"new"
        server.files = {}
        with pytest.raises(SourceChanged):
            await read_range(source, new, 0, 3)

    using(build(server, "dataworld://me/data"), use)


def test_nasdaq_tables(server: TablesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.tables = {"A": CSV, "B": b"1,2\n"}

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {path: obj.size for path, obj in tree.items()} == {"A.csv": len(CSV), "B.csv": 4}
        assert await read_range(source, tree["A.csv"], 5, 50) == CSV[5:50]
        assert await read_range(source, tree["B.csv"], 0, 4) == b"1,2\n"
        assert server.asked_for("signed/export/A") == 1  # once, for its size; the bytes are held
        assert await source.stat("C.csv") is None
        assert not any(TOKEN in path for path, _ in server.asked)
        server.tables["A"] = CSV.replace(b"2026", b"2027")
        new = (await tree_of(source))["A.csv"]
        assert new.version_tag != tree["A.csv"].version_tag
        with pytest.raises(SourceChanged):
            await read_range(source, tree["A.csv"], 0, 1)
        del server.tables["A"]
        await names_in(source, "")
        with pytest.raises(SourceChanged):
            await read_range(source, new, 0, 1)
        assert await source.stat("A.csv") is None

    using(build(server, "nasdaq://ACME/A", tables="B"), use)
    server.tables["A"] = CSV
    monkeypatch.setenv("NASDAQ_DATA_LINK_API_KEY", TOKEN)

    async def environment(source: Source) -> None:
        assert set(await tree_of(source)) == {"A.csv", "B.csv"}

    before = len(server.asked)
    using(build(server, "nasdaq://ACME?tables=A,B", ""), refused)
    assert server.asked[before:]
    assert TOKEN not in str(server.asked[before:]), "the node's token goes to where a manifest says"
    monkeypatch.setattr(tables, "_NASDAQ", server.url.replace("localhost", HOST) + "api/v3")
    using(build(server, "nasdaq://ACME?tables=A,B", ""), environment)
    using(build(server, "nasdaq://ACME/A", "wr0ng"), refused)


def test_nasdaq_states_and_bounds(server: TablesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.tables = {"A": CSV}

    async def use(source: Source) -> None:
        server.status = "creating"
        with pytest.raises(RetryLater, match="being made"):
            await source.stat("A.csv")
        server.status = "regenerating"
        found = await source.stat("A.csv")
        assert found is not None
        monkeypatch.setattr(tables_nasdaq, "EXPORT_BYTES_MAX", 400)
        server.tables["A"] = bytes(1000)
        await names_in(source, "")
        with pytest.raises(SourceUnsupported, match="larger than 400"):
            await source.stat("A.csv")
        monkeypatch.setattr(tables_nasdaq, "_link_of", lambda told, what: f"{server.url}signed/export/../x")
        with pytest.raises(SourceUnavailable):
            await source.stat("A.csv")

    using(build(server, "nasdaq://ACME/A"), use)


@pytest.mark.parametrize("series", ["true", "false"])
def test_nasdaq_out_of_reach_has_no_listing(server: TablesServer, series: str) -> None:
    (port,) = free_ports(1)

    async def use(source: Source) -> None:
        with pytest.raises(SourceUnavailable):
            await names_in(source, "")

    using(build(server, "nasdaq://ACME/A", endpoint=f"http://{HOST}:{port}/api/v3", series=series), use)

    async def refuses(source: Source) -> None:
        with pytest.raises(SourceRefused):
            await names_in(source, "")
        assert not server.asked_for("export")

    using(build(server, "nasdaq://ACME/A", "wr0ng", series=series), refuses)


def test_nasdaq_tables_of_which_some_are_refused(server: TablesServer) -> None:
    server.tables = {"A": CSV, "B": CSV}

    async def use(source: Source) -> None:
        server.premium = {"A"}
        assert set(await names_in(source, "")) == {"A.csv", "B.csv"}
        with pytest.raises(SourceRefused):
            await source.stat("A.csv")
        assert await source.stat("B.csv") is not None
        server.premium = {"A", "B"}
        with pytest.raises(SourceRefused, match="ACME/A"):
            await names_in(source, "")

    async def refuses(source: Source) -> None:
        before = len(server.asked)
        with pytest.raises(SourceRefused):
            await names_in(source, "")
        assert len(server.asked) == before + 1  # the key is another's for each table

    using(build(server, "nasdaq://ACME?tables=A,B"), use)
    using(build(server, "nasdaq://ACME?tables=A,B", "wr0ng"), refuses)


def test_what_is_held_is_bounded(server: TablesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_export, "HELD_BYTES_MAX", 1000)
    server.tables = {name: name.encode() * 400 for name in ("A", "B", "C")}

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        for path in ("A.csv", "B.csv", "C.csv", "C.csv"):
            assert await read_range(source, tree[path], 0, 400) == path[:1].encode() * 400
        assert server.asked_for("signed/export/C") in (1, 2)
        assert server.asked_for("signed/export/A") == 2

    using(build(server, "nasdaq://ACME?tables=A,B,C"), use)


def test_nasdaq_series(server: TablesServer) -> None:
    server.series = {"GOLD": CSV}

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["GOLD.csv"]
        assert await read_range(source, obj, 0, len(CSV)) == CSV

    using(build(server, "nasdaq://DB/GOLD", series="true"), use)


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("dataworld://me", {}, "dataworld://owner/dataset"),
        ("dataworld://me/data", {"tables": "a; drop"}, "names of tables"),
        ("dataworld://me/data", {"limit": "1"}, "not known"),
        ("nasdaq://ACME", {}, "nasdaq://VENDOR/TABLE"),
        ("nasdaq://ACME/A/../B", {}, "nasdaq://VENDOR/TABLE"),
        ("nasdaq://ACME/A", {"series": "1"}, "true or false"),
    ],
)
def test_what_cannot_be_used(uri: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_source(SourceSpec(type=SourceType.FSSPEC, uri=uri, options=options), {})
