"""How many requests at once, and how long ranges: on models of a far server, of a busy one, and of one that varies."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from dsfs.fetch.pace import LEAST, MOST, Pace
from dsfs.ranges import KiB, MiB

SMALL = 110 * KiB

Answer = Callable[[int], float]
"""Seconds that a request takes, of how many are in flight with it."""


def after(requests: int, answer: Answer, pace: Pace, size: int = SMALL) -> int:
    """How many at once are allowed when so many requests were made, always as many at a time as are allowed."""
    now_s, in_flight = 0.0, list[tuple[float, float]]()
    for _ in range(requests):
        while len(in_flight) < pace.at_once:
            seconds = answer(len(in_flight) + 1)
            heapq.heappush(in_flight, (now_s + seconds, seconds))
        now_s, seconds = heapq.heappop(in_flight)
        pace.answered(size, seconds, len(in_flight) + 1)
    return pace.at_once


def far(_in_flight: int) -> float:
    return 0.04


def far_and_busy(in_flight: int) -> float:
    """A wire of 500 objects a second behind 20 ms."""
    return max(0.02, in_flight / 500)


def busy(in_flight: int) -> float:
    """A processor that has 1 ms of work with each."""
    return in_flight * 0.001


def test_a_far_server_is_asked_by_as_many_as_there_may_be() -> None:
    assert after(200, far, Pace()) == MOST


def test_answers_that_vary_by_a_factor_of_ten_say_nothing_against_it() -> None:
    number = random.Random(5)

    def store(_in_flight: int) -> float:
        return 0.015 + number.lognormvariate(-4.5, 1.0)

    sizes = sorted(after(2000, store, Pace()) for _ in range(9))
    assert sizes[4] > MOST / 2


def test_a_wire_is_filled_and_not_much_more() -> None:
    found = after(2000, far_and_busy, Pace())
    assert 8 <= found <= 24, "10 fill it"


def test_what_is_busy_with_a_few_gets_no_more() -> None:
    assert after(3000, busy, Pace()) <= 16


def test_few_are_enough_while_no_more_are_wanted() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.answered(SMALL, 0.04, 2)
    assert pace.at_once <= 8


def test_a_source_that_has_too_much_to_do_is_asked_by_fewer_and_by_more_again() -> None:
    pace = Pace()
    after(200, far, pace)
    for _ in range(40):
        pace.refused()
    assert pace.at_once == LEAST
    assert after(5000, far, pace) == MOST


def test_the_first_answers_of_a_size_say_nothing_of_more() -> None:
    """There is nothing to compare them with."""
    pace = Pace()
    for size in (2**power for power in range(4, 20)):
        for _ in range(16):
            pace.answered(size, 0.04, 8)
    assert pace.at_once == 8


def test_a_way_that_has_become_longer_is_learned() -> None:
    pace = Pace()
    after(200, far, pace)
    assert after(30_000, lambda _in_flight: 0.16, pace) > MOST / 2


@pytest.mark.parametrize(("per_s", "range_s"), [(400 * MiB, 32), (100 * MiB, 8), (25 * MiB, 2)])
def test_ranges_are_as_long_as_one_connection_brings_in_a_moment(per_s: int, range_s: int) -> None:
    pace = Pace()
    for _ in range(3):
        pace.answered(8 * MiB, 8 * MiB / per_s, 2)
    assert pace.range_bytes == float("inf"), "not known yet"
    pace.answered(8 * MiB, 8 * MiB / per_s, 2)
    pace.answered(8 * MiB, 30.0, 2)  # one that stood still
    assert pace.range_bytes / MiB == pytest.approx(range_s)
    assert pace.at_once == 8, "that says nothing of small ones"


def test_many_that_share_a_way_do_not_make_ranges_shorter() -> None:
    pace = Pace()
    for _ in range(8):
        pace.answered(8 * MiB, 0.08, 2)
    for _ in range(100):
        pace.answered(8 * MiB, 2.0, 24)
    assert pace.range_bytes / MiB == pytest.approx(8)
