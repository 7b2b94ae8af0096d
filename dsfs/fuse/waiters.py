"""Plain threads that wait for the cache's disk and answer the kernel themselves.

A read whose pages were dropped costs the loop one hand-over, and no task, no limiter and no way back: those took longer
than the disk does (0.4 ms of processor time for a file of 110 kB, 0.1 without).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import structlog

log = structlog.get_logger()

MOST = 16
"""Reads that the disk is asked at once: more than the readers of most jobs, and what fast disks want to be busy."""

Job = Callable[[memoryview], None]


class Waiters:
    """Jobs are given a buffer of ``buffer_bytes``, theirs until they return, and must not raise.

    One thread is there from the beginning, others start when they are needed; they end with the process: nobody waits
    for one that waits for a dead disk.
    """

    def __init__(self, buffer_bytes: int, most: int = MOST) -> None:
        self._buffer_bytes = buffer_bytes
        self._most = most
        self._started = 0
        self._short = False
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._start()

    def put(self, job: Job) -> None:
        """Have it done soon. From one thread."""
        self._jobs.put(job)
        if self._started < self._most and not self._jobs.empty():
            try:
                self._start()
            except RuntimeError as error:  # those that there are do it, one after the other
                if not self._short:
                    log.warning("no more threads to wait for the disk", threads=self._started, reason=str(error))
                self._short = True

    def _start(self) -> None:
        threading.Thread(target=self._work, name=f"waiter-{self._started}", daemon=True).start()
        self._started += 1
        self._short = False

    def _work(self) -> None:
        buffer = memoryview(bytearray(self._buffer_bytes))
        while True:
            job = self._jobs.get()
            job(buffer)
            del job  # and what it holds open, while there is nothing to do
