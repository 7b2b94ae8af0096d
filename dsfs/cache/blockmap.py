"""One cached object: a sparse file of its bytes and the map that says which of its blocks count.

The order of every step is what keeps "present, punched, zeros" impossible (DESIGN section 4; the model with all
interleavings is tests/unit/cache/test_interleavings.py):

* publish (a Writer, under LOCK_SH of the map): bytes, checksum, state;
* retract (under LOCK_EX of the map): state, generation, punch;
* read (no lock): generation, state, bytes, generation again.

A complete object is never punched, only unlinked, so whoever has it open needs none of the above any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from dsfs.cache.damage import DamagedObject
from dsfs.cache.direct import NOT_HERE, SECTOR_BYTES, DirectWrites, open_direct
from dsfs.cache.mapfile import (
    BOOT_AT,
    GENERATION,
    GENERATION_AT,
    HEADER,
    STATES_AT,
    State,
    checksums_at,
    crc32c,
    header_is_of,
    map_bytes,
    pack_header,
)
from dsfs.cache.past_cache import ReadRange
from dsfs.ranges import ByteRange, block_count, block_range, blocks_of

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <linux/falloc.h>
_UNTRIED, _REFUSED = -1, -2
_KNOWN_STATES: Final = frozenset(State)
_opening_direct = threading.Lock()


class BlockMap:
    """An open object of the node tier.

    Readers call ``read`` from one thread; writers publish from others. ``fd`` stays open, and readable, until the
    last reference is gone, whatever happens to the file's name: a read in another thread never meets a reused number.
    """

    def __init__(self, fd: int, map_fd: int, key: str, size_bytes: int, block_bytes: int) -> None:
        self.fd = fd
        self.key = key
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self.blocks = block_count(size_bytes, block_bytes)
        self.unlinked = False
        self.counted_bytes = 0
        """Space on disk that somebody has counted; see ``grown_bytes``. What has no block counts for nothing."""
        self.counting = threading.RLock()
        """Held by whoever tells the index what ``grown_bytes`` says."""
        self._map_fd = map_fd
        self._direct_fd = _UNTRIED
        try:
            self._map = mmap.mmap(map_fd, map_bytes(self.blocks))
        except BaseException:
            self._map_fd = self.fd = -1  # theirs who opened them, as there is no object now
            raise
        whole = memoryview(self._map)
        self._states = whole[STATES_AT : STATES_AT + self.blocks]
        at = checksums_at(self.blocks)
        self._checksums = whole[at : at + 4 * self.blocks].cast("I")
        self._generation = whole[GENERATION_AT : GENERATION_AT + GENERATION.size].cast("Q")
        self._boot = whole[BOOT_AT : BOOT_AT + 16]
        self._whole = whole
        self._complete = False

    @classmethod
    def open(cls, path: str, key: str, size_bytes: int, block_bytes: int, boot: bytes) -> BlockMap:
        """Open what is there. Raises FileNotFoundError, DamagedObject, OSError.

        When the map was last true under another boot, its blocks become UNCHECKED before the new boot id is written.
        """
        map_fd = os.open(f"{path}.map", os.O_RDWR | os.O_CLOEXEC)
        try:
            expected = map_bytes(block_count(size_bytes, block_bytes))
            if os.fstat(map_fd).st_size != expected:
                raise DamagedObject(f"map of {key} is not {expected} bytes long")
            if not header_is_of(os.pread(map_fd, HEADER.size, 0), key, size_bytes, block_bytes):
                raise DamagedObject(f"map of {key} does not belong to it")
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise DamagedObject(f"map of {key} has no data beside it") from error
        except BaseException:
            os.close(map_fd)
            raise
        if os.fstat(fd).st_size != size_bytes:
            os.close(fd)
            os.close(map_fd)
            raise DamagedObject(f"data of {key} is not {size_bytes} bytes long")
        try:
            obj = cls(fd, map_fd, key, size_bytes, block_bytes)
        except BaseException:
            os.close(fd)
            os.close(map_fd)
            raise
        obj.counted_bytes = obj.space_bytes() if obj.present_bytes() else 0
        if bytes(obj._boot) != boot:
            obj._distrust(boot)
        return obj

    @classmethod
    def create(cls, path: str, key: str, size_bytes: int, block_bytes: int, boot: bytes) -> BlockMap:
        """A new object without any block. The map appears last, so an object is there if its map is.

        Data under this name is replaced and never written to: it may be a complete object that is being evicted in
        another thread, and be read in the kernel through a passthrough handle. A map goes before its data does, or a
        crash in between would leave one that says "present" beside a file of zeros.
        """
        new_data = f"{path}.{os.getpid()}.new"
        fd = os.open(new_data, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            if os.path.exists(f"{path}.map"):
                os.unlink(f"{path}.map")
            os.rename(new_data, path)
            temporary = f"{path}.map.{os.getpid()}.new"
            map_fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                # posix_fallocate, not truncate: a full disk must say so here and not as SIGBUS in the mapping
                os.posix_fallocate(map_fd, 0, map_bytes(block_count(size_bytes, block_bytes)))
                os.pwrite(map_fd, pack_header(key, size_bytes, block_bytes, boot), 0)
                os.rename(temporary, f"{path}.map")
                return cls(fd, map_fd, key, size_bytes, block_bytes)
            except BaseException:
                os.close(map_fd)
                if os.path.exists(temporary):
                    os.unlink(temporary)
                raise
        except BaseException:
            os.close(fd)
            if os.path.exists(new_data):
                os.unlink(new_data)
            raise

    def __del__(self) -> None:
        if self._map_fd < 0:
            return
        for view in (self._states, self._checksums, self._generation, self._boot, self._whole):
            view.release()
        self._map.close()
        os.close(self._map_fd)
        os.close(self.fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)

    @property
    def complete(self) -> bool:
        """Whether every block is present (and checked): such an object is never punched.

        The generation is compared as in ``read``: another process may take one block back and bring another while
        the states are copied, and then no moment had all of them.
        """
        if not self._complete:
            generation = self._generation[0]
            present = bytes(self._states).count(State.PRESENT)
            self._complete = present == self.blocks and self._generation[0] == generation
        return self._complete

    @property
    def generation(self) -> int:
        return self._generation[0]

    def state(self, block: int) -> State:
        """What the disk has damaged to be no state at all is one to check: the checksum knows."""
        value = self._states[block]
        return State(value) if value in _KNOWN_STATES else State.UNCHECKED

    def present_bytes(self) -> int:
        """Bytes in blocks that are here, checked or not."""
        absent = bytes(self._states).count(State.ABSENT)
        if absent == 0:
            return self.size_bytes
        present = (self.blocks - absent) * self.block_bytes
        if self._states[self.blocks - 1] != State.ABSENT:
            present -= self.blocks * self.block_bytes - self.size_bytes
        return present

    def space_bytes(self) -> int:
        """What data and map take on disk now."""
        return (os.fstat(self.fd).st_blocks + os.fstat(self._map_fd).st_blocks) * 512

    def grown_bytes(self) -> int:
        """How much more that is than when somebody asked last; less than 0 when space was given back."""
        with self.counting:
            now = self.space_bytes()
            grown, self.counted_bytes = now - self.counted_bytes, now
            return grown

    def missing(self, wanted: ByteRange) -> list[int]:
        """The blocks of a range that cannot be read yet; UNCHECKED ones among them."""
        if self.complete:
            return []
        states = self._states
        return [block for block in blocks_of(wanted, self.block_bytes) if states[block] != State.PRESENT]

    def absent(self, wanted: ByteRange) -> list[int]:
        """The blocks of a range that nobody has brought; those that only want checking are not among them."""
        states = self._states
        return [block for block in blocks_of(wanted, self.block_bytes) if states[block] == State.ABSENT]

    def unchecked(self) -> list[int]:
        """Blocks that were written under another boot and not checked since."""
        states = bytes(self._states)
        return [block for block in range(self.blocks) if states[block] not in (State.ABSENT, State.PRESENT)]

    def read(self, wanted: ByteRange, into: memoryview, flags: int = 0) -> bool:
        """Fill ``into`` (``wanted.length`` bytes). False: some of it is absent, and ``into`` may hold anything.

        ``flags`` go to preadv2(2); with RWF_NOWAIT raises BlockingIOError when the disk would have to be waited for.
        """
        if self.complete:
            pread_all(self.fd, self.key, wanted, into, flags)
            return True
        generation = self._generation[0]
        for block in blocks_of(wanted, self.block_bytes):
            if self._states[block] != State.PRESENT:
                return False
        pread_all(self.fd, self.key, wanted, into, flags)
        return self._generation[0] == generation

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Publish blocks while nobody may punch."""
        with self._locked(fcntl.LOCK_SH):
            yield Writer(self)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the map's lock as flock(2) says. Whoever does has a descriptor, and so a lock, of its own.

        Raises BlockingIOError, with LOCK_NB, when others hold it.
        """
        lock_fd = os.open(f"/proc/self/fd/{self._map_fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock_fd, how)
            yield
        finally:
            os.close(lock_fd)

    def _publish(self, block: int, data: bytes | bytearray | memoryview, direct: DirectWrites | None) -> bool:
        before = self._states[block]
        if before == State.PRESENT:
            return False
        place = block_range(block, self.size_bytes, self.block_bytes)
        if len(data) != place.length:
            raise ValueError(f"block {block} of {self.key} has {place.length} bytes, not {len(data)}")
        if os.fstat(self.fd).st_size != self.size_bytes:  # it would grow again, with zeros where blocks were
            raise DamagedObject(f"data of {self.key} was cut off")
        if direct is None or not self._wrote_past_cache(data, place.start, direct):  # 1. the bytes
            _pwrite_all(self.fd, data, place.start)
        self._checksums[block] = crc32c(data)  # 2. the proof
        self._states[block] = State.PRESENT  # 3. only now may a reader look
        return bool(before == State.ABSENT)

    def _wrote_past_cache(self, data: bytes | bytearray | memoryview, offset: int, direct: DirectWrites) -> bool:
        """False: not to be, or what is under the cache cannot; then write as usual. Raises OSError (a full disk).

        The kernel drops pages of this range that reading next to it brought in, before it returns (kiocb_invalidate_
        post_direct_write in mm/filemap.c), so a later read cannot see the hole that was here.
        """
        if len(data) % SECTOR_BYTES or offset % SECTOR_BYTES or self._direct_fd == _REFUSED or not direct.choose():
            return False
        try:
            with _opening_direct:
                if self._direct_fd == _UNTRIED:
                    self._direct_fd = open_direct(self.fd)
            with direct.timed(len(data)):
                count = os.pwrite(self._direct_fd, data, offset)
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise
            if self._direct_fd == _UNTRIED:
                self._direct_fd = _REFUSED
            return False
        return count == len(data)

    def retract(self, blocks: Iterable[int], count: Callable[[int], None] = lambda _freed: None) -> int | None:
        """Take blocks back and give their space to the disk; the bytes that were freed.

        ``count`` is told of them before anybody can publish again. None when somebody publishes into the object just
        now, or when it is complete (then it can only be unlinked).
        """
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                if self.complete:
                    return None
                taken = [block for block in blocks if self._states[block] != State.ABSENT]
                for block in taken:
                    self._states[block] = State.ABSENT
                self._generation[0] += 1
                freed = 0
                for block in taken:
                    place = block_range(block, self.size_bytes, self.block_bytes)
                    length = place.length
                    if place.stop == self.size_bytes:
                        length = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE  # a part of a page would keep its space
                    if _libc.fallocate(self.fd, _PUNCH_HOLE, place.start, length) != 0:
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code), self.key)
                    freed += place.length
                count(freed)
                return freed
        except BlockingIOError:
            return None

    def check(self, block: int, read: ReadRange | None = None) -> bool:
        """Read one block that is here and compare its crc32c; a right UNCHECKED one becomes PRESENT.

        ``read`` brings the bytes of a range of the file, if not as everybody reads them. A wrong block stays as it
        is: the caller drops it (``retract``, or the whole object). Raises DamagedObject, OSError.
        """
        place = block_range(block, self.size_bytes, self.block_bytes)
        generation = self._generation[0]  # before the state, as in ``read``
        state = self._states[block]
        if state == State.ABSENT:
            return True  # taken back meanwhile: not wrong, just gone
        if read is None:
            data = memoryview(bytearray(place.length))
            pread_all(self.fd, self.key, place, data)
        else:
            data = read(place)
            if len(data) != place.length:
                raise DamagedObject(f"data of {self.key} ends before byte {place.stop}")
        if crc32c(data) != self._checksums[block]:
            return self._generation[0] != generation  # punched meanwhile
        if state != State.PRESENT:
            with self._locked(fcntl.LOCK_SH):
                if self._generation[0] == generation:
                    self._states[block] = State.PRESENT
        return True

    def _distrust(self, boot: bytes) -> None:
        """States before the boot id: a crash in between distrusts once more, which is harmless."""
        with self._locked(fcntl.LOCK_EX):
            if bytes(self._boot) != boot:
                self._states[:] = bytes(self._states).replace(bytes([State.PRESENT]), bytes([State.UNCHECKED]))
                self._boot[:] = boot


class Writer:
    """The right to publish into one object; made by ``BlockMap.writer``."""

    def __init__(self, obj: BlockMap) -> None:
        self._obj = obj

    def publish(self, block: int, data: bytes | bytearray | memoryview, direct: DirectWrites | None = None) -> bool:
        """Make one block readable; whether it takes space that it did not take before.

        ``data`` is the whole block; ``direct`` says whether it goes to the disk past the page cache. Raises OSError
        when the disk refuses, DamagedObject when somebody has cut off what lies there.
        """
        return self._obj._publish(block, data, direct)


def pread_all(fd: int, key: str, wanted: ByteRange, into: memoryview, flags: int = 0) -> None:
    """Fill ``into`` from the data of an object. Raises DamagedObject when that ends before, OSError.

    ``flags`` go to preadv2(2); with RWF_NOWAIT raises BlockingIOError when the disk would have to be waited for.
    """
    done = 0
    while done < wanted.length:
        count = os.preadv(fd, [into[done : wanted.length]], wanted.start + done, flags)
        if count == 0:
            raise DamagedObject(f"data of {key} ends before byte {wanted.stop}")
        done += count
        if done < wanted.length and flags & os.RWF_NOWAIT:
            raise BlockingIOError


def _pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count
