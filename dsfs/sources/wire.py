"""Ranged GETs over plain blocking sockets: the way of bytes with the fewest copies and the least of Python on it.

The kernel copies into the buffer that the caller gives, a megabyte a system call, and Python's lock is free meanwhile;
measured against the libraries: benchmarks/RESULTS.md, "The wire". Only the plain case is read here. What is more than
that (TLS, a proxy, a redirect, a body in chunks) raises NotForWire before any byte was given, and the source reads it
by its library. Everything here blocks and belongs into a thread; ``Stop`` is how another thread ends it.
"""

from __future__ import annotations

import contextlib
import encodings.ascii
import encodings.idna
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from dsfs.errors import SourceTimeout, SourceUnavailable
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.answers import body_place
from dsfs.sources.timeouts import Timeouts
from dsfs.sources.wire_head import BadHead, Head, parse_head
from dsfs.sources.wire_request import NotForWire, WireRequest

# getaddrinfo and the libraries ask for these by name. If the first time is when no descriptor is left to load them,
# Python notes for good that there are none: so they are loaded before.
_CODECS: Final = (encodings.idna, encodings.ascii)
IDLE_MAX_S: Final = 30.0  # nginx closes after 75, many balancers after 60
IDLE_CONNECTIONS_MAX: Final = 64  # of one server
_DOCUMENT_MAX_BYTES: Final = 16 * KiB
_FIRST_PIECE_BYTES: Final = 64 * KiB
_TIMEVAL: Final = struct.Struct("@ll")


class Stopped(Exception):
    """``Stop.now`` was called."""


class Stop:
    """Ends a blocking exchange from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.called = False

    def now(self) -> None:
        """Whoever waits for the socket gets Stopped."""
        with self._lock:
            self.called = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # not connected any more
                    self._socket.shutdown(socket.SHUT_RDWR)

    def holds(self, connection: socket.socket | None) -> None:
        """What is waited for from now on. Raises Stopped."""
        with self._lock:
            self._socket = connection
            if self.called:
                raise Stopped


class Wire:
    """Connections to servers, kept while they are idle. For any number of threads."""

    def __init__(self) -> None:
        self._scratch = _Scratch()
        self._lock = threading.Lock()  # guards _idle
        self._idle: dict[tuple[str, int], list[tuple[socket.socket, float]]] = {}  # the oldest first

    @contextlib.contextmanager
    def get(self, request: WireRequest, wanted: ByteRange, stop: Stop) -> Iterator[Body]:
        """The bytes of a range whose version is proven, to be taken with ``Body.fill``.

        Raises the SourceError of ``judge``, SourceTimeout, SourceUnavailable, NotForWire, Stopped.
        """
        connection, body = self._exchange(request, wanted, stop)
        try:
            yield body
            stop.holds(None)
        except BaseException:
            connection.close()
            raise
        if body.leaves_clean:
            self._keep(request, connection)
        else:
            connection.close()

    def close(self) -> None:
        """End the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection, _since in connections:
                connection.close()

    def _exchange(self, request: WireRequest, wanted: ByteRange, stop: Stop) -> tuple[socket.socket, Body]:
        """Send, and read the head of the answer. A connection that was idle may be closed by now: then once more."""
        while True:
            kept = self._take(request)
            connection = kept or self._connected(request, stop)
            try:
                stop.holds(connection)
                try:
                    head, rest = _asked(connection, request, self._scratch.buffer)
                except _ClosedMeanwhile:
                    if stop.called:
                        raise Stopped from None
                    if kept is None:
                        raise SourceUnavailable(f"{request.what}: the server closed without an answer") from None
                    connection.close()
                    continue
                return connection, _body(connection, request, head, rest, wanted, stop)
            except BaseException as error:
                connection.close()
                if stop.called and not isinstance(error, Stopped):
                    raise Stopped from error
                raise

    def _connected(self, request: WireRequest, stop: Stop) -> socket.socket:
        last: OSError | None = None
        try:
            found = socket.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"{request.what}: the host's name is not known ({type(error).__name__})") from error
        for family, kind, protocol, _name, address in found:
            connection = socket.socket(family, kind, protocol)
            try:
                stop.holds(connection)
                connection.settimeout(request.timeouts.connect_s)
                connection.connect(address)
                return _prepared(connection, request.timeouts)
            except BaseException as error:
                connection.close()
                if stop.called:
                    raise Stopped from error
                if not isinstance(error, OSError):
                    raise
                last = error
        if isinstance(last, TimeoutError):
            raise SourceTimeout(f"{request.what}: nothing answered in time") from last
        raise SourceUnavailable(f"{request.what}: cannot be reached ({type(last).__name__})") from last

    def _take(self, request: WireRequest) -> socket.socket | None:
        """The one that was used last, so that those that are not needed grow old. Old ones go, of whichever server."""
        oldest = time.monotonic() - IDLE_MAX_S
        old: list[socket.socket] = []
        with self._lock:
            for server, connections in list(self._idle.items()):
                while connections and connections[0][1] < oldest:
                    old.append(connections.pop(0)[0])
                if not connections:
                    del self._idle[server]
            kept = self._idle.get((request.host, request.port))
            taken = kept.pop()[0] if kept else None
        for connection in old:
            connection.close()
        return taken

    def _keep(self, request: WireRequest, connection: socket.socket) -> None:
        with self._lock:
            connections = self._idle.setdefault((request.host, request.port), [])
            if len(connections) < IDLE_CONNECTIONS_MAX:
                connections.append((connection, time.monotonic()))
                return
        connection.close()


def _prepared(connection: socket.socket, timeouts: Timeouts) -> socket.socket:
    """Time limits of the kernel, not of Python: those would make it poll before every read, and read in pieces."""
    connection.settimeout(None)
    seconds, rest = divmod(timeouts.idle_s, 1)
    limit = _TIMEVAL.pack(int(seconds), int(rest * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _Scratch(threading.local):
    """Where a thread gathers the head of an answer; what came of the body with it is taken out before the next one."""

    def __init__(self) -> None:
        self.buffer = bytearray(_FIRST_PIECE_BYTES)


class Body:
    """The wanted bytes of one answer, in order."""

    def __init__(
        self,
        connection: socket.socket,
        request: WireRequest,
        rest: memoryview,
        left: int,
        behind: int,
        keeps_open: bool,
        stop: Stop,
    ) -> None:
        """``rest`` came with the head; ``left`` bytes are wanted, ``behind`` more would follow."""
        self._connection = connection
        self._what = request.what
        self._rest = rest
        self._left = left
        self._stop = stop
        self._reusable = keeps_open and behind == 0
        self.before = 0
        """Bytes that stand before the wanted ones."""
        self.whole = False
        """Whether the server ignored the range."""

    @property
    def leaves_clean(self) -> bool:
        """Whether the next thing on the connection is the answer to the next request."""
        return self._reusable and self._left == 0 and not self._rest

    def fill(self, view: memoryview) -> int:
        """Wait for some bytes, as many as fit if they keep coming; how many there are. Not for more than are left.

        Raises SourceTimeout after ``idle_s`` without one, SourceUnavailable when the answer breaks off, Stopped.
        """
        if self.before:
            before, self.before = self.before, 0
            self.skip(before)
        count = min(len(view), self._left, len(self._rest))
        if count:
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
        elif self._left:
            count = _received(self._connection, view[: self._left], socket.MSG_WAITALL, self._what, self._stop)
            if count == 0:
                raise SourceUnavailable(f"{self._what}: the answer broke off with {self._left} bytes to come")
        self._left -= count
        return count

    def skip(self, count: int) -> None:
        """Let bytes go by that stand before the wanted ones."""
        from_rest = min(count, len(self._rest))
        self._rest = self._rest[from_rest:]
        count -= from_rest
        scratch = memoryview(bytearray(min(count, 256 * KiB)))
        while count:
            # MSG_TRUNC on TCP: the kernel drops them without a copy (tcp(7)).
            flags = socket.MSG_WAITALL | socket.MSG_TRUNC
            dropped = _received(self._connection, scratch[:count], flags, self._what, self._stop)
            if dropped == 0:
                raise SourceUnavailable(f"{self._what}: the answer broke off before the wanted bytes")
            count -= dropped


class _ClosedMeanwhile(Exception):
    """The server closed a connection before it answered anything on it."""


def _asked(connection: socket.socket, request: WireRequest, buffer: bytearray) -> tuple[Head, memoryview]:
    """Send the request; the head of the answer and what came of the body with it."""
    try:
        connection.sendall(request.head + b"\r\n")
    except BlockingIOError as error:
        raise SourceTimeout(f"{request.what}: the server takes no request") from error
    except OSError as error:
        raise _ClosedMeanwhile from error
    came = 0
    while True:
        try:
            count = connection.recv_into(memoryview(buffer)[came:])
        except BlockingIOError as error:
            raise SourceTimeout(f"{request.what}: nothing answered in time") from error
        except OSError as error:
            if came == 0:
                raise _ClosedMeanwhile from error
            raise SourceUnavailable(f"{request.what}: broke off ({type(error).__name__})") from error
        if count == 0:
            if came == 0:
                raise _ClosedMeanwhile
            raise SourceUnavailable(f"{request.what}: broke off before the answer began")
        came += count
        while (end := buffer.find(b"\r\n\r\n", 0, came)) >= 0:
            try:
                head = parse_head(bytes(buffer[:end]))
            except BadHead as error:
                raise SourceUnavailable(f"{request.what}: this is no answer of an HTTP server ({error})") from error
            rest = memoryview(buffer)[end + 4 : came]
            if head.status >= 200:
                return head, rest
            came = len(rest)  # an interim answer (RFC 9110 15.2): the real one follows
            buffer[:came] = bytes(rest)
        if came == len(buffer):
            raise SourceUnavailable(f"{request.what}: the head of the answer does not end")


def _body(
    connection: socket.socket, request: WireRequest, head: Head, rest: memoryview, wanted: ByteRange, stop: Stop
) -> Body:
    """The body that a head announces, positioned at the first wanted byte."""
    if head.status not in (200, 206):
        request.judge(replace(head, document=_document(connection, request, head, rest, stop)))
        raise SourceUnavailable(f"{request.what}: HTTP {head.status}")
    if not head.framed:
        raise NotForWire("the body comes in chunks")
    request.judge(head)
    place = body_place(
        head.status, head.headers.get("Content-Range"), head.content_length, request.size, wanted, request.what
    )
    behind = place.stop - wanted.stop
    body = Body(connection, request, rest, wanted.length, behind, head.keeps_open, stop)
    body.before, body.whole = wanted.start - place.start, place != wanted
    return body


def _document(connection: socket.socket, request: WireRequest, head: Head, rest: memoryview, stop: Stop) -> bytes:
    """The beginning of what an answer says about itself; less when no more comes."""
    wanted = min(_DOCUMENT_MAX_BYTES, head.content_length or 0)
    found = bytearray(rest[:wanted])
    while len(found) < wanted:
        piece = bytearray(wanted - len(found))
        try:
            count = _received(connection, memoryview(piece), 0, request.what, stop)
        except (SourceTimeout, SourceUnavailable):
            break  # the status has said enough
        if count == 0:
            break
        found += piece[:count]
    return bytes(found)


def _received(connection: socket.socket, view: memoryview, flags: int, what: str, stop: Stop) -> int:
    try:
        count = connection.recv_into(view, len(view), flags)
    except BlockingIOError as error:
        raise SourceTimeout(f"{what}: the answer stopped") from error
    except OSError as error:
        if stop.called:
            raise Stopped from error
        raise SourceUnavailable(f"{what}: the answer broke off ({type(error).__name__})") from error
    if count == 0 and stop.called:
        raise Stopped
    return count
