"""The files of one dataset: names, attributes, bytes. What both sessions show of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator

import trio
from cachetools import LRUCache

from dsfs.cache.complete import CachedObject
from dsfs.catalog.diff import Changes, ManyChanges
from dsfs.catalog.lookup import ROOT_INO, Catalog, Row
from dsfs.datasets.dataset import Dataset
from dsfs.errors import DsfsError, SourceChanged, SourceError, SourceUnavailable, SourceUnsupported
from dsfs.fetch.disk_read import DiskRead
from dsfs.fetch.flight import SMALL_BLOCKS, Flight
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority
from dsfs.fetch.reader import Reader
from dsfs.filesystem.ahead import Ahead
from dsfs.filesystem.attributes import FOREVER_S, Attributes, Entry, Listed, Ownership, attributes_of
from dsfs.filesystem.nodes import ino_of, nodeid_of, slot_of
from dsfs.filesystem.statfs import Statfs
from dsfs.filesystem.tree import check_name
from dsfs.model import Kind, Phase
from dsfs.ranges import ByteRange
from dsfs.sources.base import Buffer

_KNOWN_FILES = 8192
_SAME_ANSWER_S = 0.25
"""After a failed read-ahead the kernel asks at once for the one page that its reader waits for (filemap_get_pages in
mm/filemap.c). That READ gets the same answer, or a reader would wait for two timeouts."""
_FIRST_COOKIE = 2  # behind "." and ".."
_NEVER_SHOWN = Entry(0, None, 0)
_ABSENT = Entry(0, None, FOREVER_S)

XATTR_SOURCE = b"user.dsfs.source"
XATTR_VERSION = b"user.dsfs.version"
XATTR_CACHED = b"user.dsfs.cached"
XATTR_ERROR = b"user.dsfs.error"


class DatasetFiles:
    """Functions named ``try_…`` answer from memory and local indexes, or say None; then the one without ``try_``
    waits for what it takes. Both raise DsfsError, or OSError for what the caller did wrong.

    ``root_nodeid`` is the number that the dataset's root has on its connection.
    """

    def __init__(
        self,
        dataset: Dataset,
        reader: Reader,
        owner: Ownership,
        root_nodeid: int,
        cache_limit_bytes: int,
        longest_window: int,
    ) -> None:
        self.dataset = dataset
        self._reader = reader
        self._owner = owner
        self.root_nodeid = root_nodeid
        self._ahead = Ahead(dataset, reader, cache_limit_bytes, longest_window)
        self._files: LRUCache[int, RemoteFile] = LRUCache(_KNOWN_FILES)
        self._failed: LRUCache[int, tuple[SourceUnavailable, float]] = LRUCache(_KNOWN_FILES)

    # -- names ----------------------------------------------------------------------------------------------------

    def _ino(self, nodeid: int) -> int:
        if nodeid == self.root_nodeid:
            return ROOT_INO
        if slot_of(nodeid) != self.dataset.slot:
            raise OSError(errno.ESTALE, "inode of another dataset")
        return ino_of(nodeid)

    def _nodeid(self, ino: int) -> int:
        return self.root_nodeid if ino == ROOT_INO else nodeid_of(self.dataset.slot, ino)

    def _row(self, nodeid: int) -> Row:
        row = self.dataset.row(self._ino(nodeid))
        if row is None:
            raise OSError(errno.ESTALE, "no such inode")
        return row

    def _attributes(self, row: Row) -> Attributes:
        return attributes_of(row, self._nodeid(row.ino), self._owner)

    def nodeids_of(self, changed: Changes) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Changes of a revision in the numbers that the kernel knows: names, and directories."""
        names = [(self._nodeid(parent), name) for parent, name in changed.names]
        return names, [self._nodeid(ino) for ino in changed.directories]

    def names_of(self, changed: ManyChanges) -> Iterator[tuple[int, bytes]]:
        """As ``nodeids_of``, the names alone. Scans catalogs: not for the loop."""
        return ((self._nodeid(parent), name) for parent, name in changed.names())

    def all_directories(self) -> list[int]:
        """The nodeids of every directory that is shown. Scans the catalog: not for the loop."""
        catalog = Catalog(self.dataset.catalog.file)
        try:
            return [self._nodeid(ino) for ino in catalog.directories()]
        finally:
            catalog.close()

    def try_lookup(self, parent: int, name: bytes) -> Entry | None:
        check_name(name)
        if not self.dataset.answered.is_set():
            return None
        directory = self._ino(parent)
        if not self.dataset.catalog.is_listed(directory):
            return None
        row = self.dataset.lookup(directory, name)
        if row is None:
            return _ABSENT
        return None if row.size is None else self._entry(row)

    async def lookup(self, parent: int, name: bytes) -> Entry:
        row = await self.dataset.find(self._ino(parent), name)
        if row is None:
            return _NEVER_SHOWN  # the directory may be listed later, and then has it
        if row.size is None and row.kind == Kind.FILE:
            raise SourceUnsupported(f"{self.dataset.manifest.id}: nobody knows how long {os.fsdecode(name)!r} is")
        return self._entry(row)

    def _entry(self, row: Row) -> Entry:
        return Entry(self._nodeid(row.ino), self._attributes(row))

    def try_getattr(self, nodeid: int) -> Attributes:
        return self._attributes(self._row(nodeid))

    def readlink(self, nodeid: int) -> bytes:
        row = self._row(nodeid)
        if row.target is None:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return row.target

    def try_readdir(self, nodeid: int, cookie: int, limit: int) -> list[Listed] | None:
        """Up to ``limit`` names behind a cookie; None while the directory is not listed."""
        ino = self._ino(nodeid)
        if not self.dataset.answered.is_set() or not self.dataset.catalog.is_listed(ino):
            return None
        names: list[Listed] = []
        if cookie < 1:
            names.append(Listed(b".", nodeid, Kind.DIRECTORY, 1, None))
        if cookie < _FIRST_COOKIE:
            names.append(Listed(b"..", nodeid, Kind.DIRECTORY, _FIRST_COOKIE, None))
        after = max(0, cookie - _FIRST_COOKIE)
        for row in self.dataset.children(ino, after, limit):
            attributes = None if row.size is None else self._attributes(row)
            names.append(Listed(row.name, self._nodeid(row.ino), row.kind, row.ino + _FIRST_COOKIE, attributes))
        return names

    async def ensure_listed(self, nodeid: int) -> None:
        """Have a directory listed; ``try_readdir`` answers then."""
        row = self._row(nodeid)
        if row.kind != Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, "not a directory")
        await self.dataset.list_directory(row.ino)

    async def statfs(self) -> Statfs:
        status = await self.dataset.status()
        return Statfs(status.bytes, status.files)

    # -- bytes ----------------------------------------------------------------------------------------------------

    def file(self, nodeid: int) -> RemoteFile:
        """The object behind a nodeid. Raises OSError (EISDIR) for what is no file."""
        known = self._files.get(nodeid)
        if known is None:
            row = self._row(nodeid)
            if row.kind != Kind.FILE or row.size is None:
                raise OSError(errno.EISDIR if row.kind == Kind.DIRECTORY else errno.EINVAL, "not a file")
            known = self.dataset.remote_file(row)
            if not self.dataset.sources.unusable:  # it may be known under another key then
                self._files[nodeid] = known
        return known

    def opened(self, nodeid: int) -> None:
        """A file is opened, or read by somebody who may not have asked to open it."""
        self._ahead.opened(self._ino(nodeid))

    def closed(self, nodeid: int) -> None:
        """Nobody has a file open any more, as far as the kernel tells."""
        file = self._files.get(nodeid)
        if file is not None:
            self._ahead.closed(self._ino(nodeid), file)

    def complete(self, nodeid: int) -> CachedObject | None:
        """The cached object if all of it is here and checked: what passthrough needs."""
        return self._reader.complete(self.file(nodeid))

    def is_small(self, nodeid: int) -> bool:
        """Whether a file is fetched whole on first use."""
        return self.file(nodeid).size_bytes <= SMALL_BLOCKS * self._reader.block_bytes

    async def prepare(self, nodeid: int) -> None:
        """Before an open that may become passthrough: bring a small file whole, check what another boot wrote."""
        file = self.file(nodeid)
        if self.is_small(nodeid):
            self._ahead.missed(self._ino(nodeid))
            await self._reader.fetch_whole(file, Priority.DEMAND)
        else:
            self._ahead.begun(self._ino(nodeid), file)
            await self._reader.check_all(file)

    def begin_small(self, nodeid: int) -> Flight | None:
        """For a file that ``complete`` has just not found: the flight that brings all of it, when that has begun and
        nothing else need be waited for; None: ``prepare``."""
        file = self.file(nodeid)
        if not self._reader.comes_at_once(file):
            return None
        self._ahead.missed(self._ino(nodeid))
        return self._reader.begin(file)

    def begin_absent(self, nodeid: int, offset: int) -> Flight | None:
        """As ``begin_small``, for a read, without a look at the disk: where a file is known not to be there."""
        file = self.file(nodeid)
        if offset >= file.size_bytes or not self._reader.is_absent(file) or self._same_answer(nodeid, file) is not None:
            return None
        self.opened(nodeid)
        self._ahead.missed(self._ino(nodeid))
        return self._reader.begin(file)

    def from_flight(self, nodeid: int, offset: int, into: memoryview, flight: Flight) -> int | None:
        """What a flight of ``begin_absent`` has brought, as ``try_read``; None: use ``read_noted``. Raises what ended
        it."""
        file = self.file(nodeid)
        if flight.error is not None:
            if self._reader.present_bytes(file):  # of a courier that outlived its server, and not heard of
                return None
            self._note_failed(nodeid, flight.error)
            raise flight.error
        wanted = ByteRange(offset, offset + len(into)).clipped(file.size_bytes)
        return wanted.length if self._reader.from_flight(file, wanted, into[: wanted.length], flight) else None

    def try_pieces(self, nodeid: int, offset: int, size: int) -> list[Buffer] | None:
        """What was fetched just now of a file that has several blocks, without a copy; None: read it."""
        file = self.file(nodeid)
        if file.size_bytes <= self._reader.block_bytes:
            return None
        wanted = ByteRange(offset, offset + size).clipped(file.size_bytes)
        pieces = self._reader.try_pieces(file, wanted)
        if pieces is not None:
            self._was_read(nodeid, file, wanted)
        return pieces

    def try_read(self, nodeid: int, offset: int, into: memoryview) -> int | None:
        """Fill ``into`` from ``offset`` on without waiting for anything; how many bytes that made, None: wait."""
        file = self.file(nodeid)
        wanted = ByteRange(offset, offset + len(into)).clipped(file.size_bytes)
        if wanted.length == 0:
            return 0
        if not self._reader.try_read(file, wanted, into[: wanted.length]):
            return None  # ``read`` is next, and counts it
        self._was_read(nodeid, file, wanted)
        return wanted.length

    def from_disk(self, nodeid: int, offset: int, size: int) -> DiskRead | None:
        """How to read what the cache is likely to have; None: use ``read``. Should that come to nothing, use
        ``read_noted``."""
        file = self.file(nodeid)
        wanted = ByteRange(offset, offset + size).clipped(file.size_bytes)
        if wanted.length == 0:
            return None
        found = self._reader.from_disk(file, wanted)
        if found is not None:
            self._was_read(nodeid, file, wanted)
        return found

    def is_coming(self, nodeid: int, read: DiskRead) -> bool:
        """Whether what ``from_disk`` would look for is on its way: noting the read has asked for it."""
        return not read.opened and self._reader.is_coming(self.file(nodeid), read.wanted)

    def _was_read(self, nodeid: int, file: RemoteFile, wanted: ByteRange) -> None:
        self.opened(nodeid)
        if file.size_bytes > SMALL_BLOCKS * self._reader.block_bytes:
            self._look_ahead(nodeid, file, wanted)

    async def read(self, nodeid: int, wanted: ByteRange) -> list[Buffer]:
        """The bytes of a range, cut at the end of the file, in pieces."""
        file = self.file(nodeid)
        wanted = wanted.clipped(file.size_bytes)
        if wanted.length == 0:
            self.opened(nodeid)
        else:
            self._was_read(nodeid, file, wanted)
        return await self.read_noted(nodeid, wanted)

    async def read_noted(self, nodeid: int, wanted: ByteRange) -> list[Buffer]:
        """As ``read``, of a range that ``from_disk`` has seen first."""
        file = self.file(nodeid)
        wanted = wanted.clipped(file.size_bytes)
        if wanted.length == 0:
            return []
        if self.is_small(nodeid) and self._reader.complete(file) is None:
            self._ahead.missed(self._ino(nodeid))
        failed = self._same_answer(nodeid, file)
        if failed is not None:
            raise failed
        try:
            return await self._reader.read(file, wanted)
        except SourceError as error:
            self._note_failed(nodeid, error)
            raise

    def _same_answer(self, nodeid: int, file: RemoteFile) -> SourceUnavailable | None:
        """What a reader of a file was told just now, if that is still true."""
        failed = self._failed.get(nodeid)
        if failed is None or trio.current_time() >= failed[1] or file.origin.last_error is None:
            return None  # or it has answered somebody since
        return failed[0]

    def _note_failed(self, nodeid: int, error: SourceError) -> None:
        if isinstance(error, SourceUnavailable):
            self._failed[nodeid] = error, trio.current_time() + _SAME_ANSWER_S

    def nodeids_of_object(self, file: RemoteFile) -> list[int]:
        """The numbers under which the kernel may know an object, here or in a dataset that has the same one."""
        found = {nodeid for nodeid, known in self._files.items() if known.key == file.key}
        row = self.dataset.catalog.find(file.obj.path)
        if row is not None and self.dataset.origin.key_of(file.obj.path, row.tag) == file.key:
            found.add(self._nodeid(row.ino))
        return sorted(found)

    def nodeids_of_keys(self, keys: Collection[str]) -> list[int]:
        """The numbers of objects in what is shown. Scans the catalog: not for the loop."""
        catalog, origin = Catalog(self.dataset.catalog.file), self.dataset.origin
        try:
            found = catalog.files_below(ROOT_INO)
            return [self._nodeid(row.ino) for path, row in found if origin.key_of(path, row.tag) in keys]
        finally:
            catalog.close()

    def note_use(self, nodeid: int) -> None:
        """A file was read out of the kernel's cache: what is in use is evicted last."""
        try:
            self._reader.note_use(self.file(nodeid))
        except OSError:
            return  # of a revision that nobody shows any more

    def _look_ahead(self, nodeid: int, file: RemoteFile, wanted: ByteRange) -> None:
        self._ahead.on_read(self._ino(nodeid), file, wanted)

    # -- extended attributes --------------------------------------------------------------------------------------

    def xattrs(self, nodeid: int) -> dict[bytes, bytes]:
        """Where a file comes from, which version, how many bytes of it are cached, what went wrong last."""
        row = self._row(nodeid)
        origin = self.dataset.origin
        path = self.dataset.path_of(row.ino)
        source = f"{origin.source.uri.rstrip('/')}/{path}" if path else origin.source.uri
        found = {XATTR_SOURCE: source.encode("utf-8", "surrogateescape")}
        if row.kind == Kind.FILE:
            found[XATTR_VERSION] = row.tag.encode("utf-8", "surrogateescape")
            found[XATTR_CACHED] = str(self._reader.present_bytes(self.file(nodeid)) if row.size else 0).encode()
        else:
            found[XATTR_VERSION] = self.dataset.catalog.revision.encode()
        if origin.last_error is not None:
            found[XATTR_ERROR] = str(origin.last_error.error).encode("utf-8", "replace")
        elif self.dataset.phase is Phase.FAILED:
            found[XATTR_ERROR] = self.dataset.message.encode("utf-8", "replace")
        return found

    def note_error(self, error: DsfsError) -> None:
        """Remember what a reader was told, for ``user.dsfs.error`` and ``status``."""
        if isinstance(error, SourceError):
            self.dataset.origin.note_error(error)
        if isinstance(error, SourceChanged):
            self.dataset.note_changed()
