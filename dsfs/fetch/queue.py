"""Who may fetch next: one budget of bytes in flight and of requests, demand before read-ahead before warm-up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import trio
from cachetools import LRUCache

from dsfs.errors import RetryLater, SourceError, SourceTimeout
from dsfs.fetch.pace import Pace


class Priority(IntEnum):
    """Lower goes first."""

    DEMAND = 0
    AHEAD = 1
    WARM = 2


# What a priority may fill of the budget, so that somebody who waits always finds room.
_SHARE = {Priority.DEMAND: 1.0, Priority.AHEAD: 0.75, Priority.WARM: 0.5}
# And of one source while somebody waits for any, unless that is known to have room for more: the wire is everybody's,
# and what has begun is not interrupted.
_WARM_BESIDE_DEMAND = 0.125
_PACES = 256  # sources that were read from lately


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the queue. Its priority may rise while it waits."""

    priority: Priority
    size_bytes: int
    source: Hashable
    order: int
    at_once: int | None = None
    """How many of those of its source that say so may be in flight together, whatever that has room for."""
    granted: bool = False
    on_granted: Callable[[], object] | None = None
    """Called once when it is."""
    granted_s: float = 0.0
    """When it was, on trio's clock."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all fetches together: bytes in memory, requests in flight, and requests for any one source."""

    memory_bytes: int
    requests: int = 128
    requests_per_source: int = 32
    """Whatever it has room for; more where ``Pace`` says so."""
    requests_per_slow_source: int = 4


def grantable(
    waiting: Sequence[Ticket],
    limits: Limits,
    bytes_in_flight: int,
    in_flight: int,
    per_source: Mapping[Hashable, int],
    slow: Collection[Hashable] = (),
    flying: Collection[Ticket] = (),
    paces: Mapping[Hashable, Pace] = MappingProxyType({}),
) -> list[Ticket]:
    """Which tickets may start now, best first. Something that fits nowhere may go when nothing else is under way.

    A ``slow`` source, one that did not answer in time, gets few slots, so that it takes none from those that answer.
    ``flying`` are the tickets in flight: while one of those is demand, warm-up goes on with a little, and stops never;
    with more where ``paces`` knows that readers do not feel it.
    """
    granted: list[Ticket] = []
    busy = Counter(per_source)
    warming = Counter(ticket.source for ticket in flying if ticket.priority is Priority.WARM)
    few = Counter(ticket.source for ticket in flying if ticket.at_once is not None)
    demand = any(ticket.priority is Priority.DEMAND for ticket in (*flying, *waiting))
    for ticket in sorted(waiting, key=lambda t: (t.priority, t.order)):
        share = _SHARE[ticket.priority]
        fits = (
            bytes_in_flight + ticket.size_bytes <= limits.memory_bytes * share
            and in_flight + 1 <= limits.requests * share
        )
        if not fits and in_flight > 0:
            if ticket.priority is Priority.DEMAND:
                break  # nobody overtakes somebody who waits by being smaller
            continue
        pace = None if ticket.source in slow else paces.get(ticket.source)
        most = limits.requests_per_slow_source if ticket.source in slow else limits.requests_per_source
        at_once = pace.at_once if pace else 0
        if busy[ticket.source] >= max(most * share, at_once):
            continue
        if ticket.at_once is not None and few[ticket.source] >= ticket.at_once * share:
            continue
        if ticket.priority is Priority.WARM:
            others = busy[ticket.source] - warming[ticket.source]
            if demand and warming[ticket.source] >= max(1, most * _WARM_BESIDE_DEMAND, at_once - others):
                continue
            warming[ticket.source] += 1
        few[ticket.source] += ticket.at_once is not None
        granted.append(ticket)
        bytes_in_flight += ticket.size_bytes
        in_flight += 1
        busy[ticket.source] += 1
    return granted


class FetchQueue:
    """Carries out ``grantable``. File side only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: list[Ticket] = []
        self._order = 0
        self.bytes_in_flight = 0
        self.in_flight = 0
        self._per_source: Counter[Hashable] = Counter()
        self._slow: set[Hashable] = set()
        self._flying: set[Ticket] = set()
        self._paces: LRUCache[Hashable, Pace] = LRUCache(_PACES)

    def ticket(self, priority: Priority, size_bytes: int, source: Hashable, at_once: int | None = None) -> Ticket:
        self._order += 1
        return Ticket(priority, size_bytes, source, self._order, at_once)

    def raise_priority(self, ticket: Ticket, priority: Priority) -> None:
        """Somebody waits now for what was only wanted ahead."""
        if priority < ticket.priority:
            ticket.priority = priority
            self._grant()

    def answered(self, ticket: Ticket) -> None:
        """What was granted brought what it was to bring."""
        self._slow.discard(ticket.source)
        seconds = trio.current_time() - ticket.granted_s
        self._pace(ticket.source).answered(ticket.size_bytes, seconds, self._per_source[ticket.source])

    def failed(self, ticket: Ticket, error: SourceError) -> None:
        """It did not."""
        if isinstance(error, SourceTimeout):
            self._slow.add(ticket.source)
        else:
            self._slow.discard(ticket.source)
        if isinstance(error, RetryLater):
            self._pace(ticket.source).refused()

    def range_bytes(self, source: Hashable) -> float:
        """How long a range of a large object of this source should be; infinity: as long as may be."""
        pace = self._paces.get(source)
        return math.inf if pace is None else pace.range_bytes

    def _pace(self, source: Hashable) -> Pace:
        pace: Pace | None = self._paces.get(source)
        if pace is None:
            pace = self._paces[source] = Pace()
        return pace

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for the turn, unless ``enter`` has led to it; hold its share of the budget until the context ends."""
        if not ticket.granted:
            await self._wait(ticket)
        try:
            yield
        finally:
            self._give_back(ticket)

    async def _wait(self, ticket: Ticket) -> None:
        granted = trio.Event()
        self.enter(ticket, granted.set)
        try:
            await granted.wait()
        except trio.Cancelled:
            if ticket.granted:
                self._give_back(ticket)
            else:
                self._waiting.remove(ticket)
            raise

    def enter(self, ticket: Ticket, on_granted: Callable[[], object]) -> None:
        """As ``turn``, for what has no task: ``on_granted`` is called once, now or later; then ``leave`` is due.

        It must not raise, nor call this queue.
        """
        ticket.on_granted = on_granted
        if not self._waiting and self._fits_at_once(ticket):
            self._begin(ticket)
        else:
            self._waiting.append(ticket)
            self._grant()

    def _fits_at_once(self, ticket: Ticket) -> bool:
        """What ``grantable`` would say of the only one that waits, where that takes no look at the others."""
        share, limits = _SHARE[ticket.priority], self.limits
        return (
            ticket.priority is not Priority.WARM
            and ticket.source not in self._slow
            and ticket.at_once is None
            and self.bytes_in_flight + ticket.size_bytes <= limits.memory_bytes * share
            and self.in_flight + 1 <= limits.requests * share
            and self._per_source[ticket.source] < limits.requests_per_source * share  # or more, which is looked up then
        )

    def leave(self, ticket: Ticket) -> None:
        """What ``enter`` led to is over; or, while it has not yet been granted, is not wanted any more."""
        if ticket.granted:
            self._give_back(ticket)
        else:
            self._waiting.remove(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        self.bytes_in_flight -= ticket.size_bytes
        self.in_flight -= 1
        self._per_source[ticket.source] -= 1
        if not self._per_source[ticket.source]:
            del self._per_source[ticket.source]  # it may be a dataset that is gone by now
        self._flying.discard(ticket)
        self._grant()

    def _grant(self) -> None:
        if not self._waiting or self.in_flight >= self.limits.requests:
            return
        load = (self.bytes_in_flight, self.in_flight, self._per_source)
        for ticket in grantable(self._waiting, self.limits, *load, self._slow, self._flying, self._paces):
            self._waiting.remove(ticket)
            self._begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        self._flying.add(ticket)
        self.bytes_in_flight += ticket.size_bytes
        self.in_flight += 1
        self._per_source[ticket.source] += 1
        ticket.granted, ticket.granted_s = True, trio.current_time()
        if ticket.on_granted is not None:
            ticket.on_granted()
