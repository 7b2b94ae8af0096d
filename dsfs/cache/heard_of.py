"""Which objects were never here: known from memory, where looking for one in vain costs a reader a thread and a wait.

A mark for the beginning of each key that was heard of, so "it may be here" is said of some that are not, and of all
until what lies on the disk was gone through. What goes keeps its mark until that is done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

_SLOTS: Final = 1 << 22
"""Bytes. Of a million objects each fifth that is not here is taken for one that may be."""
_MANY: Final = _SLOTS // 8


class HeardOf:
    """Any thread: a mark is one byte, written at once. Keys are hex digits of a hash."""

    def __init__(self) -> None:
        self._marks = bytearray(_SLOTS)
        self._coming: bytearray | None = None
        self._knows = False
        self._noted = 0

    def note(self, key: str) -> None:
        """An object is here."""
        slot = _slot(key)
        if (coming := self._coming) is not None:  # first, as it may become the other one before the next line
            coming[slot] = 1
        self._marks[slot] = 1
        self._noted += 1

    def never(self, key: str) -> bool:
        """Whether it is known that an object is not here."""
        return self._knows and not self._marks[_slot(key)]

    @property
    def is_stale(self) -> bool:
        """Whether going through what is here would be worth it."""
        return not self._knows or self._noted > _MANY

    def learn(self, names: Iterable[str]) -> None:
        """Go through all that is here, and forget what is gone. What does not begin with a key is nobody's. By one
        thread at a time."""
        coming = self._coming = bytearray(_SLOTS)
        noted = self._noted
        try:
            for name in names:
                with contextlib.suppress(ValueError):
                    coming[_slot(name)] = 1
            self._marks, self._knows = coming, True
            self._noted -= noted
        finally:
            self._coming = None


def _slot(key: str) -> int:
    return int(key[:6], 16) >> 2
