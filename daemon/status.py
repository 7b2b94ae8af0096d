"""How one running mount is: for ``dsfs status``, and as gauges for /metrics."""

from __future__ import annotations

import os
from typing import Any

import trio

from daemon.cache_device import CacheDevice
from daemon.manifest_files import ManifestFiles
from daemon.settings import Settings
from daemon.shown import Shown
from dsfs import metrics
from dsfs.cache.node import NodeStatistics, NodeTier
from dsfs.datasets.dataset import Dataset
from dsfs.errors import one_line
from dsfs.fetch.disk import DISK
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.schema import Manifest, SourceType
from dsfs.manifest.sizes import size_text

_LITTLE = 0.1
"""Of what the cache may use: to have less than that is worth a word."""


class MountStatus:
    """File side only."""

    def __init__(
        self,
        settings: Settings,
        keeper: KeeperClient,
        tier: NodeTier,
        shown: Shown,
        files: ManifestFiles,
        shared: SharedDisk | None,
    ) -> None:
        self._settings = settings
        self.http = settings.http
        """Where it listens for everybody: HOST:PORT."""
        self._keeper = keeper
        self._tier = tier
        self._shown = shown
        self._files = files
        self._shared = shared
        self._device = CacheDevice(settings.cache_dir)
        self._last_info: dict[str, tuple[str, ...]] = {}

    @property
    def mountpoint(self) -> str:
        return self._settings.mountpoint

    async def mount(self) -> dict[str, Any]:
        """One element of ``mounts`` in ``dsfs status --json`` (DESIGN section 7)."""
        await trio.to_thread.run_sync(self._tier.upkeep, limiter=DISK)
        tier = self._tier.statistics()
        trouble = f"the cache directory is in trouble: {tier.trouble}" if tier.trouble else ""
        if not self._keeper.is_ready:
            trouble = "a server is starting"
        told = (trouble, _crowded(tier), self._files.trouble)  # readers do not feel the latter two
        message = "; ".join(filter(None, told))
        shared = {} if self._shared is None else {"shared_cache": _shared_status(self._shared)}
        return {
            "mountpoint": self._settings.mountpoint,
            "session": self._settings.session,
            "keeper_pid": self._keeper.pid,
            "server_pid": os.getpid(),
            "http": self.http,
            "cache_dir": self._settings.cache_dir,
            "cache_size": tier.size_bytes,
            "cache_used": tier.used_bytes,
            "healthy": not trouble,
            **({"message": message} if message else {}),
            **shared,
            "datasets": [await self.dataset(dataset) for dataset in self._shown.datasets.values()],
        }

    async def dataset(self, dataset: Dataset) -> dict[str, Any]:
        """One element of ``datasets`` in that; sizes in bytes."""
        status = await dataset.status()
        phase, message = self._shown.standing(dataset, status)
        manifest = dataset.manifest
        cached = min(self._tier.index.owner_bytes(manifest.id), status.bytes) if status.bytes else 0
        return {
            "namespace": manifest.namespace,
            "name": manifest.name,
            "source": self._given(manifest),
            "revision": status.revision,
            "phase": str(phase),
            "message": "; ".join(filter(None, (message or _of_content(dataset), status.refusal))),
            "files": status.files,
            "bytes": status.bytes,
            "cached_bytes": cached,
            "pinned_bytes": self._tier.index.pinned_bytes(manifest.id),
            "skipped": status.skipped,
            "read_path": str(self._shown.read_path(manifest.id)),
        }

    def _given(self, manifest: Manifest) -> str:
        """The URI of a source as its user wrote it, but for a path, which is absolute, and what may be a signature."""
        given = self._settings.source_uri
        shown = given if given is not None and "://" in given else manifest.source.uri
        return shown.partition("?")[0] if manifest.source.type is SourceType.HTTP else shown

    async def set_gauges(self) -> None:
        """What a dataset is and how much of it is here, and what the disk did, for /metrics."""
        self._device.count()
        metrics.CACHE_PINNED_BYTES.set(self._tier.index.pinned_whole_bytes)
        for dataset in self._shown.datasets.values():
            manifest, status = dataset.manifest, await dataset.status()
            labels = (manifest.namespace, manifest.name)
            metrics.DATASET_BYTES.labels(*labels).set(status.bytes)
            metrics.DATASET_CACHED_BYTES.labels(*labels).set(self._tier.index.owner_bytes(manifest.id))
            metrics.DATASET_PINNED_BYTES.labels(*labels).set(self._tier.index.pinned_bytes(manifest.id))
            metrics.DATASET_LISTED_SECONDS.labels(*labels).set(dataset.rounds.listed_s)
            metrics.DATASET_RESYNC_FAILURES.labels(*labels).set(dataset.rounds.failures)
            waiting = self._shown.waiting(manifest.id)
            metrics.WAITING_REQUESTS.labels(*labels).set(waiting.requests)
            metrics.OLDEST_REQUEST_SECONDS.labels(*labels).set(waiting.oldest_s)
            phase, _message = self._shown.standing(dataset, status)
            info = (*labels, status.revision, str(phase), str(manifest.source.type))
            last = self._last_info.get(manifest.id)
            if last != info:
                if last is not None:
                    metrics.DATASET_INFO.remove(*last)
                metrics.DATASET_INFO.labels(*info).set(1)
                self._last_info[manifest.id] = info
        self.forget_gauges()

    def forget_gauges(self) -> None:
        """Of what is not shown any more."""
        for name in self._last_info.keys() - self._shown.datasets.keys():
            labels = self._last_info.pop(name)
            metrics.DATASET_INFO.remove(*labels)
            for gauge in metrics.GAUGES_OF_DATASETS:
                gauge.remove(*labels[:2])


def _crowded(tier: NodeStatistics) -> str:
    if tier.limit_bytes and tier.limit_bytes >= tier.alone_bytes * _LITTLE:
        return ""
    return (
        f"others fill the disk of the cache: it may use {size_text(tier.limit_bytes)} of {size_text(tier.size_bytes)} "
        "(make room there, or --min-free less)"
    )


def _of_content(dataset: Dataset) -> str:
    path = dataset.origin.wrong_content
    if path is None:
        return ""
    return f"{one_line(path)}: what the source sent is not what it says it is; dropped, fetched anew when it is read"


def _shared_status(disk: SharedDisk) -> dict[str, Any]:
    """Trouble there is no failure of the node, as reads go on without it."""
    now = disk.statistics()
    return {"dir": now.root, "size": now.limit_bytes, "used": now.used_bytes, "message": now.trouble}
