"""Small files by courier: flights without a task, for the plain case. What is more than that flies as any other.

A flight is sent when its turn comes, and a report ends it: no task, no thread, no hand-over but one message each way,
which several flights may share. The courier may die or stand still at any moment; then what it was sent for flies on
by itself, and another is started.
"""

from __future__ import annotations

import array
import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import structlog
import trio

from dsfs import metrics
from dsfs.cache.allowance import SetAside
from dsfs.cache.node import NodeTier
from dsfs.cache.space import whole_space
from dsfs.cache.whole import Stored
from dsfs.errors import SourceError, SourceTimeout
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
from dsfs.fetch.flight import Flight
from dsfs.fetch.lateness import stood_still
from dsfs.fetch.outbox import Outbox
from dsfs.fetch.queue import FetchQueue, Priority
from dsfs.fetch.room import Room
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.digest import Digest, digest_of
from dsfs.sources.wire_head import BadHead, parse_head
from dsfs.sources.wire_request import NotForWire, Proof, WireRequest, as_wire

log = structlog.get_logger()

_AGAIN_S: Final = (0.0, 0.1, 1.0, 5.0, 30.0)
_WELL_S: Final = 60.0  # one that lived for so long was well: the next one starts at once
_LOOK_S: Final = 0.25
_ENDED_S: Final = 2.0
_LONGEST_REQUEST: Final = 32 * KiB  # what is longer flies by itself
_LEFT_S: Final = 2.0  # of its time, for a flight by itself, however late it was that the courier was missed
_STANDS_STILL_S: Final = 5.0
"""Without a word, and it is ended: it never waits for anything but the disk."""


@dataclass(slots=True, eq=False)
class _Sent:
    flight: Flight
    request: WireRequest
    room: SetAside
    epoch: int
    started_s: float
    """On the clock of time.perf_counter."""
    given_up: bool = False
    """Its time was over: nobody waits any more, but it may still be stored."""


class ByCourier:
    """File side only. ``argv`` starts the process, but for the number of its socket at the end.

    ``fly`` starts a flight that has its turn in a task of its own; ``ended`` says that one is over.
    """

    def __init__(
        self,
        argv: Sequence[str],
        tier: NodeTier,
        room: Room,
        queue: FetchQueue,
        deadline_s: float,
        fly: Callable[[Flight], None],
        ended: Callable[[Flight], None],
    ) -> None:
        self._argv = argv
        self._tier = tier
        self._room = room
        self._queue = queue
        self._deadline_s = deadline_s
        self._fly = fly
        self._ended = ended
        self._link: socket.socket | None = None  # while there is a courier that has said that it is ready
        self._sent: dict[int, _Sent] = {}
        self._outbox = Outbox()
        self._asked_s: float | None = None  # when that was asked, until it is answered
        self._number = 0
        self._counted = {True: metrics.COURIER_FILES.labels("stored"), False: metrics.COURIER_FILES.labels("otherwise")}
        self._something_sent = trio.Event()
        self._wanted = trio.Event()
        self.pid = 0
        """Of the courier, 0 without one."""

    @property
    def ready(self) -> bool:
        """Whether there is a courier that takes errands."""
        return self._link is not None

    # -- flights --------------------------------------------------------------------------------------------------

    def expect(self, source: object) -> None:
        """Files of a source are going to be asked for: from now on there is a courier, if one can ask for them."""
        if as_wire(source) is not None:
            self._wanted.set()

    def takes(self, flight: Flight) -> bool:
        """Whether a flight is of the plain kind, as far as is known before its turn."""
        file = flight.file
        self.expect(file.origin.source)
        return (
            self._link is not None
            and flight.group is None
            and len(flight.blocks) == 1
            and 0 < file.size_bytes <= self._tier.block_bytes
            and not self._tier.in_trouble
            and as_wire(file.origin.source) is not None
        )

    def enter(self, flight: Flight) -> None:
        """Send a courier for it when its turn comes."""
        self._queue.enter(flight.ticket, partial(self._send, flight))

    def _send(self, flight: Flight) -> None:
        file = flight.file
        asking = None if self._link is None else self._asking(flight)
        if asking is None:
            self._fly(flight)
            return
        request, proof, digest = asking
        space = whole_space(file.size_bytes, self._tier.block_bytes)
        room = self._room.try_reserve(file.origin, space)
        if room is None:
            self._fly(flight)
            return
        if not self._tier.begin_making(file.key):
            room.give_back()
            self._fly(flight)
            return
        self._number += 1
        errand = Errand(
            self._number,
            request.host,
            request.port,
            request.head + b"\r\n",
            proof,
            file.size_bytes,
            self._tier.layout.object_path(file.key),
            file.key,
            request.timeouts.connect_s,
            request.timeouts.idle_s,
            flight.ticket.priority is not Priority.WARM,
            request.tells,
            None if digest is None else (digest.algorithm, digest.hex, digest.git_blob),
        )
        self._outbox.put(errand)
        self._sent[self._number] = _Sent(flight, request, room, file.origin.entitlement.epoch, time.perf_counter())
        self._something_sent.set()

    def _asking(self, flight: Flight) -> tuple[WireRequest, Proof, Digest | None] | None:
        """What to ask, what proves the answer, and what it must hash to; None: not by courier."""
        file = flight.file
        try:
            source = as_wire(file.origin.source)
            request = None if source is None else source.asking(file.obj, ByteRange(0, file.size_bytes))
            if request is None or request.proof is None or len(request.head) > _LONGEST_REQUEST:
                return None
            return request, request.proof, digest_of(file.origin.source, file.obj)
        except Exception:  # whatever it is, its own way meets it again and says so
            return None

    def _heard(self, report: Report, descriptor: int) -> None:
        sent = self._sent.pop(report.number)
        flight = sent.flight
        try:
            self._take_in(sent, report, descriptor)
        except Exception:  # as in a flight of its own: a bug here must not end the server
            file = flight.file
            log.exception("report of a courier not understood", dataset=file.origin.id, path=file.obj.path)
        finally:
            self._tier.end_making(flight.file.key)
            sent.room.give_back()
        if flight.kept:
            if not sent.given_up:
                self._over(flight)
            return
        if not sent.given_up:
            self._fly_after(sent)

    def _fly_after(self, sent: _Sent) -> None:
        """By itself, in the time that is left, or a little more: an answer that is not late needs no longer."""
        waited_s = time.perf_counter() - sent.started_s
        sent.flight.waited_s += min(waited_s, max(0.0, self._deadline_s - _LEFT_S))
        self._fly(sent.flight)

    def _take_in(self, sent: _Sent, report: Report, descriptor: int) -> None:
        flight = sent.flight
        self._counted[report.outcome == Outcome.STORED].inc()
        if report.outcome == Outcome.STORED:
            self._stored(sent, report, descriptor)
        elif not sent.given_up:
            if report.outcome == Outcome.SAID:
                flight.told = _told(sent.request, report)
            elif report.outcome == Outcome.TIMEOUT:
                flight.told = SourceTimeout(f"{sent.request.what}: nothing answered in time")
            else:
                log.debug("not by courier", dataset=flight.file.origin.id, reason=report.reason)

    def _stored(self, sent: _Sent, report: Report, descriptor: int) -> None:
        flight, file = sent.flight, sent.flight.file
        origin = file.origin
        # no descriptor: it was only wanted ahead when it was sent, or no more files may be open
        stored = Stored(descriptor, report.replaced, report.space_bytes)
        if descriptor < 0 and flight.ticket.priority is Priority.WARM and not flight.joined:
            self._tier.count_whole(file.key, file.size_bytes, stored, origin.id)
            flight.kept = True
        else:
            flight.stored = self._tier.adopt(file.key, file.size_bytes, stored, origin.id)
            flight.kept = flight.stored is not None
        origin.entitlement.note(sent.epoch)
        origin.count_fetched(file.size_bytes)
        if report.second is not None:
            origin.count_hedged(report.second)
        self._tier.note_success()
        if sent.given_up:
            return
        origin.note_answered(sent.started_s)
        self._queue.answered(flight.ticket)

    def _over(self, flight: Flight) -> None:
        self._queue.leave(flight.ticket)
        self._ended(flight)

    # -- the process ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a courier running, once one is of use."""
        await self._wanted.wait()
        deaths = 0
        while True:
            started_s = trio.current_time()
            try:
                await self._one()
            except OSError as error:  # no process, no descriptor: small files come by lanes
                log.warning("no courier for small files", reason=str(error))
            except Exception:  # nor must a bug here end the server
                log.exception("no courier for small files")
            deaths = 0 if trio.current_time() - started_s > _WELL_S else deaths + 1
            await trio.sleep(_AGAIN_S[min(deaths, len(_AGAIN_S) - 1)])

    async def _one(self) -> None:
        """One life of a courier."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                argv = [*self._argv, str(theirs.fileno())]
                process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            self.pid = process.pid
            ours.setblocking(False)
            try:
                ours.send(packed((self._tier.block_bytes, self._tier.boot)))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, nursery.cancel_scope)
                    nursery.start_soon(self._outbox.post, ours)
                    await self._listen(ours)
                    nursery.cancel_scope.cancel()
            finally:
                self._link, self.pid = None, 0
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ENDED_S):
                    await self._last_words(ours)
                process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ENDED_S):
                    await process.wait()
                self._fly_on()
        log.warning("the courier for small files ended", status=process.returncode)

    async def _listen(self, link: socket.socket) -> None:
        """Until it is gone."""
        await trio.lowlevel.wait_readable(link)
        while self._hear(link):
            self._link = link
            await trio.lowlevel.wait_readable(link)

    async def _last_words(self, link: socket.socket) -> None:
        """Have it end, and hear what it has stored: that would lie here for ever, as the index does not know of it."""
        with contextlib.suppress(OSError):  # it is gone
            link.shutdown(socket.SHUT_WR)
        await trio.lowlevel.wait_readable(link)
        while self._hear(link):
            await trio.lowlevel.wait_readable(link)

    def _hear(self, link: socket.socket) -> bool:
        """Take what has come; False: nothing more will."""
        while True:
            try:
                raw, ancillary, _flags, _address = link.recvmsg(
                    LARGEST_MESSAGE + LARGEST_DOCUMENT, socket.CMSG_SPACE(4 * DESCRIPTORS_MAX)
                )
            except BlockingIOError:
                return True
            except ConnectionResetError:
                continue  # it has died and left a message unread: said once, before what it had sent
            if not raw:
                return False
            descriptors = array.array("i")
            for _level, _type, data in ancillary:
                descriptors.frombytes(data)
            self._take(unpacked(raw), list(descriptors))

    def _take(self, reports: list[tuple[Any, ...]], descriptors: list[int]) -> None:
        self._asked_s = None  # whatever it says, it is well
        descriptors.reverse()
        for fields in reports:
            if fields:  # else it only says that it is well
                report = Report(*fields)
                self._heard(report, descriptors.pop() if report.descriptor and descriptors else -1)

    async def _watch(self, life: trio.CancelScope) -> None:
        """End flights whose time is over, and the life of a courier that stands still."""
        while True:
            if not self._sent:
                self._something_sent = trio.Event()
                await self._something_sent.wait()
            due_s = trio.current_time() + _LOOK_S
            await trio.sleep_until(due_s)
            late, now_s = stood_still(due_s, trio.current_time()), time.perf_counter()
            if self._asked_s is None:
                self._asked_s = now_s
                self._outbox.ask()
            elif not late and now_s - self._asked_s > min(_STANDS_STILL_S, self._deadline_s / 2):
                log.warning("the courier for small files stands still")
                life.cancel()  # what waits for a dead disk cannot even be killed, so its end is not waited for
                return
            for sent in list(self._sent.values()):
                if now_s - sent.started_s > self._deadline_s and not sent.given_up:
                    self._time_is_over(sent)

    def _time_is_over(self, sent: _Sent) -> None:
        sent.given_up = True
        origin = sent.flight.file.origin
        error = origin.no_answer(self._deadline_s)
        origin.note_failed(error, sent.started_s)
        self._queue.failed(sent.flight.ticket, error)
        sent.flight.fail(error)
        self._over(sent.flight)

    def _fly_on(self) -> None:
        """The courier is gone: what it was sent for flies by itself."""
        left, self._sent, self._asked_s = self._sent, {}, None
        self._outbox.clear()
        for sent in left.values():
            self._tier.end_making(sent.flight.file.key)
            sent.room.give_back()
            if not sent.given_up:
                self._fly_after(sent)


def _told(request: WireRequest, report: Report) -> SourceError | None:
    """The error behind an answer; None when there is none that would not come again."""
    try:
        head = parse_head(report.head)
        request.judge(replace(head, document=report.document))
    except SourceError as error:
        return error
    except (BadHead, NotForWire):
        return None
    return None
