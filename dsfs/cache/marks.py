"""Which of many objects were seen, in little memory: a Bloom filter (1970) of one hash, which keys are already."""

from __future__ import annotations

from typing import Final

_BITS_PER_KEY: Final = 64
_LEAST_BITS: Final = 1 << 20


class Marks:
    """For so many keys of objects. One in 64 of those that were never added is taken for one that was, at most; 8 bytes
    a key."""

    def __init__(self, keys: int) -> None:
        self._bits = max(_LEAST_BITS, keys * _BITS_PER_KEY)
        self._marks = bytearray(self._bits // 8 + 1)

    def add(self, key: str) -> None:
        place = int(key[:16], 16) % self._bits
        self._marks[place >> 3] |= 1 << (place & 7)

    def __contains__(self, key: str) -> bool:
        place = int(key[:16], 16) % self._bits
        return bool(self._marks[place >> 3] & 1 << (place & 7))
