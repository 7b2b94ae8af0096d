"""Google Cloud Storage (``gs://``) and Azure Blob Storage (``az://``, ``abfs://``), both through obstore.

Version tag: the ETag, else size and time. Keys that obstore refuses (``a//b``, ``a/./b``, control characters) end a
listing of it: their directory is told as refused, and where that is the root all fails. Slashes around a key it drops:
an empty ``x/`` is found to be a directory's marker, one with content is taken for a file that is not there.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

import obstore
import structlog
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore

from dsfs.errors import (
    ConfigError,
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
    first_of,
    one_line,
)
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.answers import copy_body
from dsfs.sources.base import Buffer, Sink, Source, closing, walk
from dsfs.sources.flat_tree import FlatTree
from dsfs.sources.options import UnknownOption
from dsfs.sources.prefix_or_key import Root, prefix_or_key
from dsfs.sources.retry import one_of_many
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = structlog.get_logger()
T = TypeVar("T")

PAGE_NAMES: Final = 1000
PIECE_BYTES: Final = 1 * MiB  # as in ``s3_read``: one hop between the runtimes a MiB
_CONTROL: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # and what stands for bytes that are no text
_STATUS: Final = re.compile(r"non-2xx status code: (\d{3})")
_REFUSED_KEY: Final = re.compile(r'Path "(.*?)"(?:: Encountered| contained) ', re.DOTALL)
_LOOKS_IN_FLIGHT: Final = 32  # as many as names that are looked at for their sizes
_FEW: Final = 32  # names of a page: to ask for each is less than to gather directories of any size
_FAILURES: Final = (BaseError, OSError, ValueError)

# What reads which scheme of type FSSPEC; any other one, and "fsspec+" before these, is fsspec's.
_OWN_SCHEMES: Final[Mapping[str, str]] = {
    "gs": "dsfs.sources.object_stores_access:gcs_source",
    "az": "dsfs.sources.object_stores_access:azure_source",
    "abfs": "dsfs.sources.object_stores_access:azure_source",
    "abfss": "dsfs.sources.object_stores_access:azure_source",
    "dataworld": "dsfs.sources.tables:dataworld_source",
    "nasdaq": "dsfs.sources.tables:nasdaq_source",
}


def by_scheme(spec: SourceSpec, credentials: Mapping[str, str], **more: object) -> Source:
    """The source of type FSSPEC that a URI's scheme names. Raises ConfigError."""
    scheme = spec.uri.partition("://")[0].lower()
    # A chain ("az://x.zip::…") is fsspec's grammar.
    own = None if "::" in spec.uri else _OWN_SCHEMES.get(scheme)
    module, _, name = (own or "dsfs.sources.generic:fsspec_source").partition(":")
    build: Any = getattr(import_module(module), name)
    source: Source = build(spec, credentials, **more)
    return source


class _ImpossibleKey(SourceUnsupported):
    """obstore takes no such key, and gives nothing of the page of a listing that has one."""


class ObjectStoreSource:
    """Objects under a prefix of one bucket or container, whichever store of obstore it is."""

    revision = ""  # a listing has no name of its own here

    def __init__(
        self, store: Any, uri: str, prefix: str, identity: str, remedy: str, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        """``uri`` and ``identity`` are without the prefix; ``remedy`` says which credentials there could be."""
        self._root = Root(prefix.lstrip("/"), self._has_keys, self._head)
        self._prefix = self._root.prefix
        self._store = store
        self._remedy = remedy
        self._limit_s = timeouts.connect_s + timeouts.idle_s
        self.uri = f"{uri}/{self._prefix}"
        self.identity = f"{identity}/{self._prefix}"

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. obstore gathers all pages of one directory before it answers."""
        prefix, directories, items = await self._directly_in(directory)
        if not directories and not items and prefix:
            if not directory:
                yield await self._root.page(self.uri)
                return
            if not await self._is_marked(directory):
                raise SourceMissing(f"{self.uri}{directory}: there is nothing under this prefix")
        objects = [SourceObject(path, Kind.DIRECTORY) for path in directories]
        objects += [self._object(item) for item in items if f"{item['path']}/" != prefix]
        self._root.holds_keys()
        for start in range(0, len(objects), PAGE_NAMES):
            yield ListingPage(tuple(objects[start : start + PAGE_NAMES]))
        yield ListingPage((), (directory,))

    async def _directly_in(self, directory: str) -> tuple[str, list[str], Sequence[Mapping[str, Any]]]:
        """As ``_names_in``. Raises SourceRefused for a directory below the root that obstore cannot list."""
        try:
            return await self._names_in(directory)
        except _ImpossibleKey as error:
            if not directory:
                raise
            raise SourceRefused(str(error)) from error

    async def _names_in(self, directory: str) -> tuple[str, list[str], Sequence[Mapping[str, Any]]]:
        """The prefix that was listed, the paths of directories below it, and what is said of objects."""
        prefix = self._key(f"{directory}/" if directory else "")
        asked = obstore.list_with_delimiter_async(self._store, prefix or None)
        answer = await self._call(asked, f"{self.uri}{directory}", limited=False)
        found = [each.rstrip("/") for each in answer["common_prefixes"]]
        return prefix, [self._path(each) for each in found if each != prefix.rstrip("/")], answer["objects"]

    async def _is_marked(self, directory: str) -> bool:
        """Whether an empty directory has a marker: one of Azure's, obstore shows to the directory above alone."""
        if not isinstance(self._store, AzureStore):
            return False
        _prefix, beside, _items = await self._directly_in(directory.rpartition("/")[0])
        return directory in beside

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``. One flat listing; one of each directory if obstore refuses a key, as it ends there."""
        try:
            async with closing(self._flat()) as pages:
                async for page in pages:
                    yield page
            return
        except _ImpossibleKey as refusal:
            log.info("listing one directory after another", source=self.uri, reason=str(refusal))
        async with closing(walk(self.list_directory)) as pages:
            async for page in pages:
                yield page

    async def _flat(self) -> AsyncIterator[ListingPage]:
        tree = FlatTree()
        run, found = tree.run(), False
        looked_into: dict[str, Mapping[str, Kind]] = {}
        stream = obstore.list(self._store, self._prefix or None, chunk_size=PAGE_NAMES).__aiter__()
        while True:
            try:
                chunk = await self._call(stream.__anext__(), self.uri)
            except StopAsyncIteration:
                break
            found = found or bool(chunk)
            # Without the marker of the directory itself.
            objects = [self._object(item) for item in chunk if f"{item['path']}/" != self._prefix]
            for obj in await self._told_apart(objects, looked_into):
                run.add(obj)
            yield run.take_page()
        if not found and self._prefix:
            yield await self._root.page(self.uri)
            return
        self._root.holds_keys()
        run.end()
        yield run.take_page()
        yield tree.finish()

    async def _told_apart(
        self, objects: list[SourceObject], looked_into: dict[str, Mapping[str, Kind]]
    ) -> list[SourceObject]:
        """With directories for their markers: obstore lists a key ``x/`` as ``x``.

        A name of which that is not clear is asked for; where there are many, or it is not found, its directory is
        listed by itself, and once, as obstore gathers all of that: ``looked_into`` keeps what was found until the keys
        are those of another. What was not there then, as it had gone or came later, is left out.
        """
        unclear: dict[int, str] = {}
        for at, obj in enumerate(objects):
            if obj.size:
                continue
            if at + 1 < len(objects) and objects[at + 1].path.startswith(f"{obj.path}/"):
                objects[at] = SourceObject(obj.path, Kind.DIRECTORY)  # it is one in any case
            else:
                unclear[at] = obj.path.rpartition("/")[0]
        count = Counter(objects[at].path for at in unclear)  # two are a file and a marker
        few = [
            objects[at].path for at, into in unclear.items() if into not in looked_into and count[objects[at].path] == 1
        ]
        files = await self._files_among(few) if len(few) <= _FEW else frozenset()
        unclear = {at: directory for at, directory in unclear.items() if objects[at].path not in files}
        await self._look_into({*unclear.values()} - looked_into.keys(), looked_into)
        told = []
        for at, obj in enumerate(objects):
            kind = looked_into[unclear[at]].get(obj.path) if at in unclear else obj.kind
            if kind is not None:
                told.append(obj if kind is obj.kind else SourceObject(obj.path, kind))
        last = objects[-1].path if objects else ""
        for directory in [each for each in looked_into if each and not last.startswith(f"{each}/")]:
            del looked_into[directory]
        return told

    async def _files_among(self, paths: Sequence[str]) -> frozenset[str]:
        async def is_file(path: str) -> bool:
            return await one_of_many(partial(self._head, path, self._key(path))) is not None

        are_files = await self._together([partial(is_file, path) for path in paths])
        return frozenset(path for path, file in zip(paths, are_files, strict=True) if file)

    async def _look_into(self, directories: Collection[str], looked_into: dict[str, Mapping[str, Kind]]) -> None:
        async def look(directory: str) -> None:
            _prefix, below, items = await one_of_many(partial(self._names_in, directory))
            looked_into[directory] = await asyncio.to_thread(self._kinds, below, items)

        await self._together([partial(look, directory) for directory in directories])

    def _kinds(self, below: Sequence[str], items: Sequence[Mapping[str, Any]]) -> Mapping[str, Kind]:
        """Of names without content, and of directories."""
        kinds = {self._path(item["path"]): Kind.FILE for item in items if not item["size"]}
        return kinds | dict.fromkeys(below, Kind.DIRECTORY)

    @staticmethod
    async def _together(looks: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        gate = asyncio.Semaphore(_LOOKS_IN_FLIGHT)

        async def one(look: Callable[[], Awaitable[T]]) -> T:
            async with gate:
                return await look()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(look)) for look in looks]
            return [task.result() for task in tasks]
        except BaseExceptionGroup as errors:
            ours = first_of(errors, SourceError)
            if ours is None:
                raise
            raise ours from ours.__cause__  # one is enough: the others were cancelled

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``. Both questions at once: is it a prefix, is it a key.

        Of Azure an empty directory that only a marker stands for is not found: a listing has it (``_is_marked``), and
        one of all that is beside each name that is not there would take too long.
        """
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if path_parts(path) is None or _CONTROL.search(path):
            return None  # no listing of obstore has it
        key = await self._root.key(path)
        return await prefix_or_key(path, self._has_keys(f"{self._key(path)}/"), self._head(path, key))

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        what = f"{self.uri}{obj.path}"
        options: dict[str, Any] = {"range": (wanted.start, wanted.stop)}
        if "@" not in obj.version_tag:
            options["if_match"] = f'"{obj.version_tag}"'
        key = await self._root.key(obj.path)
        asked = obstore.get_async(self._store, key, options=options)  # type: ignore[arg-type]  # a TypedDict that exists in stubs only
        result = await self._call(asked, what, reading=True)
        now = self._object(result.meta)
        # Not every server minds If-Match (fake-gcs-server does not), so what came is looked at too.
        if now.version_tag != obj.version_tag or now.size != obj.size:
            raise SourceChanged(f"{what}: version {now.version_tag} is there now, {obj.version_tag} was listed")
        if tuple(result.range) != tuple(wanted):
            raise SourceUnavailable(f"{what}: asked for bytes {wanted.start}-{wanted.stop}, got {result.range}")
        # obstore tells no headers but the Content-Range, which a body without a length need not keep to.
        await copy_body(self._pieces(result, wanted, what), wanted, wanted, sink, what, open_end=True)

    async def close(self) -> None:
        """See ``Source``. The store's connections end with the store."""

    # -- requests -------------------------------------------------------------------------------------------------

    async def _head(self, path: str, key: str) -> SourceObject | None:
        try:
            meta = await self._call(obstore.head_async(self._store, key), f"{self.uri}{path}")
        except SourceMissing:
            return None  # the listing beside it tells a missing bucket
        return replace(self._object(meta), path=path)

    async def _has_keys(self, prefix: str) -> bool:
        stream = obstore.list(self._store, prefix, chunk_size=1).__aiter__()
        try:
            return bool(await self._call(stream.__anext__(), f"{self.uri}{self._path(prefix)}"))
        except StopAsyncIteration:
            return False

    async def _pieces(self, result: Any, wanted: ByteRange, what: str) -> AsyncIterator[Buffer]:
        try:
            if wanted.length <= PIECE_BYTES:
                yield memoryview(await result.buffer_async())
                return
            async for piece in result.stream(min_chunk_size=PIECE_BYTES):
                yield piece
        except _FAILURES as error:
            raise self._translated(error, what) from error

    async def _call(self, request: Awaitable[T], what: str, *, reading: bool = False, limited: bool = True) -> T:
        """``limited``: within the time for one answer. The store has no limit of its own for its head alone."""
        try:
            async with asyncio.timeout(self._limit_s if limited else None):
                return await request
        except TimeoutError as error:
            raise SourceTimeout(f"{what}: nothing answered in time") from error
        except _FAILURES as error:
            raise self._translated(error, what, reading=reading) from error

    def _translated(self, error: Exception, what: str, *, reading: bool = False) -> SourceError:
        """obstore tells some of its failures apart in text only. The text itself may hold a signature."""
        found = _STATUS.search(str(error))
        status = int(found[1]) if found else 0
        if isinstance(error, PreconditionError) or status in (412, 416):
            return SourceChanged(f"{what}: another version is there now")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in (401, 403):
            return SourceRefused(f"{what}: access refused ({self._remedy})")
        if isinstance(error, FileNotFoundError) or status == 404:
            return SourceChanged(f"{what}: it is gone") if reading else SourceMissing(f"{what}: it is not there")
        if status in (429, 503):
            return RetryLater(f"{what}: HTTP {status}, the server asks for patience")
        if isinstance(error, (InvalidPathError, ValueError)):
            key = _REFUSED_KEY.search(str(error))
            shown = one_line(key[1]) if key else "such as a//b"
            return _ImpossibleKey(f"{what}: a key is no path that can be read here ({shown})")
        if "kind: Timeout" in str(error) or "TimedOut" in str(error):
            return SourceTimeout(f"{what}: nothing answered in time")
        shown = f"HTTP {status}" if status else "it cannot be reached, or no credentials were found"
        return SourceUnavailable(f"{what}: {shown} ({self._remedy})")

    # -- keys and paths -------------------------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return self._prefix + path

    def _path(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _object(self, meta: Mapping[str, Any]) -> SourceObject:
        # Whole seconds: listings have milliseconds and answers do not, and the two must give one tag.
        mtime_ns = int(meta["last_modified"].timestamp()) * 10**9
        size = int(meta["size"])
        etag = (meta["e_tag"] or "").strip().strip('"')  # quoted in answers, not in listings
        return SourceObject(self._path(meta["path"]), Kind.FILE, size, mtime_ns, etag or f"{size}@{mtime_ns}")


def client_options(timeouts: Timeouts, *, allow_http: bool) -> dict[str, Any]:
    """What every store is made with: our time limits, and no other on a whole request."""
    return {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=timeouts.connect_s),
        "read_timeout": timedelta(seconds=timeouts.idle_s),
        "timeout": timedelta(days=1),  # of a whole request; it cannot be switched off
    }


def refused_option(given: Mapping[str, str], known: frozenset[str], what: str) -> None:
    """Raises ConfigError for an option that is not known, and for an endpoint that is no URL."""
    for key in given:
        if key not in known:
            raise UnknownOption(what, key, ", ".join(sorted(known)))
    endpoint = given.get("endpoint", "")
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        raise ConfigError(f"{what}: option endpoint must be a URL (such as http://127.0.0.1:4443)")
    if given.get("anonymous", "").lower() not in ("", "true", "false"):
        raise ConfigError(f"{what}: option anonymous must be true or false")
