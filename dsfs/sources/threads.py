"""Blocking calls of one source in threads of its own: a file system that hangs takes no other source with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from dsfs.errors import SourceTimeout

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A few threads. A call that was cancelled or timed out goes on in its thread, and gives back what it holds."""

    def __init__(self, count: int, limit_s: float, what: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="dsfs-source")
        self._limit_s = limit_s
        self._what = what

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result; SourceTimeout when it does not come within the limit, waiting for a thread included."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))
        try:
            async with asyncio.timeout(self._limit_s):
                return await work
        except TimeoutError as error:
            if not work.cancelled():
                raise  # the function's own
            raise SourceTimeout(f"{self._what} did not answer within {self._limit_s:g} s") from error

    def start(self, function: Callable[[], object]) -> None:
        """Run it some time; for giving back what a call that was left behind still holds."""
        self._pool.submit(function)

    def close(self) -> None:
        """What runs is left to end; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
