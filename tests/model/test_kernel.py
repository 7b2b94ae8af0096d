"""The direct session against a model of the kernel: random requests, deaths at any answer, repeats, evictions.

Real catalog, cache, fetcher and source over a directory; only /dev/fuse is a model.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsfs.bridge import network_side
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.node import NodeTier
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.store import DatasetStore
from dsfs.fetch.flights import Flights
from dsfs.fetch.origin import Origin
from dsfs.fetch.queue import FetchQueue, Limits
from dsfs.fetch.reader import Reader
from dsfs.filesystem.attributes import Ownership
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID
from dsfs.fuse.connection import LARGEST_READ_BYTES, Channel
from dsfs.fuse.files_connection import FilesConnection
from dsfs.fuse.resume import OpenJournal
from dsfs.fuse.waiters import Job, Waiters
from dsfs.fuse.wire import (
    DIRENT,
    ENTRY_OUT,
    GETXATTR_IN,
    IN_HEADER,
    INTERRUPT_IN,
    OPEN_IN,
    READ_IN,
    RELEASE_IN,
    InitFlag,
    Opcode,
)
from dsfs.manifest.schema import Manifest
from dsfs.manifest.uri import manifest_from_uri
from dsfs.model import ReadPath
from dsfs.ranges import MiB
from dsfs.sources.registry import build_source
from tests.model.kernel import Died, Kernel, ModelDevice, Request
from tests.pages import drop_pages

BLOCK = 4096
WITHIN_S = 30.0
HANGS_AFTER_S = 120.0
EXAMPLES = int(os.environ.get("KERNEL_EXAMPLES", "12"))  # a deep run: KERNEL_EXAMPLES=2000
FILES = {
    b"empty": b"",
    b"tiny": b"t",
    b"small": random.Random(1).randbytes(3 * BLOCK + 5),
    b"large": random.Random(2).randbytes(40 * BLOCK + 77),
    b"larger": random.Random(3).randbytes(90 * BLOCK),
}


class AtOnce(Waiters):
    """Whoever would wait for the disk does it here and now: the order of a run is that of its program."""

    def __init__(self) -> None:
        return  # without a thread

    def put(self, job: Job) -> None:
        job(memoryview(bytearray(LARGEST_READ_BYTES)))


class World:
    """One dataset, one kernel, and servers that come and go. ``deaths`` are counts of answers a server lives for."""

    def __init__(self, directory: Path, files: DatasetFiles, tier: NodeTier, deaths: list[int]) -> None:
        self.kernel = Kernel()
        self.tier = tier
        self.files = files
        self._journal = str(directory / "journal")
        self._deaths = list(deaths)
        self._openless = False
        self._waiters = AtOnce()
        self.nodeids: dict[bytes, int] = {}
        self.servers = 0

    async def serve(self) -> None:
        """A server, and the next one when it dies."""
        while True:
            self.servers += 1
            journal = OpenJournal(self._journal)
            left = self._deaths.pop(0) if self._deaths else None
            connection = FilesConnection(
                "model",
                Channel(
                    ModelDevice(self.kernel, left), int(InitFlag.PASSTHROUGH), lambda _offered: None, self._waiters
                ),
                self.files,
                journal=journal,
                can_passthrough=True,
                memory_bytes=1 << 30,
                openless=self._openless,
                turned_openless=self._turned_openless,
                stack_depth=1,
            )
            try:
                await connection.run(resume=self.servers > 1)
            except* Died:
                journal.close()
            else:
                return

    def _turned_openless(self) -> None:
        self._openless = True

    # -- what processes do ----------------------------------------------------------------------------------------

    async def look_up(self, name: bytes) -> int:
        answer = await self.kernel.ask(Opcode.LOOKUP, ROOT_ID, name + b"\0")
        assert answer.code == 0, answer
        nodeid: int = ENTRY_OUT.unpack_from(answer.payload)[0]
        assert self.nodeids.setdefault(name, nodeid) == nodeid, "an inode number never changes"
        return nodeid

    async def absent(self) -> None:
        answer = await self.kernel.ask(Opcode.LOOKUP, ROOT_ID, b"none\0")
        assert answer.code == errno.ENOENT or (answer.code == 0 and ENTRY_OUT.unpack_from(answer.payload)[0] == 0)

    async def open(self, name: bytes) -> None:
        nodeid = await self.look_up(name)
        if not self.kernel.no_open:
            answer = await self.kernel.ask(Opcode.OPEN, nodeid, OPEN_IN.pack(os.O_RDONLY, 0))
            assert answer.code in (0, errno.ENOSYS), answer

    async def release(self, pick: int) -> None:
        nodeids = self.kernel.open_nodeids()
        if nodeids and not self.kernel.no_open:
            nodeid = nodeids[pick % len(nodeids)]
            self.kernel.released(nodeid)
            await self.kernel.ask(Opcode.RELEASE, nodeid, RELEASE_IN.pack(0, 0, 0, 0))

    async def read(self, name: bytes, pick: int, size: int) -> None:
        nodeid, truth = await self.look_up(name), FILES[name]
        offset = pick % (len(truth) + BLOCK)
        got = self.kernel.backing_bytes(nodeid, offset, size)
        if got is None:
            answer = await self.kernel.ask(Opcode.READ, nodeid, READ_IN.pack(0, offset, size, 0, 0, 0, 0))
            assert answer.code == 0, answer
            got = answer.payload
        assert got == truth[offset : offset + size], (name, offset, size)

    async def list(self) -> None:
        names, offset = [], 0
        while True:
            answer = await self.kernel.ask(Opcode.READDIR, ROOT_ID, READ_IN.pack(0, offset, 96, 0, 0, 0, 0))
            assert answer.code == 0, answer
            if not answer.payload:
                break
            at = 0
            while at < len(answer.payload):
                _ino, offset, length, _type = DIRENT.unpack_from(answer.payload, at)
                names.append(answer.payload[at + DIRENT.size : at + DIRENT.size + length])
                at += (DIRENT.size + length + 7) // 8 * 8
        assert sorted(names) == sorted([b".", b"..", *FILES])

    async def evict(self, name: bytes) -> None:
        key = self.files.file(await self.look_up(name)).key
        await trio.to_thread.run_sync(self.tier.evict, key)

    async def drop_pages(self, name: bytes, pick: int) -> None:
        """The machine needs its memory for something else: the cache's disk is asked again."""
        if pick % 2:
            self.tier._opened.close_idle()  # and many others were opened meanwhile
        drop_pages(Path(self.tier.layout.object_path(self.files.file(await self.look_up(name)).key)))

    async def interrupt(self) -> None:
        """Of a request that is on its way, or of none: nobody has a signal pending, so nothing may end."""
        await self.kernel.ask(Opcode.INTERRUPT, 0, INTERRUPT_IN.pack(self.kernel._unique))

    async def garbage(self, data: bytes) -> None:
        await self.kernel.raw(data)

    async def attributes(self, name: bytes) -> None:
        nodeid = await self.look_up(name)
        body = GETXATTR_IN.pack(4096, 0) + b"user.dsfs.version\0"
        assert (await self.kernel.ask(Opcode.GETXATTR, nodeid, body)).code == 0
        assert (await self.kernel.ask(Opcode.STATFS, nodeid)).code == 0
        answer = await self.kernel.ask(Opcode.GETATTR, nodeid, bytes(16))
        assert struct.unpack_from("=Q", answer.payload, 24)[0] == len(FILES[name])


@asynccontextmanager
async def world(directory: Path, path: ReadPath, deaths: list[int]) -> AsyncIterator[World]:
    source_dir = directory / "source"
    source_dir.mkdir()
    for name, data in FILES.items():
        (source_dir / os.fsdecode(name)).write_bytes(data)
    cache = directory / "cache"
    for name in ("catalogs", "index", *(f"objects/{fan:02x}" for fan in range(256))):
        os.makedirs(cache / name)
    raw = manifest_from_uri(str(source_dir), {}, base_dir="/").model_dump(mode="json")
    manifest = Manifest.model_validate({**raw, "read_path": path})
    index = Index(str(cache / "index"))
    tier = NodeTier(Layout(str(cache), -1), index, lambda: 64 * MiB, b"b" * 16, BLOCK)
    async with network_side() as bridge, trio.open_nursery() as nursery:

        async def build() -> object:
            return build_source(manifest.source, {})

        source = await bridge.call(build)  # type: ignore[arg-type]
        flights = Flights(nursery, bridge, tier, FetchQueue(Limits(64 * MiB)), WITHIN_S)
        origin = Origin(source, manifest.namespace, manifest.name)  # type: ignore[arg-type]
        store = DatasetStore(str(cache / "catalogs"))
        dataset = Dataset(manifest, 2, store, bridge, origin, build, WITHIN_S)  # type: ignore[arg-type]
        dataset.open_revision()
        nursery.start_soon(dataset.run)
        await dataset.settled.wait()
        files = DatasetFiles(dataset, Reader(tier, flights), Ownership(0, 0, 0o444, 0o555), ROOT_ID, 64 * MiB, MiB)
        there = World(directory, files, tier, deaths)
        nursery.start_soon(there.kernel.listen)
        nursery.start_soon(there.serve)
        try:
            yield there
        finally:
            nursery.cancel_scope.cancel()
    there.kernel.close()
    index.close(0.0)


names = st.sampled_from(sorted(FILES))
numbers = st.integers(0, 1 << 20)
steps = st.one_of(
    st.tuples(st.just("look_up"), names),
    st.tuples(st.just("absent")),
    st.tuples(st.just("open"), names),
    st.tuples(st.just("release"), numbers),
    st.tuples(st.just("read"), names, numbers, st.sampled_from([1, 4096, 10_000, 128 * 1024])),
    st.tuples(st.just("list")),
    st.tuples(st.just("evict"), names),
    st.tuples(st.just("drop_pages"), names, numbers),
    st.tuples(st.just("interrupt")),
    st.tuples(st.just("attributes"), names),
)


@given(
    path=st.sampled_from([ReadPath.PASSTHROUGH, ReadPath.OPENLESS, ReadPath.DAEMON]),
    deaths=st.lists(st.integers(0, 12), max_size=6),
    programs=st.lists(st.lists(steps, max_size=12), min_size=1, max_size=4),
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_is_answered_once_and_right(
    path: ReadPath, deaths: list[int], programs: list[list[tuple[object, ...]]]
) -> None:
    """Several processes at once; servers die at the answers that ``deaths`` names."""

    async def process(there: World, program: list[tuple[object, ...]]) -> None:
        for name, *arguments in program:
            await getattr(there, str(name))(*arguments)

    async def main(directory: Path) -> None:
        with trio.fail_after(HANGS_AFTER_S):
            async with world(directory, path, deaths) as there:
                async with trio.open_nursery() as processes:
                    for program in programs:
                        processes.start_soon(process, there, program)
                assert there.kernel.violations == []
                assert there.kernel.waiting == []

    run(main)


requests = st.builds(
    lambda length, opcode, unique, nodeid, body: IN_HEADER.pack(length, opcode, unique, nodeid, 0, 0, 1, 0, 0) + body,
    st.integers(0, 2**32 - 1),
    st.one_of(st.sampled_from([opcode.value for opcode in Opcode]), st.integers(0, 2**32 - 1)),
    st.integers(2**40, 2**64 - 1),
    st.one_of(st.integers(0, 3), st.integers(2**41, 2**41 + 9), st.integers(0, 2**64 - 1)),
    st.binary(max_size=100),
)


@given(garbage=st.lists(st.one_of(requests, st.binary(min_size=1, max_size=60)), min_size=1, max_size=60))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_request_wedges_the_server(garbage: list[bytes]) -> None:
    """Whatever comes, the next reader is answered."""

    async def main(directory: Path) -> None:
        with trio.fail_after(HANGS_AFTER_S):
            async with world(directory, ReadPath.DAEMON, []) as there:
                for message in garbage:
                    await there.garbage(message)
                await there.read(b"small", 0, 10_000)
                await there.list()
                assert there.servers == 1

    run(main)


def run(main: object) -> None:
    directory = Path(tempfile.mkdtemp(prefix="dsfs-model-"))
    try:
        with structlog.testing.capture_logs():
            trio.run(main, directory)  # type: ignore[arg-type]
    finally:
        shutil.rmtree(directory)


def test_the_model_sees_a_wrong_mode() -> None:
    """A model that finds nothing proves nothing."""
    kernel = Kernel()
    for flags, backing in ((2, 0), (128, 1)):
        request = Request(Opcode.OPEN, 7, b"")
        request.payload = struct.pack("=QIi", 0, flags, backing)
        kernel._opened(request)
    assert kernel.violations == ["passthrough beside a cached handle", "a backing id that the kernel does not know"]
    kernel.close()
