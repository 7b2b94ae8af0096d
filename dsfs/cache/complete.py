"""A complete object of the node tier: one descriptor, nothing to check, never punched."""

from __future__ import annotations

import os

from dsfs.cache.blockmap import BlockMap, DamagedObject
from dsfs.cache.mapfile import BOOT_AT, HEADER, STATES_AT, State, header_is_of, map_bytes
from dsfs.ranges import ByteRange, block_count

_SMALL_MAP_BYTES = 64 * 1024  # maps of objects up to about 13,000 blocks are looked at with one pread


class CompleteObject:
    """Opened in 5 system calls where a BlockMap takes 9; most opens of a warm cache end here.

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
        done = 0
        while done < wanted.length:
            count = os.preadv(self.fd, [into[done : wanted.length]], wanted.start + done, flags)
            if count == 0:
                raise DamagedObject(f"data of {self.key} ends before byte {wanted.stop}")
            done += count
            if done < wanted.length and flags & os.RWF_NOWAIT:
                raise BlockingIOError
        return True


CachedObject = BlockMap | CompleteObject


def open_object(path: str, key: str, size_bytes: int, block_bytes: int, boot: bytes) -> CachedObject:
    """Open an object the cheapest way it allows. Raises FileNotFoundError, DamagedObject, OSError."""
    blocks = block_count(size_bytes, block_bytes)
    length = map_bytes(blocks)
    if length <= _SMALL_MAP_BYTES:
        map_fd = os.open(f"{path}.map", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(map_fd, length + 1, 0)
        finally:
            os.close(map_fd)
        if (
            len(raw) == length
            and raw[BOOT_AT : BOOT_AT + 16] == boot
            and raw.count(State.PRESENT, STATES_AT, STATES_AT + blocks) == blocks
            and header_is_of(raw[: HEADER.size], key, size_bytes, block_bytes)
        ):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise DamagedObject(f"map of {key} has no data beside it") from error
            if os.fstat(fd).st_size != size_bytes:
                os.close(fd)
                raise DamagedObject(f"data of {key} is not {size_bytes} bytes long")
            return CompleteObject(fd, key, size_bytes)
    return BlockMap.open(path, key, size_bytes, block_bytes, boot)
