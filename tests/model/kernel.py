"""A model of the kernel's side of one FUSE connection: what it sends, what it keeps, and what it would answer EIO to.

It talks over a SOCK_SEQPACKET pair, which keeps messages whole as /dev/fuse does. The rules of open modes are those of
fuse_inode_uncached_io_start and fuse_file_cached_io_open in fs/fuse/iomode.c.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field

import trio

from dsfs.fuse.device import Device
from dsfs.fuse.wire import (
    IN_HEADER,
    OPEN_OUT,
    OUT_HEADER,
    UNIQUE_RESEND,
    Notify,
    Opcode,
    OpenFlag,
)

_LARGEST_MESSAGE = 2 << 20
_UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}


class Died(BaseException):
    """The server's process ends here and now."""


class ModelDevice(Device):
    """A descriptor on the model: replies and backing files go to it; ``replies_left`` says when the server dies."""

    def __init__(self, kernel: Kernel, replies_left: int | None) -> None:
        super().__init__(kernel.server_fd)
        self._kernel = kernel
        self._replies_left = replies_left

    def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        if self._replies_left is not None:
            if self._replies_left == 0:
                raise Died
            self._replies_left -= 1
        super()._write(parts)

    def open_backing(self, fd: int) -> int:
        return self._kernel.open_backing(fd)

    def close_backing(self, backing_id: int) -> None:
        self._kernel.close_backing(backing_id)


@dataclass
class Request:
    """One that the kernel waits for."""

    opcode: Opcode
    nodeid: int
    body: bytes
    answered: trio.Event = field(default_factory=trio.Event)
    code: int = 0
    payload: bytes = b""


@dataclass
class Inode:
    """Open handles of one inode, as the kernel counts them."""

    cached: int = 0
    passthrough: int = 0
    backing_id: int = 0


class Kernel:
    """One connection. ``violations`` is what a real kernel would have answered EIO to, or could not have explained."""

    def __init__(self) -> None:
        self._socket, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self._socket, server):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST_MESSAGE)
        self.server_fd = server.detach()
        self._socket.setblocking(False)
        self._sending = trio.Lock()
        self._unique = 0
        self._waiting: dict[int, Request] = {}
        self.inodes: dict[int, Inode] = {}
        self.no_open = False
        self._backing: dict[int, int] = {}
        self._last_backing = 0
        self.violations: list[str] = []

    def close(self) -> None:
        self._socket.close()
        os.close(self.server_fd)
        for fd in self._backing.values():
            os.close(fd)

    # -- requests -------------------------------------------------------------------------------------------------

    async def ask(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> Request:
        """Send a request and wait for its answer."""
        self._unique += 2  # FUSE_REQ_ID_STEP
        request = Request(opcode, nodeid, body)
        if opcode not in _UNANSWERED:
            self._waiting[self._unique] = request
        await self._send(self._unique, request)
        if opcode not in _UNANSWERED:
            await request.answered.wait()
        return request

    async def raw(self, message: bytes) -> None:
        """Whatever it is."""
        async with self._sending:
            await trio.lowlevel.wait_writable(self._socket)
            self._socket.send(message)

    async def _send(self, unique: int, request: Request) -> None:
        header = IN_HEADER.pack(
            IN_HEADER.size + len(request.body), request.opcode, unique, request.nodeid, 0, 0, os.getpid(), 0, 0
        )
        await self.raw(header + request.body)

    @property
    def waiting(self) -> list[Request]:
        return list(self._waiting.values())

    async def listen(self) -> None:
        """Take answers and notifications, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            message = self._socket.recv(_LARGEST_MESSAGE)
            length, code, unique = OUT_HEADER.unpack_from(message)
            if length != len(message):
                self.violations.append(f"a message of {len(message)} bytes says that it has {length}")
            elif unique == 0:
                if code == Notify.RESEND:
                    for number, request in list(self._waiting.items()):
                        await self._send(number | UNIQUE_RESEND, request)
            else:
                self._answer(unique & ~UNIQUE_RESEND, -code, message[OUT_HEADER.size :])

    def _answer(self, unique: int, code: int, payload: bytes) -> None:
        request = self._waiting.pop(unique, None)
        if request is None:
            return  # ENOENT: a predecessor's answer came first, or nobody waits
        request.code, request.payload = code, payload
        if request.opcode is Opcode.OPEN:
            self._opened(request)
        request.answered.set()

    # -- open modes -----------------------------------------------------------------------------------------------

    def _opened(self, request: Request) -> None:
        if request.code == errno.ENOSYS:
            self.no_open = True
            if any(inode.passthrough for inode in self.inodes.values()):
                self.violations.append("openless while a passthrough handle is open: its inode answers EIO from now on")
            return
        if request.code:
            return
        _fh, flags, backing_id = OPEN_OUT.unpack(request.payload)
        inode = self.inodes.setdefault(request.nodeid, Inode())
        if flags & OpenFlag.PASSTHROUGH:
            if inode.cached:
                self.violations.append("passthrough beside a cached handle")
            if inode.passthrough and inode.backing_id != backing_id:
                self.violations.append("a second backing file for an inode that is open")
            if backing_id not in self._backing:
                self.violations.append("a backing id that the kernel does not know")
            if flags & OpenFlag.KEEP_CACHE:
                self.violations.append("KEEP_CACHE with PASSTHROUGH (FOPEN_PASSTHROUGH_MASK)")
            inode.passthrough, inode.backing_id = inode.passthrough + 1, backing_id
        else:
            if inode.passthrough:
                self.violations.append("a cached handle beside passthrough ones")
            inode.cached += 1

    def released(self, nodeid: int) -> None:
        """A handle was closed; the request tells the server."""
        inode = self.inodes[nodeid]
        if inode.passthrough:
            inode.passthrough -= 1
        else:
            inode.cached -= 1
        if not inode.cached and not inode.passthrough:
            del self.inodes[nodeid]

    def open_nodeids(self) -> list[int]:
        return sorted(self.inodes)

    def open_backing(self, fd: int) -> int:
        self._last_backing += 1
        self._backing[self._last_backing] = os.dup(fd)
        return self._last_backing

    def close_backing(self, backing_id: int) -> None:
        fd = self._backing.pop(backing_id, None)
        if fd is None:
            raise OSError(errno.ENOENT, "no such backing id")
        os.close(fd)  # handles that are open keep the file; a new one needs a new id

    def backing_bytes(self, nodeid: int, offset: int, size: int) -> bytes | None:
        """What a passthrough handle reads; None when the inode has none."""
        inode = self.inodes.get(nodeid)
        if inode is None or not inode.passthrough or inode.backing_id not in self._backing:
            return None
        return os.pread(self._backing[inode.backing_id], size, offset)
