"""The index is lost, and built anew while the cache is in use."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsfs.cache import verify
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.complete import CachedObject
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout, open_layout
from dsfs.cache.node import NodeTier
from dsfs.cache.verify import rebuild_index
from dsfs.ranges import block_range

BLOCK, BOOT, KEY, OTHER = 4096, bytes(16), "ab" * 32, "cd" * 32
SIZE = 5 * BLOCK + 17


class Cache:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.index = Index(layout.index)
        self.tier = NodeTier(layout, self.index, lambda: 1 << 30, BOOT, BLOCK)

    def lose_index(self) -> None:
        """Another server, which does not know what lies there."""
        self.index.close(time.time())
        shutil.rmtree(self.layout.index)
        os.mkdir(self.layout.index)
        self.__init__(self.layout)  # type: ignore[misc]

    def publish(self, obj: BlockMap, *blocks: int) -> None:
        for block in blocks:
            self.tier.publish(obj, block, bytes([block + 1]) * block_range(block, SIZE, BLOCK).length, "a/one")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    layout = open_layout(f"{tmp_path}/cache")
    made = Cache(layout)
    yield made
    made.index.close(time.time())
    layout.release()


def test_an_object_without_a_block_yet_is_somebodys(cache: Cache) -> None:
    obj = cache.tier.create(KEY, SIZE)
    rebuild_index(cache.tier)
    assert not obj.unlinked
    cache.publish(obj, *range(6))
    assert cache.tier.holds_all(KEY, SIZE, "a/one")
    assert cache.index.used_bytes == obj.space_bytes()


def test_what_nobody_makes_any_more_goes(cache: Cache) -> None:
    cache.tier.create(KEY, SIZE)
    orphan = Path(cache.layout.object_path(OTHER))
    orphan.write_bytes(b"data without a map")
    torn = Path(f"{cache.layout.map_path(OTHER)}.1.new")
    torn.write_bytes(b"half a map")
    cache.lose_index()
    rebuild_index(cache.tier)
    assert [name for _at, _dirs, names in os.walk(cache.layout.objects) for name in names] == []


def test_files_of_what_is_being_made_stay(cache: Cache) -> None:
    """Data is there before its map, so that an object is there if its map is."""
    data, new = Path(cache.layout.object_path(KEY)), Path(f"{cache.layout.map_path(KEY)}.1.new")
    with cache.tier._making.making(KEY):
        data.write_bytes(b"data whose map comes")
        new.write_bytes(b"which is being written")
        rebuild_index(cache.tier)
        assert data.exists()
        assert new.exists()
    rebuild_index(cache.tier)
    assert not data.exists()
    assert not new.exists()


def test_who_makes_it_waits_for_who_clears_it_away(cache: Cache) -> None:
    made = threading.Event()
    with cache.tier.clearing(KEY) as nobodys:
        assert nobodys
        thread = threading.Thread(target=lambda: (cache.tier.put_whole(KEY, 3, b"abc", "a/one"), made.set()))
        thread.start()
        assert not made.wait(0.05)
    thread.join(10)
    assert made.is_set()
    with cache.tier.clearing(KEY) as nobodys:
        assert nobodys  # stored, and nobody has it open


@pytest.mark.parametrize("small", [False, True])
def test_who_makes_it_waits_for_who_drops_it(cache: Cache, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """Or its new data would be unlinked as the old: a map that is alone, of an object that nobody finds again."""
    between, go_on, made = threading.Event(), threading.Event(), threading.Event()
    unlink = os.unlink

    def slowly(path: str, **where: int) -> None:
        if threading.current_thread() is dropping and path == cache.layout.object_path(KEY):
            between.set()
            assert go_on.wait(10)
        unlink(path, **where)

    def make() -> None:
        if small:
            cache.tier.put_whole(KEY, SIZE, bytes(SIZE), "a/one")
        else:
            cache.publish(cache.tier.create(KEY, SIZE), *range(6))
        made.set()

    cache.tier.put_whole(KEY, SIZE, bytes(SIZE), "a/one")
    dropping = threading.Thread(target=cache.tier.evict, args=(KEY,))
    making = threading.Thread(target=make)
    monkeypatch.setattr(os, "unlink", slowly)
    dropping.start()
    assert between.wait(10)
    making.start()
    assert not made.wait(0.05)
    go_on.set()
    dropping.join(10)
    making.join(10)
    assert made.is_set()
    assert verify.verify(cache.tier) == verify.Verified(1, 6, SIZE, 0)
    cache.index.flush(time.time())
    assert cache.index.used_bytes == cache.layout.object_space_bytes(KEY)


def test_what_grew_or_shrank_before_a_crash_is_counted_as_it_is(cache: Cache) -> None:
    """The index is written once a second, and a server may die between."""
    grown, shrunk = cache.tier.create(KEY, SIZE), cache.tier.create(OTHER, SIZE)
    cache.publish(grown, 0)
    cache.publish(shrunk, 0, 1, 2)
    cache.index.flush(time.time())
    cache.publish(grown, 1, 2)
    assert shrunk.retract([1, 2])
    spaces = {KEY: grown.space_bytes(), OTHER: shrunk.space_bytes()}
    cache.__init__(cache.layout)  # type: ignore[misc]
    for _twice in range(2):
        rebuild_index(cache.tier)
        cache.index.flush(time.time())
        assert {row.key: row.cached_bytes for row in cache.index.everything()} == spaces
        assert cache.index.used_bytes == sum(spaces.values())


def test_an_index_that_cannot_be_read_costs_no_object(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.tier.put_whole(KEY, 5000, bytes(5000), "a/one")

    def known(_index: Index, _key: str) -> tuple[int, int]:
        raise OSError(errno.EIO, "the index cannot be read")

    monkeypatch.setattr(Index, "known", known)
    with pytest.raises(OSError, match="the index cannot be read"):
        rebuild_index(cache.tier)
    assert cache.tier.holds_all(KEY, 5000, "a/one")


@pytest.mark.parametrize("written_before_rebuild", [(), (3,), (3, 4, 5)])
def test_what_is_open_is_counted_whole_and_once(cache: Cache, written_before_rebuild: tuple[int, ...]) -> None:
    obj = cache.tier.create(KEY, SIZE)
    cache.publish(obj, 0, 1, 2)
    cache.lose_index()
    again = cache.tier.open(KEY, SIZE, "a/one")
    assert isinstance(again, BlockMap)
    cache.publish(again, *written_before_rebuild)
    for _twice in range(2):
        rebuild_index(cache.tier)
        assert cache.index.used_bytes == again.space_bytes()
        cache.index.flush(time.time())
        assert cache.index.used_bytes == again.space_bytes()
        (row,) = cache.index.everything()
        assert row.content_bytes == again.present_bytes()


def test_a_complete_one_that_is_open_too(cache: Cache) -> None:
    cache.tier.put_whole(KEY, 5000, bytes(5000), "a/one")
    used = cache.index.used_bytes
    cache.lose_index()
    held = cache.tier.open(KEY, 5000, "a/one")
    assert held is not None
    rebuild_index(cache.tier)
    assert cache.index.used_bytes == used


def test_what_is_evicted_while_it_is_counted_does_not_end_the_rest(cache: Cache) -> None:
    cache.tier.put_whole(KEY, 5000, bytes(5000), "a/one")
    cache.tier.put_whole(OTHER, 5000, bytes(5000), "a/one")
    used = cache.index.used_bytes
    cache.lose_index()
    held = cache.tier.open(KEY, 5000, "a/one")
    assert held is not None
    os.unlink(cache.layout.map_path(KEY))  # which is how an eviction begins
    cache.tier.recount(KEY)
    rebuild_index(cache.tier)
    assert cache.index.used_bytes == used / 2


def test_one_that_cannot_be_opened_just_now_ends_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left, say: it stays, and the others are counted."""
    for key in (KEY, OTHER):
        cache.publish(cache.tier.create(key, SIZE), 0)
    cache.lose_index()
    opened = verify.open_by_key

    def open_by_key(tier: NodeTier, key: str) -> CachedObject:
        if key == KEY:
            raise OSError(errno.EMFILE, "no descriptor is left")
        return opened(tier, key)

    monkeypatch.setattr(verify, "open_by_key", open_by_key)
    rebuild_index(cache.tier)
    assert OTHER in cache.index
    assert os.path.exists(cache.layout.object_path(KEY))
    assert cache.tier.in_trouble
