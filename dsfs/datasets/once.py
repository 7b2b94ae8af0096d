"""One piece of work for all who ask for the same at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

import trio

from dsfs.errors import DsfsError


class Once:
    """By key. A DsfsError reaches everybody who waited; if who does the work is cancelled, another takes over."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, _Work] = {}

    async def do(self, key: Hashable, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work, or wait for whoever does it."""
        while (other := self._under_way.get(key)) is not None:
            await other.done.wait()
            if other.finished:
                if other.error is not None:
                    raise other.error
                return
        mine = self._under_way[key] = _Work()
        try:
            await work()
            mine.finished = True
        except DsfsError as error:
            mine.error, mine.finished = error, True
            raise
        finally:
            del self._under_way[key]
            mine.done.set()


class _Work:
    __slots__ = ("done", "error", "finished")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.finished = False
        self.error: DsfsError | None = None
