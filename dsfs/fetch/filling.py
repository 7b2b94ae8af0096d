"""The rest of a file, brought in behind its readers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import trio

from dsfs.errors import SourceError
from dsfs.fetch.flights import LONGEST_RUN_BLOCKS, Flights
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority

_FILLING_RUNS = 4
_FILLING_PAUSE_S = 0.1


async def fill(flights: Flights, file: RemoteFile, missing: Callable[[], Sequence[int]]) -> None:
    """Bring in what is missing of a file, as long as the node tier has room for it; a few flights at a time, as all of
    them may be thousands, and one to begin with."""
    middle = flights.first_block(file)
    step = LONGEST_RUN_BLOCKS
    for start, stop in ((middle, sys.maxsize), (0, middle)):
        last = start - 1
        # Asked anew each time: readers bring in blocks meanwhile, which must not be fetched twice. And not further
        # ahead than they come along: what leaves memory before it is read is read from the disk again.
        await _until_read(flights, file)
        while blocks := [block for block in missing() if last < block < stop][:step]:
            last = blocks[-1]
            flying = flights.ensure(file, blocks, Priority.WARM)
            try:
                for block, flight in flying.items():
                    await flight.block(block)
            except SourceError:
                return  # logged by the flight; whoever reads there will hear of it
            step = _FILLING_RUNS * LONGEST_RUN_BLOCKS
            await _until_read(flights, file)
            if not file.origin.is_kept:
                return


async def _until_read(flights: Flights, file: RemoteFile) -> None:
    while flights.fresh.awaited(file.key):  # noqa: ASYNC110  # what is awaited is mostly time itself
        await trio.sleep(_FILLING_PAUSE_S)
