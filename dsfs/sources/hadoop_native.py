"""HDFS over its own protocol, through the package hdfs-native (Rust, no Java). Version tag: length and mtime in ms.

Further settings come from $HADOOP_CONF_DIR, and Kerberos from the ticket cache that kinit filled: the package sees to
both. It is called from threads: its asyncio client panics when it has to wait before another attempt (0.14.7).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any, Final

from dsfs.errors import (
    ConfigError,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    one_line,
)
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink, walk
from dsfs.sources.options import NotHere, fingerprint
from dsfs.sources.threads import Threads
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

PIECE_BYTES: Final = 8 * MiB
PAGE_NAMES: Final = 1000
THREADS: Final = 8
_LONGEST_REASON: Final = 200
# Settings that say which hosts a name service is.
_CLUSTER: Final = ("dfs.nameservices", "dfs.ha.namenodes.", "dfs.namenode.rpc-address.")
# Its own attempts are many and minutes long, and a thread that waits for them is lost. Ours are made by the fetcher.
_SETTINGS: Final[Mapping[str, str]] = {
    "dfs.client.failover.max.attempts": "3",
    "dfs.client.failover.sleep.base.millis": "100",
    "dfs.client.failover.sleep.max.millis": "500",
}


def native_client(
    namenode: str, settings: Mapping[str, str], user: str | None, environment: Mapping[str, str] = os.environ
) -> Any:
    """A client of hdfs-native. Raises ConfigError if it is not installed or cannot be what is asked for."""
    try:
        module: Any = import_module("hdfs_native")
    except ImportError:
        raise NotHere(
            "HADOOP: hdfs:// needs WebHDFS (option webhdfsPort=9870, or webhdfs=http://HOST:PORT), "
            "or the package hdfs-native (pip install hdfs-native)"
        ) from None
    if user is not None and environment.get("HADOOP_USER_NAME") != user:
        # The package looks nowhere else, and the environment is shared by all datasets of the daemon.
        raise NotHere(
            f"HADOOP: hdfs-native takes the user from the environment (start dsfs with HADOOP_USER_NAME={user}, "
            "or use WebHDFS: option webhdfsPort=9870)"
        )
    try:
        return module.Client(namenode, {**_SETTINGS, **settings})
    except Exception as error:  # a bad setting: the package has no type of its own for it
        raise ConfigError(f"HADOOP: hdfs-native does not take {namenode} ({type(error).__name__})") from error


class NativeHdfsSource:
    """``client`` is one of hdfs-native, with these ``settings``, which may say what cluster a name service is; ``root``
    is an absolute path, "" for the root of the file system."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        client: Any,
        namenode: str,
        root: str,
        uri: str,
        settings: Mapping[str, str],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._client = client
        self._root = root
        self._threads = Threads(THREADS, timeouts.connect_s + timeouts.idle_s, uri)
        self.uri = uri
        cluster = {key: value for key, value in settings.items() if key.startswith(_CLUSTER)}
        self.identity = f"{namenode}{root}{f' with {fingerprint(cluster)}' if cluster else ''}"

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        entries = await self._threads.run(self._start_listing, directory)
        while page := await self._threads.run(self._next_page, entries, directory):
            yield ListingPage(tuple(page))
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
        self._threads.close()

    # -- in a thread ----------------------------------------------------------------------------------------------

    def _start_listing(self, directory: str) -> Iterator[Any]:
        with self._translated(directory):
            status = self._client.get_file_info(self._full(directory))
            if not status.isdir:
                if directory:
                    raise SourceMissing(f"{self._shown(directory)} is a file")
                return iter([status])
            entries: Iterator[Any] = self._client.list_status(self._full(directory), False)
            return entries

    def _next_page(self, entries: Iterator[Any], directory: str) -> list[SourceObject]:
        with self._translated(directory):
            page = []
            for status in islice(entries, PAGE_NAMES):
                name = status.path.rstrip("/").rpartition("/")[2]
                page.append(_object(status, f"{directory}/{name}" if directory else name))
            return page

    def _stat(self, path: str) -> SourceObject | None:
        if path and path_parts(path) is None:
            return None
        with self._translated(path):
            root = self._client.get_file_info(self._full(""))
            if not path:
                return SourceObject("", Kind.DIRECTORY)
            if not root.isdir:
                return _object(root, path) if path == self._root.rpartition("/")[2] else None
            try:
                return _object(self._client.get_file_info(self._full(path)), path)
            except Exception as error:
                if isinstance(self._error(error, path), SourceMissing):
                    return None
                raise

    def _read_piece(self, obj: SourceObject, piece: ByteRange) -> bytes:
        try:
            with self._translated(obj.path):
                full = self._full(obj.path)
                single = self._root.rpartition("/")[2] == obj.path and not self._client.get_file_info(self._root).isdir
                full = self._root if single else full
                data: bytes = self._client.read(full).read_range(piece.start, piece.length)
                now = _object(self._client.get_file_info(full), obj.path)  # after the bytes
        except SourceMissing as error:
            raise SourceChanged(f"{self._shown(obj.path)} is gone") from error
        if now.version_tag != obj.version_tag:
            raise SourceChanged(f"{self._shown(obj.path)} is not the file that was listed any more")
        if len(data) != piece.length:
            raise SourceUnavailable(f"{self._shown(obj.path)} gave {len(data)} bytes for {piece.length}")
        return data

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"

    def _shown(self, path: str) -> str:
        whole = f"{self.uri}/{path}" if path else self.uri
        return whole.encode("utf-8", "backslashreplace").decode()

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except SourceError:
            raise
        except Exception as error:
            raise self._error(error, path) from error

    def _error(self, error: Exception, path: str) -> SourceError:
        """The package tells most failures of the namenode by the Java class in their text."""
        what, text = self._shown(path), str(error)
        if isinstance(error, FileNotFoundError | NotADirectoryError) or "ParentNotDirectoryException" in text:
            return SourceMissing(f"{what}: it is not there")
        if isinstance(error, PermissionError) or any(f"{name}Exception" in text for name in ("AccessControl", "Sasl")):
            return SourceRefused(f"{what}: refused (let the user read it: HADOOP_USER_NAME, or kinit)")
        kind = SourceTimeout if isinstance(error, TimeoutError) else SourceUnavailable
        return kind(f"{what}: {one_line(text, _LONGEST_REASON) or type(error).__name__}")


def _object(status: Any, path: str) -> SourceObject:
    mtime_ns = int(status.modification_time) * 10**6
    if status.isdir:
        return SourceObject(path, Kind.DIRECTORY, 0, mtime_ns)
    return SourceObject(path, Kind.FILE, status.length, mtime_ns, f"{status.length}-{status.modification_time}")
