"""Storing an object that is wholly in memory: plain functions, for the server and for the courier beside it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import NamedTuple

from dsfs.cache.complete import clear_mark, set_mark
from dsfs.cache.direct import DirectWrites
from dsfs.cache.mapfile import crc32c, pack_complete
from dsfs.cache.new_file import new_file, write_all
from dsfs.ranges import block_count, block_range


class Stored(NamedTuple):
    """``fd`` is the data, open for reading, the caller's; ``replaced``: another file had its name."""

    fd: int
    replaced: bool
    space_bytes: int


def store_whole(
    path: str,
    key: str,
    size_bytes: int,
    block_bytes: int,
    boot: bytes,
    data: bytes | bytearray | memoryview,
    direct: DirectWrites | None = None,
) -> Stored:
    """Its data under a new inode, then its map, renamed into place. Blocks on the disk. ``direct``: see ``write_all``.

    Data without a map counts for nothing; what an earlier try left, a passthrough reader may still hold, so it is
    unlinked and never written into. Raises OSError when the disk refuses: see ``remove_object``.
    """
    map_aside = f"{path}.map.{os.getpid()}.{threading.get_ident()}.new"
    view = memoryview(data)
    sums = [
        crc32c(view[place.start : place.stop])
        for place in (
            block_range(block, size_bytes, block_bytes) for block in range(block_count(size_bytes, block_bytes))
        )
    ]
    try:
        with new_file(path) as (fd, replaced):
            data_space = write_all(fd, view, direct)
            with new_file(map_aside) as (map_fd, _replaced):
                map_space = write_all(map_fd, pack_complete(key, size_bytes, block_bytes, boot, sums))
                set_mark(map_fd, key, boot)
            os.rename(map_aside, f"{path}.map")
            set_mark(fd, key, boot)
            return Stored(os.dup(fd), replaced, data_space + map_space)
    except OSError:
        if os.path.exists(map_aside):
            os.unlink(map_aside)
        raise


def remove_object(path: str) -> int:
    """Unlink an object, mark and map first, so that data never counts without; the bytes that were freed. Raises
    OSError; then what is left counts for nothing, or for as much as before."""
    with contextlib.suppress(FileNotFoundError):  # a map without data
        clear_mark(path)
    freed = 0
    for name in (f"{path}.map", path):
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(name)
            os.unlink(name)
            freed += found.st_blocks * 512
    return freed
