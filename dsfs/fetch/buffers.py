"""Memory that blocks are received into: page-aligned, as writing past the page cache wants it, and used again.

New memory is dear: the kernel clears each page when it is first touched, which cost as much as the copying itself
(0.8 CPU-s per GB on a virtual machine), and a megabyte from malloc is new memory every time. Of huge pages that is a
third, so what is kept lies in one place that may consist of them (madvise(2), MADV_HUGEPAGE).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from typing import Final

_HUGE_PAGE_BYTES: Final = 2 << 20
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has no huge pages, on most machines


class Buffers:
    """Buffers of one size. May be used from any thread.

    ``take`` gives a view; the memory is free again when the last view of it, or of a part of it, is gone.
    """

    def __init__(self, size_bytes: int, kept: int) -> None:
        """``kept``: so many that nobody uses stay, or twice as many after more than that were in use. Each costs memory
        from when it is first used."""
        self._kind = ctypes.c_char * size_bytes
        self._size_bytes = size_bytes
        self._most = kept
        self._kept = mmap.mmap(-1, kept * size_bytes + _HUGE_PAGE_BYTES, _PRIVATE)
        with contextlib.suppress(OSError):  # a kernel without them
            self._kept.madvise(mmap.MADV_HUGEPAGE)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(self._kept)) % _HUGE_PAGE_BYTES
        # the one that was used last is at the end, those that were never used are at the beginning
        self._free = [(self._kept, start + number * size_bytes) for number in reversed(range(kept))]

    def take(self) -> memoryview:
        """A writable view of ``size_bytes``, holding anything."""
        try:
            region, offset = self._free.pop()
        except IndexError:
            region, offset = mmap.mmap(-1, self._size_bytes, _PRIVATE), 0
        lease = self._kind.from_buffer(region, offset)  # what every view of it keeps alive
        weakref.finalize(lease, self._give_back, region, offset).atexit = False
        return memoryview(lease).cast("B")

    def _give_back(self, region: mmap.mmap, offset: int) -> None:
        if region is self._kept or len(self._free) < self._most:
            self._free.append((region, offset))
