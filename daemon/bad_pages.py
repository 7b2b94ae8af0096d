"""The kernel's pages of what the cache had other bytes of than were written: readers must not be given those any more.

A cached block is read without its checksum, which a check finds wrong later (``dsfs verify``, the check in the
background); by then the kernel may have what a reader was given.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dsfs.cache.node import NodeTier
from dsfs.fuse.direct import DirectSession

if TYPE_CHECKING:
    from dsfs.fuse.pyfuse3 import PortableSession


class BadPages:
    """Notes what ``tier`` finds to be bad, in whatever thread; ``forget`` belongs to the file side."""

    def __init__(self, tier: NodeTier, session: DirectSession | PortableSession) -> None:
        self._session = session
        self._keys: deque[str] = deque()
        tier.on_bad = self._keys.append

    async def forget(self) -> None:
        """Have the kernel drop the pages of what was found since. Goes through catalogs, if anything was."""
        keys: set[str] = set()
        while self._keys:
            keys.add(self._keys.popleft())
        if keys:
            await self._session.forget_objects(frozenset(keys))
