"""The cache directory after a crash, or a refused call, at any point: absent or right, never wrong."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
import structlog

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.node import NodeTier
from dsfs.cache.verify import rebuild_index, verify
from dsfs.ranges import ByteRange, block_range, blocks_of
from tests.faults.sweep import BROKEN, NO_SPACE, Counter, Fault, crash_at_every_call, fail_at_every_call, watch

BLOCK = 4096
SIZE = 2 * BLOCK + 100
KEY = "ab" * 32
BOOT = b"1" * 16
OTHER_BOOT = b"2" * 16
OWNER = "ns/set"
CONTENT = bytes(at % 251 + 1 for at in range(SIZE))
ALIGNED = mmap.mmap(-1, SIZE)  # as what is written past the page cache has to be
ALIGNED.write(CONTENT)

Before = Callable[[NodeTier], None]
Operation = Callable[[NodeTier, Counter], None]


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # some 500 directories: fsync had better be free


@pytest.fixture
def directory() -> Iterator[Callable[[], str]]:
    numbers = itertools.count()
    root = tempfile.mkdtemp(prefix="dsfs-faults-", dir=MEMORY)

    def make() -> str:
        where = f"{root}/{next(numbers)}"
        for name in ("catalogs", "index", f"objects/{KEY[:2]}"):
            os.makedirs(f"{where}/{name}")
        return where

    yield make
    shutil.rmtree(root)


def open_tier(where: str, boot: bytes = BOOT) -> NodeTier:
    return NodeTier(Layout(where, -1), Index(f"{where}/index"), lambda: 1 << 40, boot, BLOCK)


def data(block: int) -> bytes:
    place = block_range(block, SIZE, BLOCK)
    return CONTENT[place.start : place.stop]


def close(tier: NodeTier) -> None:
    tier.index.close(time.time())


# -- what is there before ----------------------------------------------------------------------------------------------


def nothing(_tier: NodeTier) -> None:
    pass


def two_blocks(tier: NodeTier) -> None:
    obj = tier.create(KEY, SIZE)
    tier.publish(obj, 0, data(0), OWNER)
    tier.publish(obj, 2, data(2), OWNER)


def all_blocks(tier: NodeTier) -> None:
    tier.put_whole(KEY, SIZE, CONTENT, OWNER)


def data_without_map(tier: NodeTier) -> None:
    all_blocks(tier)
    os.unlink(tier.layout.map_path(KEY))


# -- what is swept -----------------------------------------------------------------------------------------------------


def put_whole(tier: NodeTier, _counter: Counter) -> None:
    tier.put_whole(KEY, SIZE, CONTENT, OWNER)


def put_whole_past_cache(tier: NodeTier, _counter: Counter) -> None:
    tier.put_whole(KEY, SIZE, memoryview(ALIGNED), OWNER, past_cache=True)


def create(tier: NodeTier, _counter: Counter) -> None:
    tier.create(KEY, SIZE)


def create_and_publish(tier: NodeTier, _counter: Counter) -> None:
    obj = tier.create(KEY, SIZE)
    for block in range(3):
        tier.publish(obj, block, data(block), OWNER)


def publish(tier: NodeTier, counter: Counter) -> None:
    tier.publish(opened(tier, counter), 1, data(1), OWNER)


def retract(tier: NodeTier, counter: Counter) -> None:
    opened(tier, counter)
    tier.evict(KEY)


def drop(tier: NodeTier, _counter: Counter) -> None:
    tier.drop(KEY)


def drop_bad_block(tier: NodeTier, counter: Counter) -> None:
    tier.drop_bad_block(opened(tier, counter), 2)


def opened(tier: NodeTier, counter: Counter) -> BlockMap:
    obj = tier.open(KEY, SIZE, OWNER)
    if not isinstance(obj, BlockMap):
        raise OSError("cannot be opened")
    watch(obj, counter)
    return obj


SWEPT: dict[str, tuple[Before, Operation]] = {
    "put_whole": (nothing, put_whole),
    "put_whole past the page cache": (nothing, put_whole_past_cache),
    "put_whole over data without a map": (data_without_map, put_whole),
    "put_whole over a partial object": (two_blocks, put_whole),
    "put_whole over itself": (all_blocks, put_whole),
    "create": (nothing, create),
    "create over data without a map": (data_without_map, create_and_publish),
    "create over a complete object": (all_blocks, create_and_publish),  # one that could not be opened, for one moment
    "create and publish": (nothing, create_and_publish),
    "publish": (two_blocks, publish),
    "retract": (two_blocks, retract),
    "drop a partial object": (two_blocks, drop),
    "drop a complete object": (all_blocks, drop),
    "drop a bad block": (two_blocks, drop_bad_block),
}


def absent_or_right(tier: NodeTier) -> bytes:
    """Which blocks are there; asserts that all of them are right."""
    obj = tier.open(KEY, SIZE, OWNER)
    found = bytearray()
    for block in blocks_of(ByteRange(0, SIZE), BLOCK) if obj is not None else ():
        place = block_range(block, SIZE, BLOCK)
        into = bytearray(place.length)
        if obj is not None and obj.read(place, memoryview(into)):
            assert bytes(into) == data(block), f"block {block} is wrong"
            found.append(block)
    return bytes(found)


def check(where: str) -> bytes:
    tier = open_tier(where)
    found = absent_or_right(tier)
    assert verify(tier).bad == 0
    rebuild_index(tier)
    leftovers = {name for _directory, _names, files in os.walk(f"{where}/objects") for name in files}
    assert leftovers <= {KEY, f"{KEY}.map"}, "a rebuild leaves nothing that nobody needs"
    if KEY in leftovers and f"{KEY}.map" not in leftovers:
        assert KEY in tier.index, "data without a map is counted, so that eviction comes by"
    # and it can be stored again
    tier.put_whole(KEY, SIZE, CONTENT, OWNER)
    assert absent_or_right(tier) == bytes([0, 1, 2])
    close(tier)
    return found


@pytest.mark.parametrize("name", SWEPT)
def test_a_crash_between_any_two_calls_leaves_it_absent_or_right(name: str, directory: Callable[[], str]) -> None:
    before, operation = SWEPT[name]

    def prepare(where: str) -> None:
        tier = open_tier(where)
        before(tier)
        close(tier)
        del tier
        gc.collect()

    def start(where: str) -> Callable[[Counter], None]:
        tier = open_tier(where)
        return lambda counter: operation(tier, counter)

    calls = crash_at_every_call(prepare, start, lambda where, _survived: check(where) and None, directory)
    assert calls


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, NO_SPACE) for name in SWEPT] + [(name, BROKEN) for name in ("put_whole", "publish", "retract")],
)
def test_a_call_that_is_refused_leaves_it_absent_or_right(
    name: str, fault: Fault, directory: Callable[[], str]
) -> None:
    before, operation = SWEPT[name]
    tiers: list[NodeTier] = []

    def prepare(where: str) -> None:
        tier = open_tier(where)
        before(tier)
        close(tier)
        del tier
        gc.collect()

    def start(where: str) -> Callable[[Counter], None]:
        tiers.append(open_tier(where))
        return lambda counter: operation(tiers[-1], counter)

    def look(where: str, returned: bool) -> None:
        # the same server goes on
        tier = tiers.pop()
        if returned and operation in (put_whole, put_whole_past_cache, create_and_publish, publish):
            obj = tier.open(KEY, SIZE, OWNER)
            assert obj is not None
            assert obj.missing(ByteRange(0, SIZE)) == []
        close(tier)
        del tier
        gc.collect()
        check(where)

    fail_at_every_call(prepare, start, look, directory, fault)
