"""Blocks that were written under another boot: they count once they are found right, by whoever wants them first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.complete import CachedObject
from dsfs.cache.mapfile import State
from dsfs.cache.node import NodeTier
from dsfs.cache.verify import is_right
from dsfs.fetch.disk import DISK
from dsfs.ranges import ByteRange

_ROUNDS: Final = 5  # another block may be punched while one is checked, but hardly five times in a row


async def to_fetch(tier: NodeTier, obj: CachedObject, wanted: ByteRange) -> list[int]:
    """The blocks of a range that have to be fetched. Waits for the disk where some want checking."""
    absent = obj.missing(wanted)
    if isinstance(obj, BlockMap):
        unchecked = [block for block in absent if obj.state(block) == State.UNCHECKED]
        if unchecked:
            await check(tier, obj, unchecked)
            absent = obj.missing(wanted)
    return absent


async def check(tier: NodeTier, obj: BlockMap, blocks: Sequence[int]) -> None:
    """Have UNCHECKED blocks count, or dropped. Waits for the disk."""
    for block in blocks:
        try:
            for _round in range(_ROUNDS):
                right = await trio.to_thread.run_sync(is_right, obj, block, limiter=DISK)
                if obj.state(block) != State.UNCHECKED:
                    break  # found right, here or by another reader, or taken back
                if not right:
                    tier.drop_bad_block(obj, block)
                    break
                # else another block was punched meanwhile, and this one has to be looked at again
        except OSError as error:
            tier.note_trouble(error)
