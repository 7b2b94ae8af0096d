"""Room in the shared directory: what is in use there, by what this node counted, and eviction when that is too much."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import trio

from dsfs import metrics
from dsfs.cache import shared_space
from dsfs.model import Tier
from dsfs.ranges import MiB

T = TypeVar("T")
P = ParamSpec("P")

_MARGIN = 16  # eviction begins a sixteenth below the limit, so that publishing seldom waits for it
_COUNTING_SHARE = 0.05
_COUNTING_S = 0.2
_WHEN_FULL_BYTES = 64 * MiB


class Unusable(Exception):
    """It does not work just now: go on without it."""


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds: what one operation may take, and counting one directory; how often a probe looks, how often what is
    in use is measured; what was used within ``fresh_s`` is not evicted."""

    operation_s: float = 5.0
    count_s: float = 60.0
    probe_s: float = 1.0
    upkeep_s: float = 1.0
    fresh_s: float = shared_space.FRESH_S


class Disk(Protocol):
    """The directory, as far as making room needs it (``shared_disk.SharedDisk``). What is called raises Unusable."""

    full: bool

    @property
    def usable(self) -> bool: ...

    def clock_ns(self) -> int: ...

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def call_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class SharedRoom:
    """``limit`` says in a thread, of the root, how many bytes may be used there now."""

    def __init__(self, root: str, limit: Callable[[str], int], times: Times) -> None:
        self.limit_bytes = 0
        self._root = root
        self._limit = limit
        self._times = times
        self._usage = shared_space.Usage(random.Random())
        self._wanted = trio.Event()

    @property
    def used_bytes(self) -> int:
        return self._usage.bytes

    def has(self, size_bytes: int) -> bool:
        """Whether so much more is within the limit; else eviction is asked for."""
        if self._usage.bytes + size_bytes <= self.limit_bytes:
            return True
        self.wanted()
        return False

    def wanted(self) -> None:
        """Evict soon."""
        self._wanted.set()

    def note_published(self, directory: str, size_bytes: int) -> None:
        self._usage.add(directory, size_bytes)

    def measured_limit(self) -> int:
        """Waits for the file system: in a thread."""
        return self._limit(self._root)

    async def upkeep(self, disk: Disk) -> None:
        """Count, evict, set the gauges; what it cannot do now it does later."""
        while True:
            began_s = trio.current_time()
            enough = True
            try:
                if disk.usable:
                    await self._count(disk)
                    enough = await self._evict(disk)
            except Unusable:
                pass  # said where it was noted
            self._gauges()
            took_s = trio.current_time() - began_s
            self._wanted = trio.Event()
            with trio.move_on_after(max(self._times.upkeep_s, took_s / _COUNTING_SHARE)):
                if not enough:  # all that is there is fresh: looking again at once would find the same
                    await trio.sleep_forever()
                await self._wanted.wait()
                await trio.sleep(self._times.upkeep_s / 4)  # not more often than that, however much is wanted

    def _gauges(self) -> None:
        metrics.CACHE_BYTES.labels(Tier.SHARED).set(self._usage.bytes)
        metrics.CACHE_LIMIT_BYTES.labels(Tier.SHARED).set(self.limit_bytes)

    async def _count(self, disk: Disk) -> None:
        """Some directories more; a round ends when all were counted, and the next begins."""
        self.limit_bytes = await disk.call(self.measured_limit)
        until_s = trio.current_time() + _COUNTING_S
        begun = False
        while trio.current_time() < until_s:
            directory = self._usage.next()
            if directory is None:
                if begun:
                    return
                self._usage.begin(await disk.call_long(shared_space.directories, self._root))
                begun = True
                continue
            await self._entries(disk, directory)

    async def _entries(self, disk: Disk, directory: str) -> list[shared_space.Entry]:
        found = await disk.call_long(shared_space.entries, self._root, directory)
        self._usage.count(directory, found)
        return found

    async def _evict(self, disk: Disk) -> bool:
        """Down to two margins below the limit once it is nearer than one; more when there is no space at all.

        False: there was not enough to be had.
        """
        margin, usage = self.limit_bytes // _MARGIN, self._usage
        goal = self.limit_bytes - 2 * margin
        if disk.full:
            goal = min(goal, usage.bytes - min(_WHEN_FULL_BYTES, usage.bytes))
        elif usage.bytes <= self.limit_bytes - margin:
            return True
        seen: dict[str, int] = {}
        while usage.bytes > goal:
            sample = usage.sample(seen)
            if not sample:
                return False
            found = {directory: await self._entries(disk, directory) for directory in sample}
            seen.update({directory: usage.counted(directory) for directory in sample})
            # Another node may have just evicted what we counted before: what is seen now counts for more.
            need = min(usage.bytes, usage.guess(seen)) - goal
            inside = [entry for each in found.values() for entry in each]
            victims = shared_space.choose(inside, need, disk.clock_ns(), self._times.fresh_s)
            metrics.EVICTED_BYTES.inc(await disk.call_long(shared_space.remove, self._root, victims))
            gone = set(victims)
            for directory, each in found.items():
                usage.count(directory, [entry for entry in each if entry not in gone])
                seen[directory] = usage.counted(directory)
        return True
