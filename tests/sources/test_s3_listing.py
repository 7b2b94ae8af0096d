"""S3 listings of many keys, by several requests at once, through the library and a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind, SourceObject
from dsfs.sources.registry import build_source
from tests.servers.listing_server import ListingServer, MadeUp, filer_order, listing_server
from tests.servers.s3_server import credentials, rclone_s3
from tests.sources.sinks import read_range, tree_of


def tree(server: ListingServer, prefix: str = "") -> dict[str, SourceObject]:
    options = {"endpoint": server.url, "region": "us-east-1", "anonymous": "true"}

    async def work() -> dict[str, SourceObject]:
        source = build_source(SourceSpec(type=SourceType.S3, uri=f"s3://bucket/{prefix}", options=options), {})
        try:
            found = await tree_of(source)
            first = next(path for path, obj in sorted(found.items()) if obj.kind is Kind.FILE)
            data = await read_range(source, found[first], 0, found[first].size or 0)
            assert data.decode() == f"{prefix}{first}"
            return found
        finally:
            await source.close()

    return asyncio.run(work())


def files(found: dict[str, SourceObject]) -> set[str]:
    return {path for path, obj in found.items() if obj.kind is Kind.FILE}


def test_twenty_thousand_keys_by_several_at_once() -> None:
    with listing_server(MadeUp(20_000, 1000)) as server:
        found = tree(server)
        assert files(found) == set(server.keys)
        assert len(found) == 20_020
        assert server.most_at_once > 1


@pytest.mark.parametrize("order", [str, filer_order], ids=["order of bytes", "order of a file system"])
def test_keys_that_come_and_go_meanwhile(order: Callable[[str], str]) -> None:
    stable = [f"data{separator}{i:05}" for separator in ("/", "-", "/sub/", "0/") for i in range(3000)]
    keys = sorted(stable, key=order)
    with listing_server(keys, order) as server:
        came: list[str] = []

        def change(asked: dict[str, str]) -> None:
            here = len(came) * 7919 % 3000
            came.append(f"data/{here:05}x")
            gone = set(came[:-5])
            server.keys = sorted([*stable, *(key for key in came if key not in gone)], key=order)

        server.on_list = change
        found = files(tree(server))
        assert set(stable) <= found <= {*stable, *came}


def test_a_real_server(tmp_path: Path) -> None:
    """Over a file system, so not in the order of bytes."""
    keys = {f"data{separator}{i:04}" for separator in ("/", "-", "/sub/", "0/", "/A-/") for i in range(800)}
    with rclone_s3(tmp_path) as server:
        for key in keys:
            server.put(key, b"")

        async def work() -> dict[str, SourceObject]:
            options = {"endpoint": server.endpoint, "region": "us-east-1"}
            source = build_source(SourceSpec(type=SourceType.S3, uri="s3://bucket", options=options), credentials())
            try:
                return await tree_of(source)
            finally:
                await source.close()

        assert files(asyncio.run(work())) == keys


def test_a_prefix_is_kept_to() -> None:
    keys = [f"{place}/{i:05}" for place in ("a", "b", "c") for i in range(6000)]
    with listing_server(keys) as server:
        assert files(tree(server, "b/")) == {f"{i:05}" for i in range(6000)}
        assert all(asked.get("prefix") == "b/" for asked in server.asked)
