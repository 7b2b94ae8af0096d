"""What one running mount can be asked to do, over the control interface."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
import trio

from daemon.bad_pages import BadPages
from daemon.changes import Changes
from daemon.hints import Hints, replaced
from daemon.settings import Settings
from daemon.shown import Shown
from daemon.status import MountStatus
from daemon.warming import Warming
from dsfs import metrics
from dsfs.cache.index import NOBODY
from dsfs.cache.mapfile import stored_checksums
from dsfs.cache.node import NodeTier
from dsfs.cache.verify import Verified, verify, verify_one
from dsfs.catalog.lookup import UNREADABLE, Catalog
from dsfs.client import is_below
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.pins import Pins
from dsfs.datasets.selection import CATALOG, matching
from dsfs.errors import ConfigError, DsfsError, MountError, PinRefused
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.documents import document_of

log = structlog.get_logger()

_VERIFYING = trio.CapacityLimiter(1)
_NEWS_S = 0.5
_START_S = 3.0


class Node:
    """File side only."""

    def __init__(
        self,
        settings: Settings,
        keeper: KeeperClient,
        tier: NodeTier,
        shown: Shown,
        changes: Changes,
        warming: Warming,
        pins: Pins,
        hints: Hints,
        bad_pages: BadPages,
        shared: SharedDisk | None = None,
    ) -> None:
        self.status = MountStatus(settings, keeper, tier, shown, changes.files, shared)
        self._tier = tier
        self._shown = shown
        self._changes = changes
        self._warming = warming
        self._pins = pins
        shown.on_prepared = self._prepared
        self._hints = hints
        self._bad_pages = bad_pages

    async def once_complete(self) -> None:
        """Soon: what this server has not come to yet is not missing. Who asks then is told that it is starting."""
        with trio.move_on_after(_START_S):
            await self._shown.complete.wait()

    async def show(self, selector: str) -> dict[str, Any]:
        """One dataset with its manifest; a manifest never holds a secret, only the name of one."""
        dataset = self._select_whole(selector)
        return {**await self.status.dataset(dataset), "manifest": document_of(dataset.manifest)}

    async def evict(self, selector: str) -> dict[str, int]:
        """Give back the space of a dataset, or of the paths that a glob names."""
        dataset, glob = self._select(selector)
        freed, pinned_files = await trio.to_thread.run_sync(self._evict, dataset, glob, limiter=CATALOG)
        if pinned_files and not freed:
            raise PinRefused(f"{selector}: is pinned, {pinned_files} cached files of it (dsfs unpin lets go of them)")
        return {"evicted_bytes": freed, **({"pinned_files": pinned_files} if pinned_files else {})}

    def _evict(self, dataset: Dataset, glob: str) -> tuple[int, int]:
        """Bytes that were freed, and cached files that are pinned and stay."""
        freed = pinned_files = 0
        for path, row in matching(dataset.catalog.file, glob):
            key = dataset.origin.key_of(path, row.tag)
            if not self._tier.index.pinned(key):
                freed += self._tier.evict(key)
            elif key in self._tier.index:
                pinned_files += 1
        if not glob:
            freed += self._evict_others(dataset.manifest.id)
        metrics.EVICTED_BYTES.inc(freed)
        return freed, pinned_files

    def _evict_others(self, name: str) -> int:
        """What this dataset alone has used, or nobody has now: files of older revisions."""
        index, freed = self._tier.index, 0
        index.flush(time.time())
        own = [cached.key for cached in index.everything() if cached.owners and {*cached.owners} <= {name, NOBODY}]
        for key in own:
            if not index.pinned(key):
                freed += self._tier.evict(key)
        return freed

    async def pin(self, selector: str) -> dict[str, int]:
        """Keep what a selector names in the cache, now and when it comes; what it names."""
        dataset, glob = self._select(selector)
        pinned = await self._pins.pin(dataset, glob)
        return {"pinned_bytes": pinned.bytes, "files": pinned.files}

    async def pin_to_warm(self, selector: str) -> dict[str, int]:
        """As ``pin``, of what is warmed next: where that is refused for want of room, no pin is left behind."""
        await self._warming.check(*self._select(selector))
        return await self.pin(selector)

    async def unpin(self, selector: str) -> dict[str, int]:
        """Let go of it again; what of it another pin still holds."""
        try:
            dataset, glob = self._select(selector)
            name, known = dataset.manifest.id, dataset
        except ConfigError:  # one that is not mounted, perhaps
            namespace, _, rest = selector.rstrip("/").partition("/")
            base, _, glob = rest.partition("/")
            name, known = f"{namespace}/{base}", None
            if name not in self._pins.all:
                raise
        pinned = await self._pins.unpin(name, glob, known)
        return {"pinned_bytes": pinned.bytes, "files": pinned.files}

    async def pins(self) -> dict[str, Any]:
        """All that is pinned in this cache directory."""
        return {
            "pins": [
                {
                    "selector": f"{dataset}/{glob}".rstrip("/"),
                    "mounted": dataset in self._shown.datasets,
                    "dataset_pinned_bytes": self._tier.index.pinned_bytes(dataset),
                }
                for dataset, globs in sorted(self._pins.all.items())
                for glob in globs
            ]
        }

    def _prepared(self, dataset: Dataset) -> None:
        """A dataset is shown from now on."""
        name = dataset.manifest.id
        dataset.on_listed = partial(self._pins.follow_soon, name)
        self._pins.ask(name)

    async def keep_pins(self) -> None:
        """Look priority and pins up again when a dataset is shown or its manifest says otherwise, pins whenever it has
        another revision."""
        while True:
            name = await self._pins.next_asked()
            dataset = self._shown.datasets.get(name)
            if dataset is not None:
                await self._set_priority(name, dataset.manifest.cache.priority)
                try:
                    await self._pins.follow(dataset)
                except (DsfsError, OSError, sqlite3.Error) as error:
                    log.warning("pins cannot be noted", dataset=name, reason=str(error))

    async def _set_priority(self, name: str, priority: int) -> None:
        try:
            await trio.to_thread.run_sync(self._tier.index.set_priority, name, priority, limiter=CATALOG)
        except OSError as error:
            log.warning("priority cannot be noted", dataset=name, reason=str(error))

    async def warm(self, selector: str, bytes_per_s: float | None) -> dict[str, Any]:
        """Begin to bring in a dataset, or the paths that a glob names."""
        dataset, glob = self._select(selector)
        return (await self._warming.start(dataset.manifest.id, glob, bytes_per_s)).as_json()

    def warms(self) -> list[dict[str, Any]]:
        """What is being warmed, and what was."""
        return [job.as_json() for job in self._warming.jobs()]

    def warm_progress(self, job_id: str) -> dict[str, Any]:
        """How far a warm-up is."""
        return self._warming.job(job_id).as_json()

    async def warm_next(self, job_id: str) -> dict[str, Any]:
        """How far a warm-up is in a moment: at its end, or when there may be something new to show."""
        job = self._warming.job(job_id)
        with trio.move_on_after(_NEWS_S):
            await job.finished.wait()
        return job.as_json()

    async def warm_cancel(self, job_id: str) -> dict[str, Any]:
        """End a warm-up; what came stays."""
        job = self._warming.job(job_id)
        job.scope.cancel()
        await job.finished.wait()
        return job.as_json()

    async def hint(self, selector: str, paths: list[str], hint_id: str | None, *, last: bool) -> dict[str, Any]:
        """Begin to fetch in an order, or go on with more of it."""
        dataset = self._select_whole(selector)
        hint = await self._hints.add(dataset, paths, hint_id, last=last)
        return replaced(dataset, hint_id or "") if hint is None else hint.as_json()

    async def hint_progress(self, selector: str) -> dict[str, Any]:
        """How far a dataset's hint is."""
        return (await self._hints.get(self._select_whole(selector).manifest.id)).as_json()

    async def resync(self, selector: str) -> dict[str, str]:
        """List a dataset's source anew and show that."""
        return {"revision": await self._select_whole(selector).resync()}

    async def apply(self, text: str) -> dict[str, list[str]]:
        """Take in manifests."""
        return {"done": await self._changes.apply(text)}

    async def delete(self, selector: str) -> dict[str, str]:
        """Show a dataset no longer."""
        dataset = self._select_whole(selector)
        await self._changes.delete(dataset.manifest.id)
        await self._pins.forget(dataset.manifest.id)
        await self._set_priority(dataset.manifest.id, 0)  # its bytes stay, but nobody wants them more than others
        if dataset.manifest.id in self._shown.datasets:
            self._pins.ask(dataset.manifest.id)  # applied again meanwhile
        self._hints.forget(dataset.manifest.id)
        self.status.forget_gauges()
        return {"deleted": dataset.manifest.id}

    async def clone(self, selector: str, new: str) -> dict[str, str]:
        """Show a dataset under a second name too."""
        dataset = self._select_whole(selector)
        namespace, _, name = new.rpartition("/")
        made = await self._changes.clone(dataset.manifest.id, namespace or dataset.manifest.namespace, name)
        return {"cloned": dataset.manifest.id, "dataset": made}

    async def set_credential(self, selector: str, values: object) -> dict[str, Any]:
        """Give a dataset a credential of its own."""
        dataset = self._select_whole(selector)
        if not isinstance(values, dict):
            raise ConfigError(f"{dataset.manifest.id}: a credential is an object of keys and values")
        keys = await self._shown.credentials.set(dataset.manifest.id, values)
        return {"dataset": dataset.manifest.id, "keys": keys}

    async def checksums(self, selector: str, paths: Sequence[str]) -> dict[str, Any]:
        """What the cache holds of files: a crc32c for each block, None for one that is not there. And which of them
        cannot be read from the source, as the revision was sealed without what that takes."""
        dataset = self._select_whole(selector)
        found, unreadable = await trio.to_thread.run_sync(self._checksums, dataset, paths, limiter=CATALOG)
        return {"block_bytes": self._tier.block_bytes, "checksums": found, "unreadable": unreadable}

    def _checksums(self, dataset: Dataset, paths: Sequence[str]) -> tuple[list[list[int | None]], list[str]]:
        catalog = Catalog(dataset.catalog.file)
        try:
            found: list[list[int | None]] = []
            unreadable = []
            for path in paths:
                row = catalog.find(path)
                if row is not None and row.listed == UNREADABLE:
                    unreadable.append(path)
                size_bytes = (row.size if row else None) or 0
                key = dataset.origin.key_of(path, row.tag if row else "")
                found.append(stored_checksums(self._tier.layout.map_path(key), key, size_bytes, self._tier.block_bytes))
            return found, unreadable
        finally:
            catalog.close()

    async def verify_file(self, selector: str, path: str) -> dict[str, str]:
        """Check what is cached of one file; what is wrong is dropped."""
        dataset = self._select_whole(selector)
        await trio.to_thread.run_sync(self._verify_file, dataset, path, limiter=CATALOG)
        await self._bad_pages.forget()
        return {"verified": path}

    def _verify_file(self, dataset: Dataset, path: str) -> None:
        catalog = Catalog(dataset.catalog.file)
        try:
            row = catalog.find(path)
            if row is not None:
                verify_one(self._tier, dataset.origin.key_of(path, row.tag))
        finally:
            catalog.close()

    async def verify(self) -> Verified:
        """Check every cached block; one who asks after another, as each of them may take hours."""

        def go_on(_found: Verified) -> None:
            trio.from_thread.check_cancelled()

        found = await trio.to_thread.run_sync(verify, self._tier, go_on, limiter=_VERIFYING)
        await self._bad_pages.forget()
        return found

    def _select_whole(self, selector: str) -> Dataset:
        dataset, glob = self._select(selector)
        if glob:
            raise ConfigError(f"{selector}: names a path (give [NAMESPACE/]DATASET)")
        return dataset

    def _select(self, selector: str) -> tuple[Dataset, str]:
        """``[NAMESPACE/]DATASET[/GLOB]``: a namespace that is known goes first, else it is ``default``. Or a place in
        the mount, which is where the same is to be found."""
        if selector.startswith("/"):
            return self._select_at(selector)
        parts = selector.rstrip("/").split("/")
        datasets = self._shown.datasets
        if (name := "/".join(parts[:2])) in datasets and len(parts) > 1:
            return datasets[name], "/".join(parts[2:])
        if not self._shown.complete.is_set():  # another one of this name may be still to come
            raise MountError(f"{selector}: the server is just starting, and has not come to all datasets (try again)")
        if (name := f"default/{parts[0]}") in datasets:
            return datasets[name], "/".join(parts[1:])
        alone = [dataset for dataset in datasets.values() if dataset.manifest.name == parts[0]]
        if len(alone) == 1:
            return alone[0], "/".join(parts[1:])
        raise self._no_such(selector)

    def _select_at(self, path: str) -> tuple[Dataset, str]:
        """By the whole name that it has there: what is not found under it is not looked for elsewhere."""
        mountpoint, datasets = self.status.mountpoint, self._shown.datasets
        if not is_below(path, mountpoint):
            raise ConfigError(f"{path}: is not in {mountpoint}")
        inside = [part for part in os.path.relpath(path, mountpoint).split("/") if part != "."]
        name = next(iter(datasets), "")  # of a single dataset, whose files lie directly at the mount point
        if self._shown.is_many:
            name, inside = "/".join(inside[:2]), inside[2:]
        if name in datasets:
            return datasets[name], "/".join(inside)
        if not self._shown.complete.is_set():
            raise MountError(f"{path}: the server is just starting, and has not come to all datasets (try again)")
        raise self._no_such(path)

    def _no_such(self, selector: str) -> ConfigError:
        known = ", ".join(sorted(self._shown.datasets)) or "none"
        return ConfigError(f"{selector}: no such dataset here (there are: {known})")
