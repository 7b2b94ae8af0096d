"""A directory of this node (local, a mounted NFS export, a claim), or one file. Version tag: size and mtime_ns."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final
from urllib.parse import unquote

from dsfs.errors import (
    ConfigError,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
)
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink, walk
from dsfs.sources.options import UnknownOption
from dsfs.sources.threads import Threads
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

PAGE_NAMES: Final = 1000
PIECE_BYTES: Final = 4 * MiB  # opened, read and looked at again: 0.1 ms a piece on a local disk, one round trip on NFS
THREADS: Final = 8
_PAGE_S: Final = 1.0  # where a look at a file takes long, a page has fewer names

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM})
_ON_THE_WAY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def directory_source(
    spec: SourceSpec,
    credentials: Mapping[str, str],
    *,
    pvc_root: str | None = None,
    namespace: str = "default",
    **_: object,
) -> DirectorySource:
    """For types NFS, PVC and MANUAL. Raises ConfigError; whether the directory is there is seen when it is listed."""
    directory, inside = _directory_of(spec, pvc_root, namespace)
    return DirectorySource(directory, spec.uri, inside=inside)


def _directory_of(spec: SourceSpec, pvc_root: str | None, namespace: str) -> tuple[str, tuple[str, ...]]:
    """A directory that whoever runs the daemon names, and the way from there inside of a claim."""
    if unknown := sorted(set(spec.options) - {"directory", "syncMode"}):
        raise UnknownOption(spec.type, unknown[0], "directory")
    if directory := spec.options.get("directory"):
        if not directory.startswith("/"):
            raise ConfigError(f"{spec.type}: option directory must be an absolute path")
        return directory, ()
    if spec.uri.startswith("/"):
        return spec.uri, ()
    if spec.uri.startswith("file:///"):
        return unquote(spec.uri.removeprefix("file://"), errors="surrogateescape"), ()
    if spec.uri.startswith(("pvc://", "manual://")):
        return _claim_directory(spec.uri, pvc_root, namespace)
    raise ConfigError(
        f"{spec.type}: {spec.uri} is not mounted by this version of dsfs (mount it, and name the place with "
        "the option directory)"
    )


def _claim_directory(uri: str, pvc_root: str | None, namespace: str) -> tuple[str, tuple[str, ...]]:
    """PVC_ROOT/NAMESPACE/CLAIM, always, if the namespace has a directory there; PVC_ROOT/CLAIM otherwise. And the path
    in it."""
    parts = path_parts(unquote(uri.partition("://")[2], errors="surrogateescape").rstrip("/"))
    if parts is None:
        raise ConfigError(f'{uri} names no claim (write pvc://CLAIM/path, without ".." and "//")')
    if pvc_root is None:
        raise ConfigError(f"{uri}: where claims lie on this node is not known (start dsfs with --pvc-root DIR)")
    own = os.path.join(pvc_root, namespace)
    return os.path.join(own if os.path.isdir(own) else pvc_root, parts[0]), parts[1:]


_mounts: set[str] = set()
"""Roots that were seen to be mount points: what is empty below one that is none any more was not deleted."""


def tag_of(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


class DirectorySource:
    """Looks at nothing outside of its root: parts below it are opened one by one and never through a symbolic link.

    The root is ``directory``, whose links are followed, as whoever runs the daemon made them; or it lies ``inside`` of
    that, where others write: there a link is refused, or it would show them what the daemon may read and they may not.
    """

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        directory: str,
        uri: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        *,
        inside: tuple[str, ...] = (),
    ) -> None:
        self._anchor = directory.rstrip("/") or "/"
        self._inside = inside
        self.root = os.path.join(self._anchor, *inside)
        self._threads = Threads(THREADS, timeouts.idle_s, self.root)
        self.uri = uri or self.root
        self.identity = f"directory:{self.root}"

    async def place(self) -> str:
        """Its root, without symbolic links. Raises SourceTimeout."""
        return os.path.join(await self._threads.run(os.path.realpath, self._anchor), *self._inside)

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        scan = _Scan()
        try:
            await self._threads.run(self._start_scan, scan, directory)
            while page := await self._threads.run(self._next_page, scan, directory):
                yield ListingPage(page)
            yield ListingPage((), (directory,))
        finally:
            self._threads.start(scan.close)  # a thread may be inside of it, if we were cancelled

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        async for page in walk(self.list_directory):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        return await self._threads.run(self._stat, path)

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        for start in range(wanted.start, wanted.stop, PIECE_BYTES):
            piece = ByteRange(start, min(start + PIECE_BYTES, wanted.stop))
            await sink.write(start, await self._threads.run(self._read_piece, obj, piece))

    async def close(self) -> None:
        """See ``Source``."""
        self._threads.close()

    # -- in a thread ----------------------------------------------------------------------------------------------

    def _start_scan(self, scan: _Scan, directory: str) -> None:
        with self._translated(directory, SourceMissing):
            self._check_mounted()
            if self._single_name() is not None:
                if directory:
                    raise SourceMissing(f"{self._shown(directory)} is not there: {self.root} is a file")
                scan.start_one()
                return
            scan.start(self._open(directory, os.O_RDONLY | os.O_DIRECTORY))

    def _next_page(self, scan: _Scan, directory: str) -> tuple[SourceObject, ...]:
        with self._translated(directory, SourceMissing), scan.lock:
            if scan.one:
                scan.one = False
                single = self._single_name()
                found = None if single is None else self._stat(single)
                return () if found is None else (found,)
            page: list[SourceObject] = []
            until_s = time.monotonic() + _PAGE_S
            for entry in scan.entries or ():
                obj = self._entry(entry, directory)
                if obj is not None:
                    page.append(obj)
                    if len(page) >= PAGE_NAMES or time.monotonic() > until_s:
                        break
            return tuple(page)

    def _entry(self, entry: os.DirEntry[str], directory: str) -> SourceObject | None:
        path = f"{directory}/{entry.name}" if directory else entry.name
        try:
            status = entry.stat(follow_symlinks=False)
            target = None
            if stat.S_ISLNK(status.st_mode):
                with self._parent(path) as (parent, name):
                    target = os.readlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno in _GONE | {errno.EINVAL}:  # went, or became another thing, since it was listed
                return None
            raise
        return _object(path, status, target)

    def _stat(self, path: str) -> SourceObject | None:
        with self._translated(path, SourceMissing):
            single = self._single_name()
            if single is not None:
                if path == single:
                    return _object(path, self._root_status())
                return SourceObject("", Kind.DIRECTORY) if not path else None
            if not path:
                return _object("", self._root_status())
            if path_parts(path) is None:
                return None
            try:
                with self._parent(path) as (parent, name):
                    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                    target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else None
            except OSError as error:
                if error.errno in _GONE | {errno.EINVAL, errno.ENAMETOOLONG}:
                    self._root_status()  # gone with its root is missing, and not "there is no such name"
                    self._check_mounted()
                    return None
                raise
            return _object(path, status, target)

    def _read_piece(self, obj: SourceObject, piece: ByteRange) -> bytes:
        """Opened anew for each piece: a cancelled read leaves no descriptor, and NFS looks at the file again."""
        with self._translated(obj.path, SourceChanged):
            fd = self._open(obj.path, os.O_RDONLY)
            try:
                self._check(fd, obj)
                data = os.pread(fd, piece.length, piece.start)
                while len(data) < piece.length:
                    more = os.pread(fd, piece.length - len(data), piece.start + len(data))
                    if not more:
                        raise SourceChanged(f"{self._shown(obj.path)} is shorter than it was when it was listed")
                    data += more
                self._check(fd, obj)  # after the bytes: a change while they were read counts too
            finally:
                os.close(fd)
            return data

    def _check(self, fd: int, obj: SourceObject) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or tag_of(status) != obj.version_tag:
            raise SourceChanged(f"{self._shown(obj.path)} is not the file that was listed any more")

    def _check_mounted(self) -> None:
        """Raises SourceUnavailable where the root was a mount point, of this process's time, and is none any more."""
        try:
            with ExitStack() as held:
                fd = self._open_root(_ON_THE_WAY)
                held.callback(os.close, fd)
                is_mount = os.fstat(fd).st_dev != os.stat("..", dir_fd=fd).st_dev
        except OSError:
            return  # a single file, or not there: that is said elsewhere
        if is_mount:
            _mounts.add(self.root)
        elif self.root in _mounts:
            raise SourceUnavailable(f"{self.root} is not mounted any more (mount it; dsfs restart takes it as it is)")

    # -- paths ----------------------------------------------------------------------------------------------------

    def _single_name(self) -> str | None:
        """The file's name when the root is one."""
        mode = self._root_status().st_mode
        if stat.S_ISREG(mode):
            return os.path.basename(self.root)
        if not stat.S_ISDIR(mode):
            raise SourceMissing(f"{self.root} is neither a directory nor a regular file")
        return None

    def _open(self, path: str, flags: int) -> int:
        flags |= os.O_CLOEXEC | os.O_NONBLOCK  # a fifo that took the name of a file must not block
        single = self._single_name()
        if not path or path == single:
            return self._open_root(flags)
        with self._parent(path) as (parent, name):
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)

    def _open_root(self, flags: int) -> int:
        if not self._inside:
            return os.open(self.root, flags)
        with self._root_in_claim() as (parent, name, _status):
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)

    def _root_status(self) -> os.stat_result:
        if not self._inside:
            return os.stat(self.root)
        with self._root_in_claim() as (_parent, _name, status):
            return status

    @contextmanager
    def _root_in_claim(self) -> Iterator[tuple[int, str, os.stat_result]]:
        """A descriptor of the directory that the root lies in, its name there, and what it is. Raises SourceRefused
        for a link; one that comes behind this look fails to be opened."""
        place, last = self._anchor, len(self._inside) - 1
        fd = os.open(place, _ON_THE_WAY)
        try:
            for depth, part in enumerate(self._inside):
                place = os.path.join(place, part)
                status = os.stat(part, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise SourceRefused(
                        f"{self.uri}: {_printable(place)} is a symbolic link and may lead out of the claim (put what "
                        "it leads to in its place, or name that in the manifest)"
                    )
                if depth == last:
                    yield fd, part, status
                else:
                    fd = _step(fd, part)
        finally:
            os.close(fd)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that a name lies in, reached without following a symbolic link."""
        parts = path_parts(path)
        if parts is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        fd = self._open_root(_ON_THE_WAY)
        try:
            for part in parts[:-1]:
                fd = _step(fd, part)
            yield fd, parts[-1]
        finally:
            os.close(fd)

    def _shown(self, path: str) -> str:
        return _printable(f"{self.root}/{path}" if path else self.root)

    @contextmanager
    def _translated(self, path: str, gone: type[SourceError]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what, why = self._shown(path), os.strerror(error.errno or errno.EIO)
            if error.errno in _GONE:
                # An export that is not mounted (any more) is one missing root, and not many changed files.
                try:
                    self._root_status()
                except OSError:
                    raise SourceMissing(f"{self.root} is not there (mount it or make it)") from error
                self._check_mounted()
                raise gone(f"{what}: {why}") from error
            if error.errno in _REFUSED:
                raise SourceRefused(f"{what}: {why} (let the user of the daemon read it)") from error
            kind = SourceTimeout if error.errno == errno.ETIMEDOUT else SourceUnavailable
            raise kind(f"{what}: {why}") from error


class _Scan:
    """A directory that is being listed; the lock keeps a late ``close`` from a thread that is still inside."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: Iterator[os.DirEntry[str]] | None = None
        self.one = False  # the root is a file, and still to be listed
        self._held = ExitStack()
        self._closed = False

    def start(self, fd: int) -> None:
        """Takes the descriptor over; entries need it for their ``stat``."""
        with self.lock:
            self._held.callback(os.close, fd)
            if self._closed:
                self._held.close()
            else:
                self.entries = self._held.enter_context(os.scandir(fd))

    def start_one(self) -> None:
        self.one = True

    def close(self) -> None:
        with self.lock:
            self._closed = True
            self.entries = None
            self._held.close()


def _step(fd: int, part: str) -> int:
    """A descriptor of a directory in another, which is closed; if that fails it is still open."""
    inner = os.open(part, _ON_THE_WAY | os.O_NOFOLLOW, dir_fd=fd)
    os.close(fd)
    return inner


def _printable(path: str) -> str:
    """For people: bytes that are not UTF-8 as escapes, so that every terminal and log takes it."""
    return path.encode("utf-8", "backslashreplace").decode()


def _object(path: str, status: os.stat_result, target: str | None = None) -> SourceObject | None:
    """None for what has no bytes to read: sockets, devices, fifos."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return SourceObject(path, Kind.FILE, status.st_size, status.st_mtime_ns, tag_of(status))
    if stat.S_ISDIR(mode):
        return SourceObject(path, Kind.DIRECTORY, 0, status.st_mtime_ns)
    if stat.S_ISLNK(mode):
        return SourceObject(path, Kind.SYMLINK, 0, status.st_mtime_ns, tag_of(status), target)
    return None
