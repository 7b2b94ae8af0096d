"""How often objects were used lately, here or not: a count-min sketch, of the same size for any number of them.

What was evicted, or never kept, is counted too; that is how an object that comes again is told from one that was read
once. Counts end at 15 and are halved again and again, so that what was popular long ago is forgotten.
"""

from __future__ import annotations

_DEPTH = 4
_MOST = 15
_HALVES = bytes(value // 2 for value in range(256))
_USES_PER_OBJECT = 10
"""Counts are halved after so many uses for each object that is here. A dataset ten times as large as the cache is still
remembered from one epoch to the next."""
_LEAST_USES = 20_000
WIDTH_BITS = 20
"""4 MiB, for some million objects."""


class Frequencies:
    """One writer at a time. ``table`` is what a restart keeps."""

    def __init__(self, table: bytes | None = None, width_bits: int = WIDTH_BITS) -> None:
        size = _DEPTH << width_bits
        self.table = bytearray(table) if table is not None and len(table) == size else bytearray(size)
        self._bits = width_bits
        self._uses = 0

    def count(self, key: str, objects: int) -> None:
        """One more use; ``objects`` is how many are here."""
        places = self._places(key)
        least = min(self.table[place] for place in places)
        if least < _MOST:
            for place in places:
                if self.table[place] == least:  # only the lowest: the others count somebody else already
                    self.table[place] = least + 1
        self._uses += 1
        if self._uses >= max(_LEAST_USES, _USES_PER_OBJECT * objects):
            self._uses = 0
            self.table = self.table.translate(_HALVES)

    def of(self, key: str) -> int:
        """About how often, from 0 to 15."""
        return min(self.table[place] for place in self._places(key))

    def _places(self, key: str) -> tuple[int, int, int, int]:
        bits = self._bits
        number, mask = int(key[:20], 16), (1 << bits) - 1
        size = 1 << bits
        return (
            number & mask,
            size + (number >> 20 & mask),
            2 * size + (number >> 40 & mask),
            3 * size + (number >> 60 & mask),
        )
