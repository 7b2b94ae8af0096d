"""Memory that blocks are received into: page-aligned, as writing past the page cache wants it, and used again.

New memory is dear: the kernel clears each page when it is first touched, which cost as much as the copying itself
(0.8 CPU-s per GB on a virtual machine), and a megabyte from malloc is new memory every time.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref


class Buffers:
    """Buffers of one size. May be used from any thread.

    ``take`` gives a view; the memory is free again when the last view of it, or of a part of it, is gone.
    """

    def __init__(self, size_bytes: int, kept: int) -> None:
        """``kept``: so many that nobody uses stay."""
        self._kind = ctypes.c_char * size_bytes
        self._kept = kept
        self._size_bytes = size_bytes
        self._free: list[mmap.mmap] = []

    def take(self) -> memoryview:
        """A writable view of ``size_bytes``, holding anything."""
        try:
            region = self._free.pop()
        except IndexError:
            region = mmap.mmap(-1, self._size_bytes)
        lease = self._kind.from_buffer(region)  # what every view of it keeps alive
        weakref.finalize(lease, self._give_back, region).atexit = False
        return memoryview(lease).cast("B")

    def _give_back(self, region: mmap.mmap) -> None:
        if len(self._free) < self._kept:
            self._free.append(region)
