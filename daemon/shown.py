"""Which datasets this server shows: built from manifests, added and removed while it runs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from daemon.building import Builder
from daemon.cloning import check_same_source, clone_of
from daemon.older import OlderRevisions
from daemon.settings import Settings
from daemon.wanted import CREDENTIALS, HANDED_OVER, Wanted, to_text
from daemon.warming import Warming
from dsfs.bridge import Bridge
from dsfs.datasets.access import visible
from dsfs.datasets.dataset import Dataset, DatasetStatus
from dsfs.datasets.proofs import ProofOfDataset, Proofs
from dsfs.datasets.selection import CATALOG
from dsfs.datasets.store import DatasetStore
from dsfs.errors import ConfigError, MountError
from dsfs.fetch.origin import Origin
from dsfs.fetch.reader import Reader
from dsfs.filesystem.attributes import Ownership
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID, nodeid_of
from dsfs.filesystem.waiting import Waiting
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse.direct import DirectSession
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.documents import Documents, parse_documents
from dsfs.manifest.schema import Manifest, Preheat, SourceType
from dsfs.manifest.secret_keys import check_secret_values
from dsfs.model import Phase, ReadPath
from dsfs.ranges import MiB
from dsfs.sources.reference import parse_reference
from dsfs.sources.unusable import UnusableSource

if TYPE_CHECKING:
    from dsfs.fuse.pyfuse3 import PortableSession

log = structlog.get_logger()

_LONGEST_WINDOW = 64 * MiB
_REMOVED_DATASETS = 8
_CLOSE_S = 2.0
_IDENTITY = ("source", "secret_ref", "mount_options", "read_path", "cache")


@dataclass(slots=True)
class _Shown:
    dataset: Dataset
    scope: trio.CancelScope
    credentials: Mapping[str, str] | None
    unhide: Callable[[], Awaitable[None]] | None = None
    """Mounts a dataset that must not be seen before it is warm; None once it is."""
    preheating: trio.CancelScope = field(default_factory=trio.CancelScope)


class Shown:
    """File side only. Datasets run in ``nursery``, which outlives the session."""

    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        bridge: Bridge,
        store: DatasetStore,
        reader: Reader,
        nursery: trio.Nursery,
        session: DirectSession | PortableSession,
        whole: WholeTree | None,
        keeper: KeeperClient,
        warming: Warming,
    ) -> None:
        self._settings = settings
        self._builder = Builder(settings, wanted)
        self._warming = warming
        self._bridge = bridge
        self._store = store
        self._proofs = Proofs(store.directory)
        self._reader = reader
        self._nursery = nursery
        self._session = session
        self._keeper = keeper
        self._whole = whole
        self._tree = whole.tree if whole else None
        if whole is not None:
            OlderRevisions(store, whole, lambda name: self.datasets.get(name), self._revision_files).attach()
        self.on_prepared: Callable[[Dataset], None] = _nobody_to_tell
        """Told of every dataset that is shown from then on."""
        self._shown: dict[str, _Shown] = {}
        self._comings: dict[str, int] = {}
        self._removed: list[Dataset] = []  # whose sources are not closed yet: files of theirs may be open
        self._changing = trio.Lock()  # one apply or delete at a time

    @property
    def datasets(self) -> dict[str, Dataset]:
        return {name: shown.dataset for name, shown in self._shown.items()}

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
            source = UnusableSource(manifest.source.uri, str(error))
        except Exception as error:  # a bug in one source must not keep the others from being shown
            if self._tree is None:
                raise
            log.exception("dataset cannot be used", dataset=manifest.id)
            reason = f"{manifest.id}: {type(error).__name__} in the daemon (see its log)"
            source = UnusableSource(manifest.source.uri, reason)
        prefix = "" if isinstance(source, UnusableSource) else self._builder.key_prefix(manifest)
        quota = manifest.cache.quota
        area = self._builder.shared_area(manifest, source)
        origin = Origin(
            source, manifest.namespace, manifest.name, quota_bytes=quota, key_prefix=prefix, shared_area=area
        )
        slot = self._store.number(self._slot_name(manifest))
        dataset = Dataset(manifest, slot, self._store, self._bridge, origin, build, self._settings.read_timeout_s)
        shown_before = self._session.shown_before(manifest.id) if revisions is None else revisions
        dataset.open_revision(shown_before)
        origin.renew = partial(self._renew_if_changed, manifest.id)
        self._keep_proofs(manifest, origin)
        self.on_prepared(dataset)
        scope = trio.CancelScope()
        shown = self._shown[manifest.id] = _Shown(dataset, scope, credentials)
        self._nursery.start_soon(_run, dataset, scope)
        if manifest.preheat is Preheat.REQUIRED and self._tree is not None and not shown_before:
            shown.unhide = lambda: self._enter(dataset)()
        dataset.on_worth_completing = partial(self._warming.complete, dataset)
        self._preheat(shown)
        return self._enter(dataset) if shown.unhide is None else _nothing

    def _enter(self, dataset: Dataset) -> Callable[[], Awaitable[None]]:
        """Put a dataset into the tree, if there is one; what is returned mounts it there."""
        manifest, slot = dataset.manifest, dataset.slot
        changed: list[int] = []
        if self._tree is not None:
            number = self._store.number(f"namespace {manifest.namespace}")
            changed = self._tree.add(manifest.namespace, number, manifest.name, slot)
        alone = self._tree is None or self._settings.session == "direct"
        files = self._files(dataset, ROOT_ID if alone else nodeid_of(slot, ROOT_ID))
        dataset.on_swap = partial(self._session.swapped, manifest.id)
        return partial(self._session.add, files, changed)

    # -- warm before it is asked for ------------------------------------------------------------------------------

    def standing(self, dataset: Dataset, status: DatasetStatus) -> tuple[Phase, str]:
        """Phase and message of a dataset, with what its warming has to say."""
        name = dataset.manifest.id
        shown = self._shown.get(name)
        line = self._warming.line(name)
        if shown is None or shown.unhide is None or status.phase is Phase.FAILED:
            return status.phase, status.message or line
        if self._warming.preheat_failed(dataset):
            return Phase.FAILED, f"not visible before it is warm; {line}"
        return Phase.PROCESSING, f"not visible before it is warm; {line}" if line else status.message

    def _preheat(self, shown: _Shown) -> None:
        """Begin what the manifest says now about being warm; end what it said before."""
        shown.preheating.cancel()
        dataset, wanted = shown.dataset, shown.dataset.manifest.preheat
        dataset.before_swap = _nothing_before
        if wanted is Preheat.REQUIRED:
            dataset.before_swap = partial(self._warming.warm_revision, dataset)
        if wanted is not Preheat.NONE:
            shown.preheating = trio.CancelScope()
            self._nursery.start_soon(self._keep_warm, shown, shown.preheating)

    async def _keep_warm(self, shown: _Shown, scope: trio.CancelScope) -> None:
        async def when_warm() -> None:
            if shown.unhide is not None:
                async with self._changing:
                    await self._unhide(shown)

        with scope:
            await self._warming.keep_warm(shown.dataset, when_warm)

    async def _unhide(self, shown: _Shown) -> None:
        """Show what was to be warm first. Others must not change what is shown meanwhile."""
        unhide, shown.unhide = shown.unhide, None
        if unhide is not None:
            try:
                await unhide()
            except MountError as error:
                log.error("dataset cannot be mounted", dataset=shown.dataset.manifest.id, reason=str(error))

    def _keep_proofs(self, manifest: Manifest, origin: Origin) -> None:
        # A REFERENCE reads with the credentials of the dataset that it shows: what that has proven holds for both.
        directory = self._store.directory_of(self._builder.shown_of(manifest))
        credentials = partial(self._builder.reads_with, manifest)
        proof = ProofOfDataset(self._proofs, directory, manifest.id, credentials, lambda: origin.source.identity)
        origin.entitlement.recall = proof.recall
        origin.entitlement.remember = partial(self._nursery.start_soon, proof.remember)

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

    async def apply(self, text: str) -> list[str]:
        """Take in manifests while running: new datasets are added, a higher or lower dataSyncRound asks for a resync,
        anything else that changed is shown anew. What was done, a line each. Raises ConfigError before anything is."""
        documents = parse_documents(text, "applied manifest")
        if self._tree is None:
            raise ConfigError("a mount of a single dataset takes no manifests (mount with -f)")
        for manifest in documents.manifests:
            self._check_source(manifest)
        done: list[str] = []
        async with self._changing:
            self._builder.secrets.add(documents.secrets)
            self._builder.known.update({manifest.id: manifest for manifest in documents.manifests})
            try:
                done += [await self._apply(manifest) for manifest in documents.manifests]
                await self._follow_references({manifest.id for manifest in documents.manifests})
            finally:
                await self.hand_over()  # also of what was done before something failed
            for shown in self._shown.values():
                manifest = shown.dataset.manifest
                if (manifest.namespace, manifest.secret_ref) in documents.secrets:
                    shown.dataset.ask_for_resync()  # with the new credentials
        return done

    def _check_source(self, manifest: Manifest) -> None:
        shown = self._shown.get(manifest.id)
        before = shown.dataset.manifest.source if shown else manifest.source
        if before.type != manifest.source.type or before.uri != manifest.source.uri:
            raise ConfigError(f"{manifest.id}: the source of a dataset cannot be changed (delete it, then apply)")

    async def _apply(self, manifest: Manifest) -> str:
        shown = self._shown.get(manifest.id)
        if not visible(manifest, self._settings.namespaces):
            if shown is not None:
                await self._remove(manifest.id)
            return f"{manifest.id} is not visible here"
        if shown is None:
            await (await self.prepare(manifest))()
            return f"{manifest.id} added"
        before = shown.dataset.manifest
        if any(getattr(before, field) != getattr(manifest, field) for field in _IDENTITY):
            await self._show_anew(manifest)
            return f"{manifest.id} changed"
        shown.dataset.manifest = manifest
        shown.dataset.origin.shared_area = self._builder.shared_area(manifest, shown.dataset.origin.source)
        if before.preheat is not manifest.preheat:
            self._preheat(shown)
            if manifest.preheat is not Preheat.REQUIRED:
                await self._unhide(shown)
        if before.data_sync_round != manifest.data_sync_round:
            shown.dataset.ask_for_resync()
            return f"{manifest.id} resyncs"
        if before.preheat is not manifest.preheat:
            return f"{manifest.id} changed"
        return f"{manifest.id} unchanged"

    async def _show_anew(self, manifest: Manifest) -> None:
        await self._remove(manifest.id)
        await (await self.prepare(manifest))()

    async def _follow_references(self, changed: set[str]) -> None:
        """A REFERENCE to what is not shared any more, or is now, is shown as what it has become."""
        for shown in list(self._shown.values()):
            manifest = shown.dataset.manifest
            if manifest.source.type is not SourceType.REFERENCE:
                continue
            namespace, target, _path = parse_reference(manifest.source.uri)
            if f"{namespace}/{target}" in changed:
                await self._show_anew(manifest)

    async def clone(self, name: str, namespace: str, new: str) -> str:
        """Show a dataset a second time, under another name: same source, revision and cached bytes; its id.

        In another namespace the clone has that one's Secret, and must be able to read the source with it before a
        single name of it is shown there. Raises DsfsError; then there is no clone.
        """
        if self._tree is None:
            raise ConfigError(f"{name} is all that is mounted (mount it with -f to clone it)")
        async with self._changing:
            original = self._shown[name].dataset
            manifest = clone_of(original.manifest, namespace, new)
            if manifest.id in self._builder.known or manifest.id in self._shown:
                raise ConfigError(f"{manifest.id} is there already (choose another name, or delete it first)")
            if not visible(manifest, self._settings.namespaces):
                raise ConfigError(f"{manifest.id} would not be visible in this mount (see its --namespace)")
            if not original.catalog.sealed:
                raise ConfigError(f"{name} is not wholly listed (clone it when dsfs status shows READY)")
            same_namespace = manifest.namespace == original.manifest.namespace
            if same_namespace and name in self._builder.own:
                self._builder.own[manifest.id] = self._builder.own[name]
            try:
                build = partial(self._builder.build, manifest)
                timeout_s = None if same_namespace else self._settings.read_timeout_s
                await check_same_source(self._bridge, build, manifest, original, timeout_s)
                catalog = original.catalog.file
                revision = await trio.to_thread.run_sync(self._store.adopt, catalog, manifest, limiter=CATALOG)
                self._builder.known[manifest.id] = manifest
                mount = await self.prepare(manifest, [revision])
            except BaseException:
                self._builder.known.pop(manifest.id, None)
                self._builder.own.pop(manifest.id, None)
                raise
            entitlement = self._shown[manifest.id].dataset.origin.entitlement
            if original.origin.entitlement.proven or not same_namespace:
                entitlement.note(entitlement.epoch)
            await self._hand_over_credentials()
            await self.hand_over()
            await mount()
            self._nursery.start_soon(self._reader.count_for, name, manifest.id)
        return manifest.id

    async def set_credential(self, name: str, values: Mapping[str, object]) -> list[str]:
        """Have a dataset read with these, from the next request on; its keys. Nothing: with its secretRef again.

        Raises ConfigError when no source can be made with them; then nothing has changed.
        """
        async with self._changing:
            shown = self._shown[name]
            manifest = shown.dataset.manifest
            checked = check_secret_values(values, manifest.source.type)
            before = self._builder.own.pop(name, None)
            if checked:
                self._builder.own[name] = checked
            try:
                source = await self._bridge.call(self._builder.build, manifest)
            except ConfigError:
                self._builder.own.pop(name, None)
                if before is not None:
                    self._builder.own[name] = before
                raise
            await self._bridge.call(source.close)
            await self._hand_over_credentials()
            await self.look_at_secrets()  # of this one, and of those that refer to it
            shown.dataset.ask_for_resync()
        return sorted(checked)

    async def delete(self, name: str) -> None:
        """Show a dataset no longer. Its cached bytes stay until the space is wanted."""
        if self._tree is None:
            raise ConfigError(f"{name} is all that is mounted (use dsfs unmount)")
        async with self._changing:
            await self._remove(name)
            self._builder.known.pop(name, None)
            if self._builder.own.pop(name, None) is not None:
                await self._hand_over_credentials()
            await self.hand_over()

    async def _remove(self, name: str) -> None:
        shown = self._shown.pop(name)
        manifest = shown.dataset.manifest
        assert self._tree is not None
        shown.preheating.cancel()
        if shown.unhide is None:
            gone, changed = self._tree.remove(manifest.namespace, manifest.name)
            await self._session.remove(name, gone, changed)
        shown.scope.cancel()
        shown.dataset.fail("not shown any more")  # who waits for its listing must not wait for ever
        self._removed.append(shown.dataset)
        if len(self._removed) > _REMOVED_DATASETS:
            await self._removed.pop(0).close_sources()

    async def close(self) -> None:
        """Give back the sources' connections."""
        for dataset in (*self._removed, *self.datasets.values()):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await dataset.close_sources()

    async def look_at_secrets(self) -> None:
        """Have every source use a Secret that has changed, before its origin refuses the old one."""
        for name in list(self._shown):
            await self._renew_if_changed(name)

    async def _renew_if_changed(self, name: str) -> bool:
        shown = self._shown.get(name)
        if shown is None:
            return False
        try:
            now = await trio.to_thread.run_sync(self._builder.reads_with, shown.dataset.manifest)
        except ConfigError as error:
            log.warning("secret cannot be read", dataset=name, reason=str(error))
            return False
        if now == shown.credentials:
            return False
        shown.credentials = now
        await shown.dataset.renew()
        log.info("credentials changed", dataset=name)
        return True

    def _files(self, dataset: Dataset, root: int) -> DatasetFiles:
        owner = Ownership.of(dataset.manifest.mount_options, self._settings.uid, self._settings.gid)
        return DatasetFiles(dataset, self._reader, owner, root, self._settings.cache_limit(), _LONGEST_WINDOW)

    async def hand_over(self) -> None:
        """Have the keeper hold what is shown, for the next server."""
        if self._tree is not None:
            documents = Documents(tuple(self._builder.known.values()), self._builder.secrets.documents)
            await self._keeper.hold(HANDED_OVER, to_text(documents))

    async def _hand_over_credentials(self) -> None:
        await self._keeper.hold(CREDENTIALS, json.dumps(self._builder.own))


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


async def _nothing_before(catalog_file: str) -> None:
    return
