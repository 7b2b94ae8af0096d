"""What an object takes on a disk of 4 KiB blocks, in bytes."""

from __future__ import annotations

from dsfs.cache.mapfile import map_bytes
from dsfs.ranges import block_count

_PAGE = 4096


def space_of(size_bytes: int) -> int:
    """What so many bytes take on a disk of 4 KiB blocks."""
    return -(-size_bytes // _PAGE) * _PAGE


def map_space(size_bytes: int, block_bytes: int) -> int:
    """What the map of an object takes on disk."""
    return space_of(map_bytes(block_count(size_bytes, block_bytes)))


def whole_space(size_bytes: int, block_bytes: int) -> int:
    """What all of an object takes on disk, with its map."""
    return space_of(size_bytes) + map_space(size_bytes, block_bytes)
