"""One of the courier's connections: what is under way on it, and how far that is."""

from __future__ import annotations

import socket
from typing import Final

from dsfs.fetch.addresses import Server
from dsfs.fetch.errand import Errand
from dsfs.ranges import KiB
from dsfs.sources.digest import Digest

_BUFFER_BYTES: Final = 128 * KiB
_BUFFER_KEPT_MAX: Final = 512 * KiB


class Line:
    """A connection, and the errand that is under way on it."""

    __slots__ = (
        "buffer",
        "connecting",
        "deadline_s",
        "document_at",
        "errand",
        "have",
        "head_end",
        "keeps_open",
        "need",
        "polled_out",
        "server",
        "socket",
        "told",
        "unsent",
        "used",
        "view",
    )

    def __init__(self, connection: socket.socket, server: Server) -> None:
        self.socket = connection
        self.server = server
        self.buffer = bytearray(_BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.errand: Errand | None = None
        self.told: Digest | None = None
        self.used = False  # for an answer before this one: the server may have closed it since
        self.connecting = self.polled_out = True
        self.unsent = b""
        self.deadline_s = 0.0  # of the errand; while idle, since when
        self.begin()

    def begin(self) -> None:
        self.have = self.need = self.head_end = 0
        self.document_at = -1
        self.keeps_open = False

    def room(self, size_bytes: int) -> None:
        """Have a buffer of so many bytes, with what has come in it."""
        if len(self.buffer) < size_bytes:
            buffer = bytearray(size_bytes)
            buffer[: self.have] = self.view[: self.have]
            self.buffer, self.view = buffer, memoryview(buffer)

    def rest(self) -> None:
        """Keep no large buffer while nothing is under way."""
        if len(self.buffer) > _BUFFER_KEPT_MAX:
            self.buffer = bytearray(_BUFFER_BYTES)
            self.view = memoryview(self.buffer)
