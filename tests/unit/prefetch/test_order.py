"""An order of files is followed a bounded distance ahead, whatever of the reading is seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.prefetch.order import (
    FAR_TOUCHES,
    LATE_FILES,
    LEAST_BYTES,
    LOOK_FILES,
    LOST_TOUCHES,
    MOST_BYTES,
    MOST_FILES,
    Order,
    distance_bytes,
)
from dsfs.ranges import GiB, MiB


@dataclass
class Simulator:
    """A cache and readers. Fetching is as fast as there is room; a read of what was never fetched is a miss."""

    sizes: dict[int, int]
    most_bytes: int
    cached: set[int] = field(default_factory=set)
    pages: set[int] = field(default_factory=set)
    order: Order = field(default_factory=Order)
    misses: int = 0
    fetched: int = 0
    most_ahead: int = 0

    def fetch(self) -> None:
        while self.order.has_room(self.most_bytes):
            taken = self.order.take()
            if taken is None:
                return
            place, ino = taken
            if ino not in self.cached:
                self.cached.add(ino)
                self.fetched += self.sizes[ino]
                self.order.fetched(place, self.sizes[ino])
            self.most_ahead = max(self.most_ahead, self.order.ahead_bytes)

    def read(self, ino: int) -> None:
        if ino in self.pages:
            return  # the kernel alone
        if ino not in self.cached:
            self.misses += 1
            self.cached.add(ino)
        self.pages.add(ino)
        self.order.touch(ino)
        self.fetch()

    def hint(self, inos: Sequence[int]) -> None:
        self.order.extend(inos)
        self.fetch()


sizes_ = st.integers(1, 4 * MiB)


@given(
    st.lists(sizes_, min_size=1, max_size=300),
    st.integers(1, 64 * MiB),
    st.sets(st.integers(0, 299)),
    st.sets(st.integers(0, 299)),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=150)
def test_readers_find_everything_there_and_nothing_runs_away(
    sizes: list[int], most_bytes: int, cached: set[int], in_pages: set[int], readers: int, rng: random.Random
) -> None:
    """Some of it is cached before, some of that is read unseen; several readers run a little apart."""
    there = Simulator(dict(enumerate(sizes)), most_bytes, set(cached), cached & in_pages)
    inos = list(there.sizes)
    rng.shuffle(inos)
    there.hint(inos)
    waiting = list(inos)
    while waiting:
        there.read(waiting.pop(rng.randrange(min(readers, len(waiting)))))
    if readers == 1 or most_bytes > readers * max(sizes):
        assert there.misses == 0
        assert there.fetched == sum(size for ino, size in there.sizes.items() if ino not in cached)
    assert there.most_ahead < most_bytes + max(sizes)
    there.order.end()
    assert there.order.ahead_bytes == 0
    if not there.misses:
        assert (there.order.used_bytes, there.order.wasted_bytes) == (there.fetched, 0)


@given(st.integers(0, 3000), st.integers(0, 3500), st.lists(st.integers(1, 3), max_size=20))
@settings(deadline=None, max_examples=60)
def test_an_order_that_is_gone_on_with_from_the_middle(files: int, position: int, parts: list[int]) -> None:
    """By the next server, from what was noted; more of it may come."""
    there = Simulator(dict.fromkeys(range(files + sum(parts)), MiB), 8 * MiB)
    there.order.extend(range(files))
    there.order.begin_at(position)
    assert there.order.position == there.order.next == min(position, files)
    assert list(there.order.since(files // 2)) == list(range(files // 2, files))
    there.fetch()
    known = files
    for more in parts:
        there.hint(range(known, known + more))
        known += more
    for ino in range(min(position, files), known):
        there.read(ino)
    assert there.misses == 0
    assert there.fetched == (known - min(position, files)) * MiB
    assert there.order.position == known


@given(st.lists(st.booleans(), min_size=1, max_size=400), st.integers(1, 32))
@settings(deadline=None)
def test_files_that_are_skipped_do_not_stop_it_and_are_counted(skips: list[bool], files_ahead: int) -> None:
    there = Simulator(dict.fromkeys(range(len(skips)), MiB), files_ahead * MiB)
    there.hint(range(len(skips)))
    for ino, skipped in enumerate(skips):
        if not skipped:
            there.read(ino)
    there.order.end()
    assert there.order.used_bytes + there.order.wasted_bytes == there.fetched
    assert there.order.used_bytes == (len(skips) - sum(skips) - there.misses) * MiB
    run = longest = 0
    for skipped in skips:
        run = run + 1 if skipped else 0
        longest = max(longest, run)
    if longest < files_ahead:
        assert there.misses == 0


def test_an_epoch_after_the_other_in_one_order() -> None:
    inos = list(range(50))
    there = Simulator(dict.fromkeys(inos, MiB), 8 * MiB)
    order = inos + inos[::-1] + inos
    there.hint(order)
    for ino in order:
        there.pages.clear()  # every read is seen
        there.read(ino)
    assert there.misses == 0
    assert there.order.position == 150
    assert there.fetched == 50 * MiB


def test_nobody_reads_and_nothing_runs_away() -> None:
    there = Simulator(dict.fromkeys(range(10_000), 1), GiB)
    there.hint(range(10_000))
    assert there.order.ahead_files == MOST_FILES
    there = Simulator(dict.fromkeys(range(100), 100 * MiB), MiB)
    there.hint(range(100))
    assert there.order.ahead_files == 1


def test_one_stray_read_far_away_changes_nothing_and_many_do() -> None:
    there = Simulator(dict.fromkeys(range(20_000), MiB), 16 * MiB)
    there.hint(range(20_000))
    for stray in (19_000, 700, 19_001, *[19_002] * LOST_TOUCHES, *[701] * FAR_TOUCHES):
        there.order.touch(stray)
    assert there.order.position == 0
    for ino in range(500, 600):
        there.read(ino)
    assert there.order.position == 600
    assert there.misses <= 2 * FAR_TOUCHES
    start = 15_000
    for ino in range(start, start + 2 * LOST_TOUCHES):
        there.read(ino)
    assert there.order.position >= start + LOST_TOUCHES
    before = there.misses
    for ino in range(start + 2 * LOST_TOUCHES, start + 1000):
        there.read(ino)
    assert there.misses == before


def test_what_is_not_in_the_order_changes_nothing() -> None:
    order = Order()
    order.extend(range(10))
    for other in range(100, 100 + 3 * LOST_TOUCHES):
        assert order.touch(other) == 0
    assert order.position == 0


def test_a_file_read_late_is_used_and_much_later_wasted() -> None:
    there = Simulator(dict.fromkeys(range(3 * LATE_FILES), 1), GiB)
    there.hint(range(3 * LATE_FILES))
    for ino in range(2, LATE_FILES):
        there.read(ino)
    there.read(0)
    assert there.order.wasted_bytes == 0
    for ino in range(LATE_FILES, 2 * LATE_FILES + 3):
        there.read(ino)
    assert there.order.wasted_bytes == 1


def test_memory_is_of_what_is_near() -> None:
    order = Order()
    order.extend(range(100_000))
    assert len(order._where) == LOOK_FILES
    for ino in range(0, 100_000, 3):
        order.touch(ino)
        assert len(order._where) <= LOOK_FILES
    assert order.position >= 99_997


@given(st.floats(0, 1e11), st.integers(1 * MiB, 2**44), st.integers(1 * MiB, 2**50))
def test_the_distance_has_bounds(rate: float, memory: int, cache: int) -> None:
    found = distance_bytes(rate, memory, cache)
    assert 1 <= found <= min(MOST_BYTES, max(memory // 4, 1), max(cache // 4, 1))
    if memory >= 4 * LEAST_BYTES and cache >= 4 * LEAST_BYTES:
        assert found >= LEAST_BYTES


@pytest.mark.parametrize("rate", [1 * MiB, 100 * MiB])
def test_a_faster_reader_has_more_ahead(rate: int) -> None:
    assert distance_bytes(2 * rate, 2**40, 2**44) >= distance_bytes(rate, 2**40, 2**44)
