"""One kernel FUSE connection of the direct session: requests are decoded, answered by a tree, encoded.

What a handler returns is its answer: bytes are sent, a coroutine is run in the nursery and what it returns is sent,
None means that there is nothing (more) to send, HANDED_OVER that another thread answers. What it raises becomes an
errno.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Coroutine, Sequence
from enum import Enum
from functools import partial
from types import CoroutineType
from typing import Any, ClassVar, Final

import structlog
import trio
from prometheus_client import Histogram

from dsfs import metrics
from dsfs.errors import DsfsError
from dsfs.filesystem.attributes import BLOCK_SIZE, Listed
from dsfs.filesystem.errnos import errno_of
from dsfs.filesystem.tree import Directories
from dsfs.filesystem.waiting import Waiting
from dsfs.fuse.device import Device, Disconnected
from dsfs.fuse.interrupts import wants_out
from dsfs.fuse.later import Later
from dsfs.fuse.packing import pack_attributes, pack_entry, pack_names, pack_names_plus, pack_sized
from dsfs.fuse.wire import (
    ATTR_OUT,
    DIRENT,
    GETXATTR_IN,
    IN_HEADER,
    INIT_IN,
    INIT_IN_FLAGS2,
    INIT_OUT,
    INTERRUPT_IN,
    KERNEL_MINOR_VERSION,
    KERNEL_VERSION,
    KSTATFS,
    READ_IN,
    InitFlag,
    Opcode,
)
from dsfs.ranges import MiB

log = structlog.get_logger()

_NOTIFICATIONS = trio.CapacityLimiter(2)
LARGEST_READ_BYTES = 1 * MiB
_PAGE = 4096
_DRAIN = 64  # requests that are answered before the loop lets others have their turn
_QUIET = {errno.ENOENT, errno.ENODATA, errno.ENOSYS, errno.EINTR, errno.ERANGE, errno.ENOTTY, errno.ENAMETOOLONG}


class _Elsewhere(Enum):
    HANDED_OVER = "handed over"


HANDED_OVER: Final = _Elsewhere.HANDED_OVER

Work = Coroutine[Any, Any, "bytes | bytearray | memoryview | None"]
Answer = bytes | memoryview | None | _Elsewhere | Later | Work
Handler = Callable[["Connection", int, int, memoryview], Answer]


class Connection:
    """Names and attributes; ``FilesConnection`` adds bytes.

    ``initialised`` is called with what the kernel offered once INIT is answered; a connection that is taken over from
    an earlier server gets no INIT, and ``offered`` says what that one was told.
    """

    handlers: ClassVar[dict[int, Handler]]

    def __init__(
        self,
        name: str,
        device: Device,
        tree: Directories,
        labels: tuple[str, str],
        offered: int,
        initialised: Callable[[int], None],
    ) -> None:
        self.name = name
        self.device = device
        self.offered = InitFlag(offered)
        self._tree = tree
        self._labels = labels
        self._initialised = initialised
        # unique → (scope, pid, since), oldest first
        self._running: dict[int, tuple[trio.CancelScope | Later, int, float]] = {}
        self._handed_over: dict[int, tuple[int, float]] = {}  # unique → pid, since: what other threads answer
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

    async def forget(self, names: Sequence[tuple[int, bytes]], directories: Sequence[int]) -> None:
        """Have the kernel ask anew for names and listings that changed, in nodeids."""
        await self.notify(lambda: self._forget(names, directories))

    async def forget_all(self, directories: Callable[[], Sequence[int]]) -> None:
        """As ``forget``, for more than can be listed; a kernel without epochs is told ``directories`` one by one."""

        def work() -> None:
            try:
                self.device.forget_all_names()
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._forget((), directories())

        await self.notify(work)

    async def notify(self, work: Callable[[], None]) -> None:
        """Tell the kernel something, unless the connection has ended, and its caches with it. In a thread: the kernel
        may wait there for what this very loop has to answer."""

        def while_held() -> None:
            with contextlib.suppress(Disconnected), self.device.held():
                work()

        await trio.to_thread.run_sync(while_held, limiter=_NOTIFICATIONS)

    def _forget(self, names: Sequence[tuple[int, bytes]], directories: Sequence[int]) -> None:
        for directory in directories:
            self.device.forget_inode(directory)
        for parent, name in names:
            self.device.forget_name(parent, name)

    def poll(self) -> bool:
        """Look after what a subclass asks the disk for again and again; whether it has to be called again soon."""
        return False

    def _drain(self) -> None:
        for _ in range(_DRAIN):
            request = self.device.receive()
            if request is None:
                return
            self._handle(request)

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
                self.device.reply(unique, later.finish())
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
        if code not in _QUIET:
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
            64,  # max_background: read-ahead requests that the kernel keeps in flight
            48,  # congestion_threshold
            _PAGE,  # max_write: nothing is written
            1,  # time_gran, ns
            LARGEST_READ_BYTES // _PAGE,
            0,
            chosen >> 32,
            self.stack_depth(),
            0,  # request_timeout: ours are shorter and end in an errno
        )
        self._initialised(int(self.offered))
        return reply

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

    def take_back(self, unique: int) -> tuple[int, float] | None:
        """Who asked, and since when; None when that is answered. Any thread: whoever gets it answers."""
        return self._handed_over.pop(unique, None)

    def init_flags(self) -> InitFlag:
        """What a subclass wants besides."""
        return InitFlag(0)

    def stack_depth(self) -> int:
        return 0

    def on_lookup(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        name = bytes(body[:-1])  # NUL-terminated
        entry = self._tree.try_lookup(nodeid, name)
        return self._wait_lookup(nodeid, name) if entry is None else pack_entry(entry)

    async def _wait_lookup(self, nodeid: int, name: bytes) -> bytes:
        return pack_entry(await self._tree.lookup(nodeid, name))

    def on_forget(self, unique: int, nodeid: int, body: memoryview) -> None:
        return  # nodeids are computed: nothing was kept

    def on_getattr(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        attributes = self._tree.try_getattr(nodeid)
        return ATTR_OUT.pack(attributes.ttl_s, 0, 0) + pack_attributes(attributes)

    def on_readlink(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        target = self._tree.readlink(nodeid)
        if len(target) >= _PAGE:
            raise OSError(errno.ENAMETOOLONG, "the link's target is longer than a path can be")
        return target

    def on_opendir(self, unique: int, nodeid: int, body: memoryview) -> None:
        # Turns OPENDIR and RELEASEDIR off for the connection, and the kernel's cache of listings on: what a directory
        # shows is computed from nodeid and offset, so a handle would have nothing to hold.
        self.device.reply_error(unique, errno.ENOSYS)

    def on_readdir(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        return self._readdir(nodeid, offset, size, pack_names)

    def on_readdirplus(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        return self._readdir(nodeid, offset, size, pack_names_plus)

    def _readdir(self, nodeid: int, offset: int, size: int, pack: Callable[[list[Listed], int], bytes]) -> Answer:
        limit = size // (DIRENT.size + 8) + 1
        names = self._tree.try_readdir(nodeid, offset, limit)
        return self._wait_readdir(nodeid, offset, size, limit, pack) if names is None else pack(names, size)

    async def _wait_readdir(
        self, nodeid: int, offset: int, size: int, limit: int, pack: Callable[[list[Listed], int], bytes]
    ) -> bytes:
        await self._tree.ensure_listed(nodeid)
        return pack(self._tree.try_readdir(nodeid, offset, limit) or [], size)

    def on_statfs(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        return self._wait_statfs()

    async def _wait_statfs(self) -> bytes:
        found = await self._tree.statfs()
        blocks = -(-found.total_bytes // BLOCK_SIZE)
        return KSTATFS.pack(blocks, 0, 0, found.files, 0, BLOCK_SIZE, 255, BLOCK_SIZE, 0)

    def on_getxattr(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        (size, _pad) = GETXATTR_IN.unpack_from(body)
        name = bytes(body[GETXATTR_IN.size : -1])
        if not name.startswith(b"user.dsfs."):
            raise OSError(errno.ENODATA, "no such attribute")
        value = self._tree.xattrs(nodeid).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return pack_sized(value, size)

    def on_listxattr(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        (size, _pad) = GETXATTR_IN.unpack_from(body)
        return pack_sized(b"".join(name + b"\0" for name in self._tree.xattrs(nodeid)), size)

    def on_write_like(self, unique: int, nodeid: int, body: memoryview) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    def on_ioctl(self, unique: int, nodeid: int, body: memoryview) -> None:
        raise OSError(errno.ENOTTY, "no ioctl is known")

    def on_interrupt(self, unique: int, nodeid: int, body: memoryview) -> None:
        (target,) = INTERRUPT_IN.unpack_from(body)
        running, handed_over = self._running.get(target), self._handed_over.get(target)
        if running is not None and wants_out(running[1]):
            running[0].cancel()
        elif handed_over is not None and wants_out(handed_over[0]) and self.take_back(target) is not None:
            self.device.reply_error(target, errno.EINTR)

    def on_destroy(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        return b""


Connection.handlers = {
    Opcode.INIT: Connection.on_init,
    Opcode.LOOKUP: Connection.on_lookup,
    Opcode.FORGET: Connection.on_forget,
    Opcode.BATCH_FORGET: Connection.on_forget,
    Opcode.GETATTR: Connection.on_getattr,
    Opcode.READLINK: Connection.on_readlink,
    Opcode.OPENDIR: Connection.on_opendir,
    Opcode.READDIR: Connection.on_readdir,
    Opcode.READDIRPLUS: Connection.on_readdirplus,
    Opcode.STATFS: Connection.on_statfs,
    Opcode.GETXATTR: Connection.on_getxattr,
    Opcode.LISTXATTR: Connection.on_listxattr,
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
