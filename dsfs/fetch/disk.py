"""The threads that wait for the cache's disk on behalf of the file side: few, as a disk is one."""

from __future__ import annotations

import trio

DISK = trio.CapacityLimiter(8)
