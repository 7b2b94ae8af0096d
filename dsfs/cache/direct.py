"""Whether blocks are written past the page cache (O_DIRECT), which depends on how fast the disk is.

A block that is written through the page cache costs a page of new memory for every 4 KiB and a copy: 0.3 CPU-s per GB
where memory is at hand, 1.2 to 2.1 on a virtual machine whose host has taken it back, against 0.06 past it; and its
bytes then lie in memory twice, as the kernel keeps those that it was given by the daemon. A slow disk is better written
through the page cache, which takes a burst of a download at the speed of memory.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

LEAST_BYTES_PER_S: Final = 200e6
"""What a disk must take past the page cache to be no brake: less than that, networks bring as well."""
PROBE_EVERY: Final = 64
"""One block in so many goes past the page cache on a disk that was slow, to see whether it still is."""
REMEMBERED: Final = 8
SECTOR_BYTES: Final = 4096
"""What O_DIRECT wants offsets, lengths and buffers to be multiples of; less is enough on most disks."""
NOT_HERE: Final = (errno.EINVAL, errno.EOPNOTSUPP)
"""Errors of a file system that does not know it, or of a buffer that is not aligned."""
_TOGETHER: Final = 16  # writes that make one measurement, when they follow each other without a pause


def pays(rates: Collection[float], blocks_since_probe: int) -> bool:
    """Whether the next block should go past the page cache, given the bytes per second that the last writes had.

    The best of enough of them counts: a write that waited for a processor says nothing about the disk.
    """
    return len(rates) < REMEMBERED or max(rates) >= LEAST_BYTES_PER_S or blocks_since_probe >= PROBE_EVERY


def open_direct(fd: int) -> int:
    """Another descriptor of a file, for writes past the page cache. Raises OSError; ``NOT_HERE`` where none can be."""
    return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)


class DirectWrites:
    """What is known of one disk. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._since_probe = 0
        self._writing = 0
        self._since_s = 0.0
        self._writes = 0
        self._written_bytes = 0

    def choose(self) -> bool:
        """Whether to write the next block so."""
        with self._lock:
            chosen = pays(self._rates, self._since_probe)
            self._since_probe = 0 if chosen else self._since_probe + 1
            return chosen

    @contextmanager
    def timed(self, size_bytes: int) -> Iterator[None]:
        """Around a write that was chosen: several at once share the disk, so bytes are divided by the time in which
        any of them was under way. One that raises wrote nothing, however fast, and measures nothing."""
        with self._lock:
            if self._writing == 0:
                self._since_s = time.monotonic()
            self._writing += 1
        written_bytes = 0
        try:
            yield
            written_bytes = size_bytes
        finally:
            with self._lock:
                self._writing -= 1
                self._writes += written_bytes > 0
                self._written_bytes += written_bytes
                if self._writes > 0 and (self._writing == 0 or self._writes >= _TOGETHER):
                    now_s = time.monotonic()
                    self._rates.append(self._written_bytes / max(now_s - self._since_s, 1e-6))
                    self._writes, self._written_bytes, self._since_s = 0, 0, now_s
