"""Which failures of a source are worth another try, and when. The loop that follows it
for readers is ``fetch.patience``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from dsfs.errors import RetryLater, SourceError, SourceUnavailable

T = TypeVar("T")

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 10.0
LISTING_TRIES: Final = 5
LONGEST_PATIENCE_S: Final = 60.0  # an origin that asks for an hour is asked again after this


def retry_delay(attempt: int, error: SourceError, rng: float) -> float | None:
    """Seconds to wait before the next try, or None for a failure that another try cannot heal.

    ``attempt`` counts failures in a row, from 0; ``rng`` is uniform in [0, 1). Full jitter, so that the readers of an
    origin that fell over do not come back as one. How many tries are enough, or until when, is the caller's question.
    """
    if not isinstance(error, SourceUnavailable):
        return None
    backoff_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 32)) * rng
    if isinstance(error, RetryLater) and error.retry_after_s is not None:
        # Never earlier than asked; the jitter goes on top, for everybody was told the same number.
        return min(LONGEST_PATIENCE_S, max(0.0, error.retry_after_s)) + backoff_s
    return backoff_s


async def one_of_many(
    ask: Callable[[], Awaitable[T]], go_on: Callable[[SourceError, float], bool] = lambda _error, _delay_s: True
) -> T:
    """An answer out of very many that a listing needs; that one of them fails must not cost all the others.

    ``go_on`` hears of each failure that is not the last, and in how many seconds it would be asked again, and says
    whether it shall be.
    """
    for attempt in range(LISTING_TRIES - 1):
        try:
            return await ask()
        except SourceUnavailable as error:
            delay_s = retry_delay(attempt, error, random.random())
            if delay_s is None or not go_on(error, delay_s):
                raise
        await asyncio.sleep(delay_s)
    return await ask()
