"""When the rest of a large file is worth bringing in behind readers that jump about in it."""

from __future__ import annotations

COMPLETE_SHARE = 0.25
"""A file of which so much was read is likely to be read whole; below it a reader may just look at a header."""
ROOM_SHARE = 0.5
"""A file larger than this part of the cache would push out more than it is worth."""


def worth_completing(present_bytes: int, size_bytes: int, cache_limit_bytes: int) -> bool:
    """Whether to fetch what is missing in the background."""
    return size_bytes * COMPLETE_SHARE <= present_bytes < size_bytes and size_bytes <= cache_limit_bytes * ROOM_SHARE
