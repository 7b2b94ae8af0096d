"""One flight: blocks of one object on their way, and those of them that have landed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog
import trio

from dsfs.cache.complete import CachedObject
from dsfs.cache.shared_file import Group
from dsfs.errors import SourceError
from dsfs.fetch.disk import DISK
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Ticket
from dsfs.fetch.shared import Bringing
from dsfs.model import Tier
from dsfs.ranges import ByteRange, block_count, block_range

log = structlog.get_logger()

SMALL_BLOCKS = 4
"""An object of up to so many blocks is fetched whole on first use and stored as two renamed files."""


def range_of(file: RemoteFile, blocks: range, block_bytes: int) -> ByteRange:
    """The bytes of consecutive blocks, of which there is one at least."""
    first = block_range(blocks.start, file.size_bytes, block_bytes)
    last = block_range(blocks.stop - 1, file.size_bytes, block_bytes)
    return ByteRange(first.start, last.stop)


@dataclass(slots=True, eq=False)
class Flight:
    """Blocks of one object on their way. ``data`` holds those that have landed, until the flight is forgotten."""

    file: RemoteFile
    blocks: range
    block_bytes: int
    ticket: Ticket
    started_s: float
    """On trio's clock."""
    first: int
    """The block that was asked for: it is fetched before those that come along with it."""
    group: Group | None = None
    """What these blocks are in the shared tier, if they may go through it."""
    bringing: Bringing | None = None
    """The right to bring them there, while this node has it."""
    tier: Tier = Tier.ORIGIN
    """Where its blocks come from."""
    waited_s: float = 0.0
    """For other nodes, or a courier."""
    patient: bool = True
    """Whether it would wait for another node."""
    data: dict[int, memoryview] = field(default_factory=dict)
    error: SourceError | None = None
    done: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    scope: trio.CancelScope | None = None
    """Of its task, if it has one."""
    early_bytes: int = 0
    """How much of the block ``first`` somebody waits for; 0: for all of it, or nobody does."""
    early: memoryview = field(default_factory=lambda: memoryview(b""))
    """The beginning of that block, while it has not landed."""
    handed_out: bool = False
    """Whether its readers get the bytes from here, so that they need not be in the page cache of the file as well."""
    when_over: list[Callable[[], None]] = field(default_factory=list)
    """Called once when it is done, for who waits without a task."""
    joined: bool = False
    """Whether somebody else asked for it too, and may read what comes."""
    stored: CachedObject | None = None
    """The small object that it was for, once a courier has stored it; then ``data`` is read from there."""
    kept: bool = False
    """Whether a courier has stored it; ``stored`` only where somebody was going to read it."""
    told: SourceError | None = None
    """What the source answered a courier: the first try of the flight's own ends with it."""

    @property
    def wanted(self) -> ByteRange:
        """The bytes of its blocks."""
        return range_of(self.file, self.blocks, self.block_bytes)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a small object, which is stored as a whole."""
        total = block_count(self.file.size_bytes, self.block_bytes)
        return len(self.blocks) == total <= SMALL_BLOCKS

    def fail(self, error: SourceError) -> None:
        """No more of it will come, and this is why."""
        self.error = error
        log.warning(
            "fetch failed",
            dataset=self.file.origin.id,
            path=self.file.obj.path,
            offset=self.wanted.start,
            error=type(error).__name__,
            reason=str(error),
        )

    def show(self, landed: Mapping[int, memoryview]) -> None:
        """Give blocks to those who wait for them."""
        self.data.update(landed)
        if self.bringing is not None:
            self.bringing.landed = len(self.data)
        self.changed.unpark_all()

    def show_early(self, beginning: memoryview) -> None:
        """As ``show``, of the beginning of the block ``first``."""
        self.early = beginning
        self.changed.unpark_all()

    async def block(self, block: int, stop: float = math.inf) -> memoryview:
        """Wait for one block, or for its first ``stop`` bytes at least; its bytes.

        Raises the SourceError that ended the flight; DamagedObject and OSError of what was stored and cannot be read.
        """
        while block not in self.data and self.stored is None:
            if block == self.first and stop <= len(self.early):
                return self.early
            if self.error is not None:
                raise self.error
            await self.changed.park()
        if block not in self.data:
            assert self.stored is not None
            place = block_range(block, self.file.size_bytes, self.block_bytes)
            self.data[block] = await _read(self.stored, place)
        return self.data[block]

    async def end(self) -> None:
        """Wait until all of it is stored, or could not be. Raises the SourceError that ended the flight."""
        while not self.done:
            await self.changed.park()
        if self.error is not None:
            raise self.error


async def _read(obj: CachedObject, wanted: ByteRange) -> memoryview:
    """Bytes of an object that was written just now, so they are in memory still; else a thread waits for them."""
    buffer = bytearray(wanted.length)
    try:
        obj.read(wanted, memoryview(buffer), os.RWF_NOWAIT)
    except OSError:  # not in memory any more, or a file system that knows no such flag
        await trio.to_thread.run_sync(obj.read, wanted, memoryview(buffer), limiter=DISK)
    return memoryview(buffer).toreadonly()
