"""The node tier: the objects in one cache directory, within a limit of bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from dsfs import metrics
from dsfs.cache.allowance import Allowance
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.eviction import LARGEST_ROOM_BYTES, ROOM_SHARE
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.objects import BLOCK_BYTES, OPEN_OBJECTS, Objects
from dsfs.errors import CacheFull
from dsfs.model import Tier

log = structlog.get_logger()
T = TypeVar("T")

_BUSY_S = 0.005  # and what was chosen to go, but was just being made or written, may go


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """A snapshot, in bytes."""

    used_bytes: int
    limit_bytes: int
    """What may be used now: less than ``size_bytes`` when others need the disk."""
    size_bytes: int
    """What may be used when the disk has room."""
    alone_bytes: int
    """What could be used if nobody else used the disk."""
    reserved_bytes: int
    trouble: str


class NodeTier(Objects):
    """``limit`` says how many bytes may be used now, ``least_free`` how many shall stay free on the disk whoever fills
    it; both are functions, as "80%" follows the disk. They are asked once a second, and whenever room is made."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        limit: Callable[[], int],
        boot: bytes,
        block_bytes: int = BLOCK_BYTES,
        least_free: Callable[[], int] = lambda: 0,
        open_objects: int = OPEN_OBJECTS,
    ) -> None:
        super().__init__(layout, index, boot, block_bytes, open_objects)
        self.evicted_bytes = 0
        """Since it was opened, to make room."""
        self._overhead_bytes = 0
        self._allowance = Allowance(layout.root, limit, least_free, lambda: self.used_bytes)
        self._evicting = threading.Lock()
        self._look_at_disk()

    def statistics(self) -> NodeStatistics:
        allowance = self._allowance
        return NodeStatistics(
            self.used_bytes,
            allowance.limit_bytes,
            allowance.size_bytes,
            allowance.alone_bytes,
            allowance.reserved_bytes,
            self._trouble.reason,
        )

    def _look_at_disk(self) -> None:
        """How much may be used now. Blocks on the disk."""
        self._allowance.look(self._opened.leaving_bytes)
        self.index.limit_bytes = self._allowance.limit_bytes

    @property
    def used_bytes(self) -> int:
        """All that lies in the cache directory: objects, catalogs and index."""
        return self.index.used_bytes + self._overhead_bytes

    @property
    def room_bytes(self) -> int:
        """What objects may use of the limit: all but catalogs and index."""
        return max(0, self._allowance.limit_bytes - self._overhead_bytes)

    # -- room ---------------------------------------------------------------------------------------------------

    def reserve(self, size_bytes: int) -> bool:
        """Set space aside for a fetch; False when room has to be made first. Give it back with ``release``."""
        return self._allowance.reserve(size_bytes)

    def release(self, size_bytes: int) -> None:
        """What was fetched is counted as used by now, or did not come."""
        self._allowance.release(size_bytes)

    def make_room(self, size_bytes: int, key: str = "") -> None:
        """Evict until ``size_bytes`` can be reserved, and reserve them. Blocks on the disk.

        ``key`` is the object that they are for: a large one is not evicted so that more of it can be kept, and takes
        only the places of what is used less. Raises CacheFull when nothing else is left that may go.
        """
        looks = 2
        with self._evicting:
            self._look_at_disk()
            while not self.reserve(size_bytes):  # again where others were quicker to take what became free
                limit = self._allowance.limit_bytes
                # a little more than asked for, or every block of a full cache would pay for an eviction of its own
                more = min(int(limit * ROOM_SHARE), LARGEST_ROOM_BYTES)
                need = self.used_bytes + self._allowance.reserved_bytes + size_bytes - limit + more
                freed = None if size_bytes > limit else self._evict_some(need, key)
                looks -= freed == 0
                if freed is None or not looks:
                    raise CacheFull(f"{size_bytes} bytes do not fit: {self.used_bytes} of {limit} are in use")
                if freed == 0:
                    time.sleep(_BUSY_S)

    def _evict_some(self, need_bytes: int, key: str) -> int | None:
        """Evict until so much is free, as far as that may be; the bytes that were freed. None: nothing may go."""
        before_bytes = self.evicted_bytes
        self._flush_index()
        victims = self.index.choose_victims(need_bytes, key)
        if not victims:
            return None
        for victim in victims:
            if not self.index.pinned(victim.key):  # nor since it was chosen
                freed = self.evict(victim.key)
                self.evicted_bytes += freed
                metrics.EVICTED_BYTES.inc(freed)
        self._flush_index()
        return self.evicted_bytes - before_bytes

    def evict(self, key: str) -> int:
        """Give back one object's space; the bytes that were freed, 0 when it is being written just now.

        A partial object that somebody has open is punched, as an unlinked one would keep its space; a complete one
        is unlinked, and who holds it keeps it.
        """
        obj = self._opened.get(key)
        if isinstance(obj, BlockMap) and not obj.complete:
            try:
                freed = obj.retract(range(obj.blocks), lambda _freed: self._count_empty(obj))
            except OSError as error:  # a file system that cannot punch: its blocks are taken back, its space is not
                self.note_trouble(error)
                return self.drop(key)
            return freed or 0
        return self.drop(key)

    # -- health and upkeep --------------------------------------------------------------------------------------

    def unless_refused(self, work: Callable[[], T]) -> T | None:
        """Do what may fail; None when the disk refuses, which is noted as trouble.

        One that is too full for what is noted is one more reason to evict, and no reason to stop.
        """
        try:
            return work()
        except OSError as error:
            self.note_trouble(error)
            return None

    def _flush_index(self) -> None:
        self.unless_refused(lambda: self.index.flush(time.time()))

    def learn_names(self) -> None:
        """Go through the names of all objects, if that is due. Blocks on the disk: a second or two for a million."""
        if self._heard_of.is_stale:
            self.unless_refused(lambda: self._heard_of.learn(self.layout.names()))

    def upkeep(self) -> None:
        """Write the index, measure the disk and what else lies there, set the gauges. Once a second; blocks on it.

        Where that refuses, trouble is noted, and what was known before stays.
        """
        self.unless_refused(self._upkeep)

    def _upkeep(self) -> None:
        self._flush_index()
        self.unless_refused(lambda: self.index.save_sometimes(time.time()))
        self._trouble.look_again(lambda: self.layout.try_to_keep(self.block_bytes))
        self._overhead_bytes = self.layout.overhead_bytes()
        self._look_at_disk()
        # catalogs and index may have grown, or a percentage of the disk shrunk
        if self.used_bytes > self._allowance.limit_bytes:
            try:
                self.make_room(0)
            except CacheFull as full:
                log.debug("cache stays over its limit", cache=self.layout.root, reason=str(full))
        metrics.CACHE_BYTES.labels(Tier.NODE).set(self.used_bytes)
        metrics.CACHE_LIMIT_BYTES.labels(Tier.NODE).set(self._allowance.size_bytes)
