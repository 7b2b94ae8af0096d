"""A second request where the first is late (``fetch.lateness``): whichever gets somewhere first goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from dsfs.errors import SourceError
from dsfs.fetch.lateness import Lateness, stood_still

T = TypeVar("T")
Try = Callable[[Callable[[], None]], Awaitable[T]]
"""Asks the source; is given what to call as soon as that gets somewhere."""


async def hedged(
    lateness: Lateness, first: Try[T], second: Try[T], waited_for: Callable[[], bool], count: Callable[[bool], object]
) -> T:
    """What the first brings, or the second if the first is late and somebody waits.

    Once one of them gets somewhere the other is cancelled; ``count`` is told whether it was the second that did. What
    only one of them runs into is not raised while the other is under way. Raises what one of both ran into, at once if
    that is no SourceError.
    """
    scopes = (trio.CancelScope(), trio.CancelScope())
    brought: list[T] = []
    errors: list[Exception] = []
    moved = trio.Event()
    under_way = 0
    asked_twice = False
    ahead: int | None = None

    async def run(work: Try[T], number: int) -> None:
        nonlocal under_way
        began_s = trio.current_time()

        def begun() -> None:
            nonlocal ahead
            if ahead is None:  # else this one is cancelled, and has not heard of it yet
                ahead = number
                moved.set()
                scopes[1 - number].cancel()
                lateness.came(trio.current_time() - began_s)
                if asked_twice:
                    count(number == 1)

        under_way += 1
        with scopes[number]:
            try:
                brought.append(await work(begun))
                begun()
            except SourceError as error:
                errors.append(error)
                if under_way == 1:
                    moved.set()
            except Exception as error:
                errors.insert(0, error)
                begun()
        under_way -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, first, 0)
        while await _late(lateness, moved):
            if waited_for():  # else somebody may come
                asked_twice = lateness.take()
                break
        if asked_twice:
            nursery.start_soon(run, second, 1)
    if brought:
        return brought[0]
    raise errors[0]


async def _late(lateness: Lateness, moved: trio.Event) -> bool:
    """Wait until the first request has got somewhere, or is late."""
    while not moved.is_set():
        due_s = trio.current_time() + lateness.late_s
        with trio.move_on_at(due_s):
            await moved.wait()
        if not moved.is_set() and not stood_still(due_s, trio.current_time()):
            return True
    return False
