"""Blocks that have just landed, in memory: what was fetched ahead goes to its reader without a way over the disk.

They may have been written past the page cache (``cache/direct.py``), so this is the only place that has them at once.
It counts for nothing by itself: a block is looked for here only when the cache says that it is present.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

import trio

from dsfs.ranges import ByteRange, block_range, blocks_of
from dsfs.sources.base import Buffer

KEPT_S: Final = 5.0
"""Nobody read what was fetched ahead for so long: its reader has gone elsewhere."""


class _Landed(NamedTuple):
    data: memoryview
    until_s: float


class Fresh:
    """Up to so many bytes of blocks; the oldest go first. File side only."""

    def __init__(self, limit_bytes: int, block_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._block_bytes = block_bytes
        self._blocks: OrderedDict[tuple[str, int], _Landed] = OrderedDict()
        self._of_key: Counter[str] = Counter()
        self.used_bytes = 0

    def add(self, key: str, block: int, data: memoryview) -> None:
        self.drop(key, block)
        now_s = trio.current_time()
        self._blocks[key, block] = _Landed(data, now_s + KEPT_S)
        self._of_key[key] += 1
        self.used_bytes += len(data)
        while self.used_bytes > self._limit_bytes:
            self.drop(*next(iter(self._blocks)))
        self._expire(now_s)

    def drop(self, key: str, block: int) -> None:
        landed = self._blocks.pop((key, block), None)
        if landed is None:
            return
        self.used_bytes -= len(landed.data)
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]

    def awaited(self, key: str) -> bool:
        """Whether an object has blocks here that a reader may still come for."""
        self._expire(trio.current_time())
        return key in self._of_key

    def block(self, key: str, block: int) -> memoryview | None:
        landed = self._blocks.get((key, block))
        return None if landed is None else landed.data

    def pieces(self, key: str, size_bytes: int, wanted: ByteRange) -> list[Buffer] | None:
        """A range of an object, if all of it is here. A block that was given to its end has done its duty: the kernel
        keeps its pages."""
        pieces: list[Buffer] = []
        blocks = blocks_of(wanted, self._block_bytes)
        for block in blocks:
            data = self.block(key, block)
            if data is None:
                return None
            place = block_range(block, size_bytes, self._block_bytes)
            pieces.append(data[max(0, wanted.start - place.start) : wanted.stop - place.start])
        for block in blocks:
            if block_range(block, size_bytes, self._block_bytes).stop <= wanted.stop:
                self.drop(key, block)
        return pieces

    def _expire(self, now_s: float) -> None:
        while self._blocks:
            oldest = next(iter(self._blocks))
            if self._blocks[oldest].until_s > now_s:
                return
            self.drop(*oldest)
