"""Whether a large object is what its source lists, looked at once all of it is here."""

from __future__ import annotations

import structlog
import trio

from dsfs import metrics
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.node import NodeTier
from dsfs.fetch.disk import DISK
from dsfs.fetch.origin import RemoteFile
from dsfs.sources.digest import digest_of

log = structlog.get_logger()


class ContentChecks:
    """File side only; ``nursery`` outlives every reader. A small object is checked before it is stored (``sink``)."""

    def __init__(self, nursery: trio.Nursery, tier: NodeTier) -> None:
        self._nursery = nursery
        self._tier = tier
        self._checking: set[BlockMap] = set()
        self._hashers = trio.CapacityLimiter(1)

    @property
    def under_way(self) -> int:
        """Objects that are being checked, or wait for it."""
        return len(self._checking)

    def once_complete(self, file: RemoteFile, obj: BlockMap | None) -> None:
        if obj is not None and obj.complete and obj not in self._checking:
            self._checking.add(obj)
            self._nursery.start_soon(self._check_content, file, obj)

    async def _check_content(self, file: RemoteFile, obj: BlockMap) -> None:
        """Drop a large object that is not what its source lists, once all of it is here.

        Behind its readers, one object at a time. What was read before, and is read meanwhile, was of one version
        as far as the source's headers say; that is all that can be said of it.
        """
        try:
            digest = digest_of(file.origin.source, file.obj)
            if digest is None or await trio.to_thread.run_sync(
                digest.is_of_file, obj.fd, file.size_bytes, limiter=self._hashers
            ):
                return
            metrics.CORRUPT_BLOCKS.inc()
            log.warning(
                "what the source sent is not what it lists, dropped",
                dataset=file.origin.id,
                path=file.obj.path,
                listed=f"{digest.algorithm}:{digest.hex}",
            )
            if not obj.unlinked:  # else another may have its name by now
                await trio.to_thread.run_sync(self._tier.drop, file.key, limiter=DISK)
        except OSError as error:
            self._tier.note_trouble(error)
        finally:
            self._checking.discard(obj)
