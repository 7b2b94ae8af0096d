"""Which datasets this server shows: built from manifests, put into the tree, taken out of it again."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from daemon.building import Builder
from daemon.completing import Completing
from daemon.credentials import Credentials
from daemon.older import OlderRevisions
from daemon.preheating import Preheating
from daemon.settings import Settings
from daemon.showing import Showing
from daemon.wanted import HANDED_OVER, to_text
from daemon.warming import Warming
from dsfs.bridge import Bridge
from dsfs.catalog.diff import Changes, ManyChanges
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import left_behind, marked
from dsfs.datasets.status import DatasetStatus
from dsfs.datasets.store import DatasetStore
from dsfs.errors import CatalogError, ConfigError, DsfsError
from dsfs.fetch.origin import Origin
from dsfs.fetch.reader import Reader
from dsfs.filesystem.attributes import Ownership
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID, nodeid_of
from dsfs.filesystem.waiting import Waiting
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse.direct import DirectSession
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.documents import Documents
from dsfs.manifest.schema import Manifest, Preheat
from dsfs.model import Phase, ReadPath
from dsfs.ranges import MiB
from dsfs.sources.base import Source, is_of_this_node
from dsfs.sources.unusable import UnusableSource

if TYPE_CHECKING:
    from dsfs.fuse.pyfuse3 import PortableSession

log = structlog.get_logger()

_LONGEST_WINDOW = 64 * MiB
_REMOVED_DATASETS = 8
_CLOSE_S = 2.0


class Shown:
    """File side only. Datasets run in ``nursery``, which outlives the session."""

    def __init__(
        self,
        settings: Settings,
        builder: Builder,
        bridge: Bridge,
        store: DatasetStore,
        reader: Reader,
        nursery: trio.Nursery,
        session: DirectSession | PortableSession,
        whole: WholeTree | None,
        keeper: KeeperClient,
        warming: Warming,
        completing: Completing,
    ) -> None:
        self._settings = settings
        self._builder = builder
        self._completing = completing
        self._bridge = bridge
        self._store = store
        self._reader = reader
        self._nursery = nursery
        self._session = session
        self._keeper = keeper
        self._whole = whole
        self._tree = whole.tree if whole else None
        if whole is not None:
            self._older = OlderRevisions(store, whole, self._seen, self._revision_files)
            self._older.attach()
        self.on_prepared: Callable[[Dataset], None] = _nobody_to_tell
        """Told of every dataset that is shown from then on, and when the cache is to hold it otherwise."""
        self.all: dict[str, Showing] = {}
        """By the ids of datasets."""
        self.complete = trio.Event()
        """Whether all is shown that this server has begun with."""
        self.changing = trio.Lock()
        """Held by whoever changes what is shown: one change at a time."""
        self.credentials = Credentials(builder, bridge, store, keeper, nursery, lambda: self.all, self.changing)
        self._preheating = Preheating(warming, nursery, self.changing, keeper)
        self._comings: dict[str, int] = {}
        self._removed: list[Dataset] = []  # whose sources are not closed yet: files of theirs may be open

    @property
    def datasets(self) -> dict[str, Dataset]:
        return {name: showing.dataset for name, showing in self.all.items()}

    def _seen(self, name: str) -> Dataset | None:
        """A dataset that is in the tree."""
        showing = self.all.get(name)
        return None if showing is None or showing.unhide is not None else showing.dataset

    def one(self, name: str) -> Showing:
        """Raises ConfigError for what is not shown: it may have been deleted while somebody waited for his turn."""
        if name not in self.all:
            raise ConfigError(f"{name} is not shown any more")
        return self.all[name]

    @property
    def is_many(self) -> bool:
        """Whether datasets can come and go: not in a mount of a single one."""
        return self._tree is not None

    def standing(self, dataset: Dataset, status: DatasetStatus) -> tuple[Phase, str]:
        """Phase and message of a dataset, with what its warming has to say."""
        return self._preheating.standing(self.all.get(dataset.manifest.id), dataset, status)

    def read_path(self, name: str) -> ReadPath:
        return self._session.read_path(name) or ReadPath.DAEMON

    def waiting(self, name: str) -> Waiting:
        """Requests to a dataset that are not answered yet."""
        return self._session.waiting(name)

    async def prepare(
        self, manifest: Manifest, revisions: Sequence[str] | None = None
    ) -> Callable[[], Awaitable[None]]:
        """A dataset, begun and in the tree; what is returned mounts it. All are prepared before the session starts: a
        server that takes over is asked for names at once, and a name that it denies is unmounted by the kernel.

        ``revisions`` are the catalogs to show, latest first; else those that a server before this one has shown.
        For a single dataset, what keeps it from being built is raised; else it is shown FAILED.
        """
        build = partial(self._builder.build, manifest)
        credentials: Mapping[str, str] | None = None
        try:
            credentials = self._builder.reads_with(manifest)
            source = await self._bridge.call(build)
        except ConfigError as error:
            if self._tree is None:
                raise
            log.warning("dataset cannot be used", dataset=manifest.id, reason=str(error))
            source = UnusableSource(manifest.source.uri, error)
        except Exception as error:  # a bug in one source must not keep the others from being shown
            if self._tree is None:
                raise
            log.exception("dataset cannot be used", dataset=manifest.id)
            reason = f"{manifest.id}: {type(error).__name__} in the daemon (see its log)"
            source = UnusableSource(manifest.source.uri, reason)
        prefix = self._builder.key_prefix(manifest)  # of an unusable source too: it may become one that is not
        quota = manifest.cache.quota
        area = self._builder.shared_area(manifest, source)
        if self._settings.shared_cache is not None and is_of_this_node(source.identity):
            log.info("not in the shared cache: its source is a directory of this node", dataset=manifest.id)
        origin = Origin(
            source, manifest.namespace, manifest.name, quota_bytes=quota, key_prefix=prefix, shared_area=area
        )
        self._reader.expect(origin)
        slot = self._store.number(self._slot_name(manifest))
        dataset = Dataset(manifest, slot, self._store, self._bridge, origin, build, self._settings.read_timeout_s)
        shown_before = self._session.shown_before(manifest.id) if revisions is None else revisions
        dataset.open_revision(shown_before)
        dataset.sources.on_use = partial(self._place_in_shared, dataset)
        dataset.on_first_listed = partial(self._first_listed, dataset)
        self.credentials.serve(manifest, origin)
        self.on_prepared(dataset)
        scope = trio.CancelScope()
        showing = self.all[manifest.id] = Showing(dataset, scope, credentials)
        self._nursery.start_soon(_run, dataset, scope)
        if self._preheating.hides(manifest) and self._tree is not None and not shown_before:
            showing.unhide = lambda: self._enter(dataset)()
        dataset.on_sampled = partial(self._completing.look, dataset)
        self._preheating.follow(showing)
        return self._enter(dataset) if showing.unhide is None else _nothing

    def _enter(self, dataset: Dataset) -> Callable[[], Awaitable[None]]:
        """Put a dataset into the tree, if there is one; what is returned mounts it there."""
        manifest, slot = dataset.manifest, dataset.slot
        come: Callable[[], list[int]] = _nothing_changes
        if self._tree is not None:
            number = self._store.number(f"namespace {manifest.namespace}")
            coming = self._session.has_to_mount(manifest.id)
            self._tree.add(manifest.namespace, number, manifest.name, slot, coming=coming)
            come = partial(self._tree.come, manifest.namespace, manifest.name)
        alone = self._tree is None or self._settings.session == "direct"
        files = self._files(dataset, ROOT_ID if alone else nodeid_of(slot, ROOT_ID))
        dataset.on_swap = partial(self._swapped, manifest.id)
        dataset.on_left = lambda before: self._nursery.start_soon(self._left, dataset, before)
        return partial(self._session.add, files, come)

    async def _first_listed(self, dataset: Dataset, reshaped: Sequence[int]) -> None:
        """The kernel may keep listings with names that proved to be none; the index counts what others have shown."""
        if reshaped:
            await self._tell_kernel(dataset.manifest.id, Changes((), tuple(reshaped)))
        self._nursery.start_soon(self._recount, dataset)

    async def _tell_kernel(self, name: str, changed: Changes | ManyChanges) -> None:
        try:
            await self._session.swapped(name, changed)
        except (DsfsError, sqlite3.Error, OSError) as error:
            log.error("the kernel was not told of all that has changed", dataset=name, reason=str(error))

    async def _swapped(self, name: str, changed: Changes | ManyChanges) -> None:
        """A dataset shows another revision: the kernel is told, and what refers to it looks too."""
        await self._tell_kernel(name, changed)
        for showing in self.all.values():
            if name in self._builder.refers_to(showing.dataset.manifest):
                showing.dataset.ask_for_resync()

    async def _left(self, dataset: Dataset, before: str) -> None:
        """What is cached of an older revision alone counts no more for a dataset, nor against its quota."""
        now = dataset.catalog.file

        def keys() -> Iterator[str]:
            for path, row in left_behind(before, now):
                yield dataset.origin.key_of(path, row.tag)

        try:
            await self._reader.owners.count_no_more(dataset.manifest.id, keys)
        except (CatalogError, sqlite3.Error) as error:  # only the count is off
            log.warning("older revision not told apart", dataset=dataset.manifest.id, reason=str(error))

    async def _recount(self, dataset: Dataset) -> None:
        """As ``_left``, of whatever a server before this one has shown under this name."""
        if dataset.sources.unusable:  # what it has here is not known
            return
        shown = partial(marked, dataset.catalog.file, dataset.origin)
        try:
            await self._reader.owners.count_only(dataset.manifest.id, shown)
        except (CatalogError, sqlite3.Error) as error:  # only the count is off
            log.warning("what is cached is not counted anew", dataset=dataset.manifest.id, reason=str(error))

    def _slot_name(self, manifest: Manifest) -> str:
        """What the slot of a dataset is noted under. On one connection for all, a dataset that comes back must not get
        the numbers that its files had: the kernel may still keep their pages."""
        if self._settings.session == "direct":
            return f"dataset {manifest.id}"
        comings = self._comings[manifest.id] = self._comings.get(manifest.id, 0) + 1
        return f"dataset {manifest.id}#{comings}"

    def _revision_files(self, dataset: Dataset, slot: int, file: str) -> DatasetFiles:
        """One older revision of a dataset, with a slot of its own."""
        manifest, timeout_s = dataset.manifest, self._settings.read_timeout_s
        build = partial(self._builder.build, manifest)
        older = Dataset(manifest, slot, self._store, self._bridge, dataset.origin, build, timeout_s)
        older.open_sealed(file)
        return self._files(older, nodeid_of(slot, ROOT_ID))

    async def follow(self, manifest: Manifest) -> None:
        """What a manifest says now of a dataset that is shown, as far as that needs no other dataset."""
        showing = self.all[manifest.id]
        dataset, before = showing.dataset, showing.dataset.manifest
        dataset.follow(manifest)
        self._place_in_shared(dataset, dataset.origin.source)
        if before.cache != manifest.cache:
            dataset.origin.may_hold(manifest.cache.quota)
            self.on_prepared(dataset)
        if before.preheat is not manifest.preheat or before.cache != manifest.cache:
            self._preheating.follow(showing)
            if manifest.preheat is not Preheat.REQUIRED:
                await self._preheating.unhide(showing)
        if before.data_sync_round != manifest.data_sync_round:
            dataset.ask_for_resync()

    def _place_in_shared(self, dataset: Dataset, source: Source) -> None:
        dataset.origin.shared_area = self._builder.shared_area(dataset.manifest, source)

    async def show_anew(self, manifest: Manifest) -> None:
        """Take a dataset away and show it as its manifest says now. Others must not change what is shown meanwhile."""
        await self.remove(manifest.id)
        await (await self.prepare(manifest))()

    async def remove(self, name: str) -> None:
        """Show a dataset no longer. Others must not change what is shown meanwhile."""
        showing = self.one(name)
        del self.all[name]
        manifest = showing.dataset.manifest
        assert self._tree is not None
        showing.preheating.cancel()
        try:
            await self._preheating.forget(name)
            if showing.unhide is None:
                older = self._older.drop(name)
                gone, changed = self._tree.remove(manifest.namespace, manifest.name)
                namespace, _name = gone[0]
                await self._session.remove(name, [*((namespace, each) for each in older), *gone], changed)
        finally:
            showing.scope.cancel()
            showing.dataset.fail("not shown any more")  # who waits for its listing must not wait for ever
            self._removed.append(showing.dataset)
        if len(self._removed) > _REMOVED_DATASETS:
            await self._removed.pop(0).close_sources()

    async def close(self) -> None:
        """Give back the sources' connections."""
        for dataset in (*self._removed, *self.datasets.values()):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await dataset.close_sources()

    def _files(self, dataset: Dataset, root: int) -> DatasetFiles:
        owner = Ownership.of(dataset.manifest.mount_options, self._settings.uid, self._settings.gid)
        return DatasetFiles(dataset, self._reader, owner, root, self._settings.cache_limit(), _LONGEST_WINDOW)

    async def hand_over(self) -> None:
        """Have the keeper hold what is shown, for the next server."""
        if self._tree is not None:
            builder = self._builder
            manifests, secrets = tuple(builder.known.values()), builder.secrets.documents
            documents = Documents(manifests, secrets, builder.labels, builder.configs)
            await self._keeper.hold(HANDED_OVER, to_text(documents))


def _nobody_to_tell(_dataset: Dataset) -> None:
    return


async def _run(dataset: Dataset, scope: trio.CancelScope) -> None:
    with scope:
        try:
            await dataset.run()
        except Exception as error:  # a bug in one dataset must not end the others
            log.exception("dataset failed unexpectedly", dataset=dataset.manifest.id)
            dataset.fail(f"{type(error).__name__} in the daemon (see its log)")


async def _nothing() -> None:
    return


def _nothing_changes() -> list[int]:
    return []
