"""The portable session: pyfuse3 over libfuse, the whole tree on one connection, for unprivileged users too.

It has everything but passthrough, openless and resume: libfuse 3.14 knows neither of the three.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import pyfuse3
import structlog
import trio

from dsfs import metrics
from dsfs.catalog.diff import Changes, ManyChanges
from dsfs.datasets.selection import CATALOG
from dsfs.errors import DsfsError, MountError
from dsfs.fetch.origin import RemoteFile
from dsfs.filesystem.attributes import BLOCK_SIZE, TYPES, Attributes, Entry, Listed
from dsfs.filesystem.errnos import QUIET, errno_of
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID
from dsfs.filesystem.waiting import Waiting
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse import capabilities
from dsfs.model import Kind, ReadPath
from dsfs.ranges import ByteRange

log = structlog.get_logger()
T = TypeVar("T")

_NAMES_AT_ONCE = 256
_NOTIFICATIONS = trio.CapacityLimiter(1)
_SWAPPED = trio.CapacityLimiter(1)  # not CATALOG, which a rebuild may hold for minutes: old names are shown until then
_INIT_S = 10


class Operations(pyfuse3.Operations):
    """Requests of libfuse, answered by a tree; they wait until ``show`` was called."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self) -> None:
        super().__init__()
        self._tree: WholeTree | DatasetFiles
        self._shown = trio.Event()
        self._open: dict[int, int] = {}  # fh → nodeid; pyfuse3 gives read nothing else
        self._handles: Counter[int] = Counter()  # nodeid → open handles
        self._next_fh = 1
        self._waiting: dict[object, tuple[int, float]] = {}  # who waits → nodeid, since
        self.initialised = trio.Event()

    def init(self) -> None:
        self.initialised.set()

    def show(self, tree: WholeTree | DatasetFiles) -> None:
        """What is at the mount point: all datasets, or the files of one."""
        self._tree = tree
        self._shown.set()

    def _files(self, nodeid: int) -> DatasetFiles:
        return self._tree.files(nodeid) if isinstance(self._tree, WholeTree) else self._tree

    async def lookup(self, parent_inode: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        async def answer() -> pyfuse3.EntryAttributes:
            tree = self._tree
            entry = tree.try_lookup(parent_inode, name) or await tree.lookup(parent_inode, name)
            if entry.attributes is None:
                if entry.ttl_s == 0:
                    raise OSError(errno.ENOENT, "no such name")
                absent = pyfuse3.EntryAttributes()
                absent.st_ino = 0  # a negative entry that the kernel may keep
                absent.entry_timeout = entry.ttl_s
                return absent
            return _entry(entry)

        return await self._run("lookup", parent_inode, answer)

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        async def answer() -> pyfuse3.EntryAttributes:
            return _entry(Entry(inode, self._tree.try_getattr(inode)))

        return await self._run("getattr", inode, answer)

    async def readlink(self, inode: int, ctx: object) -> bytes:
        async def answer() -> bytes:
            return self._tree.readlink(inode)

        return await self._run("readlink", inode, answer)

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode  # what a directory shows is computed from its number

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        async def answer() -> None:
            tree = self._tree
            cookie = start_id
            while True:
                names = tree.try_readdir(fh, cookie, _NAMES_AT_ONCE)
                if names is None:
                    await tree.ensure_listed(fh)
                    names = tree.try_readdir(fh, cookie, _NAMES_AT_ONCE) or []
                for listed in names:
                    if not self._show(fh, listed, token):
                        return
                    cookie = listed.cookie
                if not names:
                    return

        await self._run("readdir", fh, answer)

    def _show(self, directory: int, listed: Listed, token: Any) -> bool:
        if listed.name in (b".", b".."):
            entry = _entry(Entry(directory, self._tree.try_getattr(directory)))  # the kernel takes only the number
        elif listed.attributes is not None:
            entry = _entry(Entry(listed.nodeid, listed.attributes))
        else:  # its size has to be asked for: by who looks at it, not by who lists the others
            entry = pyfuse3.EntryAttributes()
            entry.st_ino, entry.st_mode = listed.nodeid, TYPES[Kind(listed.kind)]
            entry.entry_timeout = entry.attr_timeout = 0
        shown: bool = pyfuse3.readdir_reply(token, listed.name, entry, listed.cookie)
        return shown

    async def releasedir(self, fh: int) -> None:
        return

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        async def answer() -> pyfuse3.FileInfo:
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise OSError(errno.EROFS, "read-only file system")
            files = self._files(inode)
            files.file(inode)  # EISDIR, ESTALE
            files.opened(inode)
            fh, self._next_fh = self._next_fh, self._next_fh + 1
            self._open[fh] = inode
            self._handles[inode] += 1
            return pyfuse3.FileInfo(fh=fh, keep_cache=True)

        return await self._run("open", inode, answer)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        async def answer() -> bytes:
            inode = self._open[fh]
            files = self._files(inode)
            into = bytearray(size)
            count = files.try_read(inode, off, memoryview(into))
            if count is not None:
                return bytes(memoryview(into)[:count])
            try:
                return b"".join(await files.read(inode, ByteRange(off, off + size)))
            except DsfsError as error:
                files.note_error(error)
                raise

        return await self._run("read", self._open.get(fh, 0), answer)

    async def release(self, fh: int) -> None:
        inode = self._open.pop(fh, None)
        if inode is None:
            return
        self._handles[inode] -= 1
        if not self._handles[inode]:
            del self._handles[inode]
            try:
                files = self._files(inode)
            except OSError:
                return  # of a dataset that is shown no longer
            files.closed(inode)

    async def flush(self, fh: int) -> None:
        return

    async def forget(self, inode_list: object) -> None:
        return  # nodeids are computed: nothing was kept

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        async def answer() -> pyfuse3.StatvfsData:
            found = await self._tree.statfs()
            data = pyfuse3.StatvfsData()
            data.f_bsize = data.f_frsize = BLOCK_SIZE
            data.f_blocks = -(-found.total_bytes // BLOCK_SIZE)
            data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
            data.f_files = found.files
            data.f_namemax = 255
            return data

        return await self._run("statfs", ROOT_ID, answer)

    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        async def answer() -> bytes:
            value = self._tree.xattrs(inode).get(name) if name.startswith(b"user.dsfs.") else None
            if value is None:
                raise OSError(errno.ENODATA, "no such attribute")
            return value

        return await self._run("getxattr", inode, answer)

    async def listxattr(self, inode: int, ctx: object) -> list[bytes]:
        async def answer() -> list[bytes]:
            return list(self._tree.xattrs(inode))

        return await self._run("listxattr", inode, answer)

    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        return True  # default_permissions: the kernel has decided already

    async def _run(self, operation: str, nodeid: int, answer: Callable[[], Awaitable[T]]) -> T:
        started = time.perf_counter()
        waits = object()
        self._waiting[waits] = nodeid, started
        try:
            await self._shown.wait()
            return await answer()
        except Exception as error:
            code = errno_of(error)
            if code not in QUIET:
                self._note(operation, nodeid, code, error)
            raise pyfuse3.FUSEError(code) from error
        finally:
            del self._waiting[waits]
            metrics.OPERATION_SECONDS.labels(operation).observe(time.perf_counter() - started)

    def _note(self, operation: str, nodeid: int, code: int, error: Exception) -> None:
        labels, name = self._labels(nodeid), errno.errorcode.get(code, str(code))
        metrics.ERRORS.labels(*labels, name).inc()
        if not isinstance(error, DsfsError | OSError):
            log.error("request failed unexpectedly", operation=operation, nodeid=nodeid, exc_info=error)
            return
        log.info(
            "request failed",
            dataset="/".join(labels),
            operation=operation,
            nodeid=nodeid,
            errno=name,
            reason=str(error),
        )

    def waiting(self, dataset: str) -> Waiting:
        """Requests to a dataset (``namespace/name``) that are not answered yet."""
        waiting = list(self._waiting.values())
        return Waiting.of(since for nodeid, since in waiting if "/".join(self._labels(nodeid)) == dataset)

    def _labels(self, nodeid: int) -> tuple[str, str]:
        try:
            manifest = self._files(nodeid).dataset.manifest
        except OSError:
            return "", ""
        return manifest.namespace, manifest.name


def _entry(entry: Entry) -> pyfuse3.EntryAttributes:
    found: Attributes | None = entry.attributes
    assert found is not None
    shown = pyfuse3.EntryAttributes()
    shown.st_ino = entry.nodeid
    shown.generation = 0
    shown.entry_timeout = entry.ttl_s
    shown.attr_timeout = found.ttl_s
    shown.st_mode = found.mode
    shown.st_nlink = found.nlink
    shown.st_uid = found.uid
    shown.st_gid = found.gid
    shown.st_rdev = 0
    shown.st_size = found.size
    shown.st_blksize = BLOCK_SIZE
    shown.st_blocks = (found.size + 511) // 512
    shown.st_atime_ns = shown.st_mtime_ns = shown.st_ctime_ns = found.mtime_ns
    return shown


class PortableSession:
    """One mount for all. ``tree`` None: the one dataset is the root. ``for_others``: users that did not mount it may
    enter it too, as they may enter one of root's."""

    def __init__(self, mountpoint: str, tree: WholeTree | None, *, for_others: bool = False) -> None:
        self._mountpoint = mountpoint
        self._for_others = for_others
        self._tree = tree
        self._files: dict[str, DatasetFiles] = {}
        self._operations = Operations()
        if tree is not None:
            self._operations.show(tree)

    def shown_before(self, dataset: str) -> list[str]:
        """Nothing: a connection of libfuse ends with its server."""
        return []

    def read_path(self, dataset: str) -> ReadPath | None:
        return ReadPath.DAEMON

    def waiting(self, dataset: str) -> Waiting:
        return self._operations.waiting(dataset)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount and serve until it is unmounted. Unmounts when it is cancelled. Raises MountError."""
        # no max_read: libfuse wants the same number from init(), where pyfuse3 sets none, or ends the session
        options = {"fsname=dsfs", "subtype=dsfs", "default_permissions", "ro", "nosuid", "nodev"}
        if os.getuid() == 0 or self._for_others:
            options.add("allow_other")
        try:
            pyfuse3.init(self._operations, self._mountpoint, options)
        except RuntimeError as error:
            why = f"{error}; fusermount3 says why in the log (without root the directory must be yours, and writable)"
            if os.getuid() != 0 and self._for_others and not capabilities.may_allow_others():
                why = "--allow-other needs a line user_allow_other in /etc/fuse.conf, which root has to put there"
            raise MountError(f"{self._mountpoint}: cannot be mounted: {why}") from error
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                with trio.move_on_after(_INIT_S) as scope:
                    await self._operations.initialised.wait()
                if scope.cancelled_caught:
                    raise MountError(f"{self._mountpoint}: the kernel sent no INIT within {_INIT_S} s")
                task_status.started()
        finally:
            pyfuse3.close(unmount=True)

    def has_to_mount(self, dataset: str) -> bool:
        """See ``DirectSession``."""
        return False

    async def add(self, files: DatasetFiles, come: Callable[[], Sequence[int]]) -> None:
        """Show a dataset; ``come`` tells the directories of the tree that list it now."""
        self._files[files.dataset.manifest.id] = files
        if self._tree is None:
            self._operations.show(files)
        else:
            self._tree.put(files)
        await _forget((), come())

    async def remove(self, name: str, gone: Sequence[tuple[int, bytes]], changed: Sequence[int]) -> None:
        """Show a dataset no longer; its open files answer ESTALE."""
        files = self._files.pop(name)
        if self._tree is not None:
            self._tree.drop(files.dataset.slot)
        await _forget(gone, changed)

    async def forget_pages(self, file: RemoteFile) -> None:
        """An object was not what its source says: the kernel is not to keep its bytes."""
        await _forget((), [nodeid for files in self._files.values() for nodeid in files.nodeids_of_object(file)])

    async def forget_objects(self, keys: Collection[str]) -> None:
        """As ``forget_pages``, of objects that the cache had wrong bytes of, whatever their files are called."""
        for files in list(self._files.values()):
            await _forget((), await trio.to_thread.run_sync(files.nodeids_of_keys, keys, limiter=CATALOG))

    async def swapped(self, name: str, changed: Changes | ManyChanges) -> None:
        """A dataset shows another revision: the kernel is told."""
        files = self._files.get(name)
        if files is None:
            return  # nobody has seen it yet
        if isinstance(changed, ManyChanges):
            directories = await trio.to_thread.run_sync(files.all_directories, limiter=_SWAPPED)
            await _forget(files.names_of(changed), directories)
        else:
            await _forget(*files.nodeids_of(changed))


async def _forget(names: Iterable[tuple[int, bytes]], nodeids: Sequence[int]) -> None:
    """Have the kernel ask anew for names, and for listings or pages of inodes. In a thread: it may wait there for what
    this loop has to answer."""

    def work() -> None:
        for nodeid in nodeids:
            with contextlib.suppress(FileNotFoundError):  # the kernel does not know it
                pyfuse3.invalidate_inode(nodeid)
        for parent, name in names:
            with contextlib.suppress(FileNotFoundError):
                pyfuse3.invalidate_entry(parent, name)

    await trio.to_thread.run_sync(work, limiter=_NOTIFICATIONS)
