"""The kernel's pages of what the cache had other bytes of than were written: readers must not be given those any more.

A cached block is read without its checksum, which a check finds wrong later (``dsfs verify``, the check in the
background); by then the kernel may have what a reader was given.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from dsfs.cache.node import NodeTier

if TYPE_CHECKING:
    from dsfs.fuse.direct import DirectSession
    from dsfs.fuse.pyfuse3 import PortableSession


class BadPages:
    """Notes what ``tier`` finds to be bad, in whatever thread; ``forget`` belongs to the file side."""

    def __init__(self, tier: NodeTier, session: DirectSession | PortableSession) -> None:
        self._session = session
        self._keys: deque[str] = deque()
        self._forgetting = trio.Lock()
        tier.on_bad = self._keys.append

    async def forget(self) -> None:
        """Have the kernel drop the pages of what was found since. Goes through catalogs, if anything was.

        What goes wrong is raised, and the same tried again with the next call.
        """
        async with self._forgetting:  # whoever comes meanwhile is told when it is done
            keys = list(self._keys)
            if keys:
                await self._session.forget_objects(frozenset(keys))
                for _key in keys:
                    self._keys.popleft()
