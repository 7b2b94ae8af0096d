"""The rooms of a server: built, started in order, and stopped in the other."""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
import trio

from daemon.building import Builder
from daemon.changes import Changes
from daemon.control.listen import control_interface
from daemon.hints import Hints, Room
from daemon.keeping.mounting import mount_table
from daemon.node import Node
from daemon.opens import Opens
from daemon.preload import note_modules
from daemon.scrubbing import scrub_in_background
from daemon.settings import Settings, fetch_memory_bytes, memory_limit_bytes
from daemon.shown import Shown
from daemon.wanted import Wanted, read_wanted
from daemon.warming import Warming
from dsfs import metrics
from dsfs.bridge import network_side
from dsfs.cache.index import open_index
from dsfs.cache.layout import Layout, open_layout, trust_id
from dsfs.cache.node import DESCRIPTORS_EACH, OPEN_OBJECTS, NodeTier
from dsfs.cache.verify import rebuild_index
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.pins import Pins
from dsfs.datasets.selection import CATALOG
from dsfs.datasets.store import DatasetStore
from dsfs.errors import CacheDirectoryBusy, MountError
from dsfs.fetch.disk import DISK
from dsfs.fetch.flights import Flights
from dsfs.fetch.queue import FetchQueue, Limits
from dsfs.fetch.reader import Reader
from dsfs.fetch.shared import SharedTier
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.filesystem.tree import NamespaceTree
from dsfs.filesystem.whole import WholeTree
from dsfs.fuse import capabilities
from dsfs.fuse.direct import DirectSession, SessionOptions
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.fuse.patience import kernel_patience_s, within_patience
from dsfs.model import Phase

if TYPE_CHECKING:
    from dsfs.fuse.pyfuse3 import PortableSession

log = structlog.get_logger()

_FIRST_ANSWERS_S = 0.5  # how long a mount of many datasets waits for their sources before it says "ready"
_SMALL_CRAWL_S = 0.25  # a small source is wholly listed within this, and then "ready" means it
_PREDECESSOR_S = 2.0
_LOCK_AGAIN_S = 0.02  # readers wait for as long
_UPKEEP_S = 1.0
_GAUGES_S = 5.0
_CONFIRM_S = 3600.0  # access that was taken back at the origin: a byte each, of what was read
_HINTS_S = 2.0  # what a server that dies forgets of how far the readers were; they are found again
_SECRETS_S = 5.0  # a kubelet takes a minute to update one


async def open_rooms(
    settings: Settings, keeper: KeeperClient, stack: AsyncExitStack, signals: AsyncIterator[int]
) -> None:
    """Serve from them until the mounts are gone or the server is told to stop; ``stack`` closes them."""
    metrics.SERVER_RESTARTS.inc(keeper.restarts)
    metrics.BUILD.info({"version": version("dsfs"), "session": settings.session})
    bridge = await stack.enter_async_context(network_side())
    wanted = await trio.to_thread.run_sync(read_wanted, settings, keeper.texts)
    tier, boot = await stack.enter_async_context(_node_tier(settings))
    background = await stack.enter_async_context(trio.open_nursery())
    stack.callback(background.cancel_scope.cancel)
    queue = FetchQueue(Limits(fetch_memory_bytes()))
    shared_tier = await _shared_tier(settings, background)
    longest_s = within_patience(math.inf, kernel_patience_s())
    courier = (sys.executable, "-P", "-m", "daemon.courier")
    flights = Flights(background, bridge, tier, queue, settings.read_timeout_s, shared_tier, longest_s, courier)
    reader = Reader(tier, flights)
    store = DatasetStore(tier.layout.catalogs)
    tree = None if wanted.single else _tree(settings)
    session = _session(settings, keeper, tree)
    flights.checks.on_wrong = session.forget_pages
    warming = Warming(settings.runtime_dir, tier, reader, background, lambda: shown.datasets)
    builder = Builder(settings, wanted)
    shown = Shown(settings, builder, bridge, store, reader, background, session, tree, keeper, warming)
    changes = Changes(settings, builder, bridge, store, reader, background, shown)
    stack.push_async_callback(shown.close)
    await warming.remember()
    opens = None
    if settings.count_opens and isinstance(session, DirectSession):
        session.watcher = opens = Opens(session.note_use)
    disk = shared_tier.disk if shared_tier else None
    pins = await trio.to_thread.run_sync(Pins, tier.layout.pins, tier)
    hints = Hints(
        settings.runtime_dir,
        reader,
        background,
        lambda: Room(memory_limit_bytes(), settings.cache_limit()),
        lambda dataset: settings.mountpoint if wanted.single else f"{settings.mountpoint}/{dataset.manifest.id}",
    )
    node = Node(settings, keeper, tier, boot, shown, changes, warming, pins, hints, disk)
    listening = trio.Event()

    async def listen() -> None:
        await background.start(control_interface, settings, node, bridge)
        listening.set()

    async def look_after() -> None:
        """What nobody waits for, once those who do have a server again."""
        await node.mounted.wait()
        background.start_soon(_every, _UPKEEP_S, "upkeep of the cache", partial(_upkeep, tier))
        background.start_soon(_every, _GAUGES_S, "gauges", node.set_gauges)
        background.start_soon(_every, _SECRETS_S, "secrets", shown.credentials.look_at_all)
        background.start_soon(_every, _CONFIRM_S, "entitlements", partial(_confirm, reader, shown))
        background.start_soon(node.keep_pins)
        if settings.scrub_every_s:
            background.start_soon(
                _optional,
                "background check of the cache",
                partial(scrub_in_background, tier, boot, settings.scrub_every_s, lambda: flights.under_way > 0),
            )
        if opens is not None:
            background.start_soon(_optional, "counting of opens", opens.run)
        if not tier.index.was_clean:
            background.start_soon(_rebuild, tier, boot)

    if keeper.restarts:
        background.start_soon(listen)  # readers come first
    else:
        await listen()  # an address that cannot be had is told before anything is mounted
    background.start_soon(look_after)
    async with trio.open_nursery() as serving:
        serving.start_soon(_stop_on_signal, serving, signals)
        serving.start_soon(_stop_when_asked, serving, keeper)
        serving.start_soon(
            _show, serving, settings, wanted, session, shown, keeper, warming, hints, listening, node.mounted
        )


def _session(settings: Settings, keeper: KeeperClient, tree: WholeTree | None) -> DirectSession | PortableSession:
    if settings.session == "direct":
        return DirectSession(_session_options(settings), keeper, tree)
    from dsfs.fuse.pyfuse3 import PortableSession  # imports libfuse, which the direct session does without

    return PortableSession(settings.mountpoint, tree)


async def _show(
    serving: trio.Nursery,
    settings: Settings,
    wanted: Wanted,
    session: DirectSession | PortableSession,
    shown: Shown,
    keeper: KeeperClient,
    warming: Warming,
    hints: Hints,
    listening: trio.Event,
    mounted: trio.Event,
) -> None:
    """Mount, say when it is ready, serve; what ends the session ends the server. ``mounted`` is set in between."""
    async with trio.open_nursery() as nursery:
        prepared = [await shown.prepare(manifest) for manifest in wanted.manifests]
        await nursery.start(_run_session, session, serving, keeper)
        for mount in prepared:
            try:
                await mount()
            except MountError as error:
                if wanted.single:
                    raise
                log.error("dataset cannot be mounted", reason=str(error))
        if isinstance(session, DirectSession):
            await session.drop_unserved()
        mounted.set()
        await shown.hand_over()
        datasets = shown.datasets.values()
        await _first_answers(datasets, settings.read_timeout_s if wanted.single else _FIRST_ANSWERS_S)
        if wanted.single and keeper.restarts == 0:
            for dataset in datasets:
                if dataset.phase is Phase.FAILED:
                    raise MountError(dataset.message)
        gc.collect()
        gc.freeze()  # what lives as long as the server needs no look from the collector
        await listening.wait()
        await keeper.ready()
        await trio.to_thread.run_sync(note_modules, settings.runtime_dir, limiter=DISK)
        log.info("ready", mountpoint=settings.mountpoint, session=settings.session, datasets=len(datasets))
        for dataset in datasets:
            nursery.start_soon(dataset.clean)
        warming.resume()
        await _optional("hints of the server before", partial(hints.resume, shown.datasets))
        nursery.start_soon(_every, _HINTS_S, "writing down of hints", hints.save)


async def _run_session(
    session: DirectSession | PortableSession,
    serving: trio.Nursery,
    keeper: KeeperClient,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await session.run(task_status=task_status)
    await keeper.unmounted()
    serving.cancel_scope.cancel()


async def _first_answers(datasets: Collection[Dataset], patience_s: float) -> None:
    with trio.move_on_after(patience_s):
        for dataset in datasets:
            await dataset.answered.wait()
    with trio.move_on_after(_SMALL_CRAWL_S):
        for dataset in datasets:
            await dataset.settled.wait()


@asynccontextmanager
async def _node_tier(settings: Settings) -> AsyncIterator[tuple[NodeTier, bytes]]:
    layout = await _locked_layout(settings.cache_dir)
    try:
        index = open_index(layout.index)
        boot = trust_id(layout.root)
        tier = NodeTier(
            layout, index, settings.cache_limit, boot, least_free=settings.least_free, open_objects=_open_objects()
        )
        await trio.to_thread.run_sync(tier.upkeep, limiter=DISK)
        try:
            yield tier, boot
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await trio.to_thread.run_sync(index.close, time.time(), limiter=DISK)
    finally:
        layout.release()


async def _shared_tier(settings: Settings, background: trio.Nursery) -> SharedTier | None:
    """What several nodes have in common; one that does not answer is tried again while the server runs."""
    if settings.shared_cache is None:
        return None
    disk = SharedDisk(settings.shared_cache, settings.shared_cache_limit)
    await disk.open()
    shared = SharedTier(disk)
    if settings.scrub_every_s:
        work = partial(shared.scrub, settings.scrub_every_s)
        background.start_soon(_optional, "background check of the shared cache", work)
    background.start_soon(disk.run)
    background.start_soon(shared.run)
    return shared


async def _locked_layout(directory: str) -> Layout:
    """The cache directory, once a server that is just ending has let go of it."""
    deadline = trio.current_time() + _PREDECESSOR_S
    while True:
        try:
            return open_layout(directory)
        except CacheDirectoryBusy:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(_LOCK_AGAIN_S)


def _open_objects() -> int:
    """How many objects the cache keeps open: an eighth of the descriptors is for that where those are few."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_OBJECTS if soft < 0 else max(4, min(OPEN_OBJECTS, soft // 8 // DESCRIPTORS_EACH))


def _tree(settings: Settings) -> WholeTree:
    made_ns = os.stat(f"{settings.runtime_dir}/settings.json").st_mtime_ns  # the same for every server of this mount
    return WholeTree(NamespaceTree(made_ns, settings.uid, settings.gid))


def _session_options(settings: Settings) -> SessionOptions:
    device = os.stat(settings.cache_dir).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    overlay = any(mounted.type == "overlay" for mounted in mount_table() if mounted.dev == name)
    return SessionOptions(
        settings.mountpoint,
        f"{settings.runtime_dir}/journal",
        capabilities.look().passthrough,
        2 if overlay else 1,
        memory_limit_bytes(),
    )


async def _every(interval_s: float, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; what goes wrong is logged, and does not end the server."""
    while True:
        await trio.sleep(interval_s)
        try:
            await work()
        except Exception:
            log.exception("background work failed", work=what)


async def _optional(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do what the server can do without; what goes wrong is logged."""
    try:
        await work()
    except Exception:
        log.exception("background work failed", work=what)


async def _confirm(reader: Reader, shown: Shown) -> None:
    for dataset in list(shown.datasets.values()):
        await reader.confirm(dataset.origin)


async def _upkeep(tier: NodeTier) -> None:
    try:
        await trio.to_thread.run_sync(tier.upkeep, limiter=DISK)
    except OSError as error:
        tier.note_trouble(error)


async def _rebuild(tier: NodeTier, boot: bytes) -> None:
    try:
        await trio.to_thread.run_sync(rebuild_index, tier, boot, limiter=CATALOG)
    except Exception:  # what is not in the index is found again by whoever reads it
        log.exception("index of the cache could not be rebuilt")


async def _stop_on_signal(serving: trio.Nursery, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        log.info("stopping", signal=signal.Signals(number).name)
        serving.cancel_scope.cancel()
        return


async def _stop_when_asked(serving: trio.Nursery, keeper: KeeperClient) -> None:
    """Another server takes over, or the mount ends."""
    await keeper.asked.wait()
    log.info("stopping", finish=keeper.asked_to_finish)
    serving.cancel_scope.cancel()
