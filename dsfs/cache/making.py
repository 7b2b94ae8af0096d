"""Which objects are being made, and which are being cleared away as nobody's: never both at once.

Half of an object that comes just now looks on the disk like half of one that never will.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Making:
    """Any thread. ``is_open`` says whether somebody has an object open, which makes it somebody's."""

    def __init__(self, is_open: Callable[[str], bool]) -> None:
        self._is_open = is_open
        self._changed = threading.Condition()  # guards what is below; never held over a system call
        self._made: Counter[str] = Counter()
        self._cleared: set[str] = set()

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Around the making of an object's files. Waits while they are being cleared away: two unlinks."""
        with self._changed:
            while key in self._cleared:
                self._changed.wait()
            self._made[key] += 1
        try:
            yield
        finally:
            self.end(key)

    def begin(self, key: str) -> bool:
        """As ``making``, without waiting, and until ``end``; False: they are being cleared away just now."""
        with self._changed:
            if key in self._cleared:
                return False
            self._made[key] += 1
            return True

    def end(self, key: str) -> None:
        with self._changed:
            self._made[key] -= 1
            if not self._made[key]:
                del self._made[key]

    def under_way(self, key: str) -> bool:
        with self._changed:
            return key in self._made

    @contextmanager
    def clearing(self, key: str, *, even_open: bool = False) -> Iterator[bool]:
        """Whether what lies on the disk under this key may be removed inside: nobody makes it, or has it open.

        ``even_open``: who has it open keeps it; or it is files under temporary names alone, which are not open.
        """
        with self._changed:
            free = key not in self._made and key not in self._cleared and (even_open or not self._is_open(key))
            if free:
                self._cleared.add(key)
        try:
            yield free
        finally:
            if free:
                with self._changed:
                    self._cleared.discard(key)
                    self._changed.notify_all()
