"""One dataset while it is mounted: its revision, its phase, and how a name that is not known yet becomes known."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.catalog import crawl
from dsfs.catalog.diff import Changes, adopt_numbers, changes
from dsfs.catalog.lookup import Catalog, Row, join
from dsfs.catalog.writer import CatalogWriter
from dsfs.datasets.once import Once
from dsfs.datasets.rounds import Rounds
from dsfs.datasets.selection import remote_file
from dsfs.datasets.store import DatasetStore, new_revision
from dsfs.errors import (
    CatalogError,
    ConfigError,
    DsfsError,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.patience import patiently
from dsfs.manifest.schema import Manifest, SourceType
from dsfs.model import Kind, Phase, SourceObject
from dsfs.sources.base import Source

log = structlog.get_logger()

_T = TypeVar("_T")

_MANUAL_SYNC_S = 10.0  # how soon a file that somebody puts into a MANUAL dataset is seen
_OLDER_REVISIONS = 16  # whose open files can still be read, unless their bytes are gone
_CLOSE_S = 2.0
_OLD_SOURCES = 8  # replaced, not closed yet
_RESYNC_PAUSE_S = 30.0  # between resyncs that nobody asked for
_TOLD_NAMES = 10_000  # more changes than that are told as "a lot"
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
    listing, or, when the source cannot be reached, the last one that was sealed. A resync lists the source anew beside
    it and swaps; ``renew_source`` (on the network side) builds the source for that, with the credentials of the day.
    """

    def __init__(
        self,
        manifest: Manifest,
        slot: int,
        store: DatasetStore,
        bridge: Bridge,
        origin: Origin,
        renew_source: Callable[[], Coroutine[Any, Any, Source]],
        timeout_s: float,
    ) -> None:
        self.manifest = manifest
        self.slot = slot
        self.origin = origin
        self.answered = trio.Event()
        """Set once the source has answered, well or badly, or an older revision is shown in its place."""
        self.settled = trio.Event()
        """Set once the revision is sealed, or the first crawl has failed."""
        self.on_swap: Callable[[Changes | None], Awaitable[None]] = _nobody_to_tell
        """Told what another revision changed, None for "a lot", once it is shown."""
        self.on_listed: Callable[[], None] = _nobody_to_call
        """Called whenever another revision is shown, or the one that is has become whole."""
        self.on_touch: Callable[[int], None] | None = None
        """Told the number of each file that is opened or read, as far as the kernel asks for it."""
        self.on_worth_completing: Callable[[], None] = _nobody_to_call
        """Called when so much of the dataset was read here and there that the rest is worth having, and fits."""
        self.before_swap: Callable[[str], Awaitable[None]] = _nothing_to_do_before
        """Given the catalog of the next revision before it is shown; what it raises keeps that from being shown."""
        self.swapped = trio.Event()
        """Set when another revision is shown than the one that was when somebody took hold of this event."""
        self._store = store
        self._bridge = bridge
        self._renew_source = renew_source
        self._timeout_s = timeout_s
        self._phase = Phase.PENDING
        self._message = ""
        self._catalog: Catalog | None = None
        self._older: list[Catalog] = []
        self._rounds = Rounds()
        self._closing: list[Source] = []
        self._asked_by_change_s = -_RESYNC_PAUSE_S
        self._writer: CatalogWriter | None = None
        self._listing = Once()
        self._resolving = Once()

    # -- life -----------------------------------------------------------------------------------------------------

    def open_revision(self, shown_before: Sequence[str] = ()) -> None:
        """Begin with a new listing, or go on with the revisions that an earlier server has shown, latest first."""
        directory = self._store.directory_of(self.manifest)
        known = [path for name in shown_before if os.path.exists(path := f"{directory}/{name}.sqlite")]
        if known:
            self._catalog, self._older = Catalog(known[0]), [Catalog(path) for path in known[1:]]
        else:
            self._writer = self._new_writer()
            self._catalog = Catalog(self._writer.file)
        if self._catalog.sealed:
            self._shown(Phase.READY)
        elif self._writer is None:
            self._writer = CatalogWriter(self._catalog.file)
        if known:
            self.answered.set()  # readers have seen this revision: it stays, whatever the source says now

    def open_sealed(self, file: str) -> None:
        """Show one revision for good: what ``<dataset>@<revision>`` is."""
        self._catalog = Catalog(file)
        self._shown(Phase.READY)

    def _new_writer(self) -> CatalogWriter:
        now_s = time.time()
        name = new_revision(now_s)
        return CatalogWriter.create(f"{self._store.directory_of(self.manifest)}/{name}.sqlite", name, int(now_s * 1e9))

    async def run(self) -> None:
        """List the first revision, then the next one whenever somebody asks for it."""
        await self._list_first()
        async with trio.open_nursery() as nursery:
            interval_s = self.manifest.sync_interval_s
            if interval_s is None and self.manifest.source.type is SourceType.MANUAL:
                interval_s = _MANUAL_SYNC_S
            if interval_s is not None:
                nursery.start_soon(self._ask_by_the_clock, interval_s)
            while True:
                await self._rounds.asked()
                await self._resync()

    async def _list_first(self) -> None:
        """Crawl until the revision is sealed; try again, ever more slowly, while the source fails."""
        attempt = 0
        while self._writer is not None:
            if self._phase is not Phase.FAILED:
                self._phase = Phase.PROCESSING
            self._rounds.begin()
            try:
                await self._guarded(self._crawl, self._writer)
            except (SourceError, CatalogError) as error:  # CatalogError: the disk of the cache is full
                if isinstance(error, SourceError):
                    self.origin.note_error(error)
                # Only for a source that cannot be reached: one that refuses, or is not shared any more, means it.
                unreachable = isinstance(error, SourceUnavailable)
                if unreachable and not self.answered.is_set() and await self._show_older(error):
                    return
                if attempt == 0:
                    log.warning("listing failed", dataset=self.manifest.id, reason=str(error))
                self._phase, self._message = Phase.FAILED, str(error)
                self.answered.set()
                self.settled.set()
                self._rounds.end(error)
                with trio.move_on_after(_RETRY_CRAWL_S[min(attempt, len(_RETRY_CRAWL_S) - 1)]):
                    await self._rounds.asked()  # who asks for a resync does not want to wait for the next try
                attempt += 1
                if isinstance(error, SourceRefused | SourceUnsupported):
                    await self.renew()
                continue
            self._writer = None
            self.catalog.refresh()
            self.origin.last_error = None
            self._shown(Phase.READY)
            self._rounds.end(None)
            self.on_listed()
            log.info("revision sealed", dataset=self.manifest.id, revision=self.catalog.revision)

    async def renew(self) -> None:
        """Build the source anew: a Secret has come, or has changed. What is under way ends on the old one."""
        try:
            source = await self._bridge.call(self._renew_source)
        except ConfigError as error:
            self._message = str(error)
            return
        await self._use(source)

    async def _use(self, source: Source) -> None:
        """Read through another source from now on. The old one is closed when nothing can be under way on it."""
        self._closing.append(self.origin.source)
        self.origin.source = source
        self.origin.entitlement.begin_anew()  # its credentials may be others than those of the old one
        if len(self._closing) > _OLD_SOURCES:
            await self._bridge.call(self._closing.pop(0).close)

    def fail(self, message: str) -> None:
        """Something that nobody expected has ended ``run``: what is shown stays, and says so."""
        self._phase, self._message = Phase.FAILED, message
        self.answered.set()
        self.settled.set()
        self._rounds.end(CatalogError(message))

    def note_changed(self) -> None:
        """A reader was told ESTALE: what is shown is not what is there any more. List it anew, but not all the time."""
        now_s = trio.current_time()
        if self._writer is None and now_s - self._asked_by_change_s > _RESYNC_PAUSE_S:
            self._asked_by_change_s = now_s
            self.ask_for_resync()

    async def _guarded(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """A listing on the network side; what a source was not expected to raise counts as its failure."""
        try:
            await self._bridge.call(work, *args)
        except (DsfsError, trio.Cancelled):
            raise
        except Exception as error:
            log.exception("listing failed unexpectedly", dataset=self.manifest.id)
            reason = f"{self.manifest.id}: {type(error).__name__} in the daemon (see its log)"
            raise SourceUnavailable(reason) from error

    async def _crawl(self, writer: CatalogWriter) -> None:
        await crawl.crawl(self.origin.source, writer, lambda: self._bridge.soon(self.answered.set))

    async def _show_older(self, error: DsfsError) -> bool:
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
        self.on_listed()
        return True

    def _shown(self, phase: Phase, message: str = "") -> None:
        self._phase, self._message = phase, message
        self.answered.set()
        self.settled.set()

    # -- the next revision ----------------------------------------------------------------------------------------

    def ask_for_resync(self) -> None:
        """Have the source listed anew, soon; several who ask at once get one listing."""
        self._rounds.ask()

    async def resync(self) -> str:
        """List the source anew and show that; its revision. Raises the DsfsError that kept it from being listed."""
        await self.settled.wait()
        await self._rounds.one_more()
        return self.catalog.revision

    async def _ask_by_the_clock(self, interval_s: float) -> None:
        while True:
            await trio.sleep(interval_s)
            self.ask_for_resync()

    async def _resync(self) -> None:
        """One round. What is shown stays until the next revision is whole, and for good if that fails."""
        self._rounds.begin()
        try:
            await self._show_next()
            self._message = ""
            self._rounds.end(None)
        except (DsfsError, OSError) as error:
            self._message = f"resync failed, revision {self.catalog.revision} stays: {error}"
            log.warning("resync failed", dataset=self.manifest.id, reason=str(error))
            self._rounds.end(error if isinstance(error, DsfsError) else CatalogError(str(error)))

    async def _show_next(self) -> None:
        source = await self._bridge.call(self._renew_source)
        writer = self._new_writer()
        shown = self.catalog
        try:
            await self._guarded(crawl.crawl, source, writer, _ignored)
            first_free = max(catalog.next_ino() for catalog in (shown, *self._older))
            await trio.to_thread.run_sync(adopt_numbers, writer.file, shown.file, first_free, limiter=CATALOG)
            found = await trio.to_thread.run_sync(changes, writer.file, shown.file, _TOLD_NAMES, limiter=CATALOG)
        except BaseException:  # a cancel too: nothing of a round that did not end stays behind
            writer.close()
            _remove_catalog(writer.file)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await self._bridge.call(source.close)
            raise
        await self._use(source)
        if found is not None and not found:
            await trio.to_thread.run_sync(_remove_catalog, writer.file, limiter=CATALOG)
            return  # nothing has changed: what is shown is the next revision
        try:
            await self.before_swap(writer.file)
        except BaseException:
            _remove_catalog(writer.file)
            raise
        # No await between these lines: from here on the tree is the new one.
        self._older.insert(0, shown)
        self._catalog = Catalog(writer.file)
        log.info("revision swapped", dataset=self.manifest.id, revision=self._catalog.revision, changed=bool(found))
        for forgotten in self._older[_OLDER_REVISIONS:]:
            forgotten.close()
        del self._older[_OLDER_REVISIONS:]
        self.on_listed()
        swapped, self.swapped = self.swapped, trio.Event()
        swapped.set()
        await self.on_swap(found)
        await self.clean()

    async def close_sources(self) -> None:
        """Give back the connections of sources that were replaced, and of the one in use. The last thing to call."""
        for source in (*self._closing, self.origin.source):
            await self._bridge.call(source.close)

    async def clean(self) -> None:
        """Remove catalogs that nobody will look at again."""
        used = [catalog.file for catalog in (self.catalog, *self._older)]
        await trio.to_thread.run_sync(self._store.clean, self.manifest, used, limiter=CATALOG)

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            raise ConfigError(f"{self.manifest.id}: no revision is open")
        return self._catalog

    def shown(self) -> list[str]:
        """Names of the catalogs that readers may have seen numbers of, the one that is shown first."""
        return [catalog.name for catalog in (self.catalog, *self._older)]

    async def status(self) -> DatasetStatus:
        catalog = self.catalog
        if catalog.sealed:
            files, size, skipped = catalog.totals()
        else:
            files, size, skipped = await trio.to_thread.run_sync(_totals_of, catalog.file, limiter=CATALOG)
        message = self._message
        if not message and self.origin.last_error is not None:
            message = str(self.origin.last_error.error)
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
            await self._listing.do(ino, lambda: self._list(ino))

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
        await self._resolving.do(row.ino, lambda: self._resolve(row))

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

    def row(self, ino: int) -> Row | None:
        """An entry of the revision that is shown, or of one before it that somebody may have open."""
        for catalog in (self.catalog, *self._older):
            row = catalog.row(ino)
            if row is not None:
                return row
        return None

    def children(self, parent: int, after_ino: int, limit: int) -> list[Row]:
        """Entries of a directory in order of name, behind the one with a number (0: from the start).

        The revision may have been swapped since that one was listed: its name is looked for in older ones too, so that
        a readdir under way goes on and never ends early. Raises OSError (ESTALE) for a number that nobody knows.
        """
        after = b""
        if after_ino:
            names = (catalog.name_of(after_ino) for catalog in (self.catalog, *self._older))
            known = next((name for name in names if name is not None), None)
            if known is None:
                raise OSError(errno.ESTALE, "a directory position of a revision that is not known any more")
            after = known
        return self.catalog.children(parent, after, limit)

    def path_of(self, ino: int) -> str:
        """Where an entry is, or was. Raises CatalogError for a number that was never shown."""
        for catalog in self._older:
            if self.catalog.row(ino) is None and catalog.row(ino) is not None:
                return catalog.path_of(ino)
        return self.catalog.path_of(ino)

    def any_file(self) -> SourceObject | None:
        """A file with at least one byte in it, if there is one. Scans the catalog: not for the loop."""
        catalog = Catalog(self.catalog.file)
        try:
            for path, row in catalog.files():
                if row.kind == Kind.FILE and row.size:
                    return remote_file(self.origin, path, row).obj
            return None
        finally:
            catalog.close()

    def remote_file(self, row: Row) -> RemoteFile:
        """What the cache and the source call a file."""
        return remote_file(self.origin, self.path_of(row.ino), row)


def _totals_of(file: str) -> tuple[int, int, int]:
    """As ``Catalog.totals``, over a connection of its own: counting must not hold up look-ups."""
    catalog = Catalog(file)
    try:
        return catalog.totals()
    finally:
        catalog.close()


def _remove_catalog(file: str) -> None:
    for path in (file, f"{file}-wal", f"{file}-shm"):
        if os.path.exists(path):
            os.unlink(path)


def _ignored() -> None:
    return


def _nobody_to_call() -> None:
    return


async def _nothing_to_do_before(catalog_file: str) -> None:
    return


async def _nobody_to_tell(found: Changes | None) -> None:
    return
