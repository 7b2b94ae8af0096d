"""What is asked of a mount while it runs: manifests to take in, datasets to clone and to delete."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

import structlog
import trio

from daemon.building import Builder
from daemon.cloning import check_same_source, clone_of
from daemon.manifest_files import LOOKING, ManifestFiles
from daemon.settings import Settings
from daemon.shown import Shown
from daemon.wanted import FILES, HANDED_OVER, note_passed_over, written_down
from dsfs.bridge import Bridge
from dsfs.datasets.access import visible
from dsfs.datasets.selection import CATALOG
from dsfs.datasets.store import DatasetStore
from dsfs.errors import ConfigError, DsfsError
from dsfs.fetch.reader import Reader
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.documents import Documents, parse_documents
from dsfs.manifest.schema import Manifest

log = structlog.get_logger()

_PARSING = trio.CapacityLimiter(1)  # it computes, so two would take as long
_IDENTITY = ("source", "secret_ref", "mount_options", "read_path")
"""What is another dataset when it has changed; the rest of a manifest is followed by the one that is shown."""


def is_another(before: Manifest, after: Manifest) -> bool:
    """Whether two manifests of one name are of two datasets: the source of one cannot be changed."""
    return before.source.type != after.source.type or before.source.uri != after.source.uri


def concerns_others(before: Manifest | None, after: Manifest) -> bool:
    """Whether a change may concern what refers to a dataset: what the cache may hold of it does not."""
    return before is None or before.model_copy(update={"cache": after.cache}) != after


class Changes:
    """File side only. One change at a time."""

    def __init__(
        self,
        settings: Settings,
        builder: Builder,
        bridge: Bridge,
        store: DatasetStore,
        reader: Reader,
        nursery: trio.Nursery,
        shown: Shown,
        keeper: KeeperClient,
    ) -> None:
        self._settings = settings
        self._builder = builder
        self._bridge = bridge
        self._store = store
        self._reader = reader
        self._nursery = nursery
        self._shown = shown
        self._keeper = keeper
        self.files = ManifestFiles(settings)

    async def apply(self, text: str) -> list[str]:
        """Take in manifests while running: new datasets are added, a higher or lower dataSyncRound asks for a resync,
        what makes another dataset of one has it shown anew. What was done, a line each. Raises ConfigError before
        anything is."""
        if not self._shown.is_many:
            raise ConfigError("a mount of a single dataset takes no manifests (mount with -f)")
        # In a thread: many thousands take longer than the keeper waits for a word of this server.
        parse = partial(parse_documents, text, "applied manifest")
        documents = await trio.to_thread.run_sync(parse, limiter=_PARSING)
        return await self._take_in(self._builder.with_known_configs(documents))

    async def follow_files(self, delete: Callable[[str], Awaitable[object]]) -> None:
        """Show what the manifests say that ``dsfs serve`` was started with, where a server before it has read others.

        What was applied by hand stays. ``delete`` is for what is shown, and forgets all that was asked for it.
        """
        digest, texts = self._settings.manifests_digest, self._keeper.texts
        before = json.loads(texts.get(FILES, '{"digest": "", "datasets": []}'))
        # A server of an older version that was there meanwhile has not handed labels on.
        has_labels = set(before.get("labelled", ())) <= self._builder.labels.keys()
        if not digest or (digest == before["digest"] and has_labels):
            return
        try:
            documents = await trio.to_thread.run_sync(written_down, self._settings, limiter=LOOKING)
            if HANDED_OVER in texts:  # else this one has just read them
                note_passed_over(documents)
                gone = {(namespace, name) for namespace, name in before.get("secrets", ())}
                self._builder.secrets.drop(gone - documents.secrets.keys())
                unlabelled = set(before.get("labelled", ())) - documents.labels.keys()
                await self._follow(documents, before["datasets"], unlabelled, delete)
        except DsfsError as error:
            self.files.note_not_followed(error)
            return
        names = [manifest.id for manifest in documents.manifests]
        read = {"datasets": names, "secrets": list(documents.secrets), "labelled": list(documents.labels)}
        await self._keeper.hold(FILES, json.dumps({"digest": digest, **read}))

    async def _follow(
        self,
        documents: Documents,
        before: Sequence[str],
        unlabelled: Collection[str],
        delete: Callable[[str], Awaitable[object]],
    ) -> None:
        wanted = {manifest.id: manifest for manifest in documents.manifests}
        for name in {*before, *wanted}:
            known = self._builder.known.get(name)
            if known is not None and (name not in wanted or is_another(known, wanted[name])):
                log.info("not shown any more: its manifest is gone, or is of another source", dataset=name)
                await (delete if name in self._shown.all else self.delete)(name)
        for line in await self._take_in(documents, unlabelled):
            log.info("manifests were read anew", outcome=line)

    async def _take_in(self, documents: Documents, unlabelled: Collection[str] = ()) -> list[str]:
        """``unlabelled`` are namespaces of which nothing is known any more."""
        done: list[str] = []
        async with self._shown.changing:
            for manifest in documents.manifests:
                self._check_source(manifest)
            known = self._builder.known
            changed = {each.id for each in documents.manifests if concerns_others(known.get(each.id), each)}
            self._builder.secrets.add(documents.secrets)
            self._builder.add_configs(documents.configs)
            self._builder.known.update({manifest.id: manifest for manifest in documents.manifests})
            entitled = {name: self._builder.is_entitled(each.manifest) for name, each in self._shown.datasets.items()}
            relabelled = self._relabel(documents, unlabelled)
            try:
                if relabelled:  # first: what is no longer shared is not read on because something else fails
                    await self._hide_unlabelled(entitled)
                done += [await self._apply(manifest) for manifest in documents.manifests]
                if relabelled:
                    await self._show_labelled()
                    done += [f"namespace {name} changed" for name in sorted(relabelled)]
                done += [f"namespace {name} unchanged" for name in documents.labels if name not in relabelled]
                await self._follow_references(changed)
            finally:
                await self._shown.hand_over()  # also of what was done before something failed
            for showing in self._shown.all.values():
                manifest = showing.dataset.manifest
                if (manifest.namespace, manifest.secret_ref) in documents.secrets:
                    showing.dataset.ask_for_resync()  # with the new credentials
        return done

    def _relabel(self, documents: Documents, unlabelled: Collection[str]) -> set[str]:
        """The namespaces whose labels are others from now on."""
        labels = self._builder.labels
        names = {*documents.labels, *unlabelled}
        relabelled = {name for name in names if documents.labels.get(name) != labels.get(name)}
        for name in unlabelled:
            labels.pop(name, None)
        labels.update(documents.labels)
        return relabelled

    async def _hide_unlabelled(self, entitled: Mapping[str, bool]) -> None:
        """Hide what this mount may not see any more, and show anew what was ``entitled`` to another dataset, or not."""
        for name, before in entitled.items():
            shown = self._shown.all[name].dataset.manifest
            if not visible(self._builder.known.get(name, shown), self._settings.namespaces, self._builder.labels):
                await self._shown.remove(name)
            elif self._builder.is_entitled(shown) != before:
                try:
                    await self._shown.show_anew(shown)
                except (DsfsError, OSError) as error:  # the others lose their rights all the same
                    log.error("dataset cannot be shown", dataset=name, reason=str(error))

    async def _show_labelled(self) -> None:
        """Show what this mount may see now."""
        for manifest in list(self._builder.known.values()):
            if manifest.id not in self._shown.all:
                await self._apply(manifest)

    def _check_source(self, manifest: Manifest) -> None:
        showing = self._shown.all.get(manifest.id)
        if showing is not None and is_another(showing.dataset.manifest, manifest):
            raise ConfigError(f"{manifest.id}: the source of a dataset cannot be changed (delete it, then apply)")

    async def _apply(self, manifest: Manifest) -> str:
        showing = self._shown.all.get(manifest.id)
        if not visible(manifest, self._settings.namespaces, self._builder.labels):
            if showing is not None:
                await self._shown.remove(manifest.id)
            return f"{manifest.id} is not visible here"
        if showing is None:
            await (await self._shown.prepare(manifest))()
            return f"{manifest.id} added"
        before = showing.dataset.manifest
        if any(getattr(before, field) != getattr(manifest, field) for field in _IDENTITY):
            await self._shown.show_anew(manifest)
            return f"{manifest.id} changed"
        await self._shown.follow(manifest)
        if before.data_sync_round != manifest.data_sync_round:
            return f"{manifest.id} resyncs"
        return f"{manifest.id} {'unchanged' if before == manifest else 'changed'}"

    async def _follow_references(self, changed: set[str]) -> None:
        """A REFERENCE to what is not shared any more, or is now, is shown as what it has become; so is one to that."""
        for showing in list(self._shown.all.values()):
            manifest = showing.dataset.manifest
            if changed.intersection(self._builder.refers_to(manifest)):
                await self._shown.show_anew(manifest)

    async def clone(self, name: str, namespace: str, new: str) -> str:
        """Show a dataset a second time, under another name: same source, revision and cached bytes; its id.

        In another namespace the clone has that one's Secret, and must be able to read the source with it before a
        single name of it is shown there. Raises DsfsError; then there is no clone.
        """
        if not self._shown.is_many:
            raise ConfigError(f"{name} is all that is mounted (mount it with -f to clone it)")
        async with self._shown.changing:
            original = self._shown.one(name).dataset
            manifest = clone_of(original.manifest, namespace, new)
            if manifest.id in self._builder.known or manifest.id in self._shown.all:
                raise ConfigError(f"{manifest.id} is there already (choose another name, or delete it first)")
            if not visible(manifest, self._settings.namespaces, self._builder.labels):
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
                mount = await self._shown.prepare(manifest, [revision])
            except BaseException:  # also when who asked has gone: nothing of a clone that did not come about stays
                self._builder.known.pop(manifest.id, None)
                self._builder.own.pop(manifest.id, None)
                raise
            entitlement = self._shown.all[manifest.id].dataset.origin.entitlement
            if original.origin.entitlement.proven or not same_namespace:
                entitlement.note(entitlement.epoch)
            await self._shown.credentials.hand_over()
            await self._shown.hand_over()
            await mount()
            self._nursery.start_soon(self._reader.owners.count_for, name, manifest.id)
        return manifest.id

    async def delete(self, name: str) -> None:
        """Show a dataset no longer. Its cached bytes stay until the space is wanted."""
        if not self._shown.is_many:
            raise ConfigError(f"{name} is all that is mounted (use dsfs unmount)")
        async with self._shown.changing:
            if name in self._shown.all or name not in self._builder.known:  # else it is not visible here
                await self._shown.remove(name)
            self._builder.known.pop(name, None)
            await self._follow_references({name})
            if self._builder.own.pop(name, None) is not None:
                await self._shown.credentials.hand_over()
            await self._shown.hand_over()
