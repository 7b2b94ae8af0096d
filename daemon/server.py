"""The server: builds the rooms, starts them in order, stops them in the other.

python -m daemon.server RUNTIME_DIR
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
import trio
from prometheus_client import disable_created_metrics

from daemon import logs
from daemon.control.listen import control_interface
from daemon.node import Node
from daemon.settings import Settings, fetch_memory_bytes, memory_limit_bytes
from dsfs import metrics
from dsfs.bridge import Bridge, network_side
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout, boot_id, open_layout
from dsfs.cache.node import NodeTier
from dsfs.cache.verify import rebuild_index
from dsfs.datasets.access import visible
from dsfs.datasets.dataset import CATALOG, Dataset
from dsfs.datasets.store import DatasetStore
from dsfs.errors import CacheDirectoryBusy, ConfigError, DsfsError, MountError
from dsfs.fetch.flights import DISK, Flights
from dsfs.fetch.origin import Origin
from dsfs.fetch.queue import FetchQueue, Limits
from dsfs.fetch.reader import Reader
from dsfs.filesystem.attributes import Ownership
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID, nodeid_of
from dsfs.filesystem.tree import NamespaceTree
from dsfs.fuse import capabilities
from dsfs.fuse.direct import DirectSession, SessionOptions
from dsfs.fuse.keeper_client import KeeperClient, connect
from dsfs.manifest.documents import load_documents
from dsfs.manifest.schema import Manifest
from dsfs.manifest.secrets import Secrets
from dsfs.manifest.uri import manifest_from_uri
from dsfs.model import Phase, ReadPath
from dsfs.ranges import MiB
from dsfs.sources.base import Source
from dsfs.sources.prefixed import PrefixedSource
from dsfs.sources.registry import build_source
from dsfs.sources.unusable import UnusableSource

log = structlog.get_logger()

_FIRST_ANSWERS_S = 0.5  # how long a mount of many datasets waits for their sources before it says "ready"
_SMALL_CRAWL_S = 0.25  # a small source is wholly listed within this, and then "ready" means it
_PREDECESSOR_S = 2.0
_UPKEEP_S = 1.0
_GAUGES_S = 5.0
_LONGEST_WINDOW = 64 * MiB


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be mounted. ``single``: one dataset, whose files lie directly at the mount point."""

    manifests: tuple[Manifest, ...]
    secrets: Secrets
    single: bool


def read_wanted(settings: Settings) -> Wanted:
    """Manifests and secrets, as they are written down now. Raises ConfigError."""
    if settings.source_uri is not None:
        manifest = manifest_from_uri(settings.source_uri, settings.source_options, base_dir=settings.base_dir)
        return Wanted((manifest,), Secrets(None, settings.secrets_dirs), single=True)
    documents = load_documents(settings.manifest_paths)
    seen = tuple(manifest for manifest in documents.manifests if visible(manifest, settings.namespaces))
    return Wanted(seen, Secrets(documents.secrets, settings.secrets_dirs), single=False)


async def serve(settings: Settings) -> None:
    """Run one server until its mounts are gone or it is told to stop."""
    async with AsyncExitStack() as stack:
        keeper = await stack.enter_async_context(connect(f"{settings.runtime_dir}/keeper.sock"))
        try:
            await _serve(settings, keeper, stack)
        except DsfsError as error:
            await keeper.failed(str(error))
            raise
        except BaseExceptionGroup as group:
            expected = group.subgroup(DsfsError)
            if expected is not None:
                await keeper.failed(str(_first(expected)))
            raise


async def _serve(settings: Settings, keeper: KeeperClient, stack: AsyncExitStack) -> None:
    metrics.SERVER_RESTARTS.inc(keeper.restarts)
    bridge = await stack.enter_async_context(network_side())
    wanted = await trio.to_thread.run_sync(read_wanted, settings)
    tier, boot = await stack.enter_async_context(_node_tier(settings))
    background = await stack.enter_async_context(trio.open_nursery())
    stack.callback(background.cancel_scope.cancel)
    queue = FetchQueue(Limits(fetch_memory_bytes()))
    flights = Flights(background, bridge, tier, queue, settings.read_timeout_s)
    reader = Reader(tier, flights)
    store = DatasetStore(tier.layout.catalogs)
    session = DirectSession(_session_options(settings), keeper) if settings.session == "direct" else None

    datasets: dict[str, Dataset] = {}
    for manifest in wanted.manifests:
        source = await _source(settings, bridge, wanted, manifest)
        stack.push_async_callback(_close, bridge, source)
        slot = store.number(f"dataset {manifest.id}")
        origin = Origin(source, manifest.namespace, manifest.name, manifest.cache.quota)
        dataset = Dataset(manifest, slot, store, bridge, origin, settings.read_timeout_s)
        dataset.open_revision(session.resumed_revision(manifest.id) if session else None)
        datasets[manifest.id] = dataset
        background.start_soon(dataset.run)

    files = {name: _files(settings, dataset, reader, wanted.single) for name, dataset in datasets.items()}
    tree = None if wanted.single else _tree(settings, datasets, store)

    def read_path(name: str) -> ReadPath:
        return (session.read_path(name) if session else None) or ReadPath.DAEMON

    node = Node(settings, os.getppid(), tier, boot, datasets, read_path)
    await background.start(control_interface, settings, node, bridge)
    background.start_soon(_upkeep, tier)
    background.start_soon(_gauges, node)
    if not tier.index.was_clean:
        background.start_soon(_rebuild, tier, boot)

    async with trio.open_nursery() as serving:
        serving.start_soon(_stop_on_signal, serving)
        serving.start_soon(_run_session, serving, settings, session, tree, files, keeper, wanted.single, datasets)


async def _run_session(
    serving: trio.Nursery,
    settings: Settings,
    session: DirectSession | None,
    tree: NamespaceTree | None,
    files: dict[str, DatasetFiles],
    keeper: KeeperClient,
    single: bool,
    datasets: dict[str, Dataset],
) -> None:
    """Mount, say when it is ready, serve; what ends the session ends the server."""
    async with trio.open_nursery() as nursery:
        if session is not None:
            await nursery.start(session.run, tree, files)
        else:
            from dsfs.fuse import pyfuse3 as portable  # imports libfuse, which the direct session does without

            by_slot = {each.dataset.slot: each for each in files.values()}
            await nursery.start(portable.run, settings.mountpoint, tree, by_slot)
        await _first_answers(datasets, settings.read_timeout_s if single else _FIRST_ANSWERS_S)
        if single and keeper.restarts == 0:
            (dataset,) = datasets.values()
            if dataset.phase is Phase.FAILED:
                raise MountError(dataset.message)
        gc.collect()
        gc.freeze()  # what lives as long as the server needs no look from the collector
        await keeper.ready()
        log.info("ready", mountpoint=settings.mountpoint, session=settings.session, datasets=len(datasets))
        for dataset in datasets.values():
            nursery.start_soon(dataset.clean)
    serving.cancel_scope.cancel()


async def _first_answers(datasets: dict[str, Dataset], patience_s: float) -> None:
    with trio.move_on_after(patience_s):
        for dataset in datasets.values():
            await dataset.answered.wait()
    with trio.move_on_after(_SMALL_CRAWL_S):
        for dataset in datasets.values():
            await dataset.settled.wait()


@asynccontextmanager
async def _node_tier(settings: Settings) -> AsyncIterator[tuple[NodeTier, bytes]]:
    layout = await _locked_layout(settings.cache_dir)
    try:
        index = _open_index(layout.index)
        boot = boot_id()
        tier = NodeTier(layout, index, settings.cache_limit, boot)
        await trio.to_thread.run_sync(tier.upkeep, limiter=DISK)
        try:
            yield tier, boot
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await trio.to_thread.run_sync(index.close, trio.current_time(), limiter=DISK)
    finally:
        layout.release()


async def _locked_layout(directory: str) -> Layout:
    """The cache directory, once a server that is just ending has let go of it."""
    deadline = trio.current_time() + _PREDECESSOR_S
    while True:
        try:
            return open_layout(directory)
        except CacheDirectoryBusy:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(0.1)


def _open_index(directory: str) -> Index:
    try:
        return Index(directory)
    except sqlite3.DatabaseError as error:
        log.warning("index of the cache is damaged and built anew", directory=directory, reason=str(error))
        shutil.rmtree(directory)
        os.makedirs(directory, mode=0o700)
        return Index(directory)


async def _source(settings: Settings, bridge: Bridge, wanted: Wanted, manifest: Manifest) -> Source:
    """The dataset's source, or one that says why it has none. For a single dataset the reason ends the mount."""

    async def build() -> Source:
        credentials = wanted.secrets.get(manifest.namespace, manifest.secret_ref) if manifest.secret_ref else {}
        if credentials is None:
            raise ConfigError(
                f"{manifest.id}: secretRef {manifest.secret_ref!r} is not there "
                "(add the Secret to the manifests, or its directory with --secrets)"
            )
        source = build_source(manifest.source, credentials, pvc_root=settings.pvc_root, namespace=manifest.namespace)
        prefix = manifest.mount_options.path.strip("/")
        return source if prefix in ("", ".") else PrefixedSource(source, prefix.removeprefix("./"))

    try:
        return await bridge.call(build)
    except ConfigError as error:
        if wanted.single:
            raise
        log.warning("dataset cannot be used", dataset=manifest.id, reason=str(error))
        return UnusableSource(manifest.source.uri, str(error))


async def _close(bridge: Bridge, source: Source) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
        await bridge.call(source.close)


def _files(settings: Settings, dataset: Dataset, reader: Reader, single: bool) -> DatasetFiles:
    owner = Ownership.of(dataset.manifest.mount_options, settings.uid, settings.gid)
    root = ROOT_ID if single or settings.session == "direct" else nodeid_of(dataset.slot, ROOT_ID)
    return DatasetFiles(dataset, reader, owner, root, settings.cache_limit(), _LONGEST_WINDOW)


def _tree(settings: Settings, datasets: dict[str, Dataset], store: DatasetStore) -> NamespaceTree:
    names = [(each.manifest.namespace, each.manifest.name, each.slot) for each in datasets.values()]
    numbers = {namespace: store.number(f"namespace {namespace}") for namespace, _name, _slot in names}
    made_ns = os.stat(f"{settings.runtime_dir}/settings.json").st_mtime_ns
    return NamespaceTree(names, numbers, made_ns, settings.uid, settings.gid)


def _session_options(settings: Settings) -> SessionOptions:
    overlay = _file_system_of(settings.cache_dir) == "overlay"
    return SessionOptions(
        settings.mountpoint,
        f"{settings.runtime_dir}/journal",
        capabilities.look().passthrough,
        2 if overlay else 1,
        memory_limit_bytes(),
    )


def _file_system_of(path: str) -> str:
    """The type of the file system under a path, from the mount table."""
    wanted = os.stat(path).st_dev
    name = f"{os.major(wanted)}:{os.minor(wanted)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            if before.split(" ")[2] == name:
                return after.split(" ")[0]
    return ""


async def _upkeep(tier: NodeTier) -> None:
    while True:
        await trio.sleep(_UPKEEP_S)
        try:
            await trio.to_thread.run_sync(tier.upkeep, limiter=DISK)
        except OSError as error:
            tier.note_trouble(error)
        except sqlite3.Error as error:
            log.warning("index of the cache cannot be written", reason=str(error))


async def _gauges(node: Node) -> None:
    while True:
        await node.set_gauges()
        await trio.sleep(_GAUGES_S)


async def _rebuild(tier: NodeTier, boot: bytes) -> None:
    await trio.to_thread.run_sync(rebuild_index, tier, boot, limiter=CATALOG)


async def _stop_on_signal(serving: trio.Nursery) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            serving.cancel_scope.cancel()
            return


def _first(group: BaseExceptionGroup[DsfsError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main(runtime_dir: str) -> int:
    settings = Settings.load(runtime_dir)
    logs.configure(debug=settings.debug)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        trio.run(serve, settings)
    except DsfsError as error:
        log.error("server failed", reason=str(error))
        return 1
    except BaseExceptionGroup as group:
        expected, rest = group.split(DsfsError)
        if rest is not None:
            raise
        log.error("server failed", reason=str(_first(expected)) if expected else "")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
