"""``nfs://host/export/path`` without a kernel mount (libnfs), or where it is mounted already (option ``directory``).

Version tag: size, mtime_ns and ctime_ns, looked at before and after each piece that is read. Without the option
``version`` v4 is tried, then v3, which asks the portmapper unless ``port`` and ``mountport`` are given. ``uid`` and
``gid`` are what the server is told (AUTH_SYS) in place of the daemon's own; Kerberos needs a kernel mount.
"""

from __future__ import annotations

import errno
import re
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

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
from dsfs.sources.base import Sink, Source, walk
from dsfs.sources.directory import directory_source
from dsfs.sources.nfs_library import Attributes, Connection, NfsServer, library
from dsfs.sources.options import UnknownOption
from dsfs.sources.threads import Threads
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

T = TypeVar("T")

PAGE_NAMES: Final = 1000
PIECE_BYTES: Final = 4 * MiB
THREADS: Final = 8  # and as many connections: libnfs answers one call at a time on each
LISTERS: Final = 2
LISTING_LIMIT_S: Final = 300.0  # libnfs reads a directory as a whole; each of its requests has the usual limit
IDLE_S: Final = 20.0  # a v4 lease is 90 s, rarely 30, and libnfs does not renew it

_PORT: Final = 2049
_PORTMAPPER: Final = 111

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM})
# Answers of a server that is well; after any other the connection is not used again.
_CERTAIN: Final = _GONE | _REFUSED | {errno.EISDIR, errno.EINVAL}
_NUMBERS: Final = ("port", "mountport", "version", "uid", "gid")


def nfs_source(
    spec: SourceSpec,
    credentials: Mapping[str, str],
    *,
    pvc_root: str | None = None,
    namespace: str = "default",
    **_: object,
) -> Source:
    """Raises ConfigError."""
    if spec.options.get("directory") or not spec.uri.startswith("nfs://"):
        kept = {key: value for key, value in spec.options.items() if key not in _NUMBERS}  # of no use there, no fault
        return directory_source(
            SourceSpec(type=spec.type, uri=spec.uri, options=kept), credentials, pvc_root=pvc_root, namespace=namespace
        )
    if unknown := sorted(set(spec.options) - {*_NUMBERS, "directory", "syncMode"}):
        raise UnknownOption("NFS", unknown[0], f"directory, {', '.join(_NUMBERS)}")
    numbers = {name: _number(name, spec.options[name]) for name in _NUMBERS if name in spec.options}
    try:
        parts = urlsplit(spec.uri)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        host, port = None, None
    if not host:
        raise ConfigError("NFS: the URI cannot be read (write nfs://HOST/export/path)")
    path = unquote(spec.uri.removeprefix("nfs://").partition("/")[2], errors="surrogateescape").strip("/")
    if path and path_parts(path) is None:
        raise ConfigError('NFS: the path cannot be used (no "..", no "//", no part over 255 bytes)')
    version = numbers.pop("version", 3 if "mountport" in numbers else None)
    if version not in (None, 3, 4):
        raise ConfigError("NFS: option version must be 3 or 4")
    library()  # now, and not at the first read
    server = NfsServer(
        host, numbers.get("port", port), numbers.get("mountport"), numbers.get("uid"), numbers.get("gid")
    )
    return NfsSource(server, path, version)


def _number(name: str, text: str) -> int:
    text = re.sub(r"\.[0-9]$", "", text) if name == "version" else text  # 4.1 and 4.2 servers speak 4.0 too
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 0 <= int(text) < (2**16 if name.endswith("port") else 2**31):
        raise ConfigError(f"NFS: option {name} must be a number")
    return int(text)


class NfsSource:
    """``path`` has no slashes at its ends. Symbolic links are shown, and not followed in the last part of a path."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self, server: NfsServer, path: str, version: int | None = None, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        host = f"[{server.host}]" if ":" in server.host else server.host
        where = f"{host}:{server.port}" if server.port not in (None, _PORT) else host
        self.uri = f"nfs://{where}/{path}".encode("utf-8", "backslashreplace").decode()
        self.identity = f"nfs:{where}/{path}"
        self._asked_first = f"{host}:{server.port or server.mountport or (_PORTMAPPER if version == 3 else _PORT)}"
        limit_s = timeouts.idle_s + timeouts.connect_s
        self._connections = _Connections(server, path, version, timeouts.idle_s)
        self._threads = Threads(THREADS, limit_s, self.uri)
        self._listers = Threads(LISTERS, LISTING_LIMIT_S, self.uri)

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        found = await self._listers.run(self._list, directory)
        for start in range(0, len(found), PAGE_NAMES):
            yield ListingPage(tuple(found[start : start + PAGE_NAMES]))
        yield ListingPage((), (directory,))

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
        self._connections.close()
        self._threads.close()
        self._listers.close()

    # -- in a thread ----------------------------------------------------------------------------------------------

    def _list(self, directory: str) -> list[SourceObject]:
        with self._translated(directory, SourceMissing):
            return self._connections.use(lambda connection, root: self._list_on(connection, root, directory))

    def _list_on(self, connection: Connection, root: bytes, directory: str) -> list[SourceObject]:
        full = _full(root, directory)
        if connection.stat(full).type != stat.S_IFDIR:  # a link in place of a directory leads nowhere
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        found = []
        for name, known in connection.listdir(full):
            shown = name.decode("utf-8", "surrogateescape")
            path = f"{directory}/{shown}" if directory else shown
            obj = _object_on(connection, _full(root, path), path, known)
            if obj is not None:
                found.append(obj)
        return found

    def _stat(self, path: str) -> SourceObject | None:
        if path and path_parts(path) is None:
            return None
        with self._translated(path, SourceMissing):
            return self._connections.use(lambda connection, root: self._stat_on(connection, root, path))

    def _stat_on(self, connection: Connection, root: bytes, path: str) -> SourceObject | None:
        try:
            known = connection.stat(_full(root, path))
        except OSError as error:
            if not path or error.errno not in _GONE:
                raise
            connection.stat(_full(root, ""))  # gone with its root is missing, and not "there is no such name"
            return None
        return _object_on(connection, _full(root, path), path, known)

    def _read_piece(self, obj: SourceObject, piece: ByteRange) -> bytearray:
        with self._translated(obj.path, SourceChanged):
            return self._connections.use(lambda connection, root: self._read_on(connection, root, obj, piece))

    def _read_on(self, connection: Connection, root: bytes, obj: SourceObject, piece: ByteRange) -> bytearray:
        with connection.opened(_full(root, obj.path)) as file:
            self._check(obj, file.stat())
            data = file.pread(piece.start, piece.length)
            self._check(obj, file.stat())  # after the bytes: a change while they were read counts too
        if len(data) != piece.length:
            raise SourceUnavailable(f"{self._shown(obj.path)} gave {len(data)} bytes for {piece.length}")
        return data

    def _check(self, obj: SourceObject, now: Attributes) -> None:
        if now.type != stat.S_IFREG or _tag(now) != obj.version_tag:
            raise SourceChanged(f"{self._shown(obj.path)} is not the file that was listed any more")

    def _shown(self, path: str) -> str:
        whole = f"{self.uri}/{path}" if path else self.uri
        return whole.encode("utf-8", "backslashreplace").decode()

    @contextmanager
    def _translated(self, path: str, gone: type[SourceError]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{self._shown(path)}: {error.strerror}"
            if isinstance(error, _MountFailed):  # the root is missing: that is no change of one file
                gone = SourceMissing
            if error.errno in _GONE or error.errno in (errno.ESTALE, errno.EISDIR):
                raise gone(what) from error
            if error.errno in _REFUSED:
                raise SourceRefused(
                    f"{what} (let this machine and its uid read it, or give options uid and gid)"
                ) from error
            if error.errno in (errno.EINTR, errno.ETIMEDOUT):
                raise SourceTimeout(f"{what}: nothing answered in time") from error
            if isinstance(error, _MountFailed) and error.errno in (errno.EIO, errno.EFAULT):
                raise SourceUnavailable(
                    f"{self._shown(path)}: {self._asked_first} cannot be reached: {error.strerror} "
                    "(is an NFS server there? look at the options port, mountport and version)"
                ) from error
            raise SourceUnavailable(what) from error


class _MountFailed(OSError):
    """The export or the path in it cannot be mounted."""


class _Connections:
    """Connections that nobody uses now, the latest last; ``use`` takes one or makes one. For many threads."""

    def __init__(self, server: NfsServer, path: str, version: int | None, timeout_s: float) -> None:
        self._server = server
        self._path = path.encode("utf-8", "surrogateescape")
        self._versions = (version,) if version is not None else (4, 3)
        self._split: tuple[int, bytes] | None = None  # version and export that were mounted the last time
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Connection, bytes]] = []
        self._closed = False

    def use(self, work: Callable[[Connection, bytes], T]) -> T:
        """``work`` with a connection and the dataset's root on it; once more on a new one if an idle one was dead."""
        taken = self._take()
        while True:
            connection, root = taken or self._mount()
            try:
                result = work(connection, root)
            except OSError as error:
                if error.errno in _CERTAIN:
                    self._give(connection, root)
                    raise
                connection.close()
                self._drop()  # the others lost their server too, or hold a root that is stale
                if taken is None or error.errno in (errno.EINTR, errno.ETIMEDOUT):
                    raise
                taken = None
                continue
            except SourceError:
                self._give(connection, root)
                raise
            except BaseException:
                connection.close()
                raise
            self._give(connection, root)
            return result

    def close(self) -> None:
        self._closed = True
        self._drop()

    def _take(self) -> tuple[Connection, bytes] | None:
        with self._lock:
            old = [each for each in self._idle if each[0] < time.monotonic() - IDLE_S]
            self._idle = self._idle[len(old) :]
            taken = self._idle.pop()[1:] if self._idle else None
        for _, connection, _ in old:
            connection.close()
        return taken

    def _give(self, connection: Connection, root: bytes) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append((time.monotonic(), connection, root))
                return
        connection.close()

    def _drop(self) -> None:
        with self._lock:
            dropped, self._idle = self._idle, []
        for _, connection, _ in dropped:
            connection.close()

    def _mount(self) -> tuple[Connection, bytes]:
        first: OSError | None = None
        split = self._split
        for version in self._versions if split is None else (split[0],):
            try:
                return self._mount_version(version, b"/" + self._path if split is None else split[1])
            except OSError as error:
                self._split = None
                # Of two failures the first is told, unless only the second is an answer.
                if first is None or (first.errno not in _CERTAIN and error.errno in _CERTAIN):
                    first = error
                if error.errno in (errno.EINTR, errno.ETIMEDOUT):
                    break
        assert first is not None
        raise _MountFailed(first.errno, first.strerror) from first

    def _mount_version(self, version: int, export: bytes) -> tuple[Connection, bytes]:
        """v4 finds any path below its root. v3 may know the export alone: then it is looked for upwards."""
        refused: OSError | None = None
        while True:
            try:
                connection = Connection(self._server, version, export, self._timeout_s)
            except OSError as error:
                if refused is None or error.errno not in _CERTAIN:
                    refused = error
                if version == 4 or error.errno not in _CERTAIN or export == b"/":
                    raise refused from None
                export = export.rpartition(b"/")[0] or b"/"
                continue
            self._split = version, export
            return connection, (b"/" + self._path).removeprefix(export).strip(b"/")


def _full(root: bytes, path: str) -> bytes:
    return b"/" + b"/".join(filter(None, (root, path.encode("utf-8", "surrogateescape"))))


def _tag(known: Attributes) -> str:
    return f"{known.size}-{known.mtime_ns}-{known.ctime_ns}"


def _object_on(connection: Connection, full: bytes, path: str, known: Attributes | None) -> SourceObject | None:
    """None for what has no bytes to read, and for what went since it was listed."""
    try:
        known = known or connection.stat(full)
        if known.type == stat.S_IFLNK:
            target = connection.readlink(full).decode("utf-8", "surrogateescape")
            return SourceObject(path, Kind.SYMLINK, 0, known.mtime_ns, _tag(known), target)
    except OSError as error:
        if error.errno in _GONE or error.errno == errno.EINVAL:
            return None
        raise
    if known.type == stat.S_IFREG:
        return SourceObject(path, Kind.FILE, known.size, known.mtime_ns, _tag(known))
    if known.type == stat.S_IFDIR:
        return SourceObject(path, Kind.DIRECTORY, 0, known.mtime_ns)
    return None
