"""Reading files past the page cache, for what looks at everything once: it must not push out what readers use."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dsfs.cache.direct import NOT_HERE, SECTOR_BYTES
from dsfs.ranges import ByteRange

ReadRange = Callable[[ByteRange], memoryview]


class PastCache:
    """One buffer, so what was read last counts until the next read. For one thread at a time.

    O_DIRECT where the file system takes it: then it is the disk that answers, and the pages that readers have stay.
    Elsewhere through the page cache, and what this brought into it is dropped again (POSIX_FADV_DONTNEED).
    """

    def __init__(self) -> None:
        self._buffer = memoryview(b"")

    @contextmanager
    def reading(self, fd: int, *, keep_cached: bool = False) -> Iterator[ReadRange]:
        """A function that returns the bytes of a range of this file, fewer when it ends before. It raises OSError.

        ``keep_cached``: what is in the page cache is taken from there, as it is the same and costs no disk.
        """
        try:
            direct_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise
            direct_fd = -1
        try:
            yield lambda place: self._read(fd, direct_fd, place, keep_cached)
        finally:
            if direct_fd >= 0:
                os.close(direct_fd)

    def _read(self, fd: int, direct_fd: int, place: ByteRange, keep_cached: bool) -> memoryview:
        sectors_bytes = -(-place.length // SECTOR_BYTES) * SECTOR_BYTES
        if len(self._buffer) < sectors_bytes:
            self._buffer = memoryview(mmap.mmap(-1, sectors_bytes))  # anonymous memory begins at a page
        if keep_cached and _in_page_cache(fd, place, self._buffer):
            direct_fd = -1
        if direct_fd >= 0 and place.start % SECTOR_BYTES == 0:
            try:
                if os.preadv(direct_fd, [self._buffer[:sectors_bytes]], place.start) >= place.length:
                    return self._buffer[: place.length]
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
        return self._read_through(fd, place, self._buffer[: place.length])

    def _read_through(self, fd: int, place: ByteRange, into: memoryview) -> memoryview:
        was_there = _in_page_cache(fd, place, into)
        done = 0
        while done < place.length:
            count = os.preadv(fd, [into[done:]], place.start + done)
            if count == 0:
                break
            done += count
        if not was_there:
            os.posix_fadvise(fd, place.start, place.length, os.POSIX_FADV_DONTNEED)
        return into[:done]


def _in_page_cache(fd: int, place: ByteRange, into: memoryview) -> bool:
    try:
        return os.preadv(fd, [into[:1]], place.start, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return True  # tmpfs, whose pages are the file
