"""Blocks that are stored while the next ones come: who receives them does not wait for the disk.

Several ranges of a file that are received and stored in turn wait for each other's writes, as a file system makes room
in a file for one at a time (``ext4_dio_write_checks`` in fs/ext4/file.c), and so does the reader at the first of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Final

from dsfs.bridge import Bridge

_MOST_BLOCKS: Final = 8
"""As long as a range mostly is: the budget of what is in flight counts all of that until it is stored."""

Store = Callable[[int, memoryview], None]


class Behind:
    """Of one range. Leaving the context waits for all of them, as nobody else may take the cache over before that, and
    raises what storing has raised, unless the receiving has raised something.

    ``with`` and ``put`` are for a thread, ``async with`` and ``put_here`` for the network side.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._under_way: deque[Future[None]] = deque()

    def put(self, store: Store, block: int, data: memoryview) -> None:
        """Have a block stored soon, in another thread. Waits while too many are under way."""
        if len(self._under_way) >= _MOST_BLOCKS:
            self._under_way.popleft().result()
        self._under_way.append(self._bridge.storing(store, block, data))

    async def put_here(self, store: Store, block: int, data: memoryview) -> None:
        """As ``put``, on the network side."""
        if len(self._under_way) >= _MOST_BLOCKS:
            await _over(self._under_way[0])
            self._under_way.popleft().result()
        self._under_way.append(self._bridge.storing(store, block, data))

    def __enter__(self) -> None:
        return

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        concurrent.futures.wait(self._under_way)
        self._end(error)

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            await _over(*self._under_way)
        except asyncio.CancelledError:
            await _over(*self._under_way)
            raise
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        ended, self._under_way = self._under_way, deque()
        for future in ended:
            if error is None:
                future.result()


async def _over(*futures: Future[None]) -> None:
    """Wait for the end of all; they go on when who waits is cancelled."""
    if futures:
        await asyncio.wait([_wrapped(future) for future in futures])


def _wrapped(future: Future[None]) -> asyncio.Future[None]:
    wrapped = asyncio.wrap_future(future)
    wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asks for its result is told
    return wrapped
