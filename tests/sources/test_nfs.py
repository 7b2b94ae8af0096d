"""NFS without a kernel mount: what ``Source`` promises, against nfs-ganesha (v4) and `rclone serve nfs` (v3)."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dsfs.errors import SourceChanged, SourceMissing, SourceRefused, SourceTimeout, SourceUnavailable
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Source
from dsfs.sources.nfs import PIECE_BYTES, NfsSource
from dsfs.sources.nfs_library import NfsServer
from dsfs.sources.registry import build_source
from dsfs.sources.timeouts import Timeouts
from tests.servers.nfs_server import NfsTestServer, ganesha, rclone_nfs
from tests.servers.process import HOST, free_ports
from tests.sources.sinks import names_in, read_range, tree_of

BIG = random.Random(1).randbytes(PIECE_BYTES + 2 * MiB + 4321)
FILES = {"a.txt": b"first", "big.bin": BIG, "sub/b.txt": b"second", "sub/deep/er/c.txt": b"third", "sub-way": b"4"}
NAMES = ["with space.txt", "per%cent%20.txt", "ünï-日本.txt", "q?uest#hash.txt", "semi;c=olon"]
MAKERS = {"v4-ganesha": ganesha, "v3-rclone": rclone_nfs}

_folders = itertools.count()


@pytest.fixture(scope="module", params=MAKERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsTestServer]:
    with MAKERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def folder(server: NfsTestServer) -> str:
    name = f"case {next(_folders)}"
    (server.root / name).mkdir()
    return name


def build(server: NfsTestServer, folder: str, **options: str) -> Source:
    uri = f"nfs://{HOST}{server.export}/{folder}"
    return build_source(SourceSpec(type=SourceType.NFS, uri=uri, options=server.options | options), {})


def using(source: Source, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


def put_all(server: NfsTestServer, folder: str, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        server.put(f"{folder}/{path}", data)


def test_the_whole_tree_its_bytes_and_ranges(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, FILES | {"empty": b""})

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {p for p, o in tree.items() if o.kind is Kind.FILE} == {*FILES, "empty"}
        assert {p for p, o in tree.items() if o.kind is Kind.DIRECTORY} == {"sub", "sub/deep", "sub/deep/er"}
        assert tree["empty"].size == 0
        for path, data in FILES.items():
            assert (tree[path].size, await source.stat(path)) == (len(data), tree[path])
            assert tree[path].mtime_ns == os.stat(server.root / folder / path).st_mtime_ns
            assert await read_range(source, tree[path], 0, len(data)) == data
        size, rng = len(BIG), random.Random(2)
        ranges = [(0, 1), (size - 1, size), (PIECE_BYTES - 1, PIECE_BYTES + 1), (1, size)]
        ranges += [(start, start + rng.randint(1, size - start)) for start in (rng.randrange(size) for _ in range(9))]
        both = await asyncio.gather(*(read_range(source, tree["big.bin"], *each) for each in ranges))
        assert both == [BIG[start:stop] for start, stop in ranges]
        assert await names_in(source, "sub/deep") == {"sub/deep/er": Kind.DIRECTORY}
        for gone in ("none", "a.txt"):
            with pytest.raises(SourceMissing):
                await names_in(source, gone)

    using(build(server, folder), use)


def test_stat_of_what_is_not_there_and_of_a_root_that_is_not(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, FILES)

    async def use(source: Source) -> None:
        for path in ("none", "sub/none", "none/none", "a.txt/none", "../x", "a//b"):
            assert await source.stat(path) is None, path
        deep = await source.stat("sub/deep")
        assert deep is not None
        assert (deep.path, deep.kind) == ("sub/deep", Kind.DIRECTORY)

    async def rootless(source: Source) -> None:
        for call in (lambda: tree_of(source), lambda: source.stat("x")):
            with pytest.raises(SourceMissing) as caught:
                await call()
            assert "\n" not in str(caught.value)

    using(build(server, folder), use)
    using(build(server, f"{folder}/none"), rootless)


def test_names_and_links(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, {name: name.encode() for name in NAMES})

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {p for p, o in tree.items() if o.kind is Kind.FILE} == set(NAMES)
        for path in NAMES:
            assert await source.stat(path) == tree[path]
            assert await read_range(source, tree[path], 1, len(path.encode())) == path.encode()[1:]
        if server.version == 4:  # rclone does not show links
            assert (tree["link"].kind, tree["link"].target) == (Kind.SYMLINK, "with space.txt")
            assert (tree["up"].kind, tree["up"].target) == (Kind.SYMLINK, "../..")
            assert await source.stat("link") == tree["link"]
            assert "fifo" not in tree
            with pytest.raises(SourceMissing):
                await names_in(source, "up")

    (server.root / folder / "link").symlink_to("with space.txt")
    (server.root / folder / "up").symlink_to("../..")
    os.mkfifo(server.root / folder / "fifo")
    using(build(server, folder), use)


def test_a_change_under_the_reader_is_an_error_and_not_a_mix(server: NfsTestServer, folder: str) -> None:
    path = f"{folder}/big.bin"
    server.put(path, BIG)

    class Changing:
        written = b""

        async def write(self, offset: int, data: bytes) -> None:
            self.written += data
            await asyncio.sleep(0.02)  # the clock of a file system ticks every few ms
            server.put(path, BIG[::-1])

    async def use(source: Source) -> None:
        obj = await source.stat("big.bin")
        assert obj is not None
        sink = Changing()
        with pytest.raises(SourceChanged):
            await source.read(obj, ByteRange(0, len(BIG)), sink)
        assert sink.written == BIG[:PIECE_BYTES]
        now = await source.stat("big.bin")
        assert now is not None
        assert now.version_tag != obj.version_tag
        assert await read_range(source, now, 0, 100) == BIG[::-1][:100]
        server.delete(path)
        with pytest.raises(SourceChanged):
            await read_range(source, now, 0, 5)
        assert await source.stat("big.bin") is None

    using(build(server, folder), use)


def test_a_dead_server_is_unavailable_soon_and_heals(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, FILES)

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        await asyncio.gather(*(read_range(source, tree["big.bin"], 0, 100) for _ in range(4)))
        server.kill()
        started = time.monotonic()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: read_range(source, tree["big.bin"], 10, 20),
            lambda: source.stat("a.txt"),
            lambda: source.stat("none"),
            lambda: tree_of(source),
        ]
        for call in calls:
            with pytest.raises(SourceUnavailable):
                await call()
        assert time.monotonic() - started < 15
        server.start()
        assert await read_range(source, tree["a.txt"], 0, 5) == b"first"
        assert await source.stat("a.txt") == tree["a.txt"]  # a restart alone is no new version

    using(build(server, folder), use)


def test_a_restart_between_two_reads_is_not_noticed(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, FILES)

    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        server.kill()
        server.start()
        assert await read_range(source, obj, 0, 5) == b"first"

    using(build(server, folder), use)


def test_a_server_that_hangs_is_a_timeout_and_heals(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, FILES)
    address = NfsServer(HOST, server.port, server.port if server.version == 3 else None)
    path = f"{server.export}/{folder}".strip("/")
    source = NfsSource(address, path, server.version, Timeouts(connect_s=2.0, idle_s=2.0))

    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        started = time.monotonic()
        with server.stopped():
            for call in (lambda: read_range(source, obj, 0, 5), lambda: source.stat("a.txt")):
                with pytest.raises(SourceTimeout):
                    await call()
        assert time.monotonic() - started < 15
        assert await read_range(source, obj, 0, 5) == b"first"

    using(source, use)


def test_what_may_not_be_read_is_refused(server: NfsTestServer, folder: str) -> None:
    if server.version == 3:
        pytest.skip("rclone looks at no uid")
    put_all(server, folder, FILES)
    os.chmod(server.root / folder / "a.txt", 0o600)

    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        with pytest.raises(SourceRefused) as caught:
            await read_range(source, obj, 0, 5)
        assert "\n" not in str(caught.value)

    using(build(server, folder, uid="12345", gid="12345"), use)


def test_a_cancelled_read_leaves_the_source_usable(server: NfsTestServer, folder: str) -> None:
    server.put(f"{folder}/big.bin", BIG)

    class Stop:
        async def write(self, offset: int, data: object) -> None:
            raise asyncio.CancelledError

    async def use(source: Source) -> None:
        obj = await source.stat("big.bin")
        assert obj is not None
        for _ in range(3):
            with pytest.raises(asyncio.CancelledError):
                await source.read(obj, ByteRange(0, len(BIG)), Stop())
        assert await read_range(source, obj, 5, 5000) == BIG[5:5000]

    using(build(server, folder), use)


def test_the_version_is_found(server: NfsTestServer, folder: str) -> None:
    put_all(server, folder, FILES)
    options = {key: value for key, value in server.options.items() if key != "version"}
    spec = SourceSpec(type=SourceType.NFS, uri=f"nfs://{HOST}{server.export}/{folder}", options=options)

    async def use(source: Source) -> None:
        assert set(FILES) <= set(await tree_of(source))

    using(build_source(spec, {}), use)


def test_nobody_listens() -> None:
    (port,) = free_ports(1)

    async def use(source: Source) -> None:
        with pytest.raises(SourceUnavailable) as caught:
            await tree_of(source)
        said = f"{HOST}:{port} cannot be reached: the connection was refused or ended (is an NFS server there? "
        assert str(caught.value).startswith(f"nfs://{HOST}:{port}/x: {said}")
        assert "\n" not in str(caught.value)

    for options in ({"version": "4"}, {"version": "3", "mountport": str(port)}):
        spec = SourceSpec(type=SourceType.NFS, uri=f"nfs://{HOST}:{port}/x", options=options)
        using(build_source(spec, {}), use)


@pytest.mark.parametrize(("options", "port"), [({}, 2049), ({"version": "3"}, 111), ({"mountport": "20048"}, 20048)])
def test_a_host_that_is_unknown_has_refused_nothing(options: dict[str, str], port: int) -> None:
    async def use(source: Source) -> None:
        with pytest.raises(SourceUnavailable) as caught:
            await tree_of(source)
        said = f"nobody.invalid:{port} cannot be reached: the host's name does not resolve (is an NFS server there? "
        assert str(caught.value).startswith(f"nfs://nobody.invalid/x: {said}")

    using(build_source(SourceSpec(type=SourceType.NFS, uri="nfs://nobody.invalid/x", options=options), {}), use)


def test_a_directory_that_is_mounted_already(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    spec = SourceSpec(
        type=SourceType.NFS, uri="nfs://nas/export", options={"directory": str(tmp_path), "version": "4.1"}
    )

    async def use(source: Source) -> None:
        assert set(await tree_of(source)) == {"f"}

    using(build_source(spec, {}), use)
