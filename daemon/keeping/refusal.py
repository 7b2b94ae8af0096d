"""Answers the kernel while no server can: everybody who waits gets an errno instead of hanging for ever."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

from daemon.keeping.loop import Loop, say

ROOT = "/"
_IN_HEADER = struct.Struct("=IIQQIIIHH")  # fuse_in_header
_OUT_HEADER = struct.Struct("=IiQ")  # fuse_out_header
_NOTIFY_RESEND = 7
_BUFFER_BYTES = 64 * 1024
_AT_ONCE = 64
_LOOKUP = 1
_FOR_THE_NEXT_SERVER = {18, 26, 29, 38}  # RELEASE INIT RELEASEDIR DESTROY: nobody waits, and it has to note them
_NEVER_ANSWERED = {2, 36, 42}  # FORGET INTERRUPT BATCH_FORGET


class Refusal:
    """While it is ``on``, requests of these connections are answered ETIMEDOUT, as they come.

    Requests that a dead server had taken are asked for again first, and what a refusal takes and leaves unanswered is
    repeated to the next server. It has to be off before a server gets the descriptors, or it would steal from it.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fds: dict[int, str] = {}
        self._buffer = bytearray(_BUFFER_BYTES)
        self.refused = 0

    @property
    def on(self) -> bool:
        return bool(self._fds)

    def start(self, connections: Mapping[str, int]) -> None:
        for name, fd in connections.items():
            if fd in self._fds:
                continue
            os.set_blocking(fd, False)
            try:
                os.write(fd, _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0))
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: a kernel before 6.9
                    continue  # unmounted or aborted: nobody waits
            self._fds[fd] = name
            self._loop.watch(fd, lambda fd=fd: self._answer(fd))  # type: ignore[misc]  # mypy wants no default here

    def stop(self) -> None:
        for fd in list(self._fds):
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        del self._fds[fd]
        self._loop.unwatch(fd)

    def _answer(self, fd: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                count = os.readv(fd, [self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # interrupted before it was seen
                    continue
                self._forget(fd)
                return
            if count >= _IN_HEADER.size:
                self._refuse(fd, *_IN_HEADER.unpack_from(self._buffer)[1:3])

    def _refuse(self, fd: int, opcode: int, unique: int) -> None:
        if opcode in _NEVER_ANSWERED or opcode in _FOR_THE_NEXT_SERVER:
            return
        code = errno.ETIMEDOUT
        if opcode == _LOOKUP and self._fds[fd] == ROOT:
            # A name that is looked up again and fails is unmounted with all below it (d_invalidate), and the datasets'
            # mounts would be gone for good. The one error that leaves them is this (fuse_dentry_revalidate).
            code = errno.ENOMEM
        self.refused += 1
        try:
            os.write(fd, _OUT_HEADER.pack(_OUT_HEADER.size, -code, unique))
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: its process was killed
                say(f"a request cannot be refused: {error}")
