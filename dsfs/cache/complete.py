"""A complete object of the node tier: one descriptor, nothing to check, never punched.

Its files say themselves that it is, by a time of last modification that no clock shows: an epoch over small files looks
at each once, and reading their maps from a disk takes as long as reading them. The kernel gives a file that is written
to or punched the time of the day, so the mark cannot outlive what it says; it is of this object under this boot, so
that another boot, or a copy of the directory, does not have it. The map's says that it was found to be in order.
"""

from __future__ import annotations

import contextlib
import os

from dsfs.cache.blockmap import BlockMap, pread_all
from dsfs.cache.known_names import open_known
from dsfs.cache.mapfile import BOOT_AT, HEADER, STATES_AT, State, header_is_of, map_bytes
from dsfs.ranges import ByteRange, block_count

_SMALL_MAP_BYTES = 64 * 1024  # maps of objects up to about 13,000 blocks are looked at with one pread


class CompleteObject:
    """Opened in 3 system calls where a BlockMap takes 9; most opens of a warm cache end here.

    ``fd`` is closed when the last reference is gone, so a read in another thread can never meet a reused number.
    """

    __slots__ = ("__weakref__", "fd", "key", "size_bytes", "unlinked")

    complete = True

    def __init__(self, fd: int, key: str, size_bytes: int) -> None:
        self.fd = fd
        self.key = key
        self.size_bytes = size_bytes
        self.unlinked = False

    def __del__(self) -> None:
        os.close(self.fd)

    def present_bytes(self) -> int:
        return self.size_bytes

    def missing(self, wanted: ByteRange) -> list[int]:
        return []

    def absent(self, wanted: ByteRange) -> list[int]:
        return []

    def read(self, wanted: ByteRange, into: memoryview, flags: int = 0) -> bool:
        """As ``BlockMap.read``; always True."""
        pread_all(self.fd, self.key, wanted, into, flags)
        return True


CachedObject = BlockMap | CompleteObject


def mark_of(key: str, boot: bytes) -> int:
    """The time of last modification of a complete object's data, in ns: of before 2004, which no clock shows."""
    mixed = int(key[:16], 16) ^ int.from_bytes(boot[:8], "little")
    return (mixed >> 34) * 10**9 + (mixed & (1 << 34) - 1) % 10**9


def set_mark(fd: int, key: str, boot: bytes) -> None:
    """Of data whose every block is here and checked, so that nobody writes to it or punches it. Raises OSError."""
    mark = mark_of(key, boot)
    os.utime(fd, ns=(mark, mark))


def clear_mark(path: str) -> None:
    """Before an object is dropped: what a crash leaves of it counts for nothing. Raises FileNotFoundError, OSError."""
    os.utime(path)


def open_complete(path: str, key: str, size_bytes: int, block_bytes: int, boot: bytes) -> CompleteObject | None:
    """Open an object that is complete; None: it is not, or somebody has to look closer. Raises OSError. Any thread.

    One whose map says so is marked. The map is its own, as the data has this name before and after the map is read: a
    new object gets the name only when the old map is gone (``BlockMap.create``), or has no hole (``put_whole``).
    """
    mark = mark_of(key, boot)
    try:
        obj = CompleteObject(os.open(path, os.O_RDONLY | os.O_CLOEXEC), key, size_bytes)
        found = os.fstat(obj.fd)
        if found.st_size != size_bytes:
            return None
        if found.st_mtime_ns == mark and os.stat(f"{path}.map").st_mtime_ns == mark:
            return obj
        if not _says_complete(f"{path}.map", key, size_bytes, block_bytes, boot):
            return None
        return obj if os.stat(path).st_ino == found.st_ino and _marked(obj.fd, key, boot) else None
    except FileNotFoundError:  # evicted just now, or data that has lost its map, which counts for nothing
        return None


def _marked(fd: int, key: str, boot: bytes) -> bool:
    """Mark what is complete; a disk that takes no mark can be read all the same."""
    with contextlib.suppress(OSError):
        set_mark(fd, key, boot)
    return True


def open_known_complete(path: str, key: str, size_bytes: int, boot: bytes) -> CompleteObject | None:
    """As ``open_complete``, and never waits for the disk; None also when only that would tell.

    The data's own mark is enough: it goes before the map does.
    """
    try:
        fd = open_known(path)
    except OSError:
        return None  # whoever does wait for the disk is told
    if fd is None:
        return None
    obj = CompleteObject(fd, key, size_bytes)
    found = os.fstat(fd)
    return obj if found.st_size == size_bytes and found.st_mtime_ns == mark_of(key, boot) else None


def _says_complete(map_path: str, key: str, size_bytes: int, block_bytes: int, boot: bytes) -> bool:
    """Whether a map says that every block is here and checked; it is marked then. Raises FileNotFoundError, OSError."""
    blocks = block_count(size_bytes, block_bytes)
    length = map_bytes(blocks)
    if length > _SMALL_MAP_BYTES:
        return False
    map_fd = os.open(map_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = os.pread(map_fd, length + 1, 0)
        return (
            len(raw) == length
            and raw[BOOT_AT : BOOT_AT + 16] == boot
            and raw.count(State.PRESENT, STATES_AT, STATES_AT + blocks) == blocks
            and header_is_of(raw[: HEADER.size], key, size_bytes, block_bytes)
            and _marked(map_fd, key, boot)
        )
    finally:
        os.close(map_fd)


def open_object(path: str, key: str, size_bytes: int, block_bytes: int, boot: bytes) -> CachedObject:
    """Open an object the cheapest way it allows. Raises FileNotFoundError, DamagedObject, OSError."""
    obj = open_complete(path, key, size_bytes, block_bytes, boot)
    return BlockMap.open(path, key, size_bytes, block_bytes, boot) if obj is None else obj
