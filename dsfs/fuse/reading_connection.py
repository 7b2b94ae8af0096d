"""Bytes: reads of files, whatever the read path, and the connection of the tree that the datasets lie in."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import structlog
import trio

from dsfs.errors import DsfsError
from dsfs.fetch.disk_read import DiskRead
from dsfs.fetch.flight import Flight
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.tree import Directories
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse.connection import HANDED_OVER, LARGEST_READ_BYTES, Answer, Channel
from dsfs.fuse.device import Disconnected
from dsfs.fuse.later import Finished, Later
from dsfs.fuse.names_connection import NamesConnection
from dsfs.fuse.polling import LARGEST_BYTES, PATIENCE_S, Polling
from dsfs.fuse.wire import OPEN_IN, OPEN_OUT, READ_IN, Opcode, OpenFlag
from dsfs.ranges import ByteRange
from dsfs.sources.base import Buffer

log = structlog.get_logger()

CACHED = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH
"""Pages stay: an inode number never gets other bytes."""
_READ_BUFFER = memoryview(bytearray(LARGEST_READ_BYTES))  # filled and sent without an await between: one is enough


class _Asked(NamedTuple):
    """A read that the disk is asked for; until when it is asked again, on the clock of time.perf_counter."""

    files: DatasetFiles
    unique: int
    nodeid: int
    offset: int
    size: int
    read: DiskRead
    until_s: float


class ReadingConnection(NamesConnection):
    """Reads, whatever the read path: the nodeid is enough."""

    def __init__(self, name: str, channel: Channel, labels: tuple[str, str], tree: Directories) -> None:
        super().__init__(name, channel, labels, tree)
        self._waiters = channel.waiters
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
        flight = files.begin_absent(nodeid, offset)
        if flight is not None:
            return Later(flight.when_over, partial(self._read_small, files, unique, nodeid, offset, size, flight))
        read = files.from_disk(nodeid, offset, size)
        if read is None:
            return self._wait_read(files.read, files, unique, nodeid, offset, size)
        if files.is_coming(nodeid, read):
            return self._wait_read(files.read_noted, files, unique, nodeid, offset, size)
        if read.now(_READ_BUFFER):
            return _READ_BUFFER[: read.wanted.length]
        asked = _Asked(files, unique, nodeid, offset, size, read, time.perf_counter() + PATIENCE_S)
        self.hand_over(unique)
        if read.opened and read.wanted.length <= LARGEST_BYTES and self._polling.pays():
            self._polled.append(asked)
        else:
            self._waiters.put(partial(self._wait_for_disk, asked))
        return HANDED_OVER

    def _read_small(
        self, files: DatasetFiles, unique: int, nodeid: int, offset: int, size: int, flight: Flight
    ) -> Finished:
        """What a flight of ``begin_absent`` has brought, if that is in memory still."""
        try:
            count = files.from_flight(nodeid, offset, _READ_BUFFER[:size], flight)
        except DsfsError as error:
            files.note_error(error)
            raise
        if count is not None:
            return _READ_BUFFER[:count]
        return self._wait_read(files.read_noted, files, unique, nodeid, offset, size)

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
        if not self.is_handed_over(asked.unique):
            return  # it was interrupted: the disk, which may be dead, need not be asked
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

    def __init__(self, channel: Channel, tree: WholeTree) -> None:
        super().__init__("/", channel, ("", ""), tree)
        self._whole = tree

    def files_at(self, nodeid: int) -> DatasetFiles:
        return self._whole.files(nodeid)

    def on_open(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        (flags, _open_flags) = OPEN_IN.unpack_from(body)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only file system")
        self.files_at(nodeid).file(nodeid)  # EISDIR, ESTALE
        return OPEN_OUT.pack(0, CACHED, 0)

    def on_release(self, unique: int, nodeid: int, body: memoryview) -> bytes:
        return b""


ReadingConnection.handlers = {**NamesConnection.handlers, Opcode.READ: ReadingConnection.on_read}
RootConnection.handlers = {
    **ReadingConnection.handlers,
    Opcode.OPEN: RootConnection.on_open,
    Opcode.RELEASE: RootConnection.on_release,
}
