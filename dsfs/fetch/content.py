"""Whether a large object is what its source says, looked at once all of it is here."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import structlog
import trio
from cachetools import LRUCache

from dsfs import metrics
from dsfs.bridge import Bridge
from dsfs.cache.complete import CachedObject
from dsfs.cache.node import NodeTier
from dsfs.cache.past_cache import PastCache
from dsfs.errors import SourceError
from dsfs.fetch.disk import DISK
from dsfs.fetch.origin import RemoteFile
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.digest import Digest, ask_digest, digest_of, may_tell

log = structlog.get_logger()

_PIECE_BYTES = 1 * MiB
_SUSPECTS = 1024
_AT_ONCE = 4  # one is hashed, others ask for what they should hash to; more would only hold descriptors
_DOUBTS_MAX = 3
_HAVE_FITTED = -math.inf


async def _nobody_to_tell(_file: RemoteFile) -> None:
    return


class ContentChecks:
    """File side only; ``nursery`` outlives every reader. A small object is checked before it is stored (``sink``).

    Until an object is proven here the kernel is not handed its file (``Reader.complete``): a handle in passthrough
    would keep wrong bytes for as long as it is open, where one that asks the daemon gets right ones after the drop.
    """

    def __init__(self, nursery: trio.Nursery, bridge: Bridge, tier: NodeTier) -> None:
        self._nursery = nursery
        self._bridge = bridge
        self._tier = tier
        self._checking: set[str] = set()
        # Where a hash is only likely to be one: what objects came as that it does not fit, and how many those were of a
        # dataset of which none has fitted yet.
        self._suspects: LRUCache[str, str] = LRUCache(_SUSPECTS)
        self._doubts: LRUCache[str, float] = LRUCache(_SUSPECTS)
        self._hashers = trio.CapacityLimiter(1)
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        self.doubted: LRUCache[str, bool] = LRUCache(_SUSPECTS)
        """Objects that came wrong, and not right since."""
        self.on_doubt: Callable[[RemoteFile], Awaitable[None]] = _nobody_to_tell
        """Told of an object that came wrong, once it is dropped here: others may be given what came of it."""
        self.forget: Callable[[str], object] = lambda _key: None
        """Told of an object that came wrong: what memory has of it is not to be given any more either."""
        self.on_wrong: Callable[[RemoteFile], Awaitable[None]] = _nobody_to_tell
        """Told of an object that was dropped: the kernel may have pages of it."""

    @property
    def under_way(self) -> int:
        """Objects that are being checked, or wait for it."""
        return len(self._checking)

    def expect(self, file: RemoteFile) -> None:
        """A large object is about to be made: whether it has to be proven is written down first. Raises OSError."""
        source = file.origin.source
        if may_tell(source, file.obj) or digest_of(source, file.obj) is not None:
            self._tier.unproven.add(file.key)

    def once_complete(self, file: RemoteFile, obj: CachedObject | None) -> None:
        """Have an object checked that may have to be, if all of it is here."""
        if obj is not None and obj.complete and file.key in self._tier.unproven and file.key not in self._checking:
            self._checking.add(file.key)
            self._nursery.start_soon(self._check_in_turn, file)

    async def _check_in_turn(self, file: RemoteFile) -> None:
        async with self._turns:
            try:
                obj = self._tier.open(file.key, file.size_bytes, file.origin.id)
                if obj is not None and obj.complete:  # else it went while others were checked
                    await self._check(file, obj)
            finally:
                self._checking.discard(file.key)

    async def _check(self, file: RemoteFile, obj: CachedObject) -> None:
        """Drop a large object that is not what its source says.

        Behind its readers, one object at a time. What was read before, and is read meanwhile, was of one version
        as far as the source's headers say; that is all that can be said of it.
        """
        try:
            digest = await self._digest(file)
            found = None if digest is None else await self._hash(digest, obj)
            if digest is None or found == digest.hex or self._disowned(file, digest, found or ""):
                if digest is not None and digest.disown is not None and found == digest.hex:
                    self._has_fitted(file, digest)
                self.doubted.pop(file.key, None)
                await trio.to_thread.run_sync(self._tier.unproven.discard, file.key, limiter=DISK)
                file.origin.note_content(file.obj.path, right=True)
            elif not obj.unlinked:  # else another may have its name by now
                await self._drop(file, digest, found or "")
        except SourceError as error:
            log.info("no hash of a file can be had", dataset=file.origin.id, path=file.obj.path, reason=str(error))
            self._tier.unproven.put_off(file.key)
        except OSError as error:
            self._tier.note_trouble(error)
        except Exception:  # as in a flight: a bug here must not end the server, nor keep the file from the kernel
            log.exception("file could not be compared with its hash", dataset=file.origin.id, path=file.obj.path)
            self._tier.unproven.put_off(file.key)

    async def _digest(self, file: RemoteFile) -> Digest | None:
        """What the source says when it is asked, else what it lists or what is only likely to be a hash."""
        with file.origin.held() as source:
            asked = None
            if may_tell(source, file.obj):
                with file.origin.counted():
                    asked = await self._bridge.call(ask_digest, source, file.obj)
            return asked or digest_of(source, file.obj)

    async def _hash(self, digest: Digest, obj: CachedObject) -> str:
        def work() -> str:
            hasher = digest.hasher(obj.size_bytes)
            with PastCache().reading(obj.fd, keep_cached=True) as read:
                for start in range(0, obj.size_bytes, _PIECE_BYTES):
                    hasher.update(read(ByteRange(start, min(start + _PIECE_BYTES, obj.size_bytes))))
            return hasher.hexdigest()

        return await trio.to_thread.run_sync(work, limiter=self._hashers)

    def _disowned(self, file: RemoteFile, digest: Digest, found: str) -> bool:
        """Doubt what only looked like a hash of the content; whether it is none by now, and the source told so: it came
        twice, the same both times; or several of a dataset did not fit, and none ever did."""
        if digest.disown is None:
            return False
        doubts = self._doubts[file.origin.id] = self._doubts.get(file.origin.id, 0) + 1
        if self._suspects.get(file.key) != found and doubts < _DOUBTS_MAX:
            return False
        digest.disown()
        return True

    def _has_fitted(self, file: RemoteFile, digest: Digest) -> None:
        self._doubts[file.origin.id] = _HAVE_FITTED
        before = self._suspects.pop(file.key, None)
        if before is not None:  # so it was the first time that it came wrong
            self._say_wrong(file, digest, before)

    async def _drop(self, file: RemoteFile, digest: Digest, found: str) -> None:
        if digest.disown is not None:
            self._suspects[file.key] = found
            log.info("a file is fetched anew, or its ETag is no MD5", dataset=file.origin.id, path=file.obj.path)
        self.doubted[file.key] = True
        self.forget(file.key)
        await trio.to_thread.run_sync(self._tier.drop, file.key, limiter=DISK)
        await self.on_wrong(file)
        await self.on_doubt(file)
        if digest.disown is None:  # now that nobody is given it any more
            self._say_wrong(file, digest, found)
            file.origin.note_content(file.obj.path, right=False)

    def _say_wrong(self, file: RemoteFile, digest: Digest, found: str) -> None:
        metrics.CORRUPT_BLOCKS.inc()
        log.warning(
            "what the source sent is not what it lists, dropped",
            dataset=file.origin.id,
            path=file.obj.path,
            listed=f"{digest.algorithm}:{digest.hex}",
            found=found,
        )
