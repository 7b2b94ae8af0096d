"""The direct session: a small root mount, and a connection of its own for every dataset, mounted at its place."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from dsfs.errors import MountError
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.tree import NamespaceTree
from dsfs.fuse.connection import Connection
from dsfs.fuse.device import Device
from dsfs.fuse.files_connection import FilesConnection
from dsfs.fuse.keeper_client import Held, KeeperClient
from dsfs.fuse.resume import OpenJournal
from dsfs.model import ReadPath

log = structlog.get_logger()

ROOT = "/"
READ_AHEAD_KIB = 1024
_STATE_OFFERED = "offered"
_STATE_OPENLESS = "openless"
_STATE_REVISION = "revision"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What the direct session needs to know. ``stack_depth``: 2 when the cache lies on overlayfs, else 1."""

    mountpoint: str
    journal_dir: str
    can_passthrough: bool
    stack_depth: int
    memory_bytes: int


class DirectSession:
    """Mounts through the keeper, or goes on with what the keeper holds from a server before."""

    def __init__(self, options: SessionOptions, keeper: KeeperClient) -> None:
        self._options = options
        self._keeper = keeper
        self._states: dict[str, dict[str, object]] = {}
        self._connections: dict[str, FilesConnection] = {}

    def resumed_revision(self, dataset: str) -> str | None:
        """The revision that a server before this one has shown for a dataset (``namespace/name``)."""
        held = self._keeper.held.get(dataset)
        revision = held.state.get(_STATE_REVISION) if held else None
        return str(revision) if revision else None

    def read_path(self, dataset: str) -> ReadPath | None:
        connection = self._connections.get(dataset)
        return connection.read_path if connection else None

    async def run(
        self,
        tree: NamespaceTree | None,
        datasets: Mapping[str, DatasetFiles],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until everything is unmounted. Without a tree there is one dataset, and it is the root.

        Started when all is mounted. Raises MountError.
        """
        async with trio.open_nursery() as nursery:
            if tree is not None:
                await self._start(
                    nursery, ROOT, self._options.mountpoint, "dsfs", lambda *made: self._tree(tree, *made)
                )
            for name, files in datasets.items():
                path = self._options.mountpoint if tree is None else f"{self._options.mountpoint}/{name}"

                def make(
                    held: Held,
                    device: Device,
                    initialised: Callable[[int], None],
                    name: str = name,
                    files: DatasetFiles = files,
                ) -> Connection:
                    connection = self._files(name, files, held, device, initialised)
                    self._connections[name] = connection
                    return connection

                await self._start(nursery, name, path, f"dsfs:{name}", make)
                self._remember(nursery, name, _STATE_REVISION, files.dataset.catalog.name)
            task_status.started()

    async def _start(
        self,
        nursery: trio.Nursery,
        name: str,
        path: str,
        source: str,
        make: Callable[[Held, Device, Callable[[int], None]], Connection],
    ) -> None:
        held = self._keeper.held.get(name)
        resume = held is not None
        if held is None:
            held = await self._keeper.mount(name, path, source)
        self._states[name] = dict(held.state)
        initialised = trio.Event()

        def on_init(offered: int) -> None:
            self._remember(nursery, name, _STATE_OFFERED, offered)
            initialised.set()

        connection = make(held, Device(held.fd), on_init)
        await nursery.start(lambda task_status: connection.run(resume=resume, task_status=task_status))
        if not (resume and _STATE_OFFERED in held.state):
            with trio.move_on_after(10) as scope:
                await initialised.wait()
            if scope.cancelled_caught:
                raise MountError(f"{path}: the kernel sent no INIT within 10 s")
        nursery.start_soon(_set_read_ahead, held.dev)

    def _tree(self, tree: NamespaceTree, held: Held, device: Device, initialised: Callable[[int], None]) -> Connection:
        return Connection(ROOT, device, tree, ("", ""), int(held.state.get(_STATE_OFFERED, 0)), initialised)

    def _files(
        self, name: str, files: DatasetFiles, held: Held, device: Device, initialised: Callable[[int], None]
    ) -> FilesConnection:
        journal = OpenJournal(f"{self._options.journal_dir}/{name.replace('/', '@')}")
        return FilesConnection(
            name,
            device,
            files,
            journal=journal,
            can_passthrough=self._options.can_passthrough,
            memory_bytes=self._options.memory_bytes,
            openless=bool(held.state.get(_STATE_OPENLESS, False)),
            offered=int(held.state.get(_STATE_OFFERED, 0)),
            initialised=initialised,
            turned_openless=lambda: self._remember_soon(name, _STATE_OPENLESS, True),
            stack_depth=self._options.stack_depth,
        )

    def _remember(self, nursery: trio.Nursery, name: str, key: str, value: object) -> None:
        self._states[name][key] = value
        nursery.start_soon(self._keeper.keep_state, name, dict(self._states[name]))

    def _remember_soon(self, name: str, key: str, value: object) -> None:
        self._states[name][key] = value
        trio.lowlevel.spawn_system_task(self._keeper.keep_state, name, dict(self._states[name]))


async def _set_read_ahead(dev: str) -> None:
    """Let the kernel read ahead in long requests on this mount; the default of 128 KiB costs a third (FACTS)."""
    try:
        await trio.to_thread.run_sync(_write_text, f"/sys/class/bdi/{dev}/read_ahead_kb", str(READ_AHEAD_KIB))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        log.info("read-ahead stays at the kernel's default", dev=dev, reason=os.strerror(error.errno or 0))


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
