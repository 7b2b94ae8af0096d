"""The one place where trio and the rest meet: asyncio runs in a thread of its own, and calls cross whole.

A call carries its result, its exception and its cancellation; nothing else is shared but values, descriptors and
sinks. Names: the *network side* is asyncio, the *file side* is trio, and a *lane* is a thread for one exchange that
blocks, which neither of the two has to hear of before it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

import outcome
import trio

T = TypeVar("T")
P = ParamSpec("P")

_DISK_WRITERS = 4
_STORERS = 2
"""Of blocks of large files. More were slower: a file takes one at a time, and each that waits costs two hand-overs of
Python's lock."""
_READS_ON_S = 0.1
"""A reader that has waited so lately comes again."""
_GIVES_WAY_S, _GIVES_WAY_IN_ALL_S = 0.5, 60.0
_LANES = 128
"""As many as there may be requests in flight (``fetch.queue.Limits``); they are started when they are needed."""


class Stoppable(Protocol):
    """What ends a blocking exchange from outside."""

    def now(self) -> None:
        """The exchange ends soon, however it likes."""


class Bridge:
    """Made by ``network_side``. ``call`` and ``in_lane`` belong to the file side, all the rest to the network side, but
    for what says otherwise."""

    def __init__(self, loop: asyncio.AbstractEventLoop, disk: ThreadPoolExecutor, storers: ThreadPoolExecutor) -> None:
        self._loop = loop
        self._disk = disk
        self._storers = storers
        self._stores = True
        self._token = trio.lowlevel.current_trio_token()
        self._waited_s = -math.inf  # when a reader last began to wait, on the clock of time.monotonic
        self._lanes: list[threading.Thread] = []
        self._lanes_busy = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.at_end: list[Callable[[], None]] = []
        """Called when nobody is in a lane any more."""

    def note_reader(self) -> None:
        """File side: a reader waits for something to be fetched."""
        self._waited_s = time.monotonic()

    def giving_way(self) -> Callable[[], Awaitable[None]]:
        """For a job of the network side that nobody waits for and that takes processor time. What it waits for there
        before each piece of work, until no reader has come lately: half a second at most, and a minute in all."""
        spare_s = _GIVES_WAY_IN_ALL_S

        async def give_way() -> None:
            nonlocal spare_s
            began_s = self._loop.time()
            latest_s = began_s + min(_GIVES_WAY_S, spare_s)
            while (left_s := min(latest_s, self._waited_s + _READS_ON_S) - self._loop.time()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(left_s)  # readers wake nobody, as there are so many
            spare_s -= self._loop.time() - began_s

        return give_way

    async def call(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine on the network side and wait for it; a checkpoint.

        When the caller is cancelled the coroutine is cancelled too, and waited for.
        """
        waiting = trio.lowlevel.current_task()
        running: list[asyncio.Task[T]] = []
        raise_cancel: list[Callable[[], Any]] = []

        def start() -> None:
            task = self._loop.create_task(function(*args, **kwargs))
            running.append(task)
            task.add_done_callback(finished)

        def finished(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                self._token.run_sync_soon(deliver, outcome.Error(asyncio.CancelledError()))
                return
            error = task.exception()
            self._token.run_sync_soon(deliver, outcome.Value(task.result()) if error is None else outcome.Error(error))

        def deliver(result: outcome.Outcome[T]) -> None:
            if raise_cancel and isinstance(result, outcome.Error):
                result = outcome.capture(raise_cancel[0])
            trio.lowlevel.reschedule(waiting, result)

        def abort(raise_now: Callable[[], Any]) -> trio.lowlevel.Abort:
            raise_cancel.append(raise_now)
            self._loop.call_soon_threadsafe(lambda: running[0].cancel())  # start() was queued before this
            return trio.lowlevel.Abort.FAILED

        self._loop.call_soon_threadsafe(start)
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]  # deliver's T

    async def in_lane(self, function: Callable[[], T], stop: Stoppable) -> T:
        """Run something that blocks on a socket in a thread, and wait for it; a checkpoint.

        When the caller is cancelled the exchange is stopped, and waited for.
        """
        waiting = trio.lowlevel.current_task()
        raise_cancel: list[Callable[[], Any]] = []

        def deliver(result: outcome.Outcome[T]) -> None:
            self._lanes_busy -= 1
            if raise_cancel and isinstance(result, outcome.Error):
                result = outcome.capture(raise_cancel[0])
            trio.lowlevel.reschedule(waiting, result)

        def abort(raise_now: Callable[[], Any]) -> trio.lowlevel.Abort:
            raise_cancel.append(raise_now)
            stop.now()
            return trio.lowlevel.Abort.FAILED

        self._lanes_busy += 1
        if self._lanes_busy > len(self._lanes) and len(self._lanes) < _LANES:
            lane = threading.Thread(target=self._run_lane, name=f"lane-{len(self._lanes)}", daemon=True)
            self._lanes.append(lane)
            lane.start()
        self._jobs.put(lambda: self.soon(deliver, outcome.capture(function)))
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]  # deliver's T

    def _run_lane(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # and what it holds open, while there is nothing to do

    def end_lanes(self) -> None:
        """Called when nobody is in ``in_lane`` any more."""
        for _lane in self._lanes:
            self._jobs.put(None)
        for callback in self.at_end:
            callback()

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """From any side: run a plain function on the file side, soon. Order is kept."""
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            return  # the file side has ended: nobody waits for the news any more

    async def on_file_side(self, function: Callable[..., T], *args: object) -> T:
        """From the network side: run a plain function on the file side and wait for what it returns."""
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            self._back(future, outcome.capture(function, *args))

        self._token.run_sync_soon(run)
        return await future

    async def await_on_file_side(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """As ``on_file_side``, for a trio coroutine; it is not cancelled when the caller is."""
        future: asyncio.Future[T] = self._loop.create_future()

        async def run() -> None:
            self._back(future, await outcome.acapture(function, *args))

        self._token.run_sync_soon(trio.lowlevel.spawn_system_task, run)
        return await future

    def _back(self, future: asyncio.Future[T], result: outcome.Outcome[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the network side has ended: nobody waits for this any more
            self._loop.call_soon_threadsafe(_settle, future, result)

    def storing(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Future[None]:
        """From the network side or a lane: run something that writes a block in one of a few threads. Who asks waits
        for it before his own call is over."""
        return self._storers.submit(self._store, partial(function, *args, **kwargs))

    def _store(self, function: Callable[[], None]) -> None:
        if self._stores:
            function()

    def store_no_more(self) -> None:
        """The server ends: what ``storing`` has not begun is left out, as on a slow disk it would take longer than
        anybody waits for that."""
        self._stores = False

    async def to_disk(self, function: Callable[..., T], *args: object) -> T:
        """From the network side: run something that waits for the disk in one of a few threads.

        Waited for when the caller is cancelled too: nobody else may take the cache over while it still writes.
        """
        work = self._loop.run_in_executor(self._disk, partial(function, *args))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise


@contextlib.asynccontextmanager
async def network_side() -> AsyncIterator[Bridge]:
    """Run an asyncio loop in a thread for as long as the context lasts."""
    loop = asyncio.new_event_loop()
    disk = ThreadPoolExecutor(_DISK_WRITERS, thread_name_prefix="disk")
    storers = ThreadPoolExecutor(_STORERS, thread_name_prefix="store")
    thread = threading.Thread(target=_run, args=(loop,), name="network", daemon=True)
    bridge = Bridge(loop, disk, storers)
    thread.start()
    try:
        yield bridge
    finally:
        with trio.CancelScope(shield=True):
            loop.call_soon_threadsafe(loop.stop)
            await trio.to_thread.run_sync(thread.join)
            bridge.end_lanes()
            disk.shutdown(wait=False)
            storers.shutdown(wait=False)


def _settle(future: asyncio.Future[T], result: outcome.Outcome[T]) -> None:
    if future.cancelled():
        return
    if isinstance(result, outcome.Error):
        future.set_exception(result.error)
    else:
        future.set_result(result.unwrap())


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        leftover = asyncio.all_tasks(loop)
        for task in leftover:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
