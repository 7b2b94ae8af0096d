"""Trying again, within a deadline: the one loop around everything that is asked of a source while somebody waits."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from dsfs.cache.damage import NO_DESCRIPTORS
from dsfs.errors import RetryLater, SourceError, SourceRefused, SourceUnavailable
from dsfs.fetch.origin import Origin
from dsfs.sources.retry import retry_delay

log = structlog.get_logger()
T = TypeVar("T")

ATTEMPTS = 6
"""After about 3 s of failures without any progress a reader is told; who asked for patience gets it."""

_DESCRIPTORS_S = 0.05
_TOO_FEW = "this process may open no more files (raise its limit: ulimit -n, LimitNOFILE=)"


async def patiently(
    origin: Origin, call: Callable[[], Awaitable[T]], deadline_s: float, scope: trio.CancelScope | None = None
) -> T:
    """Call until it succeeds, fails for good, or the time is up.

    Each call is counted as a request to the source. Raises the last SourceError; SourceTimeout when nothing was ever
    answered. ``call`` starts where the last one ended, if that means anything. A caller that sees progress may put off
    the deadline of the ``scope`` it gave.
    """
    last: SourceError | None = None
    attempt, renewed, short = 0, False, False
    scope = scope or trio.CancelScope()
    scope.deadline = trio.current_time() + deadline_s
    with scope:
        while True:
            try:
                return await origin.timed(call, lambda: scope.cancel_called)
            except (SourceError, OSError) as error:
                if _no_descriptor(error):
                    delay_s = _DESCRIPTORS_S  # others give theirs back when they are done
                    if trio.current_time() + delay_s > scope.deadline:
                        raise SourceUnavailable(f"{origin.source.uri}: {_TOO_FEW}") from error
                    if not short:
                        short = True
                        log.warning("no descriptor is left: reads wait for one", dataset=origin.id, reason=_TOO_FEW)
                elif isinstance(error, SourceError):
                    last = error
                    if isinstance(error, SourceRefused) and not renewed:
                        renewed = True
                        if await origin.renew():
                            continue
                    again_s = retry_delay(attempt, error, random.random())
                    hopeless = attempt + 1 >= ATTEMPTS and not isinstance(error, RetryLater)
                    if again_s is None or hopeless or trio.current_time() + again_s > scope.deadline:
                        raise
                    delay_s = again_s
                    attempt += 1
                    log.debug("source asked again", dataset=origin.id, reason=str(error), in_s=delay_s)
                else:
                    raise
            await trio.sleep(delay_s)
    if last is None:
        last = origin.no_answer(deadline_s)
        origin.note_error(last)
    raise last


def _no_descriptor(error: BaseException | None) -> bool:
    """Whether it comes of that. A source has words of its own for a connection that it could not open."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            return True
        error = error.__cause__
    return False
