"""The shared directory as something that may hang, fill up, refuse and vanish at any moment, and come back.

Every operation on it runs in one of a few threads of its own, which are given up when they take too long: a system
call on a dead network file system may never return, and nothing else may wait for it. The first that takes too long
stops all use of the directory at once; from then on one probe at a time asks whether it works again. Meanwhile reads go
on from node tier and origin.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

import structlog
import trio

from dsfs import metrics
from dsfs.cache.shared_layout import REFUSALS, SharedLayout, make_directory, open_area, open_shared, opened_directory
from dsfs.errors import CacheDirectoryError
from dsfs.fetch.shared_room import SharedRoom, Times, Unusable
from dsfs.ranges import MiB

log = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")

_THREADS = 16
_MOST_THREADS = 48
"""Of which all but the last 16 may hang for ever; when they do, the directory is not used again."""
_FAILURES = 3  # errors in a row that stop the use; each on its own may be one bad file's
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ECONNABORTED}
_ROOM_BYTES = 16 * MiB


@dataclass(frozen=True, slots=True)
class SharedStatistics:
    """A snapshot; sizes in bytes. ``trouble`` says why some or all of it is not used; empty when all is well."""

    root: str
    used_bytes: int
    limit_bytes: int
    trouble: str


@dataclass(slots=True, eq=False)
class _Call:
    scope: trio.CancelScope
    limit_s: float
    running: bool = False
    age_s: float = 0.0
    """Since its thread began, as far as we were running ourselves meanwhile."""


class SharedDisk:
    """File side only, but for what says that it runs in a thread. ``limit`` is asked in a thread, with the root."""

    def __init__(self, root: str, limit: Callable[[str], int], times: Times | None = None) -> None:
        self.root = root
        self.times = times or Times()
        self._token = secrets.token_hex(8)
        self._layout: SharedLayout | None = None
        self._looked_s = 0.0
        self._trouble = "was not looked at yet"
        self._refusal = ""
        self.full = False
        """Whether it refused to take more for want of space."""
        self._failures: Counter[object] = Counter()  # by what was called: reading may go well while no write does
        self._threads = trio.CapacityLimiter(_THREADS)
        self._probing = trio.CapacityLimiter(1)
        self._calls: set[_Call] = set()
        self._busy_threads: set[_Call] = set()
        self._areas: dict[str, str] = {}  # name → why it is not used, empty if it is
        self._room = SharedRoom(root, limit, self.times)

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return not self._trouble

    def statistics(self) -> SharedStatistics:
        trouble = self._trouble or self._refusal or next(filter(None, tuple(self._areas.values())), "")
        return SharedStatistics(self.root, self._room.used_bytes, self._room.limit_bytes, trouble)

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much may be published now; else eviction is asked for."""
        return not self._refusal and self._room.has(size_bytes)

    def note_published(self, directory: str, size_bytes: int) -> None:
        self._room.note_published(directory, size_bytes)

    # -- in threads -----------------------------------------------------------------------------------------------

    # Paths are below the root ("private/red/ab").

    def use_area(self, area: str) -> None:
        """Made or checked when it is used first. In a thread. Raises Unusable, OSError."""
        layout = self._layout
        assert layout is not None
        areas = self._areas  # a probe may put another in its place meanwhile
        if area not in areas:
            areas[area] = self._open_area(layout, area)
        if areas[area]:
            raise Unusable

    def _open_area(self, layout: SharedLayout, area: str) -> str:
        """Why it cannot be used, said once; empty if it can."""
        try:
            open_area(layout, area)
        except CacheDirectoryError as error:
            if self._areas.get(area) != str(error):
                log.warning("shared cache not used", area=area, reason=str(error))
            return str(error)
        return ""

    def directory(self, below: str) -> AbstractContextManager[int]:
        """One for groups, opened to look up names in. In a thread. Raises OSError: FileNotFoundError,
        NotADirectoryError when somebody has put a link in its way."""
        return opened_directory(self.root, below)

    def make_directory(self, below: str) -> None:
        """A directory for groups. In a thread. Raises OSError: FileNotFoundError when the area itself has vanished."""
        make_directory(self.root, below)

    def clock_ns(self) -> int:
        """What time it is by the directory's own clock. In any thread."""
        layout = self._layout
        return layout.clock_ns + int((time.monotonic() - self._looked_s) * 1e9) if layout else 0

    def drop(self, path: str) -> None:
        """Remove a file that is damaged. In a thread. Raises OSError when it cannot be."""
        try:
            with self.directory(os.path.dirname(path)) as fd:
                os.unlink(os.path.basename(path), dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return

    def owners(self) -> tuple[int, ...]:
        """Whose files are trusted: ours, and root's."""
        return (0,) if self._layout is None else (self._layout.uid, 0)

    # -- calling --------------------------------------------------------------------------------------------------

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that touches the directory in one of its threads. Raises Unusable when that does not work, or
        takes too long; it may then still happen, later."""
        return await self._call(self.times.operation_s, function, *args, **kwargs)

    async def call_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As ``call``, of what goes through whole directories."""
        return await self._call(self.times.count_s, function, *args, **kwargs)

    async def _call(self, limit_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._trouble:
            raise Unusable
        try:
            result = await self._in_thread(self._threads, limit_s, partial(function, *args, **kwargs))
        except OSError as error:
            self._note(function, error)
            raise Unusable from error
        self._failures[function] = 0
        return result

    async def _in_thread(self, limiter: trio.CapacityLimiter, limit_s: float, function: Callable[[], T]) -> T:
        call = _Call(trio.CancelScope(), limit_s)

        def work() -> T:
            self._busy_threads.add(call)
            call.running = True
            try:
                return function()
            finally:
                self._busy_threads.discard(call)

        self._calls.add(call)
        try:
            with call.scope:
                return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
        finally:
            self._calls.discard(call)
        raise Unusable

    # -- trouble --------------------------------------------------------------------------------------------------

    def _note(self, called: object, error: OSError) -> None:
        """What an operation met. A refusal to be written to stops writing; anything else, if it goes on, all use."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in REFUSALS:
            self._refuse(error)
            return
        self._failures[called] += 1
        if error.errno in _GONE or self._failures[called] >= _FAILURES:
            self._stop(reason)

    def _refuse(self, error: OSError) -> None:
        self.full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"nothing can be written there: {os.strerror(error.errno or errno.EIO)}"
        if reason != self._refusal:
            log.warning("shared cache is only read", shared=self.root, reason=reason)
        self._refusal = reason
        self._room.wanted()
        self._show()

    def _in_trouble(self, reason: str) -> None:
        if self._trouble != reason:
            log.warning("shared cache in trouble, reading on without it", shared=self.root, reason=reason)
        self._trouble = reason
        self._show()

    def _stop(self, reason: str) -> None:
        """From now on without it. Whoever waits for it goes on at once."""
        if not self._trouble:
            log.warning("shared cache in trouble, reading on without it", shared=self.root, reason=reason)
        self._trouble = reason
        for call in self._calls:
            call.scope.cancel()
        self._show()

    def _show(self) -> None:
        metrics.SHARED_TROUBLE.set(bool(self._trouble or self._refusal))

    def _open(self) -> tuple[SharedLayout, int, dict[str, str]]:
        """In a thread: what it is, how much of it may be used, which areas cannot.

        A full one stays full until there is room for more than a probe.
        """
        layout = open_shared(self.root, self._token, self._layout.device if self._layout else None)
        if self.full and layout.refusal is None:
            disk = os.statvfs(self.root)
            if disk.f_bavail * disk.f_frsize < _ROOM_BYTES:
                layout = replace(layout, refusal=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        areas = {area: self._open_area(layout, area) for area in tuple(self._areas)}
        return layout, self._room.measured_limit(), areas

    def _opened(self, layout: SharedLayout, limit_bytes: int, areas: dict[str, str]) -> None:
        hanging = len(self._busy_threads)
        if self._trouble:
            if hanging > _MOST_THREADS - _THREADS:
                self._trouble = f"{hanging} operations on it hang; dsfs restart gives it another chance"
                return
            if self._layout is not None:
                log.info("shared cache works again", shared=self.root)
            self._threads = trio.CapacityLimiter(_THREADS)
        if layout.refusal is not None and self._layout is not None:  # both could be asked before
            layout = replace(layout, uid=self._layout.uid, clock_ns=self.clock_ns())
        self._layout, self._looked_s, self._room.limit_bytes = layout, time.monotonic(), limit_bytes
        self._areas = areas
        self._trouble = ""
        self._failures.clear()
        if layout.refusal is not None:
            self._refuse(layout.refusal)
        elif self._refusal:
            log.info("shared cache is written to again", shared=self.root)
            self._refusal, self.full = "", False
        self._show()

    async def open(self) -> None:
        """Begin to use the directory, before ``run`` does; what does not answer is tried again later, behind. Raises
        CacheDirectoryError when it is none that this dsfs may use."""
        try:
            await self._look()
        except (Unusable, OSError) as error:
            self._in_trouble(_reason(error))

    async def _look(self) -> None:
        with trio.move_on_after(self.times.operation_s):
            self._opened(*await self._in_thread(self._probing, self.times.operation_s, self._open))
            return
        raise Unusable

    # -- running --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._probe)
            nursery.start_soon(self._room.upkeep, self)

    async def _watch(self) -> None:
        """Stop the use when an operation takes too long; counted from when its thread began, and without the time in
        which this process itself was stopped or starved."""
        pause_s = min(0.25, self.times.operation_s / 4)
        while True:
            began_s = time.monotonic()
            await trio.sleep(pause_s)
            passed_s = min(time.monotonic() - began_s, 2 * pause_s)
            for call in tuple(self._calls):
                call.age_s += passed_s if call.running else 0.0
                if call.age_s > call.limit_s:
                    call.scope.cancel()
                    if not self._trouble:
                        self._stop(f"it does not answer within {call.limit_s:g} s")

    async def _probe(self) -> None:
        """While something is wrong, ask whether it still is; one probe at a time, however long it hangs."""
        pause_s = self.times.probe_s if self._layout else 0.0
        while True:
            await trio.sleep(pause_s)
            refused = any(self._areas.values())
            if not (self._trouble or self._refusal or refused):
                pause_s = self.times.probe_s
                continue
            try:
                await self._look()
            except Unusable as error:
                if self._layout is None:  # else it was said when it began
                    self._in_trouble(_reason(error))
            except (CacheDirectoryError, OSError) as error:
                self._in_trouble(_reason(error))
            pause_s = min(max(2 * pause_s, self.times.probe_s), 3 * self.times.probe_s)


def _reason(error: Exception) -> str:
    if isinstance(error, Unusable):
        return "it does not answer"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
