"""One name that a web server gives to nobody is that name's trouble: all others are a whole revision."""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from dsfs.bridge import network_side
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.store import DatasetStore
from dsfs.errors import SourceDeclined, SourceError, SourceUnavailable, SourceUnsupported
from dsfs.fetch.origin import Origin
from dsfs.filesystem.errnos import errno_of
from dsfs.manifest.schema import Manifest, SourceSpec
from dsfs.model import Phase
from dsfs.sources.http import HttpSource
from tests.servers import hostile as web
from tests.servers.web_tree import put_tree

FILES = {"odd": b"first", "ok": b"second"}
ODD = "/data/odd"


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


@asynccontextmanager
async def running(directory: Path, uri: str) -> AsyncIterator[Dataset]:
    async def build() -> HttpSource:
        return HttpSource(uri)

    manifest = Manifest(namespace="vision", name="data", source=SourceSpec(type="HTTP", uri=uri))
    origin = Origin(HttpSource(uri), "vision", "data")
    async with network_side() as bridge:
        dataset = Dataset(manifest, 2, DatasetStore(str(directory)), bridge, origin, build, 5.0)
        dataset.open_revision()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dataset.run)
                yield dataset
                nursery.cancel_scope.cancel()
        finally:
            await dataset.close_sources()


def without_length(asked: web.Asked, data: bytes, _answer: web.Answer) -> web.Answer:
    """Of a server that makes the file while it is asked for: neither ranges nor a length."""
    return web.chunked(asked, data, web.whole_for_range(asked, data, web.good(asked, data)))


async def size_of(dataset: Dataset, name: bytes) -> int | None:
    row = await dataset.find(1, name)
    return None if row is None else row.size


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (without_length, "does not say how long it is"),
        (web.status(400), "HTTP 400"),
        (web.status(406), "HTTP 406"),
        (web.status(423), "HTTP 423"),
        (web.status(451), "HTTP 451"),
    ],
    ids=["no length", "400", "406", "423", "451"],
)
def test_all_others_are_a_revision(tmp_path: Path, server: web.Hostile, behaviour: web.Behaviour, why: str) -> None:
    uri = put_tree(server, FILES)
    server.always(ODD, behaviour)

    async def main() -> None:
        async with running(tmp_path, uri) as dataset:
            with trio.fail_after(20):
                await dataset.settled.wait()
            assert (dataset.phase, dataset.message) == (Phase.READY, "")
            assert (dataset.catalog.unreadable, dataset.catalog.refused) == (1, 0)
            said = (await dataset.status()).refusal
            assert said.startswith(f"1 file cannot be read from the source: {uri}odd")
            assert why in said
            assert [row.name for row in dataset.children(1, 0, 10)] == [b"odd", b"ok"]
            assert await size_of(dataset, b"ok") == 6
            with pytest.raises(SourceUnsupported, match="'odd' cannot be read") as caught:
                await size_of(dataset, b"odd")
            assert errno_of(caught.value) == errno.EIO
            assert await size_of(dataset, b"no") is None

            server.always(ODD, lambda _asked, _data, answer: answer)
            await dataset.resync()
            assert await size_of(dataset, b"odd") == 5
            assert (await dataset.status()).refusal == ""

            server.always(ODD, behaviour)
            server.files["/data/ok"] = b"newer bytes"
            shown = dataset.lookup(1, b"odd")
            for _ in range(2):
                await dataset.resync()
                assert (dataset.phase, dataset.message) == (Phase.READY, "")
                assert dataset.rounds.heals_within_s == math.inf, "it is not listed again and again for that"
                assert dataset.lookup(1, b"odd") == shown, "what is shown is not taken away"
                assert await size_of(dataset, b"ok") == 11, "and keeps nothing else"
                assert (await dataset.status()).refusal == said
            assert len(dataset.shown()) == 3, "what is as before is no other revision"

    with structlog.testing.capture_logs():
        trio.run(main)


def test_another_secret_may_read_what_could_not_be_read(tmp_path: Path, server: web.Hostile) -> None:
    uri = put_tree(server, FILES)
    server.always(ODD, web.status(423))

    async def main() -> None:
        async with running(tmp_path, uri) as dataset:
            await dataset.settled.wait()
            server.always(ODD, lambda _asked, _data, answer: answer)
            swapped = dataset.swapped
            await dataset.renew()
            with trio.fail_after(10):
                await swapped.wait()
            assert await size_of(dataset, b"odd") == 5

    with structlog.testing.capture_logs():
        trio.run(main)


def test_a_directory_that_is_shown_is_not_taken_away_by_its_name(tmp_path: Path, server: web.Hostile) -> None:
    """Which an index links without "/"."""
    uri = put_tree(server, {**FILES, "sub/f": b"below"})
    server.files["/data/"] = server.files["/data/"].replace(b"sub/", b"sub")

    async def main() -> None:
        async with running(tmp_path, uri) as dataset:
            await dataset.settled.wait()
            server.always("/data/sub", web.status(423))
            with pytest.raises(SourceUnsupported, match="sub cannot be listed any more"):
                await dataset.resync()
            assert dataset.rounds.heals_within_s == math.inf, "it is not listed again and again for that"
            assert {path for path, _row in dataset.catalog.files()} == {"odd", "ok", "sub/f"}

    with structlog.testing.capture_logs():
        trio.run(main)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [(without_length, SourceUnsupported), (web.status(423), SourceDeclined), (web.status(500), SourceUnavailable)],
    ids=["no length", "423", "500"],
)
def test_where_all_are_so_it_is_the_server(
    tmp_path: Path, server: web.Hostile, behaviour: web.Behaviour, kind: type[SourceError]
) -> None:
    uri = put_tree(server, FILES)
    for name in FILES:
        server.always(f"/data/{name}", behaviour)

    async def main() -> None:
        async with running(tmp_path, uri) as dataset:
            with trio.fail_after(20):
                with pytest.raises(kind) as caught:
                    await dataset.resync()
                assert type(caught.value) is kind
            assert dataset.phase is Phase.FAILED
            assert not dataset.catalog.sealed

    with structlog.testing.capture_logs():
        trio.run(main)
