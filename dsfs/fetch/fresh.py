"""Blocks that have just landed, in memory: what was fetched ahead goes to its reader without a way over the disk.

They may have been written past the page cache (``cache/direct.py``), so this is the only place that has them at once.
A block that the node tier keeps counts for nothing here by itself: it is looked for only when the tier says that it is
present. One for which that has no room (a quota, pins, a disk that refuses) is here only, so that neither what is read
ahead nor the rest of a block of which a reader asks for a part is fetched again for the next read.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

import trio

from dsfs.model import Tier
from dsfs.ranges import ByteRange, block_range, blocks_of
from dsfs.sources.base import Buffer

KEPT_S: Final = 5.0
"""Nobody read what was fetched ahead for so long: its reader has gone elsewhere."""


class _Landed(NamedTuple):
    data: memoryview
    until_s: float
    tier: Tier
    given: int = 0


class Fresh:
    """Up to so many bytes of blocks; the oldest go first. File side only."""

    def __init__(self, limit_bytes: int, block_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._block_bytes = block_bytes
        self._blocks: OrderedDict[tuple[str, int], _Landed] = OrderedDict()
        self._of_key: Counter[str] = Counter()
        self.used_bytes = 0

    def add(self, key: str, block: int, data: memoryview, tier: Tier = Tier.NODE) -> None:
        """``tier``: which one counts as having it for who reads it from here; NODE: it is kept there."""
        self.drop(key, block)
        if tier is not Tier.NODE and memoryview(data.obj).nbytes > 2 * len(data):
            data = memoryview(bytes(data))  # a small part of a buffer, which would stay as long
        now_s = trio.current_time()
        self._blocks[key, block] = _Landed(data, now_s + KEPT_S, tier)
        self._of_key[key] += 1
        self.used_bytes += len(data)
        while self.used_bytes > self._limit_bytes:
            self.drop(*next(iter(self._blocks)))
        self._expire(now_s)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is here that somebody may still come for."""
        if self._blocks:
            self._expire(trio.current_time())
        return not self._blocks

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

    def tier_of(self, key: str, block: int) -> Tier:
        """Of a block that is here."""
        return self._blocks[key, block].tier

    def is_only_here(self, key: str, block: int) -> bool:
        """Whether a block is here that the node tier has not kept."""
        landed = self._blocks.get((key, block))
        return landed is not None and landed.tier is not Tier.NODE

    def pieces(self, key: str, size_bytes: int, wanted: ByteRange) -> list[Buffer] | None:
        """A range of an object, if all of it is here."""
        pieces: list[Buffer] = []
        blocks = blocks_of(wanted, self._block_bytes)
        for block in blocks:
            data = self.block(key, block)
            if data is None:
                return None
            place = block_range(block, size_bytes, self._block_bytes)
            pieces.append(data[max(0, wanted.start - place.start) : wanted.stop - place.start])
        for block, piece in zip(blocks, pieces, strict=True):
            place = block_range(block, size_bytes, self._block_bytes)
            self.given(key, block, len(piece), at_end=place.stop <= wanted.stop)
        return pieces

    def given(self, key: str, block: int, size_bytes: int, *, at_end: bool) -> None:
        """So much of a block went to the kernel, which keeps its pages. One that was given to its end has done its
        duty; one that is nowhere else when all of it was, as the kernel asks for the parts of a block in any order."""
        landed = self._blocks.get((key, block))
        if landed is None:
            return
        given = landed.given + size_bytes
        if at_end if landed.tier is Tier.NODE else given >= len(landed.data):
            self.drop(key, block)
        else:
            self._blocks[key, block] = landed._replace(given=given)

    def forget(self, key: str) -> None:
        """An object was not what its source says it is."""
        for block in [block for known, block in self._blocks if known == key]:
            self.drop(key, block)

    def _expire(self, now_s: float) -> None:
        while self._blocks:
            oldest = next(iter(self._blocks))
            if self._blocks[oldest].until_s > now_s:
                return
            self.drop(*oldest)
