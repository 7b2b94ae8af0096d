"""One dataset while it is mounted: its revision, its phase, and how a name that is not known yet becomes known."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.catalog import crawl
from dsfs.catalog.lookup import Catalog, Row, join
from dsfs.catalog.writer import CatalogWriter
from dsfs.datasets.store import DatasetStore, new_revision
from dsfs.errors import ConfigError, DsfsError, SourceError
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.manifest.schema import Manifest
from dsfs.model import Kind, Phase, SourceObject, object_key

log = structlog.get_logger()

_T = TypeVar("_T")

CATALOG = trio.CapacityLimiter(2)  # threads that scan catalogs
_SIBLINGS = 256  # files whose size is asked for together with the one that somebody looks at
_RETRY_CRAWL_S = (1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """A snapshot for people and metrics; sizes in bytes."""

    revision: str
    phase: Phase
    message: str
    files: int
    bytes: int
    skipped: int


class Dataset:
    """File side only.

    ``catalog`` is the revision that is shown. It is chosen when the source has answered for the first time: the new
    listing, or, when the source cannot be reached, the last one that was sealed. Until then ``wait_shown`` waits.
    """

    def __init__(
        self, manifest: Manifest, slot: int, store: DatasetStore, bridge: Bridge, origin: Origin, timeout_s: float
    ) -> None:
        self.manifest = manifest
        self.slot = slot
        self.origin = origin
        self.answered = trio.Event()
        """Set once the source has answered, well or badly, or an older revision is shown in its place."""
        self.settled = trio.Event()
        """Set once the revision is sealed, or the first crawl has failed."""
        self._store = store
        self._bridge = bridge
        self._timeout_s = timeout_s
        self._phase = Phase.PENDING
        self._message = ""
        self._catalog: Catalog | None = None
        self._writer: CatalogWriter | None = None
        self._listing: dict[int, _Once] = {}
        self._resolving: dict[int, _Once] = {}

    # -- life -----------------------------------------------------------------------------------------------------

    def open_revision(self, resumed: str | None) -> None:
        """Begin with a new listing, or go on with the revision that a server before this one has shown."""
        directory = self._store.directory_of(self.manifest)
        path = f"{directory}/{resumed}.sqlite" if resumed else ""
        if not (resumed and os.path.exists(path)):
            now_s = time.time()
            path = f"{directory}/{new_revision(now_s)}.sqlite"
            self._writer = CatalogWriter.create(path, os.path.basename(path)[: -len(".sqlite")], int(now_s * 1e9))
        self._catalog = Catalog(path)
        if self._catalog.sealed:
            self._shown(Phase.READY)
        elif self._writer is None:
            self._writer = CatalogWriter(path)
        if resumed:
            self.answered.set()  # readers have seen this revision: it stays, whatever the source says now

    async def run(self) -> None:
        """Crawl until the revision is sealed; try again, ever more slowly, while the source fails."""
        attempt = 0
        while self._writer is not None:
            if self._phase is not Phase.FAILED:
                self._phase = Phase.PROCESSING
            try:
                await self._bridge.call(self._crawl, self._writer)
            except SourceError as error:
                self.origin.note_error(error)
                if not self.answered.is_set() and await self._show_older(error):
                    return
                if attempt == 0:
                    log.warning("listing failed", dataset=self.manifest.id, reason=str(error))
                self._phase, self._message = Phase.FAILED, str(error)
                self.answered.set()
                self.settled.set()
                await trio.sleep(_RETRY_CRAWL_S[min(attempt, len(_RETRY_CRAWL_S) - 1)])
                attempt += 1
                continue
            self._writer = None
            self.catalog.refresh()
            self.origin.last_error = None
            self._shown(Phase.READY)
            log.info("revision sealed", dataset=self.manifest.id, revision=self.catalog.revision)

    async def _crawl(self, writer: CatalogWriter) -> None:
        await crawl.crawl(self.origin.source, writer, lambda: self._bridge.soon(self.answered.set))

    async def _show_older(self, error: SourceError) -> bool:
        """The source does not answer and nobody has seen anything yet: show what it had last, if that is known."""
        older = await trio.to_thread.run_sync(self._store.newest_sealed, self.manifest, limiter=CATALOG)
        if older is None:
            return False
        if self._writer is not None:
            await trio.to_thread.run_sync(self._writer.close, limiter=CATALOG)
            self._writer = None
        self.catalog.close()
        self._catalog = Catalog(older)
        log.warning(
            "source does not answer, its last revision is shown",
            dataset=self.manifest.id,
            revision=self._catalog.revision,
            reason=str(error),
        )
        self._shown(Phase.READY, f"showing revision {self._catalog.revision}, as the source fails: {error}")
        return True

    def _shown(self, phase: Phase, message: str = "") -> None:
        self._phase, self._message = phase, message
        self.answered.set()
        self.settled.set()

    async def clean(self) -> None:
        """Remove catalogs that nobody will look at again."""
        await trio.to_thread.run_sync(self._store.clean, self.manifest, [self.catalog.file], limiter=CATALOG)

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            raise ConfigError(f"{self.manifest.id}: no revision is open")
        return self._catalog

    async def status(self) -> DatasetStatus:
        catalog = self.catalog
        files, size, skipped = await trio.to_thread.run_sync(catalog.totals, limiter=CATALOG)
        message = self._message
        if not message and self.origin.last_error is not None:
            message = self.origin.last_error.text
        return DatasetStatus(catalog.revision, self._phase, message, files, size, skipped)

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def message(self) -> str:
        return self._message

    async def list_directory(self, ino: int) -> None:
        """Have every name of a directory in the catalog. Raises SourceError."""
        await self.answered.wait()
        if not self.catalog.is_listed(ino):
            await self._once(self._listing, ino, lambda: self._list(ino))

    async def find(self, parent: int, name: bytes) -> Row | None:
        """One name of a directory, known or not; None when it is certain that there is none. Raises SourceError."""
        await self.answered.wait()
        row = self.catalog.lookup(parent, name)
        if self.catalog.is_listed(parent):
            if row is not None and row.size is None:
                await self.resolve(row)
                row = self.catalog.lookup(parent, name)
            return row
        try:
            path = join(self.catalog.directory_path(parent), name)
            path.encode("utf-8", "surrogateescape")
        except UnicodeError:
            return None
        writer = self._writer
        if writer is not None and await self._patiently(lambda: self._find(writer, path)) is None:
            return None
        return self.catalog.lookup(parent, name)

    async def resolve(self, row: Row) -> None:
        """Learn size and version of a file of which only the name is known; of its siblings too. Raises SourceError."""
        await self._once(self._resolving, row.ino, lambda: self._resolve(row))

    async def _list(self, ino: int) -> None:
        writer = self._writer
        if writer is not None:
            path = self.catalog.directory_path(ino)
            scope = trio.CancelScope()

            def progressed() -> None:
                scope.deadline = trio.current_time() + self._timeout_s  # a huge directory may take its time

            async def work() -> None:
                await self._bridge.call(
                    crawl.list_directory, self.origin.source, writer, path, lambda: self._bridge.soon(progressed)
                )

            await patiently(self.origin, work, self._timeout_s, scope)

    async def _find(self, writer: CatalogWriter, path: str) -> SourceObject | None:
        return await self._bridge.call(crawl.find, self.origin.source, writer, path)

    async def _resolve(self, row: Row) -> None:
        writer = self._writer
        if writer is None:
            return
        directory = self.catalog.directory_path(row.parent)
        paths = await trio.to_thread.run_sync(
            crawl.sibling_paths, writer, row.parent, directory, row.name, _SIBLINGS, limiter=CATALOG
        )
        await self._patiently(lambda: self._bridge.call(crawl.resolve, self.origin.source, writer, paths))

    async def _patiently(self, call: Callable[[], Awaitable[_T]]) -> _T:
        return await patiently(self.origin, call, self._timeout_s)

    async def _once(self, under_way: dict[int, _Once], ino: int, work: Callable[[], Awaitable[None]]) -> None:
        """One piece of work for all who ask for it at the same time. If its maker is cancelled, another takes over."""
        while (other := under_way.get(ino)) is not None:
            await other.done.wait()
            if other.finished:
                if other.error is not None:
                    raise other.error
                return
        mine = under_way[ino] = _Once()
        try:
            await work()
            mine.finished = True
        except DsfsError as error:
            mine.error, mine.finished = error, True
            raise
        finally:
            del under_way[ino]
            mine.done.set()

    def remote_file(self, row: Row) -> RemoteFile:
        """What the cache and the source call a file of this revision."""
        path = self.catalog.path_of(row.ino)
        size = row.size or 0
        obj = SourceObject(path, Kind(row.kind), size, row.mtime_ns, row.tag)
        return RemoteFile(object_key(self.origin.source.identity, path, row.tag), size, obj, self.origin)


class _Once:
    __slots__ = ("done", "error", "finished")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.finished = False
        self.error: DsfsError | None = None
