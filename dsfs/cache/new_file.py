"""A file that is written from start to end and by nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dsfs.cache.direct import NOT_HERE, SECTOR_BYTES, DirectWrites, open_direct


@contextmanager
def new_file(path: str) -> Iterator[tuple[int, bool]]:
    """A descriptor of a new file, and whether another one had this name."""
    replaced = False
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        replaced = True
        os.unlink(path)
        fd = os.open(path, flags, 0o600)
    try:
        yield fd, replaced
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, direct: DirectWrites | None = None) -> int:
    """Write all of a new file; the space that it takes. ``direct`` says whether as much of it as can be goes to the
    disk past the page cache."""
    view = memoryview(data)
    position = 0 if direct is None else _write_past_cache(fd, view, direct)
    while position < len(view):
        position += os.pwrite(fd, view[position:], position)
    return os.fstat(fd).st_blocks * 512


def _write_past_cache(fd: int, view: memoryview, direct: DirectWrites) -> int:
    """How many bytes from the start on are written. Raises OSError (a full disk)."""
    size = len(view) // SECTOR_BYTES * SECTOR_BYTES
    if size == 0 or not direct.choose():
        return 0
    try:
        direct_fd = open_direct(fd)
        try:
            with direct.timed(size):
                return os.pwrite(direct_fd, view[:size], 0)
        finally:
            os.close(direct_fd)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        return 0
