"""HADOOP over WebHDFS: what ``Source`` promises, and what only HDFS has: standbys, redirects, tokens."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import subprocess
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Source
from dsfs.sources.hadoop_webhdfs import PIECE_BYTES, WebHdfsSource
from dsfs.sources.registry import build_source
from dsfs.sources.timeouts import Timeouts
from tests.servers.hdfs_server import BLOCK_TOKEN, HdfsServer, hdfs_server
from tests.servers.process import HOST, free_ports
from tests.sources.sinks import KeepingSink, names_in, read_range, tree_of

BIG = random.Random(1).randbytes(PIECE_BYTES + 2 * MiB + 4321)
FILES = {"a.txt": b"first", "big.bin": BIG, "sub/b.txt": b"second", "sub/deep/er/c.txt": b"third", "sub-way": b"4"}
NAMES = ["with space.txt", "per%cent%20.txt", "plus+and&amp;.txt", "ünï-日本.txt", "q?uest#hash.txt", "semi;c=olon"]
TOKEN = "HAAEaGRmcwRoZGZz-delegation"


@pytest.fixture
def server() -> Iterator[HdfsServer]:
    with hdfs_server() as running:
        for path, data in FILES.items():
            running.hdfs.put(f"/data/set/{path}", data)
        yield running


def build(server: HdfsServer, path: str = "/data/set", hosts: str = "", secret: dict[str, str] | None = None) -> Source:
    options = {} if secret else {"username": "alice"}
    uri = f"webhdfs://{hosts or server.authority}{path}"
    return build_source(SourceSpec(type=SourceType.HADOOP, uri=uri, options=options), secret or {})


def using(source: Source, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("batches", [True, False])
def test_the_whole_tree_its_bytes_and_ranges(server: HdfsServer, batches: bool) -> None:
    server.hdfs.batches = batches
    server.hdfs.put("/data/set/empty", b"")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {p for p, o in tree.items() if o.kind is Kind.FILE} == {*FILES, "empty"}
        assert {p for p, o in tree.items() if o.kind is Kind.DIRECTORY} == {"sub", "sub/deep", "sub/deep/er"}
        assert tree["empty"].size == 0
        for path, data in FILES.items():
            assert (tree[path].size, await source.stat(path)) == (len(data), tree[path])
            assert await read_range(source, tree[path], 0, len(data)) == data
        size, rng = len(BIG), random.Random(2)
        ranges = [(0, 1), (size - 1, size), (PIECE_BYTES - 1, PIECE_BYTES + 1), (1, size)]
        ranges += [(start, start + rng.randint(1, size - start)) for start in (rng.randrange(size) for _ in range(4))]
        both = await asyncio.gather(*(read_range(source, tree["big.bin"], *each) for each in ranges))
        assert both == [BIG[start:stop] for start, stop in ranges]
        assert await names_in(source, "sub/deep") == {"sub/deep/er": Kind.DIRECTORY}
        for gone in ("none", "a.txt"):
            with pytest.raises(SourceMissing):
                await names_in(source, gone)

    using(build(server), use)
    assert {query["user.name"] for _, _, query, _ in server.hdfs.seen} == {"alice"}
    assert "LISTSTATUS" in {query["op"] for _, _, query, _ in server.hdfs.seen} or batches


def test_stat_of_what_is_not_there_and_of_a_root_that_is_not(server: HdfsServer) -> None:
    async def use(source: Source) -> None:
        for path in ("none", "sub/none", "none/none", "a.txt/none", "../set/a.txt", "a//b"):
            assert await source.stat(path) is None, path
        deep = await source.stat("sub/deep")
        assert deep is not None
        assert (deep.path, deep.kind) == ("sub/deep", Kind.DIRECTORY)

    async def rootless(source: Source) -> None:
        for call in (lambda: tree_of(source), lambda: source.stat("x")):
            with pytest.raises(SourceMissing) as caught:
                await call()
            assert "\n" not in str(caught.value)

    using(build(server), use)
    using(build(server, "/data/none"), rootless)


def test_names_and_one_file_as_root(server: HdfsServer) -> None:
    for name in NAMES:
        server.hdfs.put(f"/odd %/{name}", name.encode())

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == set(NAMES)
        for path, obj in tree.items():
            assert await source.stat(path) == obj
            assert await read_range(source, obj, 1, len(path.encode())) == path.encode()[1:]

    async def single(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"with space.txt"}
        assert await source.stat("with space.txt") == tree["with space.txt"]
        assert await source.stat("other") is None
        assert await read_range(source, tree["with space.txt"], 5, 10) == b"space"

    using(build(server, "/odd%20%25"), use)
    using(build(server, "/odd%20%25/with%20space.txt"), single)


def test_a_change_under_the_reader_is_an_error_and_not_a_mix(server: HdfsServer) -> None:
    path = "/data/set/big.bin"

    async def use(source: Source) -> None:
        obj = await source.stat("big.bin")
        assert obj is not None
        sink = KeepingSink(ByteRange(0, len(BIG)))
        opened = iter(range(9))
        # The second piece is looked up, then the file is written anew with as many bytes: only the check can tell.
        server.hdfs.on_open = lambda: server.hdfs.put(path, BIG[::-1]) if next(opened) == 1 else None
        with pytest.raises(SourceChanged):
            await source.read(obj, ByteRange(0, len(BIG)), sink)
        assert bytes(sink.data) == BIG[:PIECE_BYTES]
        server.hdfs.on_open = lambda: None
        server.hdfs.put(path, b"short")  # the datanode's answer is too short: a change, and no broken server
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 0, 100)
        now = await source.stat("big.bin")
        assert now is not None
        assert await read_range(source, now, 0, 5) == b"short"
        server.hdfs.delete(path)
        with pytest.raises(SourceChanged):
            await read_range(source, now, 0, 5)
        assert await source.stat("big.bin") is None

    using(build(server), use)


def test_a_short_body_of_the_same_file_is_no_data(server: HdfsServer) -> None:
    server.hdfs.shorten = 1

    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        with pytest.raises(SourceUnavailable):
            await read_range(source, obj, 0, 5)

    using(build(server), use)


def test_dead_namenodes_are_unavailable_soon_and_heal(server: HdfsServer) -> None:
    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        server.kill()
        started = time.monotonic()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: read_range(source, obj, 0, 5),
            lambda: source.stat("none"),
            lambda: tree_of(source),
        ]
        for call in calls:
            with pytest.raises(SourceUnavailable):
                await call()
        assert time.monotonic() - started < 15
        server.restart()
        assert await read_range(source, obj, 0, 5) == b"first"

    using(build(server), use)


def test_the_namenode_that_is_active_is_found(server: HdfsServer) -> None:
    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        server.hdfs.standby = {0}
        assert await read_range(source, obj, 0, 5) == b"first"
        server.hdfs.seen.clear()
        assert await source.stat("a.txt") == obj
        assert {where for where, *_ in server.hdfs.seen} == {"namenode1"}  # the one that answered last is asked first
        server.hdfs.standby = set()
        server.kill(1)
        assert await source.stat("a.txt") == obj
        server.hdfs.standby = {0}
        with pytest.raises(SourceUnavailable):
            await source.stat("a.txt")

    using(build(server, hosts=server.both), use)


def test_a_dead_datanode_is_left_out(server: HdfsServer) -> None:
    (port,) = free_ports(1)
    server.hdfs.dead_datanode = f"{HOST}:{port}"

    async def use(source: Source) -> None:
        obj = await source.stat("a.txt")
        assert obj is not None
        assert await read_range(source, obj, 0, 5) == b"first"

    using(build(server), use)


def test_a_delegation_token_goes_to_the_namenode_alone_and_is_never_shown(server: HdfsServer) -> None:
    server.hdfs.token = TOKEN

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert await read_range(source, tree["a.txt"], 0, 5) == b"first"
        assert {q.get("delegation") for where, _, q, _ in server.hdfs.seen if where == "datanode"} == {BLOCK_TOKEN}
        assert not any("user.name" in query for _, _, query, _ in server.hdfs.seen)
        server.hdfs.token = "another"
        said = [source.uri, source.identity, repr(source)]
        with pytest.raises(SourceRefused) as caught:
            await source.stat("a.txt")
        said.append("".join(traceback.format_exception(caught.value)))
        server.kill()
        with pytest.raises(SourceUnavailable) as lost:
            await source.stat("a.txt")
        said.append("".join(traceback.format_exception(lost.value)))
        assert not any(TOKEN in text for text in said)

    using(build(server, secret={"token": TOKEN}), use)


def test_kerberos_says_what_to_do(server: HdfsServer) -> None:
    server.hdfs.token = TOKEN

    async def use(source: Source) -> None:
        with pytest.raises(SourceRefused, match="fetchdt") as caught:
            await tree_of(source)
        assert "\n" not in str(caught.value)

    using(build(server), use)


def test_a_gateway_with_a_password_does_not_share_it_with_datanodes(server: HdfsServer) -> None:
    server.hdfs.basic = "Basic YWxpY2U6cGFzcw=="

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert await read_range(source, tree["a.txt"], 0, 5) == b"first"
        assert not any("Authorization" in headers for where, _, _, headers in server.hdfs.seen if where == "datanode")

    async def refused(source: Source) -> None:
        with pytest.raises(SourceRefused):
            await tree_of(source)

    using(build(server, secret={"username": "alice", "password": "pass"}), use)
    using(build(server, secret={"username": "alice", "password": "wrong"}), refused)


def test_what_may_not_be_read_is_refused(server: HdfsServer) -> None:
    server.hdfs.unreadable = {"/data/set/a.txt"}

    async def use(source: Source) -> None:
        with pytest.raises(SourceRefused) as caught:
            await source.stat("a.txt")
        assert "\n" not in str(caught.value)
        assert await source.stat("sub") is not None

    using(build(server), use)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (500, {}, SourceUnavailable),
        (404, {}, SourceUnavailable),  # of a proxy: says nothing about the file
        (503, {"Retry-After": "7"}, RetryLater),
        (429, {}, RetryLater),
        (403, {}, SourceRefused),
        (302, {"Location": "file:///etc/passwd"}, SourceUnsupported),
        (302, {"Location": "/webhdfs/v1/loop"}, SourceUnavailable),
        (302, {"Location": "http://[broken"}, SourceUnavailable),
        (200, {}, SourceUnavailable),
        (200, {"Content-Encoding": "gzip"}, SourceUnavailable),
    ],
)
def test_answers_that_are_no_answers(
    server: HdfsServer, status: int, headers: dict[str, str], expected: type[SourceError]
) -> None:
    server.hdfs.failing[0] = (status, headers)

    async def use(source: Source) -> None:
        with pytest.raises(expected) as caught:
            await source.stat("a.txt")
        assert "\n" not in str(caught.value)
        if isinstance(caught.value, RetryLater):
            assert caught.value.retry_after_s == (7 if headers else None)

    using(build(server), use)


def test_a_namenode_that_says_nothing_is_a_timeout() -> None:
    async def use(source: Source) -> None:
        with pytest.raises(SourceUnavailable, match="in time"):
            await source.stat("a")

    with socket.create_server((HOST, 0)) as silent:  # the kernel takes connections for it; nobody answers
        base = f"http://{HOST}:{silent.getsockname()[1]}"
        using(WebHdfsSource((base,), "", uri="webhdfs://x", timeouts=Timeouts(0.5, 0.2)), use)


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=x"]
    subprocess.run([*argv, "-addext", f"subjectAltName=IP:{HOST}"], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    def secure(server: HdfsServer) -> Source:
        return build_source(
            SourceSpec(type=SourceType.HADOOP, uri=f"swebhdfs://{server.authority}/d", options={"username": "u"}), {}
        )

    async def good(source: Source) -> None:
        tree = await tree_of(source)
        assert await read_range(source, tree["f"], 0, 2) == b"ok"

    async def untrusted(source: Source) -> None:
        with pytest.raises(SourceUnavailable, match="not trusted"):
            await tree_of(source)

    with hdfs_server(tls) as server:
        server.hdfs.put("/d/f", b"ok")
        using(secure(server), untrusted)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        using(secure(server), good)


def test_a_cancelled_read_leaves_the_source_usable(server: HdfsServer) -> None:
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

    using(build(server), use)


def test_a_manifest_of_baize_is_read(server: HdfsServer) -> None:
    site = f"""<?xml version="1.0"?><configuration><property><name>dfs.namenode.http-address</name>
      <value>{server.authority}</value></property></configuration>"""
    options = {"sourcePath": "/data/set", "username": "alice", "hdfsConfigName": "c", "hdfsSiteXml": site}
    spec = SourceSpec(type=SourceType.HADOOP, uri="hdfs://namenode:8020", options=options)

    async def use(source: Source) -> None:
        assert "a.txt" in await tree_of(source)

    using(build_source(spec, {}), use)
