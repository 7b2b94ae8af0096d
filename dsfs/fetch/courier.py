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
from dsfs.fetch.lateness import Lateness, stood_still
from dsfs.fetch.line import Line, NotPlain
from dsfs.sources.digest import Digest

_IDLE_MAX_S: Final = 30.0  # as in sources/wire.py
_IDLE_MAX: Final = 64
_TICK_S: Final = 0.1
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
        self._lateness: dict[Server, Lateness] = {}

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
            self._begin(idle.pop(), errand)
            return
        try:
            line = self._new_line(server)
        except _CannotConnect as problem:
            self._report(errand, Outcome.NOT_SO, str(problem))
        else:
            self._begin(line, errand)

    def _start_beside(self, line: Line, errand: Errand) -> None:
        """Send an errand that is late once more, over another connection."""
        try:
            second = self._new_line(line.server)
        except _CannotConnect:
            return  # the first one is under way still
        line.beside, second.beside, second.second = second, line, True
        self._begin(second, errand)

    def _new_line(self, server: Server) -> Line:
        address = self._addresses.find(server)
        if address is None:
            raise _CannotConnect("the address of the host is not known yet")
        family, place = address
        try:
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise _CannotConnect(f"no connection can be made ({error.strerror})") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.connect(place)
        except _AGAIN:
            pass  # it comes
        except OSError as error:
            connection.close()
            raise _CannotConnect(self._unreachable(server, error)) from error
        line = Line(connection, server)
        self._lines[connection.fileno()] = line
        self._poll.register(connection.fileno(), select.EPOLLOUT)
        return line

    def _begin(self, line: Line, errand: Errand) -> None:
        line.begin()
        line.errand = errand
        line.unsent = errand.request
        line.began_s = time.monotonic()
        if line.connecting:
            line.deadline_s = line.began_s + errand.connect_s
        else:
            self._write(line)

    def _unreachable(self, server: Server, error: OSError) -> str:
        """The server may have several addresses, or another by now: whoever tries them all says what is wrong."""
        self._addresses.forget(server)
        return f"cannot be reached ({type(error).__name__})"

    def _close(self, line: Line) -> bool:
        """Whether it was alone on its errand; else the other one goes on."""
        self._lines.pop(line.socket.fileno(), None)
        line.socket.close()  # and epoll forgets it
        line.errand = None
        other, line.beside = line.beside, None
        if other is None:
            return True
        other.beside = None
        return False

    def _give_up(self, line: Line, reason: str) -> None:
        errand, used, had = line.errand, line.used, line.have
        if not self._close(line) or errand is None:
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
        due_s = self._looked_s + _TICK_S
        if now_s < due_s:
            return
        self._looked_s = now_s
        for line in list(self._lines.values()):
            errand = line.errand
            if errand is None:
                if line.deadline_s < now_s - _IDLE_MAX_S:
                    self._drop_idle(line)
            elif line.deadline_s < now_s:
                if self._close(line):
                    self._report(errand, Outcome.TIMEOUT)
            elif stood_still(due_s, now_s):
                line.began_s = now_s  # nobody has looked whether it has come
            elif line.beside is None and errand.wants_fd:
                lateness = self._lateness_of(line.server)
                if now_s > line.began_s + lateness.late_s and lateness.take():
                    self._start_beside(line, errand)
        self._tell()

    def _lateness_of(self, server: Server) -> Lateness:
        lateness = self._lateness.get(server)
        if lateness is None:
            lateness = self._lateness[server] = Lateness()
        return lateness

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
                errand, reason = line.errand, self._unreachable(line.server, OSError(code, os.strerror(code)))
                if self._close(line):
                    self._report(errand, Outcome.NOT_SO, reason)
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
        try:
            if not line.need and not line.read_head(errand):
                return
        except NotPlain as problem:
            self._give_up(line, str(problem))
            return
        if line.have < line.need:
            return
        if line.document_at >= 0:
            self._said(line, errand)
        else:
            self._store(line, errand)

    def _said(self, line: Line, errand: Errand) -> None:
        head = bytes(line.view[: line.head_end])
        document = bytes(line.view[line.document_at : line.have])[:LARGEST_DOCUMENT]
        if self._close(line):
            self._reports.append(Report(errand.number, int(Outcome.SAID), head=head, document=document))

    def _store(self, line: Line, errand: Errand) -> None:
        data = line.view[line.need - errand.size_bytes : line.need]
        listed = None if errand.digest is None else Digest(*errand.digest)
        if not all(digest.is_of(data) for digest in (listed, line.told) if digest is not None):
            self._give_up(line, "not what its hash says")  # who fetches it again knows what that means
            return
        self._lateness_of(line.server).came(time.monotonic() - line.began_s)
        try:
            stored = store_whole(errand.path, errand.key, errand.size_bytes, self._block_bytes, self._boot, data)
        except OSError as error:
            with contextlib.suppress(OSError):  # the server tries too, and says what is wrong with the disk
                remove_object(errand.path)
            self._give_up(line, f"the disk refuses ({error.strerror})")
            return
        second = None
        if line.beside is not None:
            second = line.second
            self._close(line.beside)
        if line.keeps_open and line.have == line.need:
            self._keep(line)
        else:
            self._close(line)
        self._hand_over(errand, stored, second)

    def _hand_over(self, errand: Errand, stored: Stored, second: bool | None) -> None:
        if errand.wants_fd:
            self._descriptors.append(stored.fd)
        else:
            os.close(stored.fd)
        self._reports.append(
            Report(
                errand.number, int(Outcome.STORED), stored.space_bytes, stored.replaced, errand.wants_fd, second=second
            )
        )


class _CannotConnect(Exception):
    """Not now; whoever sent the errand does it in another way. The text says why."""
