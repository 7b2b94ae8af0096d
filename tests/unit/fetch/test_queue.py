"""Who may fetch next: the budget holds, who waits goes first, and nobody waits for ever."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.errors import RetryLater
from dsfs.fetch.pace import Pace
from dsfs.fetch.queue import FetchQueue, Limits, Load, Priority, Ticket, grant

SHARE = {Priority.DEMAND: 1.0, Priority.AHEAD: 0.75, Priority.WARM: 0.5}

limits_ = st.builds(Limits, st.integers(1, 60), st.integers(1, 12), st.integers(1, 8))
waiting_ = st.lists(
    st.tuples(st.sampled_from(Priority), st.integers(1, 12) | st.integers(1, 80), st.sampled_from("xyz")), max_size=12
).map(lambda rows: [Ticket(*row, order) for order, row in enumerate(rows)])
busy_ = st.lists(st.tuples(st.integers(1, 10), st.sampled_from("xyz")), max_size=6)


class Busy:
    """What is in flight: tickets, and the sums that ``grant`` is told."""

    def __init__(self, busy: list[tuple[int, str]]) -> None:
        self.busy = [Ticket(Priority.DEMAND, size, source, -1) for size, source in busy]

    def grant(self, waiting: list[Ticket], limits: Limits) -> list[Ticket]:
        return grant(waiting, limits, load_of(self.busy))


def load_of(flying: list[Ticket]) -> Load:
    load = Load()
    for ticket in flying:
        load.begin(ticket)
    return load


@given(waiting_, limits_, busy_)
@settings(deadline=None, max_examples=400)
def test_the_budget_holds_but_for_one_oversized_alone(
    waiting: list[Ticket], limits: Limits, busy: list[tuple[int, str]]
) -> None:
    load = Busy(busy)
    granted = load.grant(waiting, limits)
    assert len(set(map(id, granted))) == len(granted)
    assert all(any(ticket is other for other in waiting) for ticket in granted)
    for ticket in granted:
        load.busy.append(ticket)
        alone = len(load.busy) == 1
        assert alone or sum(t.size_bytes for t in load.busy) <= limits.memory_bytes * SHARE[ticket.priority]
        assert alone or len(load.busy) <= limits.requests * SHARE[ticket.priority]
        of_source = sum(t.source == ticket.source for t in load.busy)
        assert of_source == 1 or of_source < limits.requests_per_source * SHARE[ticket.priority] + 1


@given(waiting_, limits_, busy_)
def test_who_knows_what_waits_grants_the_same_and_looks_at_less(
    waiting: list[Ticket], limits: Limits, busy: list[tuple[int, str]]
) -> None:
    granted = Busy(busy).grant(waiting, limits)
    kinds = len({(ticket.priority, ticket.source) for ticket in waiting})
    assert grant(waiting, limits, load_of(Busy(busy).busy), kinds=kinds) == granted


@given(waiting_, limits_, busy_)
def test_demand_before_ahead_before_warm_and_first_come_first(
    waiting: list[Ticket], limits: Limits, busy: list[tuple[int, str]]
) -> None:
    granted = Busy(busy).grant(waiting, limits)
    assert [(t.priority, t.order) for t in granted] == sorted((t.priority, t.order) for t in granted)
    left = [ticket for ticket in waiting if not any(ticket is other for other in granted)]
    for place, ticket in enumerate(granted):
        # who is overtaken by its equal or its lesser is held up by its own source alone, or wants too much of the
        # share that read-ahead has; demand is overtaken only for its source's sake
        for overtaken in left:
            if overtaken.priority is Priority.DEMAND and (overtaken.priority, overtaken.order) < (
                ticket.priority,
                ticket.order,
            ):
                busy_there = sum(s == overtaken.source for _size, s in busy) + sum(
                    t.source == overtaken.source for t in granted
                )
                flying = [size for size, _source in busy] + [other.size_bytes for other in granted[:place]]
                fits_beside_others = (
                    sum(flying) + overtaken.size_bytes <= 0.875 * limits.memory_bytes
                    and len(flying) + 1 <= 0.875 * limits.requests
                )
                assert busy_there >= limits.requests_per_source or (busy_there >= 4 and not fits_beside_others)


@given(waiting_, limits_)
def test_nobody_starves(waiting: list[Ticket], limits: Limits) -> None:
    """Whatever is under way ends some time; then everything that waits gets its turn, however large it is."""
    load = Busy([])
    left = list(waiting)
    for _round in range(len(waiting) + 1):
        granted = load.grant(left, limits)
        assert granted or not left or load.busy
        left = [ticket for ticket in left if not any(ticket is other for other in granted)]
        load.busy = [] if not granted else granted[1:]  # the first one ends
        if not granted:
            continue
    while left:
        load.busy = []
        granted = load.grant(left, limits)
        assert granted
        left = [ticket for ticket in left if not any(ticket is other for other in granted)]


def test_a_large_read_is_not_overtaken_for_ever_by_small_ones() -> None:
    large = Ticket(Priority.DEMAND, 30, "x", 0)
    small = Ticket(Priority.DEMAND, 1, "x", 1)
    assert grant([large, small], Limits(32, 8, 8), Load(10, 1, {"x": 1})) == []


def test_a_slow_source_does_not_hold_up_another() -> None:
    slow = Ticket(Priority.DEMAND, 1, "slow", 0)
    other = Ticket(Priority.DEMAND, 1, "other", 1)
    assert grant([slow, other], Limits(32, 8, 2), Load(2, 2, {"slow": 2})) == [other]


def test_sources_that_hang_leave_room_for_others_before_that_is_known() -> None:
    limits = Limits(1 << 20)
    flying: list[Ticket] = []
    waiting = [Ticket(Priority.DEMAND, 1, f"hung {number % 6}", number) for number in range(600)]
    while granted := grant(waiting, limits, load_of(flying)):
        flying += granted
        waiting = [ticket for ticket in waiting if ticket not in granted]
    assert len(flying) == 112
    healthy = [Ticket(Priority.DEMAND, 1, "healthy", 1000 + number) for number in range(10)]
    assert grant([*waiting, *healthy], limits, load_of(flying)) == healthy[:4]
    large = Ticket(Priority.DEMAND, limits.memory_bytes // 10, "hung 0", 0)
    held = [Ticket(Priority.DEMAND, limits.memory_bytes // 6, "hung 0", 0) for _ in range(5)]
    fits = Ticket(Priority.DEMAND, limits.memory_bytes // 10, "healthy", 1)
    assert grant([large, fits], limits, load_of(held)) == [fits]


# -- carrying it out ----------------------------------------------------------------------------------


def run(function: Any) -> None:
    trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_waiter_that_is_cancelled_gives_its_place_back() -> None:
    async def main() -> None:
        queue = FetchQueue(Limits(10, 1, 1))
        order: list[str] = []

        async def hold(name: str, scope: trio.CancelScope, release: trio.Event) -> None:
            with scope:
                async with queue.turn(queue.ticket(Priority.DEMAND, 5, "x")):
                    order.append(name)
                    await release.wait()

        async with trio.open_nursery() as nursery:
            scopes = {name: trio.CancelScope() for name in "abc"}
            events = {name: trio.Event() for name in "abc"}
            for name in "abc":
                nursery.start_soon(hold, name, scopes[name], events[name])
                await trio.testing.wait_all_tasks_blocked()
            assert order == ["a"]
            scopes["b"].cancel()
            await trio.testing.wait_all_tasks_blocked()
            events["a"].set()
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a", "c"]
            scopes["c"].cancel()
        assert (queue.in_flight, queue.bytes_in_flight) == (0, 0)

    run(main)


def test_a_grant_that_meets_a_cancel_is_given_back() -> None:
    async def main() -> None:
        queue = FetchQueue(Limits(10, 1, 1))
        first = queue.turn(queue.ticket(Priority.DEMAND, 5, "x"))
        await first.__aenter__()
        scope = trio.CancelScope()

        async def second() -> None:
            with scope:
                async with queue.turn(queue.ticket(Priority.DEMAND, 5, "x")):
                    raise AssertionError("was cancelled before it ran")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()  # both before the task runs again
            await first.__aexit__(None, None, None)
        assert (queue.in_flight, queue.bytes_in_flight) == (0, 0)
        async with queue.turn(queue.ticket(Priority.WARM, 5, "x")):
            assert queue.in_flight == 1

    run(main)


def test_a_warm_up_that_somebody_waits_for_goes_first() -> None:
    async def main() -> None:
        queue = FetchQueue(Limits(10, 1, 1))
        order: list[int] = []
        tickets = [queue.ticket(Priority.WARM, 1, "x") for _ in range(3)]

        async def go(ticket: Ticket) -> None:
            async with queue.turn(ticket):
                order.append(ticket.order)

        async with trio.open_nursery() as nursery:
            async with queue.turn(queue.ticket(Priority.DEMAND, 5, "x")):
                for ticket in tickets:
                    nursery.start_soon(go, ticket)
                await trio.testing.wait_all_tasks_blocked()
                queue.raise_priority(tickets[2], Priority.DEMAND)
        assert order[0] == tickets[2].order
        assert sorted(order) == [1, 2, 3]

    run(main)


@pytest.mark.parametrize("priority", Priority)
def test_something_that_fits_nowhere_goes_when_it_is_alone(priority: Priority) -> None:
    ticket = Ticket(priority, 1000, "x", 0)
    assert grant([ticket], Limits(10), Load()) == [ticket]
    assert grant([ticket], Limits(10), Load(1, 1, {"y": 1})) == []


# -- with what is known of a source -------------------------------------------------------------------


def pace(at_once: int) -> Pace:
    known = Pace()
    while known.at_once < at_once:
        known.answered(1000, 0.04, known.at_once)
    return known


def test_warm_up_goes_on_beside_readers_as_far_as_they_do_not_feel_it() -> None:
    flying = [Ticket(Priority.DEMAND, 1, "x", order) for order in range(8)]
    waiting = [Ticket(Priority.WARM, 1, "x", order) for order in range(8, 100)]
    known = pace(32)
    assert len(grant(waiting, Limits(1000), load_of(flying))) == 4
    assert len(grant(waiting, Limits(1000), load_of(flying), (), {"x": known})) == known.at_once - 8
    assert len(grant(waiting, Limits(1000), load_of(flying), {"x"}, {"x": known})) == 0, "a slow one"
    assert len(grant(waiting, Limits(1000), load_of(flying), (), {"y": known})) == 4


def test_readers_get_what_a_source_can_take_and_never_less_than_before() -> None:
    waiting = [Ticket(Priority.DEMAND, 1, "x", order) for order in range(100)]
    assert len(grant(waiting, Limits(1000), Load())) == 32
    assert len(grant(waiting, Limits(1000), Load(), (), {"x": pace(8)})) == 32
    assert len(grant(waiting, Limits(1000), Load(), (), {"x": pace(64)})) == 64


def test_only_answers_with_few_beside_them_say_how_long_a_range_is() -> None:
    number = random.Random(7)

    async def main() -> None:
        queue = FetchQueue(Limits(1 << 30))

        async def fetch(times: int, seconds: float) -> None:
            for _ in range(times):
                ticket = queue.ticket(Priority.DEMAND, 8 << 20, "x")
                async with queue.turn(ticket):
                    await trio.sleep(seconds)
                queue.answered(ticket)

        async with trio.open_nursery() as nursery:
            for _ in range(24):
                nursery.start_soon(fetch, 6, number.uniform(0.8, 1.2))
        assert queue.range_bytes("x") == float("inf"), "many have shared what there is"
        await fetch(4, 0.8)
        assert queue.range_bytes("x") == pytest.approx((8 << 20) / 10)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_queue_learns_from_answers_and_refusals() -> None:
    async def main() -> None:
        queue = FetchQueue(Limits(10_000))
        most = 0

        async def fetch() -> None:
            nonlocal most
            ticket = queue.ticket(Priority.WARM, 1, "x")
            async with queue.turn(ticket):
                most = max(most, queue.in_flight)
                await trio.sleep(0.04)
            queue.answered(ticket)

        async def fetch_all() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(600):
                    nursery.start_soon(fetch)

        await fetch_all()
        assert most == 64, "half of all requests, for warm-ups"
        most = 0
        for _ in range(40):
            queue.failed(queue.ticket(Priority.WARM, 1, "x"), RetryLater("slow down"))
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(fetch)
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert most == 16

    run(main)


def test_what_somebody_waits_for_while_it_flies_counts_as_what_it_became() -> None:
    async def main() -> None:
        queue = FetchQueue(Limits(1000))
        granted: list[int] = []
        raised = queue.ticket(Priority.WARM, 1, "x")
        queue.enter(raised, lambda: None)
        queue.raise_priority(raised, Priority.DEMAND)
        for number in range(100):
            queue.enter(queue.ticket(Priority.WARM, 1, "x"), partial(granted.append, number))
        assert granted == [0, 1, 2, 3], "somebody waits"
        queue.leave(raised)
        assert granted == list(range(16)), "nobody does"
        queue.raise_priority(raised, Priority.DEMAND)
        assert queue.in_flight == 16

    run(main)


@given(waiting_, st.randoms())
def test_what_has_ended_leaves_nothing_behind(tickets: list[Ticket], order: random.Random) -> None:
    load = load_of(tickets)
    order.shuffle(tickets)
    for number, ticket in enumerate(tickets):
        assert load.in_flight == len(tickets) - number
        assert load.demand == sum(each.priority is Priority.DEMAND for each in tickets[number:])
        load.end(ticket)
    assert load == Load()


def test_a_source_that_wants_few_requests_gets_few_whatever_its_pace() -> None:
    tickets = [Ticket(Priority.DEMAND, 1, "few", order, at_once=4) for order in range(10)]
    pace = Pace()
    for _ in range(200):
        pace.answered(1000, 0.01, 96)
    assert pace.at_once > 32
    assert grant(tickets, Limits(1000), Load(), paces={"few": pace}) == tickets[:4]

    async def main() -> None:
        queue = FetchQueue(Limits(1000))
        granted: list[int] = []
        for number in range(10):
            queue.enter(queue.ticket(Priority.DEMAND, 1, "few", at_once=4), partial(granted.append, number))
        assert granted == [0, 1, 2, 3]

    run(main)


@given(
    limits_,
    st.lists(
        st.tuples(st.sampled_from(["enter", "raise", "leave"]), st.sampled_from(Priority), st.sampled_from("xyz")),
        max_size=60,
    ),
    st.randoms(use_true_random=False),
)
def test_everybody_who_entered_is_granted_once_in_the_end(
    limits: Limits, steps: list[tuple[str, Priority, str]], rng: random.Random
) -> None:
    async def scenario() -> None:
        queue = FetchQueue(limits)
        here: list[Ticket] = []
        granted: list[int] = []
        left = set[int]()
        for what, priority, source in steps:
            if what == "enter":
                ticket = queue.ticket(priority, rng.randint(1, 20), source)
                here.append(ticket)
                queue.enter(ticket, partial(granted.append, ticket.order))
            elif what == "raise" and here:
                queue.raise_priority(rng.choice(here), priority)
            elif here:
                ticket = here.pop(rng.randrange(len(here)))
                left.add(ticket.order)
                queue.leave(ticket)
            assert queue._kinds == Counter((ticket.priority, ticket.source) for ticket in queue._waiting)
        entered = {ticket.order for ticket in here}
        while here:
            flying = [ticket for ticket in here if ticket.granted]
            assert flying, "somebody waits for ever"
            here.remove(flying[0])
            queue.leave(flying[0])
        assert len(set(granted)) == len(granted)
        assert entered <= set(granted) <= entered | left
        assert queue.in_flight == queue.bytes_in_flight == 0

    trio.run(scenario)
