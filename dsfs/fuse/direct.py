"""The direct session: a small root mount, and a connection of its own for every dataset, mounted at its place."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog
import trio

from dsfs.catalog.diff import Changes, ManyChanges
from dsfs.datasets.selection import CATALOG
from dsfs.errors import MountError
from dsfs.fetch.origin import RemoteFile
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.waiting import Waiting
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse.connection import LARGEST_READ_BYTES, Channel, Connection
from dsfs.fuse.device import Device
from dsfs.fuse.files_connection import FilesConnection
from dsfs.fuse.keeper_client import Held, KeeperClient
from dsfs.fuse.reading_connection import RootConnection
from dsfs.fuse.resume import OpenJournal
from dsfs.fuse.waiters import Waiters
from dsfs.model import ReadPath

log = structlog.get_logger()

ROOT = "/"
READ_AHEAD_KIB = 1024
_STATE_OFFERED = "offered"
_STATE_OPENLESS = "openless"
_STATE_SHOWN = "shown"
_INIT_S = 10
_LONGEST_JOURNAL_NAME = 200
_KERNEL_FILES = trio.CapacityLimiter(2)  # in /proc and /sys: a disk that hangs must not keep a mount from coming back


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What the direct session needs to know. ``stack_depth``: 2 when the cache lies on overlayfs, else 1."""

    mountpoint: str
    journal_dir: str
    can_passthrough: bool
    stack_depth: int
    memory_bytes: int


class OpenWatcher(Protocol):
    """Who wants to see the opens that the kernel serves alone."""

    async def watch(self, name: str, path: str, dev: str) -> None:
        """A dataset's connection, mounted at a path, is openless."""

    async def forget(self, name: str) -> None:
        """A dataset is shown no longer."""


class DirectSession:
    """Mounts through the keeper, or goes on with what the keeper holds from a server before.

    Without a tree there is one dataset, and it is the root.
    """

    def __init__(self, options: SessionOptions, keeper: KeeperClient, tree: WholeTree | None) -> None:
        self._options = options
        self._keeper = keeper
        self._tree = tree
        self._states: dict[str, dict[str, Any]] = {}
        self._connections: dict[str, FilesConnection] = {}
        self._files: dict[str, DatasetFiles] = {}
        self._untold: dict[str, list[Changes | ManyChanges]] = {}
        self._root: RootConnection | None = None
        self._waiters = Waiters(LARGEST_READ_BYTES)
        self.watcher: OpenWatcher | None = None
        self._nursery: trio.Nursery | None = None
        self._changing = trio.Lock()  # which datasets are mounted

    def shown_before(self, dataset: str) -> list[str]:
        """The catalogs that a server before this one has shown for a dataset (``namespace/name``), latest first."""
        held = self._keeper.held.get(dataset)
        return list(held.state.get(_STATE_SHOWN, ())) if held else []

    def read_path(self, dataset: str) -> ReadPath | None:
        connection = self._connections.get(dataset)
        return connection.read_path if connection else None

    def waiting(self, dataset: str) -> Waiting:
        """Requests to a dataset that are not answered yet."""
        connection = self._connections.get(dataset)
        return connection.waiting() if connection else Waiting(0, 0.0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the mount point is unmounted. Started when the root is mounted, if there is a tree."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            tree = self._tree
            if tree is not None:

                def root(_held: Held, channel: Channel) -> Connection:
                    self._root = RootConnection(channel, tree)
                    return self._root

                await self._start(ROOT, self._options.mountpoint, "dsfs", root)
            task_status.started()
            await trio.sleep_forever()  # until the root's connection ends

    def has_to_mount(self, dataset: str) -> bool:
        """Whether a dataset is found in the tree before its files are."""
        return self._tree is not None and dataset not in self._keeper.held

    async def add(self, files: DatasetFiles, come: Callable[[], Sequence[int]]) -> None:
        """Mount a dataset at its place. ``come`` has the tree list it then: the directories that this changes.

        Raises MountError; then it is listed, and what is below it answers ESTALE.
        """
        async with self._changing:
            try:
                await self._mount(files)
            finally:
                changed = come()
                if self._root is not None:
                    await self._root.kernel_caches.forget((), changed)

    async def _mount(self, files: DatasetFiles) -> None:
        name = files.dataset.manifest.id
        path = self._options.mountpoint if self._tree is None else f"{self._options.mountpoint}/{name}"

        def make(held: Held, channel: Channel) -> Connection:
            self._connections[name] = self._connection(name, path, files, held, channel)
            return self._connections[name]

        self._files[name] = files
        before, shown = self.shown_before(name), files.dataset.shown()
        await self._start(name, path, f"dsfs:{name}", make, {_STATE_SHOWN: shown})
        if before and shown[0] != before[0]:  # that was lost, and nothing that the kernel knows means what it did
            await self._connections[name].kernel_caches.forget_all(list, lambda: [files.root_nodeid])
        for changed in self._untold.pop(name, ()):
            await self.swapped(name, changed)
        if files.dataset.shown() != shown:  # another revision came meanwhile, when ``swapped`` had nobody to tell
            await self._remember(name, _STATE_SHOWN, files.dataset.shown())

    async def _mount_anew(self, name: str, ended: Connection) -> None:
        """The kernel has ended a dataset's connection (its abort switch, a request that took too long) and left the
        mount: whoever looked would be told ENOTCONN for ever."""
        async with self._changing:
            files = self._files.get(name)
            if files is None or self._connections.get(name) is not ended:
                return
            log.warning("the kernel has ended the connection, it is mounted anew", dataset=name)
            if self.watcher is not None:
                await self.watcher.forget(name)
            try:
                await self._keeper.unmount(name)
                await self._mount(files)
            except MountError as error:
                log.error("not mounted anew", dataset=name, reason=str(error))

    def note_use(self, name: str, nodeid: int) -> None:
        """A file was opened lately, of which no request tells."""
        files = self._files.get(name)
        if files is not None:
            files.note_use(nodeid)

    async def remove(self, name: str, gone: Sequence[tuple[int, bytes]], changed: Sequence[int]) -> None:
        """Detach a dataset's mount; whoever has files of it open keeps them for as long as this server lives."""
        async with self._changing:
            await self._keeper.unmount(name)
            self._connections.pop(name, None)
            self._files.pop(name, None)
            self._states.pop(name, None)
        if self.watcher is not None:
            await self.watcher.forget(name)
        if self._root is not None:
            await self._root.kernel_caches.forget(gone, changed)

    async def swapped(self, name: str, changed: Changes | ManyChanges) -> None:
        """A dataset shows another revision: the next server is told, then the kernel."""
        files, connection = self._files.get(name), self._connections.get(name)
        if files is None or connection is None:  # it is not mounted yet: then it shows this one from the start
            if name in self._keeper.held:  # but the kernel may know what a server before has shown
                self._untold.setdefault(name, []).append(changed)
            return
        await self._remember(name, _STATE_SHOWN, files.dataset.shown())
        if isinstance(changed, ManyChanges):
            await connection.kernel_caches.forget_all(partial(files.names_of, changed), files.all_directories)
        else:
            await connection.kernel_caches.forget(*files.nodeids_of(changed))

    async def forget_pages(self, file: RemoteFile) -> None:
        """An object was not what its source says: the kernel is not to keep its bytes."""
        for name, files in list(self._files.items()):
            connection = self._connections.get(name)
            if connection is not None:
                await connection.forget_pages(files.nodeids_of_object(file))

    async def forget_objects(self, keys: Collection[str]) -> None:
        """As ``forget_pages``, of objects that the cache had wrong bytes of, whatever their files are called."""
        for name, files in list(self._files.items()):
            connection = self._connections.get(name)
            if connection is not None:
                await connection.forget_pages(
                    await trio.to_thread.run_sync(files.nodeids_of_keys, keys, limiter=CATALOG)
                )

    async def _start(
        self,
        name: str,
        path: str,
        source: str,
        make: Callable[[Held, Channel], Connection],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """``state`` is what the next server must know: it is told before the kernel can learn a number from us."""
        assert self._nursery is not None
        nursery = self._nursery
        held = self._keeper.held.pop(name, None)
        resume = held is not None
        if held is None:
            held = await self._keeper.mount(name, path, source)
        self._states[name] = dict(held.state)
        initialised = trio.Event()

        def on_init(offered: int) -> None:
            nursery.start_soon(self._remember, name, _STATE_OFFERED, offered)
            initialised.set()

        if not resume:
            self._forget_journal(name, held)  # of a connection that had this device number before
        offered = int(held.state.get(_STATE_OFFERED, 0))
        connection = make(held, Channel(Device(held.fd), offered, on_init, self._waiters))
        for key, value in (state or {}).items():
            await self._remember(name, key, value)
        await nursery.start(self._serve, name, connection, held, resume)
        if not (resume and _STATE_OFFERED in held.state):
            with trio.move_on_after(_INIT_S) as scope:
                await initialised.wait()
            if scope.cancelled_caught:
                raise MountError(f"{path}: the kernel sent no INIT within {_INIT_S} s")
        nursery.start_soon(_set_read_ahead, held.dev)

    async def _serve(
        self,
        name: str,
        connection: Connection,
        held: Held,
        resume: bool,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await connection.run(resume=resume, task_status=task_status)
        self._keeper.ended(name, held.fd)
        connection.close()  # not when this server is stopped: the next one goes on with descriptor and journal
        if (name == ROOT or self._tree is None) and self._nursery is not None:
            self._nursery.cancel_scope.cancel()  # the mount point is unmounted
        elif await trio.to_thread.run_sync(_is_mounted, held.dev, limiter=_KERNEL_FILES):
            self._soon(self._mount_anew, name, connection)

    def _connection(self, name: str, path: str, files: DatasetFiles, held: Held, channel: Channel) -> FilesConnection:
        journal = OpenJournal(self._journal(name, held))

        def watch() -> None:
            if self.watcher is not None:
                self._soon(self.watcher.watch, name, path, held.dev)

        def turned_openless() -> None:
            self._soon(self._remember, name, _STATE_OPENLESS, True)
            watch()

        if held.state.get(_STATE_OPENLESS, False):
            watch()
        return FilesConnection(
            name,
            channel,
            files,
            journal=journal,
            can_passthrough=self._options.can_passthrough,
            memory_bytes=self._options.memory_bytes,
            openless=bool(held.state.get(_STATE_OPENLESS, False)),
            turned_openless=turned_openless,
            stack_depth=self._options.stack_depth,
        )

    def _journal(self, name: str, held: Held) -> str:
        """Where a connection's open handles are noted: of this one alone, as backing ids start anew with each."""
        flat = name.replace("/", "@")
        if len(flat) > _LONGEST_JOURNAL_NAME:  # with what is behind it, a file's name must hold it
            flat = f"{flat[:_LONGEST_JOURNAL_NAME]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return f"{self._options.journal_dir}/{flat}.{held.dev.replace(':', '-')}"

    def _forget_journal(self, name: str, held: Held) -> None:
        if os.path.exists(self._journal(name, held)):
            os.unlink(self._journal(name, held))

    async def drop_unserved(self) -> None:
        """Unmount what an earlier server has mounted and nobody serves any more: whoever looked would wait for ever."""
        for name, held in list(self._keeper.held.items()):
            if name != ROOT:
                await self._keeper.unmount(name)
                os.close(held.fd)
                del self._keeper.held[name]

    def _soon(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(work, *args)

    async def _remember(self, name: str, key: str, value: object) -> None:
        """Have the next server told something about a connection."""
        state = self._states.get(name)
        if state is not None:
            state[key] = value
            await self._keeper.keep_state(name, dict(state))


def _is_mounted(dev: str) -> bool:
    """Whether a connection, "major:minor", is in the mount table (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", "rb") as table:
        return any(line.split(b" ", 3)[2] == dev.encode() for line in table)


async def _set_read_ahead(dev: str) -> None:
    """Let the kernel read ahead in long requests on this mount; the default of 128 KiB costs a third (FACTS)."""
    try:
        path = f"/sys/class/bdi/{dev}/read_ahead_kb"
        await trio.to_thread.run_sync(_set_number, path, READ_AHEAD_KIB, limiter=_KERNEL_FILES)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        log.info("read-ahead stays at the kernel's default", dev=dev, reason=os.strerror(error.errno or 0))


def _set_number(path: str, number: int) -> None:
    """Of a file in /sys; one that says so already, as the keeper's does, need not be writable."""
    with open(path, encoding="ascii") as file:
        if int(file.read()) == number:
            return
    with open(path, "w", encoding="ascii") as file:
        file.write(str(number))
