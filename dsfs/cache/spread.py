"""Where on the disk a file system puts new directories, and so the files that are made in them.

ext4 gives a new file an inode of the block group that its directory is in, and passes over those whose file was
deleted in the last minutes, one at a time (recently_deleted in fs/ext4/ialloc.c): a cache that evicts, or anything
else that deletes there, made each new file cost up to a millisecond. Directories below one that is marked as the top
of a hierarchy go to groups of their own (the T of chattr(1)); 30 times as cheap then (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import Final

_GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS, <linux/fs.h>
_SET_FLAGS: Final = 0x40086602
_TOP_DIRECTORY: Final = 0x00020000  # FS_TOPDIR_FL
_FLAGS: Final = struct.Struct("=q")  # the kernel uses the first half


def spread_directories(below: str) -> None:
    """Have directories that are made in this one from now on lie apart, where the file system can be told. Raises
    OSError when there is no such directory."""
    fd = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # not ext4: it has no groups, or sees to that itself
            (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))
            fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _TOP_DIRECTORY))
    finally:
        os.close(fd)
