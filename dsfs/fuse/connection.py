"""One kernel FUSE connection of the direct session: requests come in, have somebody find their answer, and get it.

What a handler returns is its answer: bytes are sent, a coroutine is run in the nursery and what it returns is sent,
None means that there is nothing (more) to send, HANDED_OVER that another thread answers. What it raises becomes an
errno.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import CoroutineType
from typing import Any, ClassVar, Final

import structlog
import trio
from prometheus_client import Histogram

from dsfs import metrics
from dsfs.errors import DsfsError
from dsfs.filesystem.errnos import QUIET, errno_of
from dsfs.filesystem.waiting import Waiting
from dsfs.fuse.device import Device, Disconnected
from dsfs.fuse.interrupts import wants_out
from dsfs.fuse.kernel_caches import KernelCaches
from dsfs.fuse.later import Later
from dsfs.fuse.waiters import Waiters
from dsfs.fuse.wire import (
    IN_HEADER,
    INIT_IN,
    INIT_IN_FLAGS2,
    INIT_OUT,
    INTERRUPT_IN,
    KERNEL_MINOR_VERSION,
    KERNEL_VERSION,
    InitFlag,
    Opcode,
)
from dsfs.ranges import MiB

log = structlog.get_logger()

LARGEST_READ_BYTES = 1 * MiB
PAGE = 4096
_MAX_BACKGROUND = 512
"""Read-ahead requests that the kernel keeps in flight: with fewer, those of cold files hold up the cached ones."""
_LOOK_AGAIN_S = 0.5  # whether who was interrupted is to end by now
_DRAIN, _DRAIN_S = 64, 0.05  # requests and s until others have their turn: each may look at a disk that is slow


class _Elsewhere(Enum):
    HANDED_OVER = "handed over"


HANDED_OVER: Final = _Elsewhere.HANDED_OVER

Work = Coroutine[Any, Any, "bytes | bytearray | memoryview | None"]
Answer = bytes | memoryview | None | _Elsewhere | Later | Work
Handler = Callable[[Any, int, int, memoryview], Answer]  # of a connection of the class whose table it is in


@dataclass(frozen=True, slots=True)
class Channel:
    """What a session gives a connection.

    ``initialised`` is called with what the kernel offered once INIT is answered; a connection that is taken over from
    an earlier server gets no INIT, and ``offered`` says what that one was told.
    """

    device: Device
    offered: int
    initialised: Callable[[int], None]
    waiters: Waiters


class Connection:
    """Knows how to answer; what, ``NamesConnection`` and those below it."""

    handlers: ClassVar[dict[int, Handler]]

    def __init__(self, name: str, channel: Channel, labels: tuple[str, str]) -> None:
        self.name = name
        self.device = channel.device
        self.kernel_caches = KernelCaches(channel.device)
        self.offered = InitFlag(channel.offered)
        self._initialised = channel.initialised
        self._labels = labels
        # unique → (scope, pid, since), oldest first
        self._running: dict[int, tuple[trio.CancelScope | Later, int, float]] = {}
        self._handed_over: dict[int, tuple[int, float]] = {}  # unique → pid, since: what other threads answer
        self._interrupted: set[int] = set()  # uniques of what goes on all the same
        self._pid = 0  # who asks for what is being handled
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._seconds = metrics.Children[int, Histogram](
            lambda opcode: metrics.OPERATION_SECONDS.labels(Opcode(opcode).name.lower())
        )

    async def run(self, *, resume: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until the file system is unmounted."""
        if resume:
            try:
                self.device.resend()
            except OSError as error:  # EINVAL before 6.9: what was in flight is lost, what comes is answered
                log.warning("kernel repeats no requests", connection=self.name, reason=str(error))
            except Disconnected:
                task_status.started()
                return
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._token = trio.lowlevel.current_trio_token()
                task_status.started()
                try:
                    await self._answer_requests()
                finally:
                    self._nursery = None  # while that is still open: other threads hand back at any time
        except* Disconnected:
            log.info("unmounted", connection=self.name)
        finally:
            for running, _pid, _since in self._running.values():
                if isinstance(running, Later):
                    running.over = True

    async def _answer_requests(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.device.fd)
            self._drain()
            while self.poll():
                await trio.lowlevel.checkpoint()
                self._drain()

    def poll(self) -> bool:
        """Look after what a subclass asks the disk for again and again; whether it has to be called again soon."""
        return False

    def _drain(self) -> None:
        until_s = time.perf_counter() + _DRAIN_S
        for _ in range(_DRAIN):
            request = self.device.receive()
            if request is None:
                return
            self._handle(request)
            if time.perf_counter() > until_s:
                return  # what is left makes the descriptor readable

    def _handle(self, request: memoryview) -> None:
        if len(request) < IN_HEADER.size:  # names no request that could be answered
            log.warning("request without a header", connection=self.name, size_bytes=len(request))
            return
        _length, opcode, unique, nodeid, _uid, _gid, pid, _ext, _pad = IN_HEADER.unpack_from(request)
        handler = self.handlers.get(opcode)
        if handler is None:
            self.device.reply_error(unique, errno.ENOSYS)
            return
        started = time.perf_counter()
        self._pid = pid
        try:
            answer = handler(self, unique, nodeid, request[IN_HEADER.size :])
        except Disconnected:
            raise
        except Exception as error:
            self._fail(unique, opcode, nodeid, error)
        else:
            if type(answer) is CoroutineType:
                self._begin(unique, opcode, nodeid, pid, started, answer)
                return
            if answer is HANDED_OVER:
                return
            if type(answer) is Later:
                asked = unique, opcode, nodeid, started
                self._running[unique] = (answer, pid, started)
                answer.begin(
                    partial(self._time_for, answer, *asked), partial(self._wanted_out, unique, opcode, started)
                )
                return
            if answer is not None:
                self.device.reply(unique, answer)  # type: ignore[arg-type]  # mypy does not narrow on CoroutineType
        self._seconds[opcode].observe(time.perf_counter() - started)

    def _time_for(self, later: Later, unique: int, opcode: int, nodeid: int, started: float) -> None:
        """Called from wherever the thing was awaited: nothing may come out of here but the answer."""
        with contextlib.suppress(Disconnected):  # which ``run`` sees too
            try:
                answer = later.finish()
                if type(answer) is CoroutineType:
                    if self._nursery is None:  # it stops, and the next server is asked again
                        answer.close()
                        return
                    _later, pid, _started = self._running[unique]
                    self._begin(unique, opcode, nodeid, pid, started, answer)
                    return
                self.device.reply(unique, answer)  # type: ignore[arg-type]  # mypy does not narrow on CoroutineType
            except Disconnected:
                raise
            except Exception as error:
                self._fail(unique, opcode, nodeid, error)
        self._running.pop(unique, None)
        self._seconds[opcode].observe(time.perf_counter() - started)

    def _wanted_out(self, unique: int, opcode: int, started: float) -> None:
        self._running.pop(unique, None)
        self._seconds[opcode].observe(time.perf_counter() - started)
        self.device.reply_error(unique, errno.EINTR)

    def _begin(self, unique: int, opcode: int, nodeid: int, pid: int, started: float, work: Work) -> None:
        """Answer once a task has found out what."""
        assert self._nursery is not None
        scope = trio.CancelScope()
        self._running[unique] = (scope, pid, started)  # an INTERRUPT may be the very next request
        self._nursery.start_soon(self._finish, unique, opcode, nodeid, scope, started, work)

    async def _finish(
        self,
        unique: int,
        opcode: int,
        nodeid: int,
        scope: trio.CancelScope,
        started: float,
        work: Work,
    ) -> None:
        with scope:
            try:
                answer = await work
            except Disconnected:
                raise
            except Exception as error:
                self._fail(unique, opcode, nodeid, error)
            else:
                if answer is not None:
                    self.device.reply(unique, answer)
            finally:
                self._running.pop(unique, None)
                self._seconds[opcode].observe(time.perf_counter() - started)
        if scope.cancelled_caught:
            self.device.reply_error(unique, errno.EINTR)

    def _fail(self, unique: int, opcode: int, nodeid: int, error: Exception) -> None:
        code = errno_of(error)
        if code not in QUIET:
            metrics.ERRORS.labels(*self._labels, errno.errorcode.get(code, str(code))).inc()
            if not isinstance(error, DsfsError | OSError):
                log.error("request failed unexpectedly", connection=self.name, opcode=opcode, exc_info=error)
            else:
                log.info(
                    "request failed",
                    dataset=self.name,
                    operation=Opcode(opcode).name.lower(),
                    nodeid=nodeid,
                    errno=errno.errorcode.get(code, str(code)),
                    reason=str(error),
                )
        self.device.reply_error(unique, code)

    def waiting(self) -> Waiting:
        """Requests that are not answered yet."""
        handed_over = list(self._handed_over.values())  # at once, as other threads take from it
        running = self._running.values()
        return Waiting.of([*(since for _scope, _pid, since in running), *(since for _pid, since in handed_over)])

    def close(self) -> None:
        """Give back what it has: the connection has ended."""
        self.device.close()

    def hand_over(self, unique: int) -> None:
        """Another thread answers a request, if it can ``take_back`` it then."""
        self._handed_over[unique] = self._pid, time.perf_counter()

    def is_handed_over(self, unique: int) -> bool:
        """Whether it is still to be answered. Any thread."""
        return unique in self._handed_over

    def take_back(self, unique: int) -> tuple[int, float] | None:
        """Who asked, and since when; None when that is answered. Any thread: whoever gets it answers."""
        return self._handed_over.pop(unique, None)

    def init_flags(self) -> InitFlag:
        """What a subclass wants besides."""
        return InitFlag(0)

    def stack_depth(self) -> int:
        return 0

    # -- handlers -------------------------------------------------------------------------------------------------

    def on_init(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        major, minor, _max_readahead, flags = INIT_IN.unpack_from(body)
        if major != KERNEL_VERSION:
            raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}")
        if flags & InitFlag.INIT_EXT and len(body) >= INIT_IN.size + INIT_IN_FLAGS2.size:
            flags |= INIT_IN_FLAGS2.unpack_from(body, INIT_IN.size)[0] << 32
        self.offered = InitFlag(flags)
        chosen = self.offered & (
            InitFlag.ASYNC_READ
            | InitFlag.BIG_WRITES
            | InitFlag.DO_READDIRPLUS
            | InitFlag.READDIRPLUS_AUTO
            | InitFlag.ASYNC_DIO
            | InitFlag.PARALLEL_DIROPS
            | InitFlag.MAX_PAGES
            | InitFlag.CACHE_SYMLINKS
            | InitFlag.NO_OPENDIR_SUPPORT
            | InitFlag.EXPLICIT_INVAL_DATA
            | InitFlag.INIT_EXT
            | self.init_flags()
        )
        reply = INIT_OUT.pack(
            KERNEL_VERSION,
            min(minor, KERNEL_MINOR_VERSION),
            16 * MiB,  # max_readahead: the mount's bdi decides
            chosen & 0xFFFFFFFF,
            _MAX_BACKGROUND,
            _MAX_BACKGROUND * 3 // 4,  # congestion_threshold
            PAGE,  # max_write: nothing is written
            1,  # time_gran, ns
            LARGEST_READ_BYTES // PAGE,
            0,
            chosen >> 32,
            self.stack_depth(),
            0,  # request_timeout: ours are shorter and end in an errno
        )
        self._initialised(int(self.offered))
        return reply

    def on_forget(self, unique: int, nodeid: int, body: memoryview) -> None:
        return  # nodeids are computed: nothing was kept

    def on_write_like(self, unique: int, nodeid: int, body: memoryview) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    def on_ioctl(self, unique: int, nodeid: int, body: memoryview) -> None:
        raise OSError(errno.ENOTTY, "no ioctl is known")

    def on_interrupt(self, unique: int, nodeid: int, body: memoryview) -> None:
        (target,) = INTERRUPT_IN.unpack_from(body)
        if self._goes_on(target):
            if not self._interrupted and self._nursery is not None:
                self._nursery.start_soon(self._look_again)
            self._interrupted.add(target)

    def _goes_on(self, target: int) -> bool:
        """Whether a request is waited for though it was interrupted; if it need not be, it is answered."""
        running, handed_over = self._running.get(target), self._handed_over.get(target)
        if running is not None:
            if not wants_out(running[1]):
                return True
            running[0].cancel()
        elif handed_over is not None:
            if not wants_out(handed_over[0]):
                return True
            if self.take_back(target) is not None:
                self.device.reply_error(target, errno.EINTR)
        return False

    async def _look_again(self) -> None:
        """The kernel tells of the first signal only, and who waits can then not even be killed."""
        while self._interrupted:
            await trio.sleep(_LOOK_AGAIN_S)
            self._interrupted = {target for target in self._interrupted if self._goes_on(target)}

    def on_destroy(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        return b""


Connection.handlers = {
    Opcode.INIT: Connection.on_init,
    Opcode.FORGET: Connection.on_forget,
    Opcode.BATCH_FORGET: Connection.on_forget,
    Opcode.INTERRUPT: Connection.on_interrupt,
    Opcode.DESTROY: Connection.on_destroy,
    Opcode.IOCTL: Connection.on_ioctl,
    # The mount is read-only, so the kernel answers these itself; should one come all the same:
    **dict.fromkeys(
        (
            Opcode.SETATTR,
            Opcode.SYMLINK,
            Opcode.MKNOD,
            Opcode.MKDIR,
            Opcode.UNLINK,
            Opcode.RMDIR,
            Opcode.RENAME,
            Opcode.RENAME2,
            Opcode.LINK,
            Opcode.WRITE,
            Opcode.SETXATTR,
            Opcode.REMOVEXATTR,
            Opcode.CREATE,
            Opcode.TMPFILE,
            Opcode.FALLOCATE,
            Opcode.COPY_FILE_RANGE,
        ),
        Connection.on_write_like,
    ),
}
