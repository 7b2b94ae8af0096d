"""The retry policy."""

from __future__ import annotations

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
from dsfs.sources.retry import LONGEST_DELAY_S, LONGEST_PATIENCE_S, retry_delay

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
