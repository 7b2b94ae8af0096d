"""Whoever is connected to the keeper's socket: messages of JSON with a descriptor each, and a watch on the process."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass
from typing import Any

from daemon.keeping.loop import say

VERSION = 3  # of the protocol (daemon/keeping/conversation.py)
ANOTHER = "another server has the connections"
LARGEST_MESSAGE = 64 * 1024
_SO_PEERPIDFD = 77  # <asm-generic/socket.h>, Linux 6.5
_SEND_S = 5
_UCRED = struct.Struct("=iII")  # pid uid gid


@dataclass(eq=False)
class Fork:
    """A server as the stand-by knows it that was asked for one; its pid there is 0 until that tells."""

    parent: Peer
    pid: int = 0


class Peer:
    """``pid`` is 0 for a process of another pid namespace; ``pidfd`` is -1 where there is none, and then the end of
    the connection has to stand for the end of the process."""

    def __init__(self, sock: socket.socket) -> None:
        # A peer that was stopped must not stop us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_S, 0))
        self.sock = sock
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.pid: int = _UCRED.unpack(credentials)[0]
        self.pidfd = self._open_pidfd()
        self.version = 1
        self.heard = 0  # messages
        self.fork: Fork | None = None  # of a server that came while a stand-by was asked to take over
        self.adoption: dict[str, Any] = {}  # what an adoption began with
        self.adopting = 0  # messages of it that are still to come
        self.closed = False  # its connection has ended
        self.gone = False  # and so has its process, as far as can be known

    def _open_pidfd(self) -> int:
        try:
            pidfd = self.sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            try:
                pidfd = os.pidfd_open(self.pid) if self.pid else -1
            except OSError:
                return -1
        if pidfd >= 0:
            os.set_inheritable(pidfd, False)
        return pidfd

    def send(self, message: dict[str, Any], fd: int | None = None) -> bool:
        """Whether it was delivered."""
        try:
            socket.send_fds(self.sock, [json.dumps(message).encode()], [] if fd is None else [fd])
        except OSError as error:  # it died while it was answered: the next one asks again
            say(f"answer not delivered: {error}")
            return False
        return True

    def hang_up(self) -> None:
        """Have it lose its connection; we hear of that as if it had ended it."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:  # it has ended
            say(f"pid {self.pid} is gone: {error}")

    def receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """The next message; None when the peer has ended or makes no sense."""
        fds: list[int] = []
        message: Any = None
        try:
            raw, fds, _flags, _address = socket.recv_fds(self.sock, LARGEST_MESSAGE, 1)
            message = json.loads(raw) if raw else None
        except (OSError, ValueError, RecursionError) as error:
            say(f"a peer on the keeper's socket is dropped: {error}")
        if not isinstance(message, dict):
            for fd in fds:
                os.close(fd)
            return None, []
        for fd in fds:
            os.set_inheritable(fd, False)
        self.heard += 1
        return message, fds

    def alive(self) -> bool:
        if self.pidfd < 0:
            return not self.closed
        return not _readable(self.pidfd, 0)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within a time."""
        if self.pidfd < 0:
            return self.closed
        return _readable(self.pidfd, seconds)

    def has_spoken(self) -> bool:
        """Whether something of it is still to be received, or its connection has ended."""
        return not self.closed and _readable(self.sock.fileno(), 0)

    def signal(self, number: signal.Signals) -> bool:
        """Whether it was delivered, or there is nobody left. The kernel takes signals for one's own pid namespace and
        those below it alone, whatever descriptor one has."""
        if self.pidfd < 0:
            return self.closed
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except OSError as error:
            if self.alive():
                say(f"pid {self.pid} takes no {number.name}: {error}")
                return False
        return True


def _readable(fd: int, within_s: float) -> bool:
    """With poll(): select() knows no descriptor beyond 1023, and a keeper has one for each dataset."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(within_s * 1000))
