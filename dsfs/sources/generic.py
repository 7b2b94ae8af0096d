"""Whatever fsspec knows: ``fsspec+PROTOCOL://…``, ``gs://``, ``az://``. Slower than a source of its own, and works.

fsspec has no conditional read, so a version is proven by asking again after the bytes came. Its file systems are
called in threads: each has a blocking form, not each an async one.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

import fsspec
import structlog
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from dsfs.errors import (
    ConfigError,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink, walk
from dsfs.sources.options import NotHere, fingerprint
from dsfs.sources.threads import Threads
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = structlog.get_logger()

THREADS: Final = 16
PAGE_NAMES: Final = 1000
PIECE_BYTES: Final = 8 * MiB
# A file system that is asked in a thread has its own way to give up; this is for those that have none.
_LIMIT_FACTOR: Final = 6

# What says "another version" in fsspec's many dialects. All that are there go into the tag.
_VERSION_KEYS: Final = (
    ("etag", "ETag", "e_tag"),
    ("md5", "md5Hash", "content_md5", "checksum", "sha256", "sha", "CRC", "generation", "version_id", "uid"),
    (
        *("mtime", "LastModified", "last_modified", "updated", "modified", "modificationTime", "date_time"),
        *("modify", "last_write_time", "created"),
    ),
)
_COPYING: Final = frozenset(
    name for name, known in known_implementations.items() if known["class"].startswith("fsspec.implementations.cached.")
)
_TIME_KEYS: Final = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_SECRET_OPTIONS: Final = {
    "access-key": "key",
    "secret-key": "secret",
    "username": "username",
    "password": "password",
    "token": "token",
}


def fsspec_source(
    spec: SourceSpec, credentials: Mapping[str, str], *, namespace: str = "default", secret_name: str = "", **_: object
) -> FsspecSource:
    """Options go to the file system; JSON (``true``, ``22``, ``{…}``) as what it says. Raises ConfigError."""
    uri = spec.uri.removeprefix("fsspec+")
    options: dict[str, Any] = {key: _value(text) for key, text in spec.options.items() if key != "syncMode"}
    secret = {_SECRET_OPTIONS[key]: value for key, value in credentials.items() if key in _SECRET_OPTIONS and value}
    if copying := sorted(_copying({"protocol": uri, **options})):
        raise ConfigError(f"FSSPEC: {copying[0]} keeps copies of its own where it likes (leave it out: dsfs caches)")
    for link in uri.split("::"):
        protocol = link.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            hint = known_implementations.get(protocol, {}).get("err") or "install the package of this protocol"
            raise NotHere(f"FSSPEC: {protocol}:// cannot be read here: {hint}") from error
        except ValueError as error:
            raise ConfigError(f"FSSPEC: fsspec knows no protocol {protocol!r}") from error
    account = None
    if secret:  # who logs in to FTP may see a tree of his own, under the same URI
        account = {"namespace": namespace, "secret": secret_name, "name": secret.get("username", "")}
    return FsspecSource(uri, options, secret, account=account)


def _copying(options: Mapping[str, Any]) -> set[str]:
    """File systems of fsspec that write what they read to a path of their options: where a URL or a protocol is named
    in these, however deep."""
    found: set[str] = set()
    for key, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                found |= _copying(each)
            elif isinstance(each, str) and ("::" in each or "://" in each or key.endswith("protocol")):
                found |= _COPYING & {link.partition("://")[0] for link in each.split("::")}
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class FsspecSource:
    """One fsspec file system below one path. It is made at the first call, for some connect when they are made."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self,
        uri: str,
        options: Mapping[str, Any],
        credentials: Mapping[str, str],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        *,
        account: Mapping[str, str] | None = None,
    ) -> None:
        """``account``: what tells this one from others, for whom the same path may be another file."""
        self._options = {**options, **credentials}
        self._threads = Threads(THREADS, timeouts.idle_s * _LIMIT_FACTOR, uri)
        self._fs: Any = None
        self._root = ""
        self._opening = asyncio.Lock()
        self._turn = asyncio.Lock()  # a file system without an async core may share one socket or file among calls
        self._said_weak = False
        self.uri = uri
        self.identity = f"fsspec:{uri}"
        if options:  # of some file systems they say which server it is
            self.identity += f" with {fingerprint(options)}"
        if account:
            self.identity += f" as {fingerprint(account)}"

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        found = await self._call(self._list, directory)
        for start in range(0, len(found), PAGE_NAMES):
            yield ListingPage(tuple(found[start : start + PAGE_NAMES]))
        yield ListingPage((), (directory,))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        async for page in walk(self.list_directory):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        try:
            found: SourceObject | None = await self._call(self._stat, path)
        except SourceMissing:
            return None
        if found is not None and found.size is None:
            raise SourceUnsupported(f"{self.uri}: {path!r}: the file system does not say how long it is")
        return found

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        for start in range(wanted.start, wanted.stop, PIECE_BYTES):
            piece = ByteRange(start, min(start + PIECE_BYTES, wanted.stop))
            try:
                data = await self._call(self._read_piece, obj, piece)
            except SourceMissing as error:
                raise SourceChanged(f"{self.uri}: {obj.path!r} is gone") from error
            await sink.write(start, data)

    async def close(self) -> None:
        """See ``Source``."""
        self._threads.close()

    async def _call(self, function: Any, *args: Any) -> Any:
        await self._open()
        if self._fs.async_impl:
            return await self._guarded(function, *args)
        async with self._turn:
            return await self._guarded(function, *args)

    async def _open(self) -> None:
        if self._fs is None:
            async with self._opening:
                if self._fs is None:
                    self._fs, self._root = await self._guarded(self._make)

    async def _guarded(self, function: Any, *args: Any) -> Any:
        try:
            return await self._threads.run(function, *args)
        except SourceError:
            raise
        except Exception as error:  # a plug-in of anybody may raise anything; here it gets a name
            raise self._translated(error) from error

    # -- in a thread ----------------------------------------------------------------------------------------------

    def _make(self) -> tuple[Any, str]:
        # Not from fsspec's cache of instances: that one is keyed by the options and would keep credentials alive.
        fs, root = url_to_fs(self.uri, skip_instance_cache=True, use_listings_cache=False, **self._options)
        root = root.rstrip("/")
        return fs, "" if root == "*" else root  # `zip://*::…` is how fsspec itself writes "all of the archive"

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path and (self._root or self._fs.root_marker == "/") else path or self._root

    def _list(self, directory: str) -> list[SourceObject]:
        full = self._full(directory)
        info = self._info(full, is_root=not directory)
        if info["type"] == "file":
            if directory:
                raise SourceMissing(f"{self.uri}: {directory!r} is no directory")
            return [self._object(self._single_name(), info)]
        entries = self._fs.ls(full, detail=True)
        found = []
        for info in entries:
            whole = info["name"].rstrip("/")
            name = whole.rpartition("/")[2]
            if name and whole != full.rstrip("/"):  # object stores list the marker of the directory itself
                found.append(self._object(f"{directory}/{name}" if directory else name, info))
        return found

    def _info(self, full: str, *, is_root: bool = False) -> dict[str, Any]:
        try:
            info: dict[str, Any] = self._fs.info(full)
        except FileNotFoundError:
            if not is_root or not self._fs.ls(full, detail=True):  # the root of an archive or a bucket has no entry
                raise
            info = {"name": full, "type": "directory", "size": 0}
        return info

    def _single_name(self) -> str:
        return self._root.rpartition("/")[2]

    def _stat(self, path: str) -> SourceObject | None:
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if path_parts(path) is None:
            return None
        return self._object(path, self._info(self._file_path(path)))

    def _file_path(self, path: str) -> str:
        """The root itself when that is a file, else below it."""
        if path == self._single_name() and self._fs.isfile(self._root):
            return self._root
        return self._full(path)

    def _read_piece(self, obj: SourceObject, piece: ByteRange) -> bytes:
        full = self._file_path(obj.path)
        data: bytes = self._fs.cat_file(full, start=piece.start, end=piece.stop)
        now = self._object(obj.path, self._info(full))  # after the bytes: a change while they came counts too
        if now.version_tag != obj.version_tag:
            raise SourceChanged(f"{self.uri}: {obj.path!r} is not the version that was listed any more")
        if len(data) != piece.length:
            raise SourceUnavailable(f"{self.uri}: {obj.path!r} gave {len(data)} bytes for {piece.length}")
        return data

    def _object(self, path: str, info: Mapping[str, Any]) -> SourceObject:
        if info.get("type") == "directory":
            return SourceObject(path, Kind.DIRECTORY)
        size = info.get("size")
        if size is None:
            return SourceObject(path, Kind.FILE, None)
        versions = [_shown(value) for keys in _VERSION_KEYS if (value := _first(info, keys)) is not None]
        if not versions and not self._said_weak:
            self._said_weak = True
            log.warning("the file system has neither checksums nor times, changes are not noticed", source=self.uri)
        return SourceObject(path, Kind.FILE, int(size), _mtime_ns(info), "|".join([*versions, str(int(size))]))

    def _translated(self, error: Exception) -> SourceError:
        # The text of a plug-in's error may hold what was in its options, so only its type is told.
        shown = f"{self.uri}: {type(error).__name__}"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return SourceMissing(f"{self.uri}: there is no such file or directory")
        if isinstance(error, PermissionError):
            return SourceRefused(f"{shown} (give credentials in a Secret)")
        if isinstance(error, (NotImplementedError, ImportError, TypeError)):
            return SourceUnsupported(shown)
        if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno == errno.ETIMEDOUT):
            return SourceTimeout(f"{shown}: nothing answered in time")
        return SourceUnavailable(shown)


def _first(info: Mapping[str, Any], keys: tuple[str, ...]) -> Any | None:
    return next((info[key] for key in keys if info.get(key) not in (None, "")), None)


def _shown(value: Any) -> str:
    """One text for one version, though `ls` and `info` of one file system may say a time in two types."""
    time_s = _seconds(value)
    return str(value) if time_s is None else f"{time_s:.6f}"


def _seconds(value: Any) -> float | None:
    """Unix seconds; None for what is no time."""
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _mtime_ns(info: Mapping[str, Any]) -> int:
    time_s = _seconds(_first(info, _TIME_KEYS))
    return 0 if time_s is None else int(time_s * 10**6) * 1000
