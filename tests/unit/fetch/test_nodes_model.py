"""Three nodes over one shared directory, whatever is done to them at once, against a model: "the right bytes".

Hypothesis draws steps; what is in one step happens at the same time, in whatever order trio and the threads have it:
reads, warm-ups, evictions, pins, damage in the shared directory, and the death of a node in the middle of all that, of
which only the disk survives. All is real but the source. After each step, and while it runs: a read gives the right
bytes or is cut off by a death; no node uses more than its limit; what is pinned and was brought stays.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trio.lowlevel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsfs.bridge import Bridge, network_side
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.node import NodeTier
from dsfs.cache.shared_layout import PUBLIC
from dsfs.cache.space import whole_space
from dsfs.cache.verify import rebuild_index, verify
from dsfs.errors import SourceError
from dsfs.fetch.flights import Flights
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.queue import FetchQueue, Limits, Priority
from dsfs.fetch.reader import Reader
from dsfs.fetch.shared import SharedTier
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.model import SourceObject, object_key
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink
from tests.unit.fetch.test_flights import FakeSource
from tests.unit.fetch.test_shared import PATIENCE, TIMES

BLOCK = 4096
BOOT = b"b" * 16
SIZES = (100, 3 * BLOCK + 5, 7 * BLOCK, 20 * BLOCK + 1)
NODES = 3
LIMIT = 30 * BLOCK  # of some 40 blocks that there are
PINNABLE = (0, 1, 2)
SHARED_LIMIT = 120 * BLOCK
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

CONTENT = {size: bytes((at + at // 251 + size) % 251 + 1 for at in range(size)) for size in SIZES}
"""No byte is 0, so a hole is always seen."""


class SlowSource(FakeSource):
    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        data = CONTENT[obj.size or 0]
        for at in range(wanted.start, wanted.stop, 3000):
            await sink.write(at, data[at : min(at + 3000, wanted.stop)])


@dataclass
class Node:
    """One server's life; the directory has many."""

    tier: NodeTier
    reader: Reader
    flights: Flights
    origin: Origin
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    """Set when nothing of it runs any more: only then is its cache directory another's."""

    def file(self, number: int) -> RemoteFile:
        obj = SourceObject(f"{number}", size=SIZES[number], version_tag="1")
        return RemoteFile(object_key("fake", obj.path, "1"), SIZES[number], obj, self.origin)


@asynccontextmanager
async def life(root: Path, shared: Path, bridge: Bridge) -> AsyncIterator[Node]:
    """Ends like a process that is killed: nothing is written at its end."""
    index = Index(f"{root}/index")
    tier = NodeTier(Layout(str(root), -1), index, lambda: LIMIT, BOOT, BLOCK)
    await trio.to_thread.run_sync(rebuild_index, tier)
    async with trio.open_nursery() as nursery:
        disk = SharedDisk(str(shared), lambda _root: SHARED_LIMIT, TIMES)
        await disk.open()
        shared_tier = SharedTier(disk, PATIENCE)
        nursery.start_soon(disk.run)
        nursery.start_soon(shared_tier.run)
        flights = Flights(nursery, bridge, tier, FetchQueue(Limits(64 * BLOCK, 8, 8)), 20.0, shared_tier)
        origin = Origin(SlowSource(bridge), "test", "model", shared_area=PUBLIC)
        yield Node(tier, Reader(tier, flights), flights, origin)
        nursery.cancel_scope.cancel()


class World:
    def __init__(self, place: Path, bridge: Bridge, nursery: trio.Nursery) -> None:
        self._place = place
        self._bridge = bridge
        self._nursery = nursery
        self.nodes: list[Node] = []
        self.pinned: list[set[int]] = [set() for _ in range(NODES)]
        self.brought: list[set[int]] = [set() for _ in range(NODES)]
        """Of what is pinned: what was all there at some time since."""
        self.deaths = 0

    async def begin(self, number: int) -> Node:
        async def live(*, task_status: trio.TaskStatus[Node]) -> None:
            async with life(self._place / f"node{number}", self._place / "shared", self._bridge) as node:
                with node.scope:
                    task_status.started(node)
                    await trio.sleep_forever()
            node.ended.set()

        node: Node = await self._nursery.start(live)
        return node

    # -- what is done -------------------------------------------------------------------------------------------------

    async def read(self, number: int, file: int, start: int, length: int) -> None:
        node, size = self.nodes[number], SIZES[file]
        start %= size
        wanted = ByteRange(start, min(size, start + 1 + length))
        try:
            got = b"".join(await node.reader.read(node.file(file), wanted))
        except SourceError:
            assert node.scope.cancel_called, "only a death ends a read"
            return
        assert got == CONTENT[size][wanted.start : wanted.stop]

    async def warm(self, number: int, file: int) -> None:
        node = self.nodes[number]
        try:
            await node.reader.fetch_whole(node.file(file), Priority.WARM)
        except SourceError:
            assert node.scope.cancel_called, "only a death ends a warm-up"

    async def evict(self, number: int, file: int) -> None:
        node = self.nodes[number]
        if file not in self.pinned[number]:
            await trio.to_thread.run_sync(node.tier.evict, node.file(file).key)

    async def pin(self, number: int, file: int) -> None:
        """What can be here together; nothing that is being evicted by hand in this very step."""
        node = self.nodes[number]
        if file in PINNABLE and self.nodes[number] is node:
            self.pinned[number].add(file)
            space = whole_space(SIZES[file], BLOCK)
            await trio.to_thread.run_sync(node.tier.index.pin, "test/model", 1, [(node.file(file).key, space)])

    async def unpin(self, number: int, file: int) -> None:
        self.pinned[number].clear()
        self.brought[number].clear()
        await trio.to_thread.run_sync(self.nodes[number].tier.index.unpin_others, "test/model", None)

    async def damage(self, number: int, file: int) -> None:
        """A file of the shared directory, torn or changed by a disk of somebody's."""
        found = sorted(path for path in (self._place / "shared/public").glob("*/*") if path.is_file())
        if found:
            path = found[(number * 7 + file) % len(found)]
            try:
                with path.open("r+b") as damaged:
                    damaged.seek(max(0, path.stat().st_size - 50))
                    damaged.write(bytes(random.Random(file).randbytes(20)))
            except FileNotFoundError:
                return  # evicted just now

    async def kill(self, number: int, file: int) -> None:
        for _ in range(file * 5):
            await trio.lowlevel.checkpoint()
        self.deaths += 1
        self.nodes[number].scope.cancel()

    # -- what must hold -----------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        while True:
            for node in self.nodes:
                assert node.tier.used_bytes <= LIMIT
            await trio.lowlevel.checkpoint()

    async def settle(self) -> None:
        """Let everything land, bury the dead, look."""
        for number, node in enumerate(self.nodes):
            if node.scope.cancel_called:
                await node.ended.wait()
                self.nodes[number] = await self.begin(number)
        with trio.fail_after(30):
            while any(node.flights.under_way for node in self.nodes):  # noqa: ASYNC110  # they end in many places
                await trio.sleep(0.002)
        for number, node in enumerate(self.nodes):
            assert node.tier.statistics().reserved_bytes == 0
            assert used_on_disk(self._place / f"node{number}/objects") <= LIMIT
            for file in self.pinned[number]:
                whole = node.tier.holds_all(node.file(file).key, SIZES[file], "test/model")
                assert whole or file not in self.brought[number], "what is pinned was evicted"
                if whole:
                    self.brought[number].add(file)


def used_on_disk(objects: Path) -> int:
    """Of objects that have a block; a map of nothing counts for nothing until the next block comes."""
    found = 0
    for map_file in objects.glob("*/*.map"):
        data = map_file.with_suffix("")
        if data.exists() and data.stat().st_blocks:
            found += (map_file.stat().st_blocks + data.stat().st_blocks) * 512
    return found


a_node = st.integers(0, NODES - 1)
a_file = st.integers(0, len(SIZES) - 1)
a_read = st.tuples(st.just("read"), a_node, a_file, st.integers(0, 2**17), st.integers(0, 6 * BLOCK))
others = ("warm", "warm", "evict", "pin", "unpin", "damage", "kill")
an_action = a_read | st.tuples(st.sampled_from(others), a_node, a_file) | a_read
steps_of = st.lists(st.lists(an_action, min_size=1, max_size=8), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


async def play(place: Path, steps: list[list[tuple[str, int, int]]]) -> None:
    async with network_side() as bridge, trio.open_nursery() as nursery:
        world = World(place, bridge, nursery)
        world.nodes = [await world.begin(number) for number in range(NODES)]
        nursery.start_soon(world.watch)
        for step in steps:
            evicted = {action[1:3] for action in step if action[0] == "evict"}
            async with trio.open_nursery() as together:
                for name, *arguments in step:
                    if name == "pin" and tuple(arguments) in evicted:
                        continue
                    together.start_soon(partial(getattr(world, name), *arguments))
            await world.settle()
        for node in world.nodes:
            assert (await trio.to_thread.run_sync(verify, node.tier)).bad == 0
        nursery.cancel_scope.cancel()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(steps=steps_of)
@example(steps=[[("read", 0, 0, 0, 0)] * 4 + [("kill", 0, 0)]])  # who joined a flight asks anew when it fails
def test_right_bytes_within_the_limit(steps: list[list[tuple[str, int, int]]]) -> None:
    place = Path(tempfile.mkdtemp(prefix="dsfs-nodes-", dir=MEMORY))
    try:
        (place / "shared").mkdir()
        for number in range(NODES):
            for name in ("catalogs", "index", *(f"objects/{fan:02x}" for fan in range(256))):
                os.makedirs(place / f"node{number}" / name)
        trio.run(play, place, steps)
    finally:
        shutil.rmtree(place)
