"""Nodeids are computed, not remembered: a dataset's slot in the high bits, its catalog's inode number in the low.

So a new server knows at once what every number means, and lookups and forgets need no memory. Slot 0 is the tree of
namespaces. The root of a connection is always 1 (FUSE_ROOT_ID in <linux/fuse.h>).
"""

from __future__ import annotations

from dsfs.catalog.lookup import INO_BITS

ROOT_ID = 1
_INO_MASK = (1 << INO_BITS) - 1


def nodeid_of(slot: int, ino: int) -> int:
    return slot << INO_BITS | ino


def slot_of(nodeid: int) -> int:
    return nodeid >> INO_BITS


def ino_of(nodeid: int) -> int:
    return nodeid & _INO_MASK
