"""One of the courier's connections: what is under way on it, and how far that is."""

from __future__ import annotations

import socket
from typing import Final

from dsfs.errors import SourceError
from dsfs.fetch.addresses import Server
from dsfs.fetch.errand import LARGEST_DOCUMENT, Errand
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.answers import body_place
from dsfs.sources.digest import Digest
from dsfs.sources.told_headers import of_amz_headers, of_http_headers
from dsfs.sources.wire_head import BadHead, Head, parse_head

_BUFFER_BYTES: Final = 128 * KiB
_BUFFER_KEPT_MAX: Final = 512 * KiB
_HEAD_MAX: Final = 64 * KiB


class NotPlain(Exception):
    """An answer that is not the courier's to read. The text says why."""


class Line:
    """A connection, and the errand that is under way on it."""

    __slots__ = (
        "began_s",
        "beside",
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
        "second",
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
        self.beside: Line | None = None  # the other one that is under way for the same errand
        self.second = False  # whether that one was there before
        self.began_s = 0.0
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

    def read_head(self, errand: Errand) -> bool:
        """Whether the head is there; then ``need`` says how much there is to come. Raises NotPlain."""
        end = self.buffer.find(b"\r\n\r\n", 0, self.have)
        if end < 0:
            if self.have >= min(_HEAD_MAX, len(self.buffer)):
                raise NotPlain("the head of the answer does not end")
            return False
        self.head_end = end
        try:
            head = parse_head(bytes(self.view[:end]))
            if head.status >= 300:
                self.document_at = end + 4
                self.need = self.document_at + min(LARGEST_DOCUMENT, head.content_length or 0)
                self.room(self.need)
                return True
            wanted = ByteRange(0, errand.size_bytes)
            said = head.headers.get("Content-Range")
            place = body_place(head.status, said, head.content_length, errand.size_bytes, wanted, errand.host)
        except (BadHead, SourceError) as error:
            raise NotPlain(str(error)) from error
        if head.status not in (200, 206) or not head.framed or place != wanted or not _proves(head, errand.proof):
            raise NotPlain("not a plain answer")
        self.keeps_open = head.keeps_open
        self.told = None
        if errand.tells:
            self.told = (
                of_amz_headers(head.headers) if errand.tells == "amz" else of_http_headers(head.headers, whole=True)
            )
        self.need = end + 4 + errand.size_bytes
        self.room(self.need)
        return True

    def rest(self) -> None:
        """Nothing is under way any more: a large buffer need not be kept."""
        self.second = False
        if len(self.buffer) > _BUFFER_KEPT_MAX:
            self.buffer = bytearray(_BUFFER_BYTES)
            self.view = memoryview(self.buffer)


def _proves(head: Head, proof: tuple[tuple[str, tuple[str, ...]], ...]) -> bool:
    for name, values in proof:
        found = head.headers.getall(name, [""])
        if len(found) != 1 or found[0].strip() not in values:
            return False
    return True
