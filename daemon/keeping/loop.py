"""The keeper's loop: descriptors, timers, and calls from threads. One thread runs it and owns all that it touches."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]


class Loop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Call]] = []  # (monotonic s, tie-break, what)
        self._order = itertools.count()
        self._calls: deque[Call] = deque()
        self.running = True
        self._wake_r, self.wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._wake_r, self._woken)

    def watch(self, fd: int, call: Call) -> None:
        """Call whenever a descriptor can be read, or its other end is gone."""
        self._selector.register(fd, selectors.EVENT_READ, call)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def after(self, delay_s: float, call: Call) -> None:
        """Call once, later. There is no way to take it back: what it does must look whether it is still wanted."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), call))

    def soon(self, call: Call) -> None:
        """Call in the loop; may be used by other threads and by signal handlers."""
        self._calls.append(call)
        try:
            os.write(self.wake_fd, b"\0")
        except BlockingIOError:
            pass  # the pipe is full: it wakes up anyway

    def stop(self) -> None:
        self.running = False

    def run(self) -> None:
        """Until ``stop``. What goes wrong in a call is told and does not end the keeper: it must not die."""
        while self.running:
            timeout_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _events in self._selector.select(timeout_s):
                if self._selector.get_map().get(key.fd) is key:  # not unwatched by what was called before it
                    call: Call = key.data
                    guarded(call)
            while self._timers and self._timers[0][0] <= time.monotonic():
                guarded(heapq.heappop(self._timers)[2])
            while self._calls:
                guarded(self._calls.popleft())

    def _woken(self) -> None:
        try:
            os.read(self._wake_r, 4096)
        except BlockingIOError:
            return


def guarded(call: Call) -> None:
    try:
        call()
    except Exception as error:
        say(f"unexpected: {type(error).__name__}: {error} in {getattr(call, '__qualname__', call)}")


def say(text: str) -> None:
    """A line in the log."""
    write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}")


def write(text: str) -> None:
    """Into the log as it is, if the log's disk takes it: a keeper must not die of that."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode(errors="backslashreplace"))
