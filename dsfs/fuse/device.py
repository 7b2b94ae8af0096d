"""/dev/fuse: requests in, replies and notifications out, backing files."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from dsfs.fuse.wire import (
    BACKING_MAP,
    DEV_IOC_BACKING_CLOSE,
    DEV_IOC_BACKING_OPEN,
    MIN_READ_BUFFER,
    NOTIFY_INVAL_ENTRY_OUT,
    NOTIFY_INVAL_INODE_OUT,
    OUT_HEADER,
    Notify,
)
from dsfs.ranges import KiB

log = structlog.get_logger()

_BUFFER_BYTES = max(MIN_READ_BUFFER, 64 * KiB)  # no request of a read-only file system comes near it


class Disconnected(Exception):
    """The file system was unmounted, or the connection was aborted."""


class Device:
    """One connection's descriptor, non-blocking; the keeper has it too. Other threads than the loop's ``hold`` it."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._lock = threading.Lock()  # guards the next two
        self._closed = False
        self._holders = 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing else gets the descriptor's number meanwhile. Raises Disconnected."""
        with self._lock:
            if self._closed:
                raise Disconnected
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._closed and not self._holders:
                    os.close(self.fd)

    def close(self) -> None:
        """Give back the descriptor: the connection has ended."""
        with self._lock:
            self._closed = True
            if not self._holders:
                os.close(self.fd)

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

    def reply_pieces(self, unique: int, pieces: list[bytes | bytearray | memoryview]) -> None:
        """As ``reply``, without joining what comes in pieces."""
        length = OUT_HEADER.size + sum(len(piece) for piece in pieces)
        self._write([OUT_HEADER.pack(length, 0, unique), *pieces])

    def reply_error(self, unique: int, code: int) -> None:
        self._write([OUT_HEADER.pack(OUT_HEADER.size, -code, unique)])

    def resend(self) -> None:
        """Ask the kernel to repeat what a server before us had taken and not answered (FUSE_NOTIFY_RESEND, 7.40)."""
        self._notify(Notify.RESEND, b"")

    def forget_inode(self, nodeid: int) -> None:
        """Have the kernel drop a directory's attributes and its cached listing, or what it keeps of a file's bytes.

        Never call it from the request loop: of a file that somebody reads it waits for pages that its reader waits for
        us to fill (FACTS).
        """
        self._notify(Notify.INVAL_INODE, NOTIFY_INVAL_INODE_OUT.pack(nodeid, 0, 0))

    def forget_name(self, parent: int, name: bytes) -> None:
        """Have the kernel look up a name anew, whether it was there or not. Never call it from the request loop."""
        self._notify(Notify.INVAL_ENTRY, NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")

    def forget_all_names(self) -> None:
        """Have the kernel look up every name anew (7.44). Raises OSError (EINVAL) where it cannot."""
        self._notify(Notify.INC_EPOCH, b"")

    def _notify(self, code: Notify, payload: bytes) -> None:
        try:
            os.writev(self.fd, [OUT_HEADER.pack(OUT_HEADER.size + len(payload), code, 0), payload])
        except OSError as error:
            if error.errno == errno.ENOENT:
                return  # the kernel does not know it
            raise self._translated(error) from error

    def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return  # the request is gone: its process was killed
            ended = self._translated(error)
            if isinstance(ended, Disconnected):
                raise ended from error
            # The kernel has refused this answer and has ended its request with EIO; the next one is another.
            log.warning("the kernel refuses an answer", size_bytes=sum(map(len, parts)), reason=str(error))

    @staticmethod
    def _translated(error: OSError) -> OSError | Disconnected:
        return Disconnected() if error.errno in (errno.ENODEV, errno.ECONNABORTED) else error

    def open_backing(self, fd: int) -> int:
        """Register a file that the kernel may read itself; its backing id. Needs CAP_SYS_ADMIN. Raises OSError."""
        argument = bytearray(BACKING_MAP.pack(fd, 0, 0))
        backing_id: int = fcntl.ioctl(self.fd, DEV_IOC_BACKING_OPEN, argument, True)
        return backing_id

    def close_backing(self, backing_id: int) -> None:
        fcntl.ioctl(self.fd, DEV_IOC_BACKING_CLOSE, bytearray(struct.pack("=I", backing_id)), True)
