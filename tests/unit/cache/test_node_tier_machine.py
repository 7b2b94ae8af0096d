"""The node tier against a dictionary: whatever is done to it, a read gives the right bytes or says that it has none.

Contents follow from the key, as in life (a key is a version of a file), so a wrong byte is always seen; no content
has a zero in it, so a hole is always seen. What may differ from the dictionary is only what eviction chose to give up,
and that must be whole objects.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.complete import CachedObject, CompleteObject
from dsfs.cache.index import Index
from dsfs.cache.layout import open_layout
from dsfs.cache.mapfile import MAGIC, STATES_AT, State
from dsfs.cache.node import NodeTier
from dsfs.cache.space import map_space, space_of, whole_space
from dsfs.cache.verify import keys_on_disk, rebuild_index, verify
from dsfs.errors import CacheFull
from dsfs.ranges import ByteRange, block_count, block_range, blocks_of

BLOCK = 4096
LIMIT = 13 * BLOCK
SIZES = (1, BLOCK + 1, 3 * BLOCK + 5, 6 * BLOCK)  # few, so that one object meets many rules
KEYS = tuple(hashlib.sha256(bytes([number])).hexdigest() for number in range(len(SIZES)))
SIZE = dict(zip(KEYS, SIZES, strict=True))
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # fsync is free there, and holes can be punched

a_key = st.sampled_from(KEYS)
an_owner = st.sampled_from(["a/one", "b/two"])
a_number = st.integers(0, 2**16)


def content(key: str) -> bytes:
    """What the object of this key is, for ever: bytes of 1 to 251, different in each object and block."""
    shift = KEYS.index(key) * 37
    return bytes((at + at // 251 + shift) % 251 + 1 for at in range(SIZE[key]))


CONTENT = {key: content(key) for key in KEYS}


def block_of(key: str, block: int) -> bytes:
    place = block_range(block, SIZE[key], BLOCK)
    return CONTENT[key][place.start : place.stop]


class NodeTierMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="dsfs-tier-", dir=MEMORY)
        self.layout = open_layout(f"{self.root}/cache")
        self.boot = 1
        self.model: dict[str, dict[int, bytes]] = {}
        """Blocks that must be there. A key without any may or may not lie on the disk, without counting."""
        self.unchecked: dict[str, set[int]] = {}
        """Blocks that were written under another boot, and not looked at since."""
        self.counted: dict[str, int] = {}
        """What the index should say, in bytes."""
        self.pinned: set[str] = set()
        self.exact = True
        """Until a crash takes away what the index did not write yet."""
        self.allowed_over = 0
        self.held: list[tuple[CachedObject, bytes]] = []
        self.open_tier()

    def open_tier(self) -> None:
        self.index = Index(self.layout.index)
        self.tier = NodeTier(self.layout, self.index, lambda: LIMIT, self.boot_id, BLOCK)

    @property
    def boot_id(self) -> bytes:
        return self.boot.to_bytes(16, "little")

    def teardown(self) -> None:
        try:
            for key in KEYS:
                self.read(key, "a/one", 0, SIZE[key] - 1)
            self.upkeep_of_the_index_keeps_its_sums()
        finally:
            self.held.clear()
            self.index.close(time.time())
            del self.tier
            self.layout.release()
            shutil.rmtree(self.root)

    # -- bringing in: as fetch.flights does it, never without a reservation ------------------------------------------

    @contextmanager
    def reserved(self, size_bytes: int) -> Iterator[bool]:
        if not self.tier.reserve(size_bytes):
            try:
                self.tier.make_room(size_bytes)
            except CacheFull:
                self.after_eviction()
                yield False
                return
            self.after_eviction()
        statistics = self.tier.statistics()
        assert statistics.used_bytes + statistics.reserved_bytes <= LIMIT
        yield True
        self.tier.release(size_bytes)

    def after_eviction(self) -> None:
        """Eviction may take what it likes, but whole objects only."""
        for key in list(self.model):
            if not self.model[key]:
                continue
            obj = self.tier.open(key, SIZE[key], "a/one")
            if obj is None or obj.present_bytes() == 0:
                assert key not in self.pinned
                self.gone(key)
            else:
                assert self.present(obj) == set(self.model[key])

    def gone(self, key: str) -> None:
        self.model.pop(key, None)
        self.unchecked.pop(key, None)
        self.counted.pop(key, None)

    def present(self, obj: CachedObject) -> set[int]:
        if isinstance(obj, CompleteObject):
            return set(range(block_count(obj.size_bytes, BLOCK)))
        return {block for block in range(obj.blocks) if obj.state(block) != State.ABSENT}

    @rule(key=a_key, owner=an_owner)
    def put_whole(self, key: str, owner: str) -> None:
        space = space_of(SIZE[key]) + map_space(SIZE[key], BLOCK)
        with self.reserved(space) as there_is_room:
            if there_is_room:
                self.tier.put_whole(key, SIZE[key], CONTENT[key], owner)
                self.model[key] = {block: block_of(key, block) for block in range(block_count(SIZE[key], BLOCK))}
                self.unchecked.pop(key, None)
                self.counted[key] = space_of(SIZE[key]) + BLOCK

    @rule(key=a_key, owner=an_owner, first=a_number, count=st.integers(1, 3))
    def publish(self, key: str, owner: str, first: int, count: int) -> None:
        start = first % block_count(SIZE[key], BLOCK)
        blocks = range(start, min(start + count, block_count(SIZE[key], BLOCK)))
        space = sum(space_of(len(block_of(key, block))) for block in blocks) + map_space(SIZE[key], BLOCK)
        with self.reserved(space) as there_is_room:
            if not there_is_room:
                return
            obj = self.tier.open(key, SIZE[key], owner)
            if obj is None:
                assert not self.model.get(key)
                obj = self.tier.create(key, SIZE[key])
            if not isinstance(obj, BlockMap):
                return
            for block in blocks:
                self.tier.publish(obj, block, block_of(key, block), owner)
                if block not in self.model.setdefault(key, {}):
                    before = self.counted.get(key) or map_space(SIZE[key], BLOCK)
                    self.counted[key] = before + space_of(len(block_of(key, block)))
                self.model[key][block] = block_of(key, block)
                self.unchecked.get(key, set()).discard(block)

    @precondition(lambda self: any(self.model.values()))
    @rule(pick=a_number, owner=an_owner, first=a_number, count=st.integers(1, 3))
    def publish_more(self, pick: int, owner: str, first: int, count: int) -> None:
        """Into what has blocks already: the same ones may come again."""
        here = [key for key in KEYS if self.model.get(key)]
        self.publish(here[pick % len(here)], owner, first, count)

    # -- reading ----------------------------------------------------------------------------------------------------

    @rule(key=a_key, owner=an_owner, start=a_number, length=a_number)
    def read(self, key: str, owner: str, start: int, length: int) -> None:
        start %= SIZE[key]
        wanted = ByteRange(start, start + 1 + length % (SIZE[key] - start))
        blocks = set(blocks_of(wanted, BLOCK))
        obj = self.tier.open(key, SIZE[key], owner)
        if obj is None:
            assert not self.model.get(key)
            return
        doubtful = self.unchecked.get(key, set())
        expected_missing = sorted(
            block for block in blocks if block not in self.model.get(key, {}) or block in doubtful
        )
        assert obj.missing(wanted) == expected_missing
        into = bytearray(wanted.length)
        assert obj.read(wanted, memoryview(into)) is not bool(expected_missing)
        if not expected_missing:
            assert bytes(into) == CONTENT[key][wanted.start : wanted.stop]

    @rule(key=a_key, ways=st.lists(st.sampled_from(["open_at_once", "open_complete"]), min_size=1, max_size=3))
    def read_without_a_look_at_the_map(self, key: str, ways: list[str]) -> None:
        """What these two open without ``open`` having seen it is whole, and checked under this boot."""
        for way in ways:
            obj = getattr(self.tier, way)(key, SIZE[key], "a/one")
            if obj is None:
                continue
            if isinstance(obj, CompleteObject):
                assert len(self.model[key]) == -(-SIZE[key] // BLOCK)
                assert not self.unchecked.get(key)
            if obj.complete:
                into = bytearray(SIZE[key])
                assert obj.read(ByteRange(0, SIZE[key]), memoryview(into))
                assert bytes(into) == CONTENT[key]
                self.tier.keep_open(obj)

    @rule(key=a_key)
    def check(self, key: str) -> None:
        """What a reader does with blocks of another boot."""
        obj = self.tier.open(key, SIZE[key], "a/one")
        doubtful = self.unchecked.pop(key, set())
        if isinstance(obj, BlockMap):
            assert obj.unchecked() == sorted(doubtful)
            assert all(obj.check(block) for block in doubtful)
            assert obj.complete == (len(self.model.get(key, {})) == obj.blocks)
        else:
            assert not doubtful

    @rule(key=a_key)
    def hold(self, key: str) -> None:
        """An open handle; of a complete object it may be in the kernel, which asks nobody."""
        obj = self.tier.open(key, SIZE[key], "a/one")
        if obj is not None and obj.complete:
            self.held.append((obj, CONTENT[key]))

    @invariant()
    def what_is_held_complete_stays_as_it_is(self) -> None:
        for obj, expected in self.held:
            assert os.pread(obj.fd, len(expected) + 1, 0) == expected

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self) -> None:
        self.held.pop(0)

    @rule(key=a_key, owner=an_owner)
    def pin(self, key: str, owner: str) -> None:
        """Nothing is pinned that could not be here together (dsfs.datasets.pins sees to that)."""
        space = whole_space(SIZE[key], BLOCK)
        if self.index.pinned_whole_bytes + self.index.unpinned_space([(key, space)]) <= LIMIT:
            self.index.pin(owner, 1, [(key, space)])
            self.pinned.add(key)

    @rule()
    def unpin(self) -> None:
        for owner in ("a/one", "b/two"):
            self.index.unpin_others(owner, None)
        self.pinned.clear()

    # -- taking back ------------------------------------------------------------------------------------------------

    @rule(key=a_key)
    def evict(self, key: str) -> None:
        self.tier.evict(key)
        self.gone(key)
        obj = self.tier.open(key, SIZE[key], "a/one")
        assert obj is None or obj.present_bytes() == 0

    @rule(key=a_key)
    def drop(self, key: str) -> None:
        self.tier.drop(key)
        self.gone(key)
        assert self.tier.open(key, SIZE[key], "a/one") is None

    @rule(key=a_key)
    def not_evicted_while_it_is_written(self, key: str) -> None:
        obj = self.tier.open(key, SIZE[key], "a/one")
        if isinstance(obj, BlockMap) and not obj.complete:
            with obj.writer():
                assert self.tier.evict(key) == 0

    # -- the disk is not to be trusted ------------------------------------------------------------------------------

    @precondition(lambda self: any(self.model.values()))
    @rule(pick=a_number, byte=a_number, flip=st.integers(1, 255), by_boot=st.booleans())
    def corrupt_a_byte(self, pick: int, byte: int, flip: int, by_boot: bool) -> None:
        here = [(key, block) for key in KEYS for block in sorted(self.model.get(key, {}))]
        key, block = here[pick % len(here)]
        self.held = [(obj, expected) for obj, expected in self.held if obj.key != key]
        place = block_range(block, SIZE[key], BLOCK)
        at = place.start + byte % place.length
        fd = os.open(self.layout.object_path(key), os.O_RDWR)
        try:
            os.pwrite(fd, bytes([CONTENT[key][at] ^ flip]), at)
        finally:
            os.close(fd)
        if by_boot:
            self.reopen(other_boot=True, clean=True)
            obj = self.tier.open(key, SIZE[key], "a/one")
            assert isinstance(obj, BlockMap)
            into = memoryview(bytearray(place.length))
            assert obj.read(place, into) is False  # not before it was looked at
            assert obj.check(block) is False
            assert obj.state(block) == State.UNCHECKED
            self.tier.drop_bad_block(obj, block)
            whole = False
        else:
            doubtful = bool(self.unchecked.get(key))
            found = verify(self.tier)
            assert found.bad == 1
            assert found.objects >= len([key for key, blocks in self.model.items() if blocks])
            # a complete object may be in a kernel's hands: it goes as a whole
            whole = not doubtful and len(self.model[key]) == block_count(SIZE[key], BLOCK)
            self.unchecked.clear()  # all the others were right
        if whole:
            self.gone(key)
        else:
            del self.model[key][block]
            self.unchecked.get(key, set()).discard(block)
            self.counted[key] -= space_of(place.length)
            if not self.model[key]:
                self.counted.pop(key)
        obj = self.tier.open(key, SIZE[key], "a/one")
        assert (set() if obj is None else self.present(obj)) == set(self.model.get(key, {}))

    @precondition(lambda self: any(self.model.values()))
    @rule(pick=a_number, how=st.sampled_from(["torn", "longer", "empty", "other magic", "other key", "short data"]))
    def damage(self, pick: int, how: str) -> None:
        """A map that does not belong to its data, or is torn, costs the object and nothing else."""
        here = [key for key in KEYS if self.model.get(key)]
        key = here[pick % len(here)]
        self.held = [(obj, expected) for obj, expected in self.held if obj.key != key]
        self.reopen(other_boot=False, clean=True)
        path = self.layout.map_path(key)
        match how:
            case "torn":
                os.truncate(path, os.stat(path).st_size - 1)
            case "longer":
                os.truncate(path, os.stat(path).st_size + 1)
            case "empty":
                os.truncate(path, 0)
            case "other magic":
                with open(path, "r+b") as file:
                    file.write(MAGIC[::-1])
            case "other key":
                with open(path, "r+b") as file:
                    file.seek(STATES_AT - 32)
                    file.write(bytes(32))
            case "short data":
                os.truncate(self.layout.object_path(key), SIZE[key] - 1)
        assert self.tier.open(key, SIZE[key], "a/one") is None
        assert not os.path.exists(path)
        self.gone(key)

    @rule()
    def verify_finds_nothing_wrong(self) -> None:
        found = verify(self.tier)
        assert found.bad == 0
        assert found.bytes == sum(len(data) for blocks in self.model.values() for data in blocks.values())
        self.unchecked.clear()

    # -- servers come and go ----------------------------------------------------------------------------------------

    @rule(other_boot=st.booleans())
    def restart(self, other_boot: bool) -> None:
        self.reopen(other_boot=other_boot, clean=True)

    @rule(other_boot=st.booleans(), flushed=st.booleans())
    def crash(self, other_boot: bool, flushed: bool) -> None:
        if flushed:
            self.index.flush(time.time())
        else:
            self.exact = False
        self.reopen(other_boot=other_boot, clean=False)
        if self.exact:  # of objects that are here and not in the index the rebuild finds what is left: the map
            for key in keys_on_disk(self.layout.objects):
                self.counted[key] = self.counted.get(key) or map_space(SIZE[key], BLOCK)
            self.allowed_over = len(KEYS) * BLOCK

    def reopen(self, *, other_boot: bool, clean: bool) -> None:
        if clean:
            self.index.close(time.time())
        else:  # killed: what was not flushed is not written
            self.index._rows._cache.close()
        del self.tier
        gc.collect()  # a BlockMap's descriptors go with it
        if other_boot:
            self.boot += 1
            self.unchecked = {key: set(blocks) for key, blocks in self.model.items()}
        self.open_tier()
        assert self.index.was_clean is clean
        if not clean:
            rebuild_index(self.tier)

    @rule()
    def lose_index(self) -> None:
        self.index.close(time.time())
        shutil.rmtree(self.layout.index)
        os.mkdir(self.layout.index)
        del self.tier
        self.open_tier()
        assert not self.index.was_clean
        rebuild_index(self.tier)
        self.pinned.clear()  # they are in the index too; what is written down about them is not
        self.exact = True
        self.counted = {
            key: sum(space_of(len(data)) for data in self.model.get(key, {}).values()) + map_space(SIZE[key], BLOCK)
            for key in keys_on_disk(self.layout.objects)
        }
        # maps of partial objects were not counted when they came
        self.allowed_over = len(KEYS) * BLOCK

    @rule()
    def flush(self) -> None:
        self.index.flush(time.time())

    @rule()
    def upkeep_of_the_index_keeps_its_sums(self) -> None:
        self.index.flush(time.time())
        rows = {row.key: row for row in self.index.everything()}
        assert self.index.used_bytes == sum(row.cached_bytes for row in rows.values())
        for owner in ("a/one", "b/two"):
            assert self.index.owner_bytes(owner) == sum(
                row.content_bytes for row in rows.values() if owner in row.owners
            )
        if self.exact:
            assert {key: row.cached_bytes for key, row in rows.items()} == {
                key: size for key, size in self.counted.items() if size
            }

    @invariant()
    def the_limit_holds(self) -> None:
        if self.exact:
            assert self.tier.used_bytes <= LIMIT + self.allowed_over
        assert self.tier.statistics().reserved_bytes == 0

    @invariant()
    def nothing_lies_about(self) -> None:
        for directory, _names, files in os.walk(self.layout.objects):
            assert not [name for name in files if name.endswith(".new")], directory


TestNodeTier = NodeTierMachine.TestCase
TestNodeTier.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
