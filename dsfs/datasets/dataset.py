"""One dataset while it is mounted: the revision that it shows, from the first listing through every resync."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.catalog.diff import Changes, ManyChanges
from dsfs.catalog.lookup import Catalog, Row
from dsfs.datasets.listing import first_catalog, list_all, list_beside
from dsfs.datasets.names import Names
from dsfs.datasets.rounds import Rounds
from dsfs.datasets.selection import CATALOG
from dsfs.datasets.source_in_use import SourceInUse
from dsfs.datasets.status import DatasetStatus, status_of
from dsfs.datasets.store import DatasetStore, listed_s, note_listed, remove_catalog
from dsfs.errors import (
    CatalogError,
    DsfsError,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.manifest.schema import Manifest, SourceType
from dsfs.model import Phase, SourceObject
from dsfs.prefetch.completion import Samples
from dsfs.sources.base import Source, go_on_at, read_at

log = structlog.get_logger()

_MANUAL_SYNC_S = 10.0  # how soon a file that somebody puts into a MANUAL dataset is seen
_CLOSE_S = 2.0


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
        self._names = Names(manifest.id, origin, bridge, timeout_s)
        self.sources = SourceInUse(bridge, origin, renew_source)
        self.answered = self._names.answered
        """Set once the source has answered, well or badly, or an older revision is shown in its place."""
        self.settled = trio.Event()
        """Set once the revision is sealed, or the first crawl has failed."""
        self.on_swap: Callable[[Changes | ManyChanges], Awaitable[None]] = _nobody_to_wait_for
        """Told what another revision changed, or that it was a lot, once it is shown."""
        self.on_listed: Callable[[], None] = _nobody_to_tell
        """Called whenever another revision is shown, or the one that is has become whole."""
        self.on_first_listed: Callable[[Sequence[int]], Awaitable[None]] = _nobody_to_wait_for
        """Told of the first revision, once it is whole, which directories were shown otherwise while it was listed."""
        self.on_left: Callable[[str], None] = _nobody_to_tell
        """Told the catalog of a revision that has been shown until now."""
        self.on_touch: Callable[[int], None] | None = None
        """Told the number of each file that is opened or read, as far as the kernel asks for it."""
        self.on_sampled: Callable[[Sequence[int], Samples], None] = _nobody_to_tell
        """Given directories below which many small files were read here and there, the nearest first: the rest may be
        worth having."""
        self.before_swap: Callable[[str], Awaitable[None]] = _nobody_to_wait_for
        """Given the catalog of the next revision before it is shown; what it raises keeps that from being shown."""
        self.swapped = trio.Event()
        """Set when another revision is shown than the one that was when somebody took hold of this event."""
        self._store = store
        self._bridge = bridge
        self._phase = Phase.PENDING
        self._message = ""
        self._of_these: Collection[str] | None = None  # catalogs whose numbers go with those that the kernel knows
        self.rounds = Rounds()
        """Of listing the source: to be looked at."""
        self._names.on_refused = self.rounds.ask_for_refused
        self._interval_changed = trio.Event()

    # -- life -----------------------------------------------------------------------------------------------------

    def open_revision(self, shown_before: Sequence[str] = ()) -> None:
        """Begin with a new listing, or go on with the revisions that an earlier server has shown, latest first."""
        names, files = self._names, [self._store.file_of(self.manifest, name) for name in shown_before]
        if files and names.reopen(files[0], files[1:]):
            self.answered.set()  # readers have seen this revision: it stays, whatever the source says now
            self._keep_to_revision(self.origin.source)
        else:
            names.writer = first_catalog(self._store, self.manifest, lost=bool(files))
            names.open(names.writer.file, files)
            self._of_these = shown_before or None
        if names.catalog.sealed:
            self._shown(Phase.READY)

    def open_sealed(self, file: str) -> None:
        """Show one revision for good: what ``<dataset>@<revision>`` is."""
        self._names.open(file)
        self._shown(Phase.READY)

    async def run(self) -> None:
        """List the first revision, then the next one whenever somebody asks for it."""
        await self._list_first()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_by_the_clock)
            while True:
                with trio.move_on_after(self.rounds.heals_within_s):
                    await self.rounds.asked()
                await self._resync()

    async def _list_first(self) -> None:
        """Crawl until the revision is sealed; try again, ever more slowly, while the source fails."""
        while (writer := self._names.writer) is not None:
            if self._phase is not Phase.FAILED:
                self._phase = Phase.PROCESSING
            self.rounds.begin()
            try:
                with self.origin.held() as source:
                    await list_all(self._bridge, self.origin, source, writer, self._answered_soon)
            except (SourceError, CatalogError) as error:  # CatalogError: the disk of the cache is full
                if isinstance(error, SourceError):
                    self.origin.note_error(error)
                # Only for a source that cannot be reached: one that refuses, or is not shared any more, means it.
                unreachable = isinstance(error, SourceUnavailable)
                if unreachable and not self.answered.is_set() and await self._show_older(error):
                    return
                if self.rounds.failures == 0:
                    log.warning("listing failed", dataset=self.manifest.id, reason=str(error))
                self._phase, self._message = Phase.FAILED, str(error)
                self.answered.set()
                self.settled.set()
                self.rounds.end(error)
                with trio.move_on_after(self.rounds.pause_s):
                    await self.rounds.asked()  # who asks for a resync does not want to wait for the next try
                if isinstance(error, SourceRefused | SourceUnsupported) or isinstance(error.__cause__, SourceRefused):
                    await self.renew()
                elif isinstance(error, SourceMissing) and await self._list_another():
                    return
                continue
            self._names.writer = None
            self.catalog.refresh()
            self.origin.last_error = None
            await self.on_first_listed(writer.reshaped)
            self._shown(Phase.READY)
            self.rounds.end(None)
            self.on_listed()
            self._say("revision sealed")

    async def _list_another(self) -> bool:
        """Where the revision that a listing began with is gone, as after a forced push: have the one of today."""
        if not self._listed_revision():
            return False
        try:
            await self._show_next()
        except (DsfsError, OSError) as error:
            self._message = str(error)
            return False
        writer, self._names.writer = self._names.writer, None
        if writer is not None:
            await trio.to_thread.run_sync(writer.close, limiter=CATALOG)
        self._shown(Phase.READY)
        self.rounds.end(None)
        return True

    async def renew(self) -> None:
        """Build the source anew: a Secret has come, has changed or is gone. What is under way ends on the old one."""
        was_unusable = self.sources.unusable
        if await self.sources.renew(self._keep_to_revision) and (
            was_unusable or self.catalog.refused or self.catalog.unreadable or self.rounds.failures
        ):
            self.ask_for_resync()
            self.on_listed()  # nothing of it could be pinned meanwhile

    def _keep_to_revision(self, source: Source) -> None:
        """A listing that has begun goes on with the revision that it began with, or it would be one of two. One that is
        whole is only read: its source need not search for what it is."""
        if revision := self._listed_revision():
            (go_on_at if self._names.writer is not None else read_at)(source, revision)

    def _listed_revision(self) -> str:
        """What the source calls the revision that is listed, or begun; "" while that is not known or has no name."""
        self.catalog.refresh()
        return self.catalog.revision if self.catalog.revision != self.catalog.name else ""

    def follow(self, manifest: Manifest) -> None:
        """The manifest has changed, in nothing that makes another dataset of it."""
        before, self.manifest = self.manifest, manifest
        if before.sync_interval_s != manifest.sync_interval_s:
            changed, self._interval_changed = self._interval_changed, trio.Event()
            changed.set()

    def fail(self, message: str) -> None:
        """``run`` has ended, or ends now: what is shown stays, and says so; who waits for a listing is told."""
        self._phase, self._message = Phase.FAILED, message
        self.answered.set()
        self.settled.set()
        self.rounds.stop(CatalogError(message))

    def note_changed(self) -> None:
        """A reader was told ESTALE: what is shown is not what is there any more. List it anew, but not all the time."""
        if self._names.writer is None:
            self.rounds.ask_for_reader()

    def _answered_soon(self) -> None:
        self._bridge.soon(self.answered.set)

    async def _show_older(self, error: DsfsError) -> bool:
        """The source does not answer and nobody has seen anything yet: show what it had last, if that is known."""
        find = partial(self._store.newest_sealed, self.manifest, self._of_these)
        older = await trio.to_thread.run_sync(find, limiter=CATALOG)
        if older is None:
            return False
        if self._names.writer is not None:
            await trio.to_thread.run_sync(self._names.writer.close, limiter=CATALOG)
            self._names.writer = None
        self._names.show_next(older)  # none of the numbers that were kept for the new one is given again
        self._keep_to_revision(self.origin.source)
        log.warning(
            "source does not answer, its last revision is shown",
            dataset=self.manifest.id,
            revision=self.catalog.revision,
            reason=str(error),
        )
        self._shown(Phase.READY, f"showing revision {self.catalog.revision}, as the source fails: {error}")
        self.rounds.end(error)
        self.on_listed()
        await self.on_swap(Changes((), ()))
        return True

    def _shown(self, phase: Phase, message: str = "") -> None:
        self._phase, self._message = phase, message
        self.rounds.listed_s = listed_s(self.catalog.file)
        self.answered.set()
        self.settled.set()

    # -- the next revision ----------------------------------------------------------------------------------------

    def ask_for_resync(self) -> None:
        """Have the source listed anew, soon; several who ask at once get one listing."""
        self.rounds.ask()

    async def resync(self) -> str:
        """List the source anew and show that; its revision. Raises the DsfsError that kept it from being listed."""
        await self.settled.wait()
        await self.rounds.one_more()
        return self.catalog.revision

    async def _ask_by_the_clock(self) -> None:
        while True:
            with trio.move_on_after(self._sync_interval_s()) as pause:
                await self._interval_changed.wait()
            if pause.cancelled_caught:
                self.ask_for_resync()

    def _sync_interval_s(self) -> float:
        interval_s = self.manifest.sync_interval_s
        if interval_s is None:
            interval_s = _MANUAL_SYNC_S if self.manifest.source.type is SourceType.MANUAL else math.inf
        return interval_s

    async def _resync(self) -> None:
        """One round. What is shown stays until the next revision is whole, and for good if that fails."""
        self.rounds.begin()
        try:
            await self._show_next()
            self._message, self.origin.last_error = "", None
            self.rounds.end(None)
        except (DsfsError, OSError) as error:
            self._message = f"resync failed, revision {self.catalog.revision} stays: {error}"
            if self.rounds.failures == 0:
                log.warning("resync failed", dataset=self.manifest.id, reason=str(error))
            self.rounds.end(error if isinstance(error, DsfsError) else CatalogError(str(error)))

    async def _show_next(self) -> None:
        before = self.origin.source
        source = await self.sources.another()
        directory = self._store.directory_of(self.manifest)
        try:
            file, found = await list_beside(self._bridge, self.origin, source, directory, self._names.known)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await self._bridge.call(source.close)
            raise
        if self.origin.source is before:
            await self.sources.use(source)
        else:  # a Secret has changed since, or is gone
            await self._bridge.call(source.close)
        if not found and self.catalog.sealed and source.revision in ("", self.catalog.revision):
            await trio.to_thread.run_sync(note_listed, self.catalog.file, file, limiter=CATALOG)
            return  # nothing has changed: what is shown is the next revision
        try:
            await self.before_swap(file)
        except BaseException:
            remove_catalog(file)
            raise
        # No await between these lines: from here on the tree is the new one.
        left, refusal = self.catalog.file, self.catalog.refusal
        if found:
            self._names.show_next(file)
        else:  # the same under another name: older ones stay, as many as before
            self._names.show_instead(file)
        self._say("revision swapped")
        self.on_listed()
        if self.catalog.refusal != refusal:
            self.rounds.refuses_other()
        swapped, self.swapped = self.swapped, trio.Event()
        swapped.set()
        await self.on_swap(found)
        await self.clean()
        if found:
            self.on_left(left)

    def _say(self, event: str) -> None:
        log.info(event, dataset=self.manifest.id, revision=self.catalog.revision, refused=self.catalog.refused)

    async def close_sources(self) -> None:
        """Give back the connections of sources that were replaced, and of the one in use. The last thing to call."""
        await self.sources.close()

    async def clean(self) -> None:
        """Remove catalogs that nobody will look at again."""
        used = [catalog.file for catalog in self._names.known]
        await trio.to_thread.run_sync(self._store.clean, self.manifest, used, limiter=CATALOG)

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The revision that is shown."""
        return self._names.catalog

    def shown(self) -> list[str]:
        """Names of the catalogs that readers may have seen numbers of, the one that is shown first."""
        return [catalog.name for catalog in self._names.known]

    async def status(self) -> DatasetStatus:
        message = self.message
        if not message and self.origin.last_error is not None:
            message = str(self.origin.last_error.error)
        return await status_of(self.catalog, self.phase, message)

    @property
    def phase(self) -> Phase:
        """FAILED as long as its source cannot be used, whatever is shown."""
        return Phase.FAILED if self.sources.unusable else self._phase

    @property
    def message(self) -> str:
        return self.sources.unusable or self._message

    async def list_directory(self, ino: int) -> None:
        """See ``Names``, as of all below."""
        await self._names.list_directory(ino)

    async def find(self, parent: int, name: bytes) -> Row | None:
        return await self._names.find(parent, name)

    def lookup(self, parent: int, name: bytes) -> Row | None:
        return self._names.lookup(parent, name)

    def row(self, ino: int) -> Row | None:
        return self._names.row(ino)

    def children(self, parent: int, after_ino: int, limit: int) -> list[Row]:
        return self._names.children(parent, after_ino, limit)

    def path_of(self, ino: int) -> str:
        return self._names.path_of(ino)

    def any_file(self) -> SourceObject | None:
        return self._names.any_file()

    def remote_file(self, row: Row) -> RemoteFile:
        return self._names.remote_file(row)


def _nobody_to_tell(*_told: object) -> None:
    return


async def _nobody_to_wait_for(*_told: object) -> None:
    return
