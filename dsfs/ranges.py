"""Byte ranges and blocks: the arithmetic that the cache and the fetcher stand on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class ByteRange(NamedTuple):
    """Bytes ``start`` up to, but without, ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return max(0, self.stop - self.start)

    def clipped(self, size_bytes: int) -> ByteRange:
        """The part that lies inside a file of this size; empty when it lies behind its end."""
        start = min(self.start, size_bytes)
        return ByteRange(start, max(start, min(self.stop, size_bytes)))


def block_count(size_bytes: int, block_bytes: int) -> int:
    """Blocks that a file of this size has; an empty file has none."""
    return -(-size_bytes // block_bytes)


def block_range(block: int, size_bytes: int, block_bytes: int) -> ByteRange:
    """The bytes of one block; the last one may be short."""
    start = block * block_bytes
    return ByteRange(start, min(start + block_bytes, size_bytes))


def blocks_of(wanted: ByteRange, block_bytes: int) -> range:
    """The blocks that a byte range touches."""
    if wanted.length == 0:
        return range(0)
    return range(wanted.start // block_bytes, (wanted.stop - 1) // block_bytes + 1)


def runs(blocks: Iterable[int], longest: int) -> Iterator[range]:
    """Ascending block numbers grouped into consecutive runs of at most ``longest`` blocks."""
    start = previous = -1
    for block in blocks:
        if start >= 0 and block == previous + 1 and block - start < longest:
            previous = block
            continue
        if start >= 0:
            yield range(start, previous + 1)
        start = previous = block
    if start >= 0:
        yield range(start, previous + 1)
