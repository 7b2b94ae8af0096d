"""When the background check of the cache takes its steps: a little at a time, behind everything else."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from dsfs.cache.node import NodeTier
from dsfs.cache.scrub import STEP_BYTES, Scrub, pause_s

log = structlog.get_logger()

_SCRUB = trio.CapacityLimiter(1)
_SAVED_S = 30.0
_YIELD_PAUSES = 4  # while fetches are under way it rests up to so many times longer: not for ever on a busy node
_LOOK_S = 0.1


async def scrub_in_background(tier: NodeTier, every_s: float, busy: Callable[[], bool]) -> None:
    """Check everything in the node tier once in ``every_s``, again and again. ``busy``: whether somebody fetches."""
    scrub = await trio.to_thread.run_sync(Scrub, tier, limiter=_SCRUB)
    saved_s = trio.current_time()
    try:
        while True:
            checked = await trio.to_thread.run_sync(tier.unless_refused, scrub.step, limiter=_SCRUB)
            rest_s = pause_s(checked or STEP_BYTES, tier.used_bytes, every_s)
            if trio.current_time() - saved_s >= _SAVED_S:
                saved_s = trio.current_time()
                await trio.to_thread.run_sync(tier.unless_refused, scrub.save, limiter=_SCRUB)
            await trio.sleep(rest_s)
            with trio.move_on_after(rest_s * (_YIELD_PAUSES - 1)):
                while busy():  # noqa: ASYNC110  # what it waits for ends in many places, and a little later is as good
                    await trio.sleep(_LOOK_S)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.to_thread.run_sync(tier.unless_refused, scrub.save, limiter=_SCRUB, abandon_on_cancel=True)
