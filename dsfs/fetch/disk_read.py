"""One read of the node tier: at once, or by somebody who may wait for the disk."""

from __future__ import annotations

import errno

import structlog
import trio

from dsfs.cache.complete import CachedObject
from dsfs.cache.damage import DamagedObject
from dsfs.cache.node import NodeTier
from dsfs.fetch.disk import DISK
from dsfs.fetch.origin import RemoteFile
from dsfs.model import Tier
from dsfs.ranges import ByteRange

log = structlog.get_logger()


def read_now(tier: NodeTier, obj: CachedObject, wanted: ByteRange, into: memoryview) -> bool:
    """``obj.read``, if the pages are in memory. Raises BlockingIOError if not; the kernel begins to bring them in."""
    try:
        return obj.read(wanted, into, tier.nowait)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or not tier.nowait:
            raise
    tier.nowait = 0
    return obj.read(wanted, into)


async def read_waiting(tier: NodeTier, obj: CachedObject, wanted: ByteRange, into: memoryview) -> bool:
    """``obj.read``, by a thread that waits. What cannot be read is dropped: then False, as for what is not here."""
    return await trio.to_thread.run_sync(_read_or_drop, tier, obj, wanted, into, limiter=DISK)


def _read_or_drop(tier: NodeTier, obj: CachedObject, wanted: ByteRange, into: memoryview) -> bool:
    try:
        return obj.read(wanted, into)
    except (DamagedObject, OSError) as error:
        tier.drop_unreadable(obj, error)  # a block that cannot be read is a block that is not here
        return False


class DiskRead:
    """A range of an object that is likely to be here; ``obj`` if it is open. What was read is counted.

    Whatever is wrong makes it answer False: ``Reader.read`` then knows what to do about it.
    """

    __slots__ = ("_file", "_obj", "_tier", "wanted")

    def __init__(self, tier: NodeTier, file: RemoteFile, wanted: ByteRange, obj: CachedObject | None) -> None:
        self._tier = tier
        self._file = file
        self._obj = obj
        self.wanted = wanted

    @property
    def opened(self) -> bool:
        """Whether ``now`` can come to something."""
        return self._obj is not None

    def now(self, into: memoryview) -> bool:
        """Fill the first bytes of ``into``, if the pages are in memory; if not, the kernel begins to bring them in."""
        if self._obj is None:
            return False
        try:
            here = read_now(self._tier, self._obj, self.wanted, into[: self.wanted.length])
        except BlockingIOError:
            return False
        except (DamagedObject, OSError) as error:
            return self._wrong(error)
        return here and self._done(self._obj)

    def wait(self, into: memoryview) -> bool:
        """Fill the first bytes of ``into``, however long the disk takes. For any thread."""
        file = self._file
        try:
            obj = self._obj or self._tier.open_complete(file.key, file.size_bytes, file.origin.id)
            here = obj is not None and obj.read(self.wanted, into[: self.wanted.length])
        except (DamagedObject, OSError) as error:
            return self._wrong(error)
        return here and obj is not None and self._done(obj)

    def _done(self, obj: CachedObject) -> bool:
        if self.wanted.length < obj.size_bytes:  # the rest will be asked for
            self._tier.keep_open(obj)
        self._file.origin.count_read(Tier.NODE, self.wanted.length)
        return True

    def _wrong(self, error: Exception) -> bool:
        file = self._file
        log.debug("cached object cannot be read", dataset=file.origin.id, path=file.obj.path, reason=str(error))
        return False
