"""The retry policy."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.sources.retry import LISTING_TRIES, LONGEST_DELAY_S, LONGEST_PATIENCE_S, one_of_many, retry_delay

RNG = st.floats(0, 1, exclude_max=True)
ATTEMPT = st.integers(0, 10_000)


@pytest.mark.parametrize("kind", [SourceChanged, SourceRefused, SourceMissing, SourceUnsupported, SourceError])
def test_what_another_try_cannot_heal_is_given_up(kind: type[SourceError]) -> None:
    assert retry_delay(0, kind("x"), 0.5) is None


@given(ATTEMPT, RNG, st.sampled_from([SourceUnavailable, SourceTimeout, RetryLater]))
def test_the_delay_is_bounded(attempt: int, rng: float, kind: type[SourceError]) -> None:
    delay_s = retry_delay(attempt, kind("x"), rng)
    assert delay_s is not None
    assert 0 <= delay_s <= LONGEST_DELAY_S


@given(ATTEMPT, RNG)
def test_the_ceiling_of_the_delay_rises(attempt: int, rng: float) -> None:
    error = SourceUnavailable("x")
    now, later = retry_delay(attempt, error, rng), retry_delay(attempt + 1, error, rng)
    assert now is not None
    assert later is not None
    assert now <= later


@given(ATTEMPT, RNG, st.floats(-10, 1e6))
def test_never_earlier_than_asked_up_to_a_cap(attempt: int, rng: float, asked_s: float) -> None:
    delay_s = retry_delay(attempt, RetryLater("x", asked_s), rng)
    assert delay_s is not None
    assert min(asked_s, LONGEST_PATIENCE_S) <= delay_s <= LONGEST_PATIENCE_S + LONGEST_DELAY_S


def test_one_of_many_is_asked_again_unless_it_cannot_heal_or_nobody_wants_that() -> None:
    def ask(*answers: object, go_on: bool = True) -> tuple[object, int]:
        left = list(answers)
        heard: list[float] = []

        async def answer() -> object:
            now = left.pop(0)
            if isinstance(now, SourceError):
                raise now
            return now

        def decide(_error: SourceError, delay_s: float) -> bool:
            heard.append(delay_s)
            return go_on

        try:
            return asyncio.run(one_of_many(answer, decide)), len(heard)
        except SourceError as error:
            return error, len(heard)

    timeout, later, missing = SourceTimeout("slow"), RetryLater("busy", 0.0), SourceMissing("gone")
    assert ask(1) == (1, 0)
    assert ask(timeout, later, 2) == (2, 2)
    assert ask(later, missing) == (missing, 1)
    assert ask(later, 3, go_on=False) == (later, 1)
    failures = [SourceUnavailable(str(number)) for number in range(LISTING_TRIES)]
    assert ask(*failures, 4) == (failures[-1], LISTING_TRIES - 1)
