"""Pages of single files, as dropping all of the machine's would disturb others."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import time
from pathlib import Path

_CACHESTAT = 451  # <asm-generic/unistd.h>, since Linux 6.5
_WITHIN_S = 10.0


def drop_pages(of: Path | int) -> None:
    """Have the kernel forget what it has of a file in memory, if there is such a file.

    Until all is gone: the kernel keeps a page that somebody else holds just then, and one that holds pages to free them
    is somebody. Pages that are mapped stay, so of such a file this raises.
    """
    if isinstance(of, Path):
        with contextlib.suppress(FileNotFoundError), of.open("rb") as file:
            drop_pages(file.fileno())
        return
    deadline = time.monotonic() + _WITHIN_S
    while True:
        with contextlib.suppress(OSError):  # a FUSE file has nothing to be synchronised
            os.fsync(of)
        os.posix_fadvise(of, 0, 0, os.POSIX_FADV_DONTNEED)
        left = cached_pages(of)
        if not left:
            return
        assert time.monotonic() < deadline, f"{left} pages do not go"
        time.sleep(0.01)


def cached_pages(fd: int) -> int:
    """By cachestat(2); 0 where the kernel does not know it yet."""
    whole, found = ctypes.create_string_buffer(16), ctypes.create_string_buffer(40)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CACHESTAT, fd, whole, found, 0) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise OSError(code, os.strerror(code))
    cached: int = struct.unpack("=5Q", found.raw)[0]
    return cached
