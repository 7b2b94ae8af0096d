"""Which failures of a source are worth another try, and when. The only place that retries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from dsfs.errors import RetryLater, SourceError, SourceUnavailable
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Buffer, Sink, Source

log = structlog.get_logger()

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 10.0
LONGEST_PATIENCE_S: Final = 60.0  # an origin that asks for an hour is asked again after this
ATTEMPTS: Final = 4

T = TypeVar("T")


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


async def retried(call: Callable[[], Awaitable[T]], *, attempts: int = ATTEMPTS) -> T:
    """The call's result, after up to ``attempts`` tries; else the error of the last one."""
    failures = 0
    while True:
        try:
            return await call()
        except SourceError as error:
            await wait_or_raise(failures, error, attempts)
        failures += 1


async def read_retried(
    source: Source, obj: SourceObject, wanted: ByteRange, sink: Sink, *, attempts: int = ATTEMPTS
) -> None:
    """``source.read`` with retries; each goes on where the sink stopped, and progress starts the count anew."""
    counting = _CountingSink(sink, wanted.start)
    failures = 0
    while counting.position < wanted.stop:
        before = counting.position
        try:
            await source.read(obj, ByteRange(before, wanted.stop), counting)
        except SourceError as error:
            failures = 0 if counting.position > before else failures
            await wait_or_raise(failures, error, attempts)
            failures += 1
            continue
        if counting.position < wanted.stop:
            raise SourceUnavailable(f"{source.uri}: {obj.path!r} ended at byte {counting.position} of {wanted.stop}")


async def wait_or_raise(failures: int, error: SourceError, attempts: int) -> None:
    """Sleep until the next try is due, or raise ``error`` when there is none to come."""
    delay_s = retry_delay(failures, error, random.random())
    if delay_s is None or failures + 1 >= attempts:
        raise error
    log.debug("source retried", reason=str(error), failures=failures + 1, retry_in_s=round(delay_s, 3))
    await asyncio.sleep(delay_s)


class _CountingSink:
    """Passes on, and knows up to which offset."""

    def __init__(self, sink: Sink, position: int) -> None:
        self.position = position
        self._sink = sink

    async def write(self, offset: int, data: Buffer) -> None:
        await self._sink.write(offset, data)
        self.position = offset + len(data)
