"""The connection of one dataset: how its files are opened, over the three read paths (DESIGN section 3)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from dsfs.cache.complete import CachedObject
from dsfs.errors import DsfsError
from dsfs.fetch.flight import Flight
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.read_path import Abilities, InodeMode, Listing, choose_read_path, mode_for_open
from dsfs.fuse.connection import Answer, Channel
from dsfs.fuse.later import Later
from dsfs.fuse.reading_connection import CACHED, ReadingConnection
from dsfs.fuse.resume import OpenJournal
from dsfs.fuse.wire import OPEN_IN, OPEN_OUT, InitFlag, Opcode, OpenFlag
from dsfs.model import ReadPath

log = structlog.get_logger()

_PASSTHROUGH = OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH
"""With KEEP_CACHE the kernel answers EIO (FOPEN_PASSTHROUGH_MASK)."""


class FilesConnection(ReadingConnection):
    """``read_path`` is what opens get now; once openless, always openless, and the kernel sends no more opens."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        files: DatasetFiles,
        *,
        journal: OpenJournal,
        can_passthrough: bool,
        memory_bytes: int,
        openless: bool,
        turned_openless: Callable[[], None],
        stack_depth: int,
    ) -> None:
        manifest = files.dataset.manifest
        super().__init__(name, channel, (manifest.namespace, manifest.name), files)
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
            large = catalog.large_bytes() if catalog.sealed else 0
            path = choose_read_path(
                self._files.dataset.manifest.read_path,
                Abilities(self._can_passthrough and self._offers_passthrough, openless=True),
                Listing(files, total_bytes, large, catalog.sealed),
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
            return self._open_as(unique, nodeid, path, None)
        obj = self._files.complete(nodeid)
        if obj is None:
            flight = self._files.begin_small(nodeid)
            if flight is None:
                return self._wait_open(unique, nodeid)
            return Later(flight.when_over, partial(self._open_small, unique, nodeid, flight))
        return self._open_as(unique, nodeid, path, obj)

    def _open_small(self, unique: int, nodeid: int, flight: Flight) -> bytes:
        if flight.error is not None:
            self._files.note_error(flight.error)
            raise flight.error
        return self._open_as(unique, nodeid, self.read_path, self._files.complete(nodeid))

    async def _wait_open(self, unique: int, nodeid: int) -> bytes:
        try:
            await self._files.prepare(nodeid)
        except DsfsError as error:
            self._files.note_error(error)
            raise
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
            return OPEN_OUT.pack(0, CACHED, 0)
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
        closed = [nodeid for nodeid in nodeids if self._openless or self._journal.mode(nodeid) is None]
        self._wrong.update(set(nodeids) - set(closed))

        def work() -> None:
            for nodeid in closed:
                self.device.forget_inode(nodeid)

        await self.kernel_caches.notify(work)

    def _turn_openless(self) -> None:
        self._openless = True
        self._turned_openless()

    def files_at(self, nodeid: int) -> DatasetFiles:
        return self._files


FilesConnection.handlers = {
    **ReadingConnection.handlers,
    Opcode.OPEN: FilesConnection.on_open,
    Opcode.RELEASE: FilesConnection.on_release,
}
