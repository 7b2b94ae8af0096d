"""Which failures of a source are worth another try, and when. The loop that follows it is ``fetch.patience``."""

from __future__ import annotations

from typing import Final

from dsfs.errors import RetryLater, SourceError, SourceUnavailable

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 10.0
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
