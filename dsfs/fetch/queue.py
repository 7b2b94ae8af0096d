"""Who may fetch next: one budget of bytes in flight and of requests, demand before read-ahead before warm-up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from types import MappingProxyType

import trio
from cachetools import LRUCache

from dsfs.errors import RetryLater, SourceError, SourceTimeout
from dsfs.fetch.pace import SMALL_BYTES, Pace


class Priority(IntEnum):
    """Lower goes first."""

    DEMAND = 0
    AHEAD = 1
    WARM = 2


# What a priority may fill of the budget, so that somebody who waits always finds room.
_SHARE = {Priority.DEMAND: 1.0, Priority.AHEAD: 0.75, Priority.WARM: 0.5}
# The last eighth of it is for sources that have few requests in flight: a few that hang would take all of it.
_SHARE_OF_MANY, _FEW = 0.875, 4
# And of one source while somebody waits for any, unless that is known to have room for more: the wire is everybody's,
# and what has begun is not interrupted.
_WARM_BESIDE_DEMAND = 0.125
_PLACE = attrgetter("priority", "order")
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
    beside: int = 0
    """How many others of its source were in flight then."""
    over: bool = False
    """Whether it has given back what it was granted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all fetches together: bytes in memory, requests in flight, and requests for any one source."""

    memory_bytes: int
    requests: int = 128
    requests_per_source: int = 32
    """Whatever it has room for; more where ``Pace`` says so."""
    requests_per_slow_source: int = 4


@dataclass(slots=True)
class Load:
    """What is in flight. Kept as sums, as they are asked for with every small file."""

    bytes_in_flight: int = 0
    in_flight: int = 0
    per_source: dict[Hashable, int] = field(default_factory=dict)
    warming: dict[Hashable, int] = field(default_factory=dict)
    """Warm-up alone, by source."""
    few: dict[Hashable, int] = field(default_factory=dict)
    """Of those with an ``at_once``, by source."""
    demand: int = 0
    """Of what somebody waits for."""

    def begin(self, ticket: Ticket) -> None:
        self._count(ticket, 1)

    def end(self, ticket: Ticket) -> None:
        self._count(ticket, -1)

    def _count(self, ticket: Ticket, by: int) -> None:
        self.bytes_in_flight += by * ticket.size_bytes
        self.in_flight += by
        _count(self.per_source, ticket.source, by)
        if ticket.at_once is not None:
            _count(self.few, ticket.source, by)
        if ticket.priority is Priority.DEMAND:
            self.demand += by
        elif ticket.priority is Priority.WARM:
            _count(self.warming, ticket.source, by)


def _count(counts: dict[Hashable, int], source: Hashable, by: int) -> None:
    count = counts.get(source, 0) + by
    if count:
        counts[source] = count
    else:
        del counts[source]  # it may be a dataset that is gone by now


def grant(
    waiting: Iterable[Ticket],
    limits: Limits,
    load: Load,
    slow: Collection[Hashable] = (),
    paces: Mapping[Hashable, Pace] = MappingProxyType({}),
    kinds: int | None = None,
) -> list[Ticket]:
    """Begin what may start now, best first. Something that fits nowhere may go when nothing else is under way.

    A ``slow`` source, one that did not answer in time, gets few slots, so that it takes none from those that answer.
    Until that is known of all that hang, what is left goes to those that have few in flight.

    ``kinds``: how many pairs of priority and source wait, where that is known; then the others need not be looked at
    once all of these are full.

    While demand is in flight, warm-up goes on with a little, and stops never; with more where ``paces`` knows that
    readers do not feel it.
    """
    granted: list[Ticket] = []
    full: set[tuple[Priority, Hashable]] = set()  # what has no slot left, however many wait for one
    in_order = sorted(waiting, key=_PLACE)
    demand = load.demand > 0 or (bool(in_order) and in_order[0].priority is Priority.DEMAND)
    for ticket in in_order:
        source = ticket.source
        if (ticket.priority, source) in full:
            if len(full) == kinds:
                break
            continue
        busy = load.per_source.get(source, 0)
        if busy >= _FEW and not _fits(ticket, limits, load, min(_SHARE_OF_MANY, _SHARE[ticket.priority])):
            full.add((ticket.priority, source))
            continue
        share = _SHARE[ticket.priority]
        if not _fits(ticket, limits, load, share) and load.in_flight > 0:
            if ticket.priority is Priority.DEMAND:
                break  # nobody overtakes somebody who waits by being smaller
            continue
        most = limits.requests_per_slow_source if source in slow else limits.requests_per_source
        if busy >= most * share and busy >= _at_once(source, slow, paces):
            full.add((ticket.priority, source))
            continue
        if ticket.at_once is not None and load.few.get(source, 0) >= ticket.at_once * share:
            continue
        if demand and ticket.priority is Priority.WARM:
            warming = load.warming.get(source, 0)
            beside = max(1, most * _WARM_BESIDE_DEMAND)
            if warming >= beside and busy >= _at_once(source, slow, paces):
                full.add((ticket.priority, source))
                continue
        granted.append(ticket)
        load.begin(ticket)
    return granted


def _fits(ticket: Ticket, limits: Limits, load: Load, share: float) -> bool:
    return (
        load.bytes_in_flight + ticket.size_bytes <= limits.memory_bytes * share
        and load.in_flight + 1 <= limits.requests * share
    )


def _at_once(source: Hashable, slow: Collection[Hashable], paces: Mapping[Hashable, Pace]) -> int:
    pace = None if source in slow else paces.get(source)
    return pace.at_once if pace else 0


class FetchQueue:
    """Carries out ``grant``. File side only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: list[Ticket] = []
        self._kinds: Counter[tuple[Priority, Hashable]] = Counter()  # of those
        self._order = 0
        self._load = Load()
        self._slow: set[Hashable] = set()
        self._paces: LRUCache[Hashable, Pace] = LRUCache(_PACES)

    @property
    def bytes_in_flight(self) -> int:
        return self._load.bytes_in_flight

    @property
    def in_flight(self) -> int:
        """Requests."""
        return self._load.in_flight

    def ticket(self, priority: Priority, size_bytes: int, source: Hashable, at_once: int | None = None) -> Ticket:
        self._order += 1
        return Ticket(priority, size_bytes, source, self._order, at_once)

    def raise_priority(self, ticket: Ticket, priority: Priority) -> None:
        """Somebody waits now for what was only wanted ahead."""
        if priority < ticket.priority:
            flies = ticket.granted and not ticket.over
            waits = not ticket.granted and ticket in self._waiting
            if flies:
                self._load.end(ticket)
            if waits:
                self._count_waiting(ticket, -1)
            ticket.priority = priority
            if flies:
                self._load.begin(ticket)
            if waits:
                self._count_waiting(ticket, 1)
            self._grant()

    def answered(self, ticket: Ticket) -> None:
        """What was granted brought what it was to bring."""
        self._slow.discard(ticket.source)
        seconds = trio.current_time() - ticket.granted_s
        in_flight = self._load.per_source.get(ticket.source, 0)
        if ticket.size_bytes > SMALL_BYTES:  # it takes long: others have come and gone, these are about their mean
            in_flight = (ticket.beside + in_flight) // 2
        self._pace(ticket.source).answered(ticket.size_bytes, seconds, in_flight)

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
                self._no_longer_waits(ticket)
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
            self._count_waiting(ticket, 1)
            self._grant()

    def _fits_at_once(self, ticket: Ticket) -> bool:
        """What ``grant`` would say of the only one that waits, where that takes no look at the others."""
        share, limits, load = _SHARE[ticket.priority], self.limits, self._load
        return (
            ticket.priority is not Priority.WARM
            and ticket.source not in self._slow
            and ticket.at_once is None
            # or more, which is looked up then
            and _fits(ticket, limits, load, min(_SHARE_OF_MANY, share))
            and load.per_source.get(ticket.source, 0) < limits.requests_per_source * share
        )

    def leave(self, ticket: Ticket) -> None:
        """What ``enter`` led to is over; or, while it has not yet been granted, is not wanted any more."""
        if ticket.granted:
            self._give_back(ticket)
        else:
            self._no_longer_waits(ticket)

    def _no_longer_waits(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        self._count_waiting(ticket, -1)

    def _count_waiting(self, ticket: Ticket, by: int) -> None:
        kind = ticket.priority, ticket.source
        self._kinds[kind] += by
        if not self._kinds[kind]:
            del self._kinds[kind]  # it may be a dataset that is gone by now

    def _give_back(self, ticket: Ticket) -> None:
        ticket.over = True
        self._load.end(ticket)
        self._grant()

    def _grant(self) -> None:
        if not self._waiting or self._load.in_flight >= self.limits.requests:
            return
        granted = grant(self._waiting, self.limits, self._load, self._slow, self._paces, len(self._kinds))
        for ticket in granted:
            self._no_longer_waits(ticket)
            self._started(ticket)

    def _begin(self, ticket: Ticket) -> None:
        self._load.begin(ticket)
        self._started(ticket)

    def _started(self, ticket: Ticket) -> None:
        ticket.granted, ticket.granted_s = True, trio.current_time()
        ticket.beside = self._load.per_source[ticket.source] - 1
        if ticket.on_granted is not None:
            ticket.on_granted()
