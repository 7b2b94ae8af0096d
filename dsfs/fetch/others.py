"""Flights that somebody else has begun, and what ends them: it need not be true of who waits for the same bytes.

A flight of another dataset asks with that one's credentials, which may have expired, or may not see the file. One that
was on its way before somebody came may fail at once for what was true before he did.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from dsfs.errors import SourceError, SourceUnavailable
from dsfs.fetch.flight import Flight
from dsfs.fetch.flights import Flights
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority

T = TypeVar("T")
_ROUNDS: Final = 5  # each joins what another dataset has begun just then, which hardly comes so often


async def wait_for(
    flights: Flights,
    file: RemoteFile,
    by_block: dict[int, Flight],
    block: int,
    asked_s: float,
    wait: Callable[[Flight], Awaitable[T]],
    priority: Priority = Priority.DEMAND,
) -> T:
    """What ``wait`` gives of the flight that brings a block. Where that fails for a cause that may not be of ``file``'s
    dataset, or not of now, another one takes its place in ``by_block``, for all that it was still to bring.

    ``asked_s``: since when somebody waits (trio's clock). Raises the SourceError of the last one.
    """
    for _round in range(_ROUNDS):
        flight = by_block[block]
        try:
            return await wait(flight)
        except SourceError as error:
            own = flight.file.origin is file.origin
            settled = own and (flight.started_s >= asked_s or not isinstance(error, SourceUnavailable))
            if settled or flights.ending:
                raise
        rest = sorted(b for b, each in by_block.items() if each is flight and b not in flight.data)
        by_block.update(flights.ensure(file, rest, priority))
    return await wait(by_block[block])


async def wait_for_storing(
    flights: Flights,
    file: RemoteFile,
    by_block: dict[int, Flight],
    block: int,
    asked_s: float,
    priority: Priority,
) -> None:
    """As ``wait_for``, until the flight is over, or as much of it as had landed."""

    async def end(flight: Flight) -> None:
        try:
            await flight.end()
        except SourceError:
            if block not in flight.data:
                raise

    await wait_for(flights, file, by_block, block, asked_s, end, priority)
