"""/dev/fuse: requests in, replies and notifications out, backing files."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from dsfs.fuse.wire import (
    BACKING_MAP,
    DEV_IOC_BACKING_CLOSE,
    DEV_IOC_BACKING_OPEN,
    MIN_READ_BUFFER,
    OUT_HEADER,
    Notify,
)
from dsfs.ranges import KiB

_BUFFER_BYTES = max(MIN_READ_BUFFER, 64 * KiB)  # no request of a read-only file system comes near it


class Disconnected(Exception):
    """The file system was unmounted, or the connection was aborted."""


class Device:
    """One connection's descriptor, non-blocking. Does not own it: the keeper has it too."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    def receive(self) -> memoryview | None:
        """The next request, valid until the next call; None when none is waiting. Raises Disconnected."""
        while True:
            try:
                count = os.readv(self.fd, [self._buffer])
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted before we saw it
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    raise Disconnected from error
                raise
            return self._view[:count]

    def reply(self, unique: int, payload: bytes | bytearray | memoryview = b"") -> None:
        self._write([OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique), payload])

    def reply_error(self, unique: int, code: int) -> None:
        self._write([OUT_HEADER.pack(OUT_HEADER.size, -code, unique)])

    def resend(self) -> None:
        """Ask the kernel to repeat what a server before us had taken and not answered (FUSE_NOTIFY_RESEND, 7.40)."""
        self._write([OUT_HEADER.pack(OUT_HEADER.size, Notify.RESEND, 0)])

    def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return  # the request is gone: its process was killed
            if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                raise Disconnected from error
            raise

    def open_backing(self, fd: int) -> int:
        """Register a file that the kernel may read itself; its backing id. Needs CAP_SYS_ADMIN. Raises OSError."""
        argument = bytearray(BACKING_MAP.pack(fd, 0, 0))
        backing_id: int = fcntl.ioctl(self.fd, DEV_IOC_BACKING_OPEN, argument, True)
        return backing_id

    def close_backing(self, backing_id: int) -> None:
        fcntl.ioctl(self.fd, DEV_IOC_BACKING_CLOSE, bytearray(struct.pack("=I", backing_id)), True)
