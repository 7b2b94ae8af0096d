"""What lies in one cache directory: objects by key, which are found, made, counted and dropped."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from functools import partial

import structlog

from dsfs import metrics
from dsfs.cache.blockmap import BlockMap
from dsfs.cache.complete import (
    CachedObject,
    CompleteObject,
    open_complete,
    open_known_complete,
    open_object,
)
from dsfs.cache.damage import NO_DESCRIPTORS, DamagedObject, is_of_the_object
from dsfs.cache.direct import DirectWrites
from dsfs.cache.heard_of import HeardOf
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.making import Making
from dsfs.cache.mapfile import State
from dsfs.cache.opened import Opened
from dsfs.cache.space import space_of
from dsfs.cache.trouble import Trouble
from dsfs.cache.unproven import Unproven
from dsfs.cache.whole import Stored, remove_object, store_whole
from dsfs.ranges import MiB

log = structlog.get_logger()

BLOCK_BYTES = 1 * MiB
OPEN_OBJECTS = 512
DESCRIPTORS_EACH = 3  # of an open object: two, and one more when blocks were written past the page cache


class Objects:
    """``open`` and ``create`` belong to one thread (the reader's); the rest may be called from any."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        boot: bytes,
        block_bytes: int = BLOCK_BYTES,
        open_objects: int = OPEN_OBJECTS,
    ) -> None:
        self.layout = layout
        self.index = index
        self.block_bytes = block_bytes
        self.unproven = Unproven(layout.unproven)
        self.nowait = os.RWF_NOWAIT
        """For reads that must not wait; 0 once the file system was found not to know that: tmpfs, which never waits."""
        self.on_bad: Callable[[str], object] = lambda _key: None
        """Told in any thread of an object that has lost a block which readers may have been given, and which was not
        what had been written."""
        self._boot = boot
        self._opened = Opened(open_objects)
        self._heard_of = HeardOf()
        self._making = Making(self._opened.__contains__)
        self.clearing = self._making.clearing
        self._direct = DirectWrites()
        self._trouble = Trouble(layout.root)

    @property
    def in_trouble(self) -> bool:
        """Whether the disk refused something, and has taken nothing since."""
        return bool(self._trouble.reason)

    @property
    def boot(self) -> bytes:
        """What maps say that are true now; see ``layout.trust_id``."""
        return self._boot

    # -- looking up ---------------------------------------------------------------------------------------------

    def open(self, key: str, size_bytes: int, owner: str) -> CachedObject | None:
        """The object if any of it may be here. A damaged one is dropped and counts as absent."""
        obj = self._opened.use(key)
        if obj is None:
            try:
                obj = open_object(self.layout.object_path(key), key, size_bytes, self.block_bytes, self._boot)
            except FileNotFoundError:
                return None
            except DamagedObject as damage:
                self.drop_damaged(key, damage)
                return None
            except OSError as error:
                self.note_trouble(error)
                return None
            if self._heard_of.never(key):  # of a courier that outlived its server
                self._heard_of.note(key)
            self._opened.keep(obj)
        self.index.use(key, owner)
        return obj

    def open_at_once(self, key: str, size_bytes: int, owner: str) -> CachedObject | None:
        """The object if it is open already, or known to be complete; never waits for the disk. None: it may be here."""
        obj = self._opened.use(key)
        if obj is None:
            obj = open_known_complete(self.layout.object_path(key), key, size_bytes, self._boot)
            if obj is None:
                return None
        self.index.use(key, owner)
        return obj

    def open_complete(self, key: str, size_bytes: int, owner: str) -> CachedObject | None:
        """The object if it is open already, or complete. For any thread. None: it may be here. Raises OSError."""
        obj = self._opened.use(key)
        if obj is None:
            obj = open_complete(self.layout.object_path(key), key, size_bytes, self.block_bytes, self._boot)
            if obj is None:
                return None
        self.index.use(key, owner)
        return obj

    def keep_open(self, obj: CachedObject) -> None:
        """More of an object will be asked for."""
        self._opened.keep_if_none(obj)

    def knows(self, key: str) -> bool:
        """Whether an object is open; one that ``open`` has just not found is not."""
        return key in self._opened

    def never_had(self, key: str) -> bool:
        """Whether an object is known not to be here, not even in part. Any thread; never waits for the disk."""
        return self._heard_of.never(key)

    def holds_all(self, key: str, size_bytes: int, owner: str | None) -> bool:
        """Whether every byte of an object is here and checked; then it counts as used by ``owner``. Looks at the disk,
        without keeping anything open: for scans over many objects."""
        if size_bytes == 0:
            return True
        if self.never_had(key):
            return False
        try:
            obj = open_object(self.layout.object_path(key), key, size_bytes, self.block_bytes, self._boot)
        except (DamagedObject, OSError):
            return False  # whoever opens it to bring it in is told
        if obj.complete and owner is not None:
            self.index.use(key, owner)
        return obj.complete

    def create(self, key: str, size_bytes: int, first: Callable[[], None] = lambda: None) -> BlockMap:
        """A new, empty object; ``first`` is called when nobody drops the one before it any more. Raises OSError when
        the disk refuses."""
        with self._making.making(key):
            first()
            obj = BlockMap.create(self.layout.object_path(key), key, size_bytes, self.block_bytes, self._boot)
            self._heard_of.note(key)
            self._opened.keep(obj)
            return obj

    # -- bringing in --------------------------------------------------------------------------------------------

    def put_whole(
        self, key: str, size_bytes: int, data: bytes | bytearray | memoryview, owner: str, *, past_cache: bool = False
    ) -> int:
        """Store an object that is wholly in memory: its data under a new inode, then its map, renamed into place.

        Data without a map counts for nothing; what an earlier try left, a passthrough reader may still hold, so it is
        unlinked and never written into. ``past_cache``: who reads it now has it from memory, and not from this file.

        Returns the space that it takes, in bytes. Raises OSError when the disk refuses; then nothing of it is left.
        """
        path = self.layout.object_path(key)
        direct = self._direct if past_cache else None
        with self._making.making(key):
            try:
                stored = store_whole(path, key, size_bytes, self.block_bytes, self._boot, data, direct)
            except OSError:
                self.drop_cleared(key)
                raise
            os.close(stored.fd)
            self.count_whole(key, size_bytes, stored, owner)
        return stored.space_bytes

    def begin_making(self, key: str) -> bool:
        """A courier is going to store an object; False: not just now. Then ``end_making``, when it is counted."""
        return self._making.begin(key)

    def end_making(self, key: str) -> None:
        self._making.end(key)

    def adopt(self, key: str, size_bytes: int, stored: Stored, owner: str) -> CompleteObject | None:
        """Take over an object that a courier has stored here, and its descriptor, if that came along. For the thread of
        ``open``. None: it is counted, and cannot be opened."""
        # opened first: it closes the descriptor whatever comes, and what is counted may be evicted at once
        obj = self._without_descriptor(key, size_bytes) if stored.fd < 0 else CompleteObject(stored.fd, key, size_bytes)
        self.count_whole(key, size_bytes, stored, owner)
        if obj is not None:
            self._opened.keep(obj)
        return obj

    def _without_descriptor(self, key: str, size_bytes: int) -> CompleteObject | None:
        try:
            return open_complete(self.layout.object_path(key), key, size_bytes, self.block_bytes, self._boot)
        except OSError as error:
            self.note_trouble(error)
            return None

    def count_whole(self, key: str, size_bytes: int, stored: Stored, owner: str) -> None:
        """An object was stored as a whole, by whomever."""
        if stored.replaced:  # what lacked a block, or its map: who holds it keeps it, who comes now gets the new one
            self._forget(key)
        self._heard_of.note(key)
        self.index.add(key, stored.space_bytes, size_bytes, owner)

    def publish(self, obj: BlockMap, block: int, data: bytes | bytearray | memoryview, owner: str) -> int:
        """Store one block of a larger object. Raises OSError when the disk refuses.

        Returns how much of its space is counted with it, in bytes: what others are writing there may be counted first.
        Into an object that was damaged nothing is stored; it is dropped.
        """
        try:
            return self._publish(obj, block, data, owner)
        except DamagedObject as damage:
            self.drop_unreadable(obj, damage)
            return 0

    def _publish(self, obj: BlockMap, block: int, data: bytes | bytearray | memoryview, owner: str) -> int:
        with obj.writer() as writer:  # counted inside, as an eviction may come right after it
            is_new = writer.publish(block, data, self._direct)
            with obj.counting:
                if not obj.unlinked:  # a block may come twice, or into an object that was dropped meanwhile
                    grown_bytes = obj.grown_bytes()
                    if is_new or grown_bytes:
                        self.index.add(obj.key, grown_bytes, len(data) if is_new else 0, owner)
                    return max(0, min(grown_bytes, space_of(len(data))))
        return 0

    def recount(self, key: str) -> None:
        """Have the index know all of an object that somebody has open, if it does not: it may have been lost with what
        was here before. Blocks on the disk; raises OSError."""
        obj = self._opened.get(key)
        if obj is None or self._making.under_way(key):
            return  # gone; or counted by who makes it
        if isinstance(obj, BlockMap):
            with obj.counting:
                self._count_all(obj, obj.counted_bytes)
            return
        with contextlib.suppress(FileNotFoundError):  # evicted just now
            self._count_all(obj, self.layout.object_space_bytes(key))

    def count_found(self, obj: BlockMap) -> None:
        """Have the index know what there is of an object that nobody has open. Blocks on the disk; raises OSError."""
        known_bytes, known_content_bytes = self.index.known(obj.key)
        self.index.add(obj.key, obj.space_bytes() - known_bytes, obj.present_bytes() - known_content_bytes, "")

    def _count_all(self, obj: CachedObject, space_bytes: int) -> None:
        known_bytes, known_content_bytes = self.index.known(obj.key)
        if not obj.unlinked and space_bytes > known_bytes:
            self.index.add(obj.key, space_bytes - known_bytes, obj.present_bytes() - known_content_bytes, "")

    # -- dropping -----------------------------------------------------------------------------------------------

    def _count_empty(self, obj: BlockMap) -> None:
        """What the map of an object without blocks takes counts again with the next block."""
        self.index.remove(obj.key)
        obj.counted_bytes = 0

    def drop(self, key: str) -> int:
        """Unlink an object; the bytes that were freed, 0 when it is being made just now, or dropped by others."""
        with self._making.clearing(key, even_open=True) as clear:
            return self.drop_cleared(key) if clear else 0

    def drop_cleared(self, key: str) -> int:
        """As ``drop``, for who makes the object, or is ``clearing`` it away."""
        return self._remove(key) or 0

    def _remove(self, key: str) -> int | None:
        """The bytes that were freed; None when the disk refuses."""
        try:
            freed = remove_object(self.layout.object_path(key))
        except OSError as error:
            self.note_trouble(error)
            return None
        self._forget(key)
        try:
            self.unproven.discard(key)
        except OSError as error:  # the next server finds a mark of nothing
            self.note_trouble(error)
        return freed

    def _forget(self, key: str) -> None:
        self._opened.forget(key)
        self.index.remove(key)

    def is_cut_off(self, obj: CachedObject) -> bool:
        """Whether somebody has cut off the data of an object since it was opened: then it is dropped. Readers of the
        kernel would be told that the file ends there."""
        if os.fstat(obj.fd).st_size == obj.size_bytes:
            return False
        self.drop_unreadable(obj, DamagedObject(f"data of {obj.key} was cut off"))
        return True

    def drop_unreadable(self, obj: CachedObject, error: DamagedObject | OSError) -> bool:
        """An open object cannot be read: it is dropped, where that is its fault; whether it went. Any thread; blocks on
        the disk."""
        if isinstance(error, OSError):
            self.note_trouble(error)
        dropped = is_of_the_object(error) and self.drop_damaged(obj.key, error, obj)
        if dropped and isinstance(error, DamagedObject):  # what could not be read was right where it had been
            self.on_bad(obj.key)
        return dropped

    def drop_damaged(self, key: str, error: DamagedObject | OSError, opened: CachedObject | None = None) -> bool:
        """Drop what lies under a key, as it cannot be used; whether it went. Blocks on the disk.

        ``opened`` is what was found to be so: if it is gone already, another has its name by now.
        """
        with self._making.clearing(key, even_open=True) as clear:
            gone = clear and not (opened is not None and opened.unlinked) and self._remove(key) is not None
        if gone:
            self.note_damaged(key, error)
        return gone

    def note_damaged(self, key: str, error: DamagedObject | OSError) -> None:
        """Log and count an object that is dropped, as it cannot be used."""
        log.warning("cached object dropped", key=key, reason=str(error))
        if isinstance(error, DamagedObject) or error.errno == errno.EIO:  # else it is a disk that was not to be reached
            metrics.CORRUPT_BLOCKS.inc()

    def drop_bad_block(self, obj: CachedObject, block: int) -> None:
        """A block did not match its checksum: take it back, or the whole object if it is complete."""
        metrics.CORRUPT_BLOCKS.inc()
        log.warning("corrupt block dropped", key=obj.key, block=block)
        freed = None
        was_read = not isinstance(obj, BlockMap) or obj.state(block) == State.PRESENT
        if not obj.unlinked:  # space is counted by the one that others write through, if there is one
            obj = self._opened.get(obj.key) or obj
        if isinstance(obj, BlockMap) and not obj.complete:
            try:
                freed = obj.retract([block], partial(self._count_retracted, obj))
            except OSError as error:
                self.note_trouble(error)
        if freed is None:
            self.drop(obj.key)
        if was_read:
            self.on_bad(obj.key)

    def _count_retracted(self, obj: BlockMap, freed: int) -> None:
        self.index.shrink(obj.key, -obj.grown_bytes(), freed)
        if not obj.present_bytes():
            self._count_empty(obj)

    # -- health -------------------------------------------------------------------------------------------------

    def note_trouble(self, error: OSError) -> None:
        """The disk refused. Reads go on without it."""
        if error.errno in NO_DESCRIPTORS:
            self._opened.close_idle()
        self._trouble.note(error)

    def note_success(self) -> None:
        """The disk took something: trouble is over."""
        self._trouble.over()
