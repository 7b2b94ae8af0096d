"""The courier: a process beside the server that fetches small files over plain sockets and stores them.

One thread and one loop, so nobody waits for Python's lock: with lanes (``Bridge.in_lane``) the FUSE loop and the
threads woke each other 130 times for each small file (futex calls counted with strace). It does the plain case alone:
an address that is known, an answer that proves its version and fits, a disk that takes it. Of everything else it says
so, and the server does it in its own ways. It keeps no state that would be missed, and may be killed at any moment.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from typing import Final

from dsfs.cache.whole import Stored, remove_object, store_whole
from dsfs.errors import SourceError
from dsfs.fetch.addresses import Addresses, Server
from dsfs.fetch.errand import (
    DESCRIPTORS_MAX,
    LARGEST_DOCUMENT,
    LARGEST_MESSAGE,
    Errand,
    Outcome,
    Report,
    packed,
    unpacked,
)
from dsfs.fetch.line import Line
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.answers import body_place
from dsfs.sources.digest import Digest
from dsfs.sources.told_headers import of_amz_headers, of_http_headers
from dsfs.sources.wire_head import BadHead, Head, parse_head

_HEAD_MAX: Final = 64 * KiB
_IDLE_MAX_S: Final = 30.0  # as in sources/wire.py
_IDLE_MAX: Final = 64
_TICK_S: Final = 0.5
_AGAIN: Final = (BlockingIOError, InterruptedError)


class Courier:
    """``control`` is the server's socket; the courier ends when that is closed."""

    def __init__(self, control: socket.socket, block_bytes: int, boot: bytes) -> None:
        control.setblocking(False)
        self._control = control
        self._block_bytes = block_bytes
        self._boot = boot
        self._poll = select.epoll()
        self._lines: dict[int, Line] = {}
        self._idle: dict[Server, list[Line]] = {}  # the one that was used last at the end
        self._addresses = Addresses()
        self._reports: list[Report] = []
        self._descriptors: list[int] = []
        self._looked_s = 0.0

    def run(self) -> None:
        """Until the server is gone."""
        control_fd = self._control.fileno()
        self._poll.register(control_fd, select.EPOLLIN)
        self._send([()])  # ready
        while True:
            for fd, _events in self._poll.poll(_TICK_S if self._lines else None):
                if fd == control_fd:
                    if not self._hear():
                        self._tell()  # the server may want to know to the last what lies in its cache
                        return
                elif (line := self._lines.get(fd)) is not None:
                    self._on_event(line)
            self._tell()
            self._look_at_clock()

    # -- the server's side ----------------------------------------------------------------------------------------

    def _hear(self) -> bool:
        while True:
            try:
                raw = self._control.recv(LARGEST_MESSAGE)
            except _AGAIN:
                return True
            except ConnectionError:
                return False
            if not raw:
                return False
            errands = unpacked(raw)
            if not errands:  # whether it is well
                self._send([()])
            for fields in errands:
                self._start(Errand(*fields))

    def _tell(self) -> None:
        while self._reports:
            reports: list[Report] = []
            size, descriptors = 0, 0
            for report in self._reports[:DESCRIPTORS_MAX]:
                size += len(report.head) + len(report.document) + len(report.reason) + 100
                if reports and size > LARGEST_MESSAGE:
                    break
                descriptors += report.descriptor
                reports.append(report)
            del self._reports[: len(reports)]
            sent, self._descriptors = self._descriptors[:descriptors], self._descriptors[descriptors:]
            try:
                self._send([tuple(report) for report in reports], sent)
            finally:
                for fd in sent:
                    os.close(fd)

    def _send(self, message: list[tuple[object, ...]], descriptors: list[int] | None = None) -> None:
        along = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        raw = packed(message)
        while True:
            try:
                self._control.sendmsg([raw], along)
                return
            except _AGAIN:
                self._wait_writable()  # the server has its reasons; there is nothing better to do
            except ConnectionError:
                raise SystemExit(0) from None  # it is gone

    def _wait_writable(self) -> None:
        poll = select.poll()  # select() takes no number above 1023, and the server may have had more descriptors
        poll.register(self._control, select.POLLOUT)
        poll.poll()

    def _report(self, errand: Errand, outcome: Outcome, reason: str = "") -> None:
        self._reports.append(Report(errand.number, int(outcome), reason=reason))

    # -- connections ----------------------------------------------------------------------------------------------

    def _start(self, errand: Errand, *, fresh: bool = False) -> None:
        server = (errand.host, errand.port)
        idle = self._idle.get(server)
        if idle and not fresh:
            line = idle.pop()
        else:
            address = self._addresses.find(server)
            if address is None:
                self._report(errand, Outcome.NOT_SO, "the address of the host is not known yet")
                return
            family, place = address
            try:
                connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError as error:
                self._report(errand, Outcome.NOT_SO, f"no connection can be made ({error.strerror})")
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                connection.connect(place)
            except _AGAIN:
                pass  # it comes
            except OSError as error:
                connection.close()
                self._unreachable(errand, error)
                return
            line = Line(connection, server)
            self._lines[connection.fileno()] = line
            self._poll.register(connection.fileno(), select.EPOLLOUT)
        line.begin()
        line.errand = errand
        line.unsent = errand.request
        if line.connecting:
            line.deadline_s = time.monotonic() + errand.connect_s
        else:
            self._write(line)

    def _unreachable(self, errand: Errand, error: OSError) -> None:
        """The server may have several addresses, or another by now: whoever tries them all says what is wrong."""
        self._addresses.forget((errand.host, errand.port))
        self._report(errand, Outcome.NOT_SO, f"cannot be reached ({type(error).__name__})")

    def _close(self, line: Line) -> None:
        self._lines.pop(line.socket.fileno(), None)
        line.socket.close()  # and epoll forgets it
        line.errand = None

    def _give_up(self, line: Line, reason: str) -> None:
        errand, used, had = line.errand, line.used, line.have
        self._close(line)
        if errand is None:
            return
        if used and had == 0:  # it was idle and has been closed: that says nothing about the next one
            self._start(errand, fresh=True)
        else:
            self._report(errand, Outcome.NOT_SO, reason)

    def _keep(self, line: Line) -> None:
        line.errand = None
        line.used = True
        line.deadline_s = time.monotonic()
        line.rest()
        idle = self._idle.setdefault(line.server, [])
        if len(idle) < _IDLE_MAX:
            idle.append(line)
        else:
            self._close(line)

    def _look_at_clock(self) -> None:
        """Time limits: of errands that stand still, and of connections that nobody used for long."""
        now_s = time.monotonic()
        if now_s < self._looked_s + _TICK_S:
            return
        self._looked_s = now_s
        for line in list(self._lines.values()):
            errand = line.errand
            if errand is None:
                if line.deadline_s < now_s - _IDLE_MAX_S:
                    self._drop_idle(line)
            elif line.deadline_s < now_s:
                self._close(line)
                self._report(errand, Outcome.TIMEOUT)
        self._tell()

    def _drop_idle(self, line: Line) -> None:
        idle = self._idle[line.server]
        idle.remove(line)
        if not idle:
            del self._idle[line.server]
        self._close(line)

    # -- one exchange ---------------------------------------------------------------------------------------------

    def _on_event(self, line: Line) -> None:
        if line.errand is None:
            self._drop_idle(line)  # closed by the server, or it talks without being asked
        elif line.connecting:
            code = line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                errand = line.errand
                self._close(line)
                self._unreachable(errand, OSError(code, os.strerror(code)))
                return
            line.connecting = False
            self._write(line)
        elif line.unsent:
            self._write(line)
        else:
            self._read(line, line.errand)

    def _write(self, line: Line) -> None:
        """Send the rest of the request."""
        assert line.errand is not None
        fd = line.socket.fileno()
        try:
            line.unsent = line.unsent[line.socket.send(line.unsent) :]
        except _AGAIN:
            pass
        except OSError as error:
            self._give_up(line, f"broke off ({type(error).__name__})")
            return
        line.deadline_s = time.monotonic() + line.errand.idle_s
        if bool(line.unsent) != line.polled_out:
            line.polled_out = not line.polled_out
            self._poll.modify(fd, select.EPOLLOUT if line.polled_out else select.EPOLLIN)

    def _read(self, line: Line, errand: Errand) -> None:
        try:
            count = line.socket.recv_into(line.view[line.have :])
        except _AGAIN:
            return
        except OSError as error:
            self._give_up(line, f"broke off ({type(error).__name__})")
            return
        if count == 0:
            if line.document_at >= 0:
                self._said(line, errand)
            else:
                self._give_up(line, "the server closed the connection")
            return
        line.have += count
        line.deadline_s = time.monotonic() + errand.idle_s
        if not line.need and not self._read_head(line, errand):
            return
        if line.have < line.need:
            return
        if line.document_at >= 0:
            self._said(line, errand)
        else:
            self._store(line, errand)

    def _read_head(self, line: Line, errand: Errand) -> bool:
        """Whether the head is there and what follows it is wanted."""
        end = line.buffer.find(b"\r\n\r\n", 0, line.have)
        if end < 0:
            if line.have >= min(_HEAD_MAX, len(line.buffer)):
                self._give_up(line, "the head of the answer does not end")
            return False
        line.head_end = end
        try:
            head = parse_head(bytes(line.view[:end]))
            if head.status >= 300:
                line.document_at = end + 4
                line.need = line.document_at + min(LARGEST_DOCUMENT, head.content_length or 0)
                line.room(line.need)
                return True
            wanted = ByteRange(0, errand.size_bytes)
            place = body_place(
                head.status,
                head.headers.get("Content-Range"),
                head.content_length,
                errand.size_bytes,
                wanted,
                errand.host,
            )
            plain = head.status in (200, 206) and head.framed and place == wanted and _proves(head, errand.proof)
        except (BadHead, SourceError) as error:
            self._give_up(line, str(error))
            return False
        if not plain:
            self._give_up(line, "not a plain answer")
            return False
        line.keeps_open = head.keeps_open
        line.told = None
        if errand.tells:
            line.told = (
                of_amz_headers(head.headers) if errand.tells == "amz" else of_http_headers(head.headers, whole=True)
            )
        line.need = end + 4 + errand.size_bytes
        line.room(line.need)
        return True

    def _said(self, line: Line, errand: Errand) -> None:
        head = bytes(line.view[: line.head_end])
        document = bytes(line.view[line.document_at : line.have])[:LARGEST_DOCUMENT]
        self._close(line)
        self._reports.append(Report(errand.number, int(Outcome.SAID), head=head, document=document))

    def _store(self, line: Line, errand: Errand) -> None:
        data = line.view[line.need - errand.size_bytes : line.need]
        listed = None if errand.digest is None else Digest(*errand.digest)
        if not all(digest.is_of(data) for digest in (listed, line.told) if digest is not None):
            self._give_up(line, "not what its hash says")  # who fetches it again knows what that means
            return
        try:
            stored = store_whole(errand.path, errand.key, errand.size_bytes, self._block_bytes, self._boot, data)
        except OSError as error:
            with contextlib.suppress(OSError):  # the server tries too, and says what is wrong with the disk
                remove_object(errand.path)
            self._give_up(line, f"the disk refuses ({error.strerror})")
            return
        if line.keeps_open and line.have == line.need:
            self._keep(line)
        else:
            self._close(line)
        self._hand_over(errand, stored)

    def _hand_over(self, errand: Errand, stored: Stored) -> None:
        if errand.wants_fd:
            self._descriptors.append(stored.fd)
        else:
            os.close(stored.fd)
        self._reports.append(
            Report(errand.number, int(Outcome.STORED), stored.space_bytes, stored.replaced, errand.wants_fd)
        )


def _proves(head: Head, proof: tuple[tuple[str, tuple[str, ...]], ...]) -> bool:
    for name, values in proof:
        found = head.headers.getall(name, [""])
        if len(found) != 1 or found[0].strip() not in values:
            return False
    return True
