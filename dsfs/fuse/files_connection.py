"""The connection of one dataset: what Connection answers, and bytes, over the three read paths (DESIGN section 3)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog
import trio

from dsfs.cache.complete import CachedObject
from dsfs.errors import DsfsError
from dsfs.fetch.disk_read import DiskRead
from dsfs.fetch.flight import Flight
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.read_path import Abilities, InodeMode, Listing, choose_read_path, mode_for_open
from dsfs.filesystem.tree import Directories
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse.connection import HANDED_OVER, LARGEST_READ_BYTES, Answer, Connection
from dsfs.fuse.device import Device, Disconnected
from dsfs.fuse.later import Later
from dsfs.fuse.polling import LARGEST_BYTES, PATIENCE_S, Polling
from dsfs.fuse.resume import OpenJournal
from dsfs.fuse.waiters import Waiters
from dsfs.fuse.wire import OPEN_IN, OPEN_OUT, READ_IN, InitFlag, Opcode, OpenFlag
from dsfs.model import ReadPath
from dsfs.ranges import ByteRange
from dsfs.sources.base import Buffer

log = structlog.get_logger()

_READ_BUFFER = memoryview(bytearray(LARGEST_READ_BYTES))  # filled and sent without an await between: one is enough
_CACHED = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH  # pages stay: an inode number never gets other bytes
_PASSTHROUGH = (
    OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH
)  # with KEEP_CACHE the kernel answers EIO (FOPEN_PASSTHROUGH_MASK)


class _Asked(NamedTuple):
    """A read that the disk is asked for; until when it is asked again, on the clock of time.perf_counter."""

    files: DatasetFiles
    unique: int
    nodeid: int
    offset: int
    size: int
    read: DiskRead
    until_s: float


class ReadingConnection(Connection):
    """Reads, whatever the read path: the nodeid is enough."""

    def __init__(
        self,
        name: str,
        device: Device,
        tree: Directories,
        labels: tuple[str, str],
        offered: int,
        initialised: Callable[[int], None],
        waiters: Waiters,
    ) -> None:
        super().__init__(name, device, tree, labels, offered, initialised)
        self._waiters = waiters
        self._polling = Polling()
        self._polled: list[_Asked] = []

    def files_at(self, nodeid: int) -> DatasetFiles:
        """The files that a nodeid is one of. Raises OSError."""
        raise OSError(errno.EISDIR, "no file")

    def on_read(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        files = self.files_at(nodeid)
        pieces = files.try_pieces(nodeid, offset, size)
        if pieces is not None:
            self.device.reply_pieces(unique, pieces)
            return None
        read = files.from_disk(nodeid, offset, size)
        if read is None:
            return self._wait_read(files.read, files, unique, nodeid, offset, size)
        if read.now(_READ_BUFFER):
            return _READ_BUFFER[: read.wanted.length]
        asked = _Asked(files, unique, nodeid, offset, size, read, time.perf_counter() + PATIENCE_S)
        self.hand_over(unique)
        if read.opened and read.wanted.length <= LARGEST_BYTES and self._polling.pays():
            self._polled.append(asked)
        else:
            self._waiters.put(partial(self._wait_for_disk, asked))
        return HANDED_OVER

    def poll(self) -> bool:
        now_s = time.perf_counter()
        waiting: list[_Asked] = []
        for asked in self._polled:
            if self._is_read(asked, asked.read.now, _READ_BUFFER):
                self._polling.came()
                self._answer(asked, _READ_BUFFER)
            elif now_s < asked.until_s:
                waiting.append(asked)
            else:
                self._polling.did_not_come()
                self._waiters.put(partial(self._wait_for_disk, asked))
        self._polled = waiting
        return bool(waiting)

    def _wait_for_disk(self, asked: _Asked, buffer: memoryview) -> None:
        """In a thread that may wait: answer, or have the loop do it after all."""
        if self._is_read(asked, asked.read.wait, buffer):
            self._answer(asked, buffer)
        else:
            self._on_the_loop(asked)

    def _is_read(self, asked: _Asked, read: Callable[[memoryview], bool], buffer: memoryview) -> bool:
        """What goes wrong ends neither the loop nor a thread: there is another way to read."""
        try:
            return read(buffer)
        except Exception as error:
            log.error("read failed unexpectedly", connection=self.name, nodeid=asked.nodeid, exc_info=error)
            return False

    def _answer(self, asked: _Asked, buffer: memoryview) -> None:
        """With what is at the beginning of a buffer. Any thread."""
        taken = self.take_back(asked.unique)
        if taken is None:
            return
        with contextlib.suppress(Disconnected), self.device.held():  # the loop hears of it as well
            self.device.reply(asked.unique, buffer[: asked.read.wanted.length])
        self._seconds[Opcode.READ].observe(time.perf_counter() - taken[1])

    def _on_the_loop(self, asked: _Asked) -> None:
        def begin() -> None:
            taken = self.take_back(asked.unique)
            if taken is not None and self._nursery is not None:
                files, unique, nodeid, offset, size, *_rest = asked
                read = self._wait_read(files.read_noted, files, unique, nodeid, offset, size)
                self._begin(unique, Opcode.READ, nodeid, *taken, read)

        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):  # the next server is asked again
            self._token.run_sync_soon(begin)

    async def _wait_read(
        self,
        read: Callable[[int, ByteRange], Awaitable[list[Buffer]]],
        files: DatasetFiles,
        unique: int,
        nodeid: int,
        offset: int,
        size: int,
    ) -> None:
        try:
            pieces = await read(nodeid, ByteRange(offset, offset + size))
        except DsfsError as error:
            files.note_error(error)
            raise
        self.device.reply_pieces(unique, pieces)


class RootConnection(ReadingConnection):
    """The tree of namespaces, and older revisions by name; those are always read by the daemon."""

    def __init__(
        self, device: Device, tree: WholeTree, offered: int, initialised: Callable[[int], None], waiters: Waiters
    ) -> None:
        super().__init__("/", device, tree, ("", ""), offered, initialised, waiters)
        self._whole = tree

    def files_at(self, nodeid: int) -> DatasetFiles:
        return self._whole.files(nodeid)

    def on_open(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        (flags, _open_flags) = OPEN_IN.unpack_from(body)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only file system")
        self.files_at(nodeid).file(nodeid)  # EISDIR, ESTALE
        return OPEN_OUT.pack(0, _CACHED, 0)

    def on_release(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        return b""


class FilesConnection(ReadingConnection):
    """``read_path`` is what opens get now; once openless, always openless, and the kernel sends no more opens."""

    def __init__(
        self,
        name: str,
        device: Device,
        files: DatasetFiles,
        *,
        journal: OpenJournal,
        can_passthrough: bool,
        memory_bytes: int,
        openless: bool,
        offered: int,
        initialised: Callable[[int], None],
        turned_openless: Callable[[], None],
        stack_depth: int,
        waiters: Waiters,
    ) -> None:
        manifest = files.dataset.manifest
        super().__init__(name, device, files, (manifest.namespace, manifest.name), offered, initialised, waiters)
        self._files = files
        self._journal = journal
        self._can_passthrough = can_passthrough
        self._memory_bytes = memory_bytes
        self._openless = openless
        self._turned_openless = turned_openless
        self._stack_depth = stack_depth
        self._chosen: tuple[bool, ReadPath] | None = None
        self._wrong: set[int] = set()  # whose pages are not right, and go with the last handle

    def close(self) -> None:
        super().close()
        self._journal.remove()

    @property
    def read_path(self) -> ReadPath:
        """What the next open gets, from what is listed by now."""
        if self._openless:
            return ReadPath.OPENLESS
        catalog = self._files.dataset.catalog
        if self._chosen is None or self._chosen[0] != catalog.sealed:
            files, total_bytes, _skipped = catalog.totals() if catalog.sealed else (0, 0, 0)
            largest = catalog.largest() if catalog.sealed else 0
            path = choose_read_path(
                self._files.dataset.manifest.read_path,
                Abilities(self._can_passthrough and self._offers_passthrough, openless=True),
                Listing(files, total_bytes, largest, catalog.sealed),
                self._memory_bytes,
            )
            self._chosen = (catalog.sealed, path)
        return self._chosen[1]

    @property
    def _offers_passthrough(self) -> bool:
        return bool(self.offered & InitFlag.PASSTHROUGH)

    def init_flags(self) -> InitFlag:
        return InitFlag.PASSTHROUGH if self._can_passthrough else InitFlag(0)

    def stack_depth(self) -> int:
        return self._stack_depth if self._can_passthrough else 0

    # -- open and release -----------------------------------------------------------------------------------------

    def on_open(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        (flags, _open_flags) = OPEN_IN.unpack_from(body)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only file system")
        path = self.read_path
        self._files.opened(nodeid)
        if path is ReadPath.OPENLESS and not self._journal.passthrough_handles:
            self._turn_openless()
            raise OSError(errno.ENOSYS, "from now on this connection is read without opens")
        if (
            self._journal.mode(nodeid) is not None
            or path is ReadPath.DAEMON
            or self._files.file(nodeid).size_bytes == 0
        ):
            return self._open_as(unique, nodeid, ReadPath.DAEMON if path is ReadPath.DAEMON else path, None)
        obj = self._files.complete(nodeid)
        if obj is None:
            flight = self._files.begin_small(nodeid)
            if flight is None:
                return self._wait_open(unique, nodeid)
            return Later(flight.when_over, partial(self._open_small, unique, nodeid, flight))
        return self._open_as(unique, nodeid, path, obj)

    def _open_small(self, unique: int, nodeid: int, flight: Flight) -> bytes:
        if flight.error is not None:
            raise flight.error
        return self._open_as(unique, nodeid, self.read_path, self._files.complete(nodeid))

    async def _wait_open(self, unique: int, nodeid: int) -> bytes:
        await self._files.prepare(nodeid)
        # no await from here on: the mode of the inode is decided, written down and answered in one go
        return self._open_as(unique, nodeid, self.read_path, self._files.complete(nodeid))

    def _open_as(self, unique: int, nodeid: int, path: ReadPath, obj: CachedObject | None) -> bytes:
        mode = mode_for_open(path, self._journal.mode(nodeid), obj is not None)
        backing_id = 0
        if mode is InodeMode.PASSTHROUGH:
            if self._journal.mode(nodeid) is InodeMode.PASSTHROUGH:
                backing_id = self._journal.backing_id(nodeid)  # the kernel refuses a second one while that is open
            elif obj is not None:
                try:
                    backing_id = self.device.open_backing(obj.fd)
                except OSError as error:
                    self._can_passthrough = False
                    self._chosen = None
                    log.warning("no passthrough, the daemon reads", connection=self.name, reason=str(error))
        self._journal.opened(unique, nodeid, backing_id)
        if backing_id == 0:
            return OPEN_OUT.pack(0, _CACHED, 0)
        file = self._files.file(nodeid)
        file.origin.kernel_opened_bytes.inc(file.size_bytes)
        return OPEN_OUT.pack(0, _PASSTHROUGH, backing_id)

    def on_release(self, unique: int, nodeid: int, body: memoryview) -> Answer:
        backing_id = self._journal.released(unique, nodeid)
        if self._journal.mode(nodeid) is None:
            self._files.closed(nodeid)
            if nodeid in self._wrong:
                self._wrong.discard(nodeid)
                return self._forget_after(backing_id, nodeid)
        if backing_id:
            self.device.close_backing(backing_id)
        return b""

    async def _forget_after(self, backing_id: int, nodeid: int) -> bytes:
        if backing_id:
            self.device.close_backing(backing_id)
        await self.forget_pages([nodeid])
        return b""

    async def forget_pages(self, nodeids: Sequence[int]) -> None:
        """Have the kernel drop pages of files, of open ones once they are closed.

        Without opens nobody tells whether a file is open; then its readers get the pages that are read anew.
        """
        closed = [nodeid for nodeid in nodeids if self._journal.mode(nodeid) is None]
        self._wrong.update(set(nodeids) - set(closed))

        def work() -> None:
            for nodeid in closed:
                self.device.forget_inode(nodeid)

        await self.notify(work)

    def _turn_openless(self) -> None:
        self._openless = True
        self._turned_openless()

    def files_at(self, nodeid: int) -> DatasetFiles:
        return self._files


ReadingConnection.handlers = {
    **Connection.handlers,
    Opcode.READ: ReadingConnection.on_read,  # type: ignore[dict-item]  # the table is looked up through the same class
}
RootConnection.handlers = {
    **ReadingConnection.handlers,
    Opcode.OPEN: RootConnection.on_open,  # type: ignore[dict-item]
    Opcode.RELEASE: RootConnection.on_release,  # type: ignore[dict-item]
}
FilesConnection.handlers = {
    **ReadingConnection.handlers,
    Opcode.OPEN: FilesConnection.on_open,  # type: ignore[dict-item]  # the table is looked up through the same class
    Opcode.RELEASE: FilesConnection.on_release,  # type: ignore[dict-item]
}
