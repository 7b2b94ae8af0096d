"""How much of the disk the node tier may use now, and what of that is set aside for what is being fetched."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Allowance:
    """All in bytes, for any thread. ``used`` is what lies in the cache directory, counted by others.

    ``limit`` and ``least_free`` are as ``NodeTier`` has them.
    """

    def __init__(
        self, root: str, limit: Callable[[], int], least_free: Callable[[], int], used: Callable[[], int]
    ) -> None:
        self._root = root
        self._limit = limit
        self._least_free = least_free
        self._used = used
        self._lock = threading.Lock()  # guards reserved_bytes
        self.reserved_bytes = 0
        self.limit_bytes = 0
        """What may be used now: less than ``size_bytes`` when others need the disk."""
        self.size_bytes = 0
        """What may be used when the disk has room."""
        self.alone_bytes = 0
        """What could be used if nobody else used the disk."""

    def look(self, leaving_bytes: Callable[[], int]) -> None:
        """Ask the disk again. ``leaving_bytes`` is what is unlinked and still open: that comes back by itself, and must
        not cost others theirs."""
        limit_bytes = self.size_bytes = alone_bytes = self._limit()
        least_free = self._least_free()
        if least_free > 0:
            disk = os.statvfs(self._root)
            spare_bytes = disk.f_bavail * disk.f_frsize + leaving_bytes() - least_free
            limit_bytes = min(limit_bytes, max(0, self._used() + spare_bytes))
            alone_bytes = min(alone_bytes, max(0, disk.f_blocks * disk.f_frsize - least_free))
        self.limit_bytes, self.alone_bytes = limit_bytes, alone_bytes

    def reserve(self, size_bytes: int) -> bool:
        """Set space aside; False when there is not so much. Give it back with ``release``."""
        with self._lock:
            if self._used() + self.reserved_bytes + size_bytes > self.limit_bytes:
                return False
            self.reserved_bytes += size_bytes
            return True

    def release(self, size_bytes: int) -> None:
        """What was fetched is counted as used by now, or did not come."""
        with self._lock:
            self.reserved_bytes -= size_bytes


class SetAside:
    """Space for one fetch: what is stored of it counts as used from then on, and no longer here too. For any thread."""

    def __init__(self, size_bytes: int, release: Callable[[int], None]) -> None:
        self._left_bytes = size_bytes
        self._release = release
        self._lock = threading.Lock()  # guards _left_bytes

    def stored(self, size_bytes: int) -> None:
        """So much is counted as used by now."""
        with self._lock:
            size_bytes = min(size_bytes, self._left_bytes)
            self._left_bytes -= size_bytes
        self._release(size_bytes)

    def give_back(self) -> None:
        """Nothing more will be stored."""
        self.stored(self._left_bytes)
