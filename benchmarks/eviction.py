"""Policies of eviction over traces of what training reads: hit ratios, by bytes.

    python -m benchmarks.eviction

A cache of 1 GB (in numbers only, nothing is read). The policy of the node tier is the code of dsfs/cache/eviction.py
itself; the others are written here as in their papers, by bytes instead of by objects.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol

from benchmarks.report import Table, command_line
from dsfs.cache.eviction import ROOM_SHARE, WINDOW_SHARE, Activity, Cached, Window, Worth, choose_victims
from dsfs.cache.frequency import Frequencies

LIMIT = 1_000_000_000
MEAN = 1_000_000  # bytes of a file, so about 1,000 are here at once
Access = tuple[str, int, str]  # key, size, dataset


class Policy(Protocol):
    def access(self, key: str, size: int, owner: str) -> bool:
        """Whether it was here."""


class Lru:
    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.here = limit, 0, OrderedDict[str, int]()

    def access(self, key: str, size: int, owner: str) -> bool:
        if key in self.here:
            self.here.move_to_end(key)
            return True
        while self.used + size > self.limit:
            self.used -= self.here.popitem(last=False)[1]
        self.here[key] = size
        self.used += size
        return False


class Fixed:
    """What came first stays."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.here = limit, 0, set[str]()

    def access(self, key: str, size: int, owner: str) -> bool:
        if key in self.here:
            return True
        if self.used + size <= self.limit:
            self.here.add(key)
            self.used += size
        return False


class Sieve:
    """Zhang et al., NSDI 2024: one queue, a hand, one bit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.size: dict[str, int] = {}
        self.visited: dict[str, bool] = {}
        self.newer: dict[str, str | None] = {}
        self.older: dict[str, str | None] = {}
        self.newest: str | None = None
        self.oldest: str | None = None
        self.hand: str | None = None

    def access(self, key: str, size: int, owner: str) -> bool:
        if key in self.size:
            self.visited[key] = True
            return True
        while self.used + size > self.limit:
            self._evict()
        self.size[key], self.visited[key] = size, False
        self.used += size
        self.older[key], self.newer[key] = self.newest, None
        if self.newest is not None:
            self.newer[self.newest] = key
        self.newest = key
        if self.oldest is None:
            self.oldest = key
        return False

    def _evict(self) -> None:
        at = self.hand or self.oldest
        while at is not None and self.visited[at]:
            self.visited[at] = False
            at = self.newer[at] or self.oldest
        assert at is not None
        older, newer = self.older.pop(at), self.newer.pop(at)
        self.hand = newer
        if older is not None:
            self.newer[older] = newer
        else:
            self.oldest = newer
        if newer is not None:
            self.older[newer] = older
        else:
            self.newest = older
        self.used -= self.size.pop(at)
        del self.visited[at]


class S3Fifo:
    """Yang et al., SOSP 2023: a small queue of 10 %, a main one, ghosts of as much as the main one holds."""

    def __init__(self, limit: int) -> None:
        self.limit, self.small_limit = limit, limit // 10
        self.small, self.main, self.ghost = OrderedDict[str, int](), OrderedDict[str, int](), OrderedDict[str, int]()
        self.small_used = self.main_used = self.ghost_used = 0
        self.count: dict[str, int] = {}

    def access(self, key: str, size: int, owner: str) -> bool:
        if key in self.count:
            self.count[key] = min(3, self.count[key] + 1)
            return True
        while self.small_used + self.main_used + size > self.limit:
            if self.small_used > self.small_limit or not self.main:
                self._evict_small()
            else:
                self._evict_main()
        self.count[key] = 0
        if key in self.ghost:
            self.ghost_used -= self.ghost.pop(key)
            self.main[key] = size
            self.main_used += size
        else:
            self.small[key] = size
            self.small_used += size
        return False

    def _evict_small(self) -> None:
        while self.small:
            key, size = self.small.popitem(last=False)
            self.small_used -= size
            if self.count[key] > 1:
                self.count[key] = 0
                self.main[key] = size
                self.main_used += size
                continue
            del self.count[key]
            self.ghost[key] = size
            self.ghost_used += size
            while self.ghost_used > self.limit - self.small_limit:
                self.ghost_used -= self.ghost.popitem(last=False)[1]
            return

    def _evict_main(self) -> None:
        while self.main:
            key, size = self.main.popitem(last=False)
            if self.count[key]:
                self.count[key] -= 1
                self.main[key] = size
                continue
            self.main_used -= size
            del self.count[key]
            return


class Arc:
    """Megiddo and Modha, FAST 2003, with bytes in the place of pages."""

    def __init__(self, limit: int) -> None:
        self.limit, self.target = limit, 0.0
        self.queues = {name: OrderedDict[str, int]() for name in ("t1", "t2", "b1", "b2")}
        self.used = dict.fromkeys(self.queues, 0)

    def _pop(self, name: str, key: str | None = None) -> tuple[str, int]:
        queue = self.queues[name]
        found = (key, queue.pop(key)) if key is not None else queue.popitem(last=False)
        self.used[name] -= found[1]
        return found

    def _put(self, name: str, key: str, size: int) -> None:
        self.queues[name][key] = size
        self.used[name] += size

    def _replace(self, size: int, in_b2: bool) -> None:
        while self.used["t1"] + self.used["t2"] + size > self.limit:
            first = self.used["t1"] > self.target or (in_b2 and self.used["t1"] >= self.target)
            source = "t1" if self.queues["t1"] and (first or not self.queues["t2"]) else "t2"
            self._put("b1" if source == "t1" else "b2", *self._pop(source))

    def access(self, key: str, size: int, owner: str) -> bool:
        for name in ("t1", "t2"):
            if key in self.queues[name]:
                self._pop(name, key)
                self._put("t2", key, size)
                return True
        if key in self.queues["b1"]:
            self.target = min(self.limit, self.target + size * max(1.0, self.used["b2"] / self.used["b1"]))
            self._pop("b1", key)
            self._replace(size, in_b2=False)
            self._put("t2", key, size)
            return False
        if key in self.queues["b2"]:
            self.target = max(0.0, self.target - size * max(1.0, self.used["b1"] / self.used["b2"]))
            self._pop("b2", key)
            self._replace(size, in_b2=True)
            self._put("t2", key, size)
            return False
        while self.queues["b1"] and self.used["t1"] + self.used["b1"] + size > self.limit:
            self._pop("b1")
        while self.queues["b2"] and sum(self.used.values()) + size > 2 * self.limit:
            self._pop("b2")
        self._replace(size, in_b2=False)
        self._put("t1", key, size)
        return False


class NodeTierPolicy:
    """What dsfs does: see ``dsfs/cache/uses.py`` for the same with rows, and ``node.py`` with a disk."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.here = OrderedDict[str, Cached]()
        self.window, self.activity, self.frequencies = Window(), Activity(), Frequencies(width_bits=16)

    def access(self, key: str, size: int, owner: str) -> bool:
        self.frequencies.count(key, len(self.here))
        self.activity.used(owner)
        if key in self.here:
            self.here.move_to_end(key)
            if key in self.window:
                self.window.put(key, size)
            return True
        if self.used + size > self.limit:
            self._make_room(size + int(self.limit * ROOM_SHARE))
        self.here[key] = Cached(key, size, 0.0, (owner,))
        self.window.put(key, size)
        self.activity.brought(size)
        self.used += size
        self.window.settle(self.used, self.limit)
        return False

    def _worth(self, entry: Cached) -> Worth:
        idle = self.activity.idle(entry.owners, self.limit)
        return Worth(entry.priority, not idle, self.frequencies.of(entry.key))

    def _make_room(self, need: int) -> None:
        newcomers = [self.here[key] for key in self.window.beyond(int(self.limit * WINDOW_SHARE))]
        residents = (entry for key, entry in self.here.items() if key not in self.window)
        choice = choose_victims(newcomers, residents, need, self._worth)
        for key in choice.settled:
            self.window.drop(key)
        for victim in choice.victims:
            del self.here[victim.key]
            self.window.drop(victim.key)
            self.used -= victim.cached_bytes


POLICIES: dict[str, Callable[[int], Policy]] = {
    "LRU": Lru,
    "fixed part": Fixed,
    "SIEVE": Sieve,
    "S3-FIFO": S3Fifo,
    "ARC": Arc,
    "dsfs (W-TinyLFU)": NodeTierPolicy,
}

# -- traces -----------------------------------------------------------------------------------------------------------


def dataset(name: str, share: float, mean: int = MEAN) -> list[Access]:
    """Files of a dataset that takes so much of the cache, their sizes within a third of the mean."""
    rng = random.Random(name)
    return [
        (hashlib.sha256(f"{name}{number}".encode()).hexdigest(), int(mean * rng.uniform(0.67, 1.33)), name)
        for number in range(int(LIMIT * share / mean))
    ]


def shuffled(files: list[Access], epochs: int, seed: int = 0) -> Iterator[Access]:
    """A new random order each epoch."""
    rng, order = random.Random(seed), list(files)
    for _epoch in range(epochs):
        rng.shuffle(order)
        yield from order


def in_order(files: list[Access], epochs: int) -> Iterator[Access]:
    for _epoch in range(epochs):
        yield from files


def anywhere(files: list[Access], count: int, seed: int = 0) -> Iterator[Access]:
    """Any of them at any time: blocks of a file of tokens."""
    rng = random.Random(seed)
    for _access in range(count):
        yield rng.choice(files)


def skewed(files: list[Access], count: int, seed: int = 0) -> Iterator[Access]:
    """Some much more often than others (Zipf, 0.9)."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) ** 0.9 for rank in range(len(files))]
    yield from rng.choices(files, weights, k=count)


def side_by_side(*parts: Iterator[Access], seed: int = 0) -> Iterator[Access]:
    """Several readers at equal rates, until the first has nothing left to read."""
    rng = random.Random(seed)
    while True:
        each = next(rng.choice(parts), None)
        if each is None:
            return
        yield each


def interleaved(files: list[Access], workers: int, epochs: int, seed: int = 0) -> Iterator[Access]:
    """Shards in a new order each epoch, each worker one at a time, in ten pieces that are cached each for itself."""
    rng = random.Random(seed)
    for _epoch in range(epochs):
        order = list(files)
        rng.shuffle(order)
        for start in range(0, len(order), workers):
            for piece in range(10):
                for key, size, owner in order[start : start + workers]:
                    yield hashlib.sha256(f"{key}{piece}".encode()).hexdigest(), size // 10, owner


def traces() -> dict[str, Callable[[], Iterator[Access]]]:
    team, large, huge = dataset("team", 0.5), dataset("large", 4), dataset("huge", 10)
    shards = dataset("shards", 3, mean=10_000_000)
    hot, scan = dataset("hot", 0.4), dataset("scan", 12)
    before, after = dataset("before", 0.9), dataset("after", 0.9)
    return {
        "epochs, 1.25 times the cache": lambda: shuffled(dataset("near", 1.25), 12),
        "epochs, 4 times": lambda: shuffled(large, 8),
        "epochs, 10 times": lambda: shuffled(huge, 5),
        "same order, 2 times": lambda: in_order(dataset("twice", 2), 10),
        "two teams, 0.5 and 4 times": lambda: side_by_side(shuffled(team, 30), shuffled(large, 30, 1)),
        "hot set and a scan": lambda: side_by_side(skewed(hot, 12_000), in_order(scan, 1)),
        "tokens at random, 3 times": lambda: anywhere(dataset("tokens", 3), 24_000),
        "skewed, 3 times": lambda: skewed(dataset("skewed", 3), 24_000),
        "shards by 8 workers, 3 times": lambda: interleaved(shards, 8, 8),
        "one job, then another, 0.9 each": lambda: iter([*shuffled(before, 6), *shuffled(after, 6)]),
    }


def hit_ratios(policy: Policy, trace: Iterator[Access]) -> dict[str, float]:
    """Bytes that were here, of those that were read, by dataset and ("") in all."""
    hit: dict[str, int] = {}
    read: dict[str, int] = {}
    for key, size, owner in trace:
        here = policy.access(key, size, owner)
        for name in ("", owner):
            read[name] = read.get(name, 0) + size
            hit[name] = hit.get(name, 0) + (size if here else 0)
    return {name: hit[name] / read[name] for name in read}


def main() -> None:
    command_line("benchmarks.eviction", __doc__).parse_args()
    table = Table("trace", *POLICIES)
    for name, trace in traces().items():
        cells = []
        for make in POLICIES.values():
            ratios = hit_ratios(make(LIMIT), trace())
            parts = {owner: ratio for owner, ratio in ratios.items() if owner}
            text = f"{ratios['']:.3f}"
            if len(parts) > 1:
                text += " (" + ", ".join(f"{owner} {ratio:.2f}" for owner, ratio in sorted(parts.items())) + ")"
            cells.append(text)
        table.row(name, *cells)


if __name__ == "__main__":
    main()
