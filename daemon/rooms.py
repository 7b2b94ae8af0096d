"""The rooms of a server: built in order, and closed in the other."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
import trio

from daemon.bad_pages import BadPages
from daemon.building import Builder
from daemon.changes import Changes
from daemon.completing import Completing
from daemon.hints import Hints, Room
from daemon.keeping.mounting import mount_table
from daemon.manifest_files import LOOKING
from daemon.node import Node
from daemon.opens import Opens
from daemon.settings import Settings, fetch_memory_bytes, memory_limit_bytes, readers_memory_bytes
from daemon.shown import Shown
from daemon.wanted import Wanted, read_wanted
from daemon.warming import Warming
from dsfs import metrics
from dsfs.bridge import Bridge, network_side
from dsfs.cache.layout import Layout, open_layout, trust_id
from dsfs.cache.node import NodeTier
from dsfs.cache.objects import DESCRIPTORS_EACH, OPEN_OBJECTS
from dsfs.cache.open_index import open_index
from dsfs.datasets.pins import Pins
from dsfs.datasets.store import DatasetStore
from dsfs.errors import CacheDirectoryBusy
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

if TYPE_CHECKING:
    from dsfs.fuse.pyfuse3 import PortableSession

log = structlog.get_logger()

_PREDECESSOR_S = 2.0
_LOCK_AGAIN_S = 0.02  # readers wait for as long


@dataclass(frozen=True, slots=True)
class Rooms:
    """``background`` ends when they are closed, after those who serve."""

    settings: Settings
    wanted: Wanted
    keeper: KeeperClient
    bridge: Bridge
    background: trio.Nursery
    tier: NodeTier
    shared_tier: SharedTier | None
    flights: Flights
    reader: Reader
    session: DirectSession | PortableSession
    opens: Opens | None
    shown: Shown
    changes: Changes
    warming: Warming
    hints: Hints
    bad_pages: BadPages
    node: Node


async def open_rooms(settings: Settings, keeper: KeeperClient, stack: AsyncExitStack) -> Rooms:
    """Build them, from the lowest up; ``stack`` closes them."""
    metrics.SERVER_RESTARTS.inc(keeper.restarts)
    metrics.BUILD.info({"version": version("dsfs"), "session": settings.session})
    bridge = await stack.enter_async_context(network_side())
    wanted = await trio.to_thread.run_sync(read_wanted, settings, keeper.texts, limiter=LOOKING)
    tier = await stack.enter_async_context(_node_tier(settings, takes_over=keeper.restarts > 0))
    background = await stack.enter_async_context(trio.open_nursery())
    stack.callback(background.cancel_scope.cancel)
    stack.callback(bridge.store_no_more)
    queue = FetchQueue(Limits(fetch_memory_bytes()))
    shared_tier = await _shared_tier(settings, background, at_once=keeper.restarts == 0)
    longest_s = within_patience(math.inf, kernel_patience_s())
    courier = (sys.executable, "-P", "-m", "daemon.courier")
    flights = Flights(background, bridge, tier, queue, settings.read_timeout_s, shared_tier, longest_s, courier)
    reader = Reader(tier, flights)
    store = DatasetStore(tier.layout.catalogs, f"{settings.runtime_dir}/catalogs" if keeper.restarts else None)
    tree = None if wanted.single else _tree(settings)
    session = _session(settings, keeper, tree)
    flights.checks.on_wrong = session.forget_pages
    warming = Warming(settings.runtime_dir, tier, reader, background, lambda: shown.datasets)
    builder = Builder(settings, wanted)
    completing = Completing(warming, tier, background)
    shown = Shown(settings, builder, bridge, store, reader, background, session, tree, keeper, warming, completing)
    changes = Changes(settings, builder, bridge, store, reader, background, shown, keeper)
    stack.push_async_callback(shown.close)
    await warming.remember()
    opens = None
    if settings.count_opens and isinstance(session, DirectSession):
        session.watcher = opens = Opens(session.note_use)
    disk = shared_tier.disk if shared_tier else None
    pins = await trio.to_thread.run_sync(Pins, tier.layout.pins, tier, limiter=DISK)
    hints = Hints(
        settings.runtime_dir,
        reader,
        background,
        lambda: Room(memory_limit_bytes(), settings.cache_limit()),
        lambda dataset: settings.mountpoint if wanted.single else f"{settings.mountpoint}/{dataset.manifest.id}",
    )
    bad_pages = BadPages(tier, session)
    node = Node(settings, keeper, tier, shown, changes, warming, pins, hints, bad_pages, disk)
    return Rooms(
        settings=settings,
        wanted=wanted,
        keeper=keeper,
        bridge=bridge,
        background=background,
        tier=tier,
        shared_tier=shared_tier,
        flights=flights,
        reader=reader,
        session=session,
        opens=opens,
        shown=shown,
        changes=changes,
        warming=warming,
        hints=hints,
        bad_pages=bad_pages,
        node=node,
    )


def _session(settings: Settings, keeper: KeeperClient, tree: WholeTree | None) -> DirectSession | PortableSession:
    if settings.session == "direct":
        return DirectSession(_session_options(settings), keeper, tree)
    from dsfs.fuse.pyfuse3 import PortableSession  # imports libfuse, which the direct session does without

    return PortableSession(settings.mountpoint, tree, for_others=settings.allow_other)


@asynccontextmanager
async def _node_tier(settings: Settings, *, takes_over: bool) -> AsyncIterator[NodeTier]:
    layout = await _locked_layout(settings.cache_dir, read_only=takes_over)
    try:
        index = open_index(layout.index)
        index.is_whole = index.was_clean  # else once it was rebuilt
        boot = trust_id(layout.root)
        tier = NodeTier(
            layout, index, settings.cache_limit, boot, least_free=settings.least_free, open_objects=_open_objects()
        )
        await trio.to_thread.run_sync(tier.upkeep, limiter=DISK)
        try:
            yield tier
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await trio.to_thread.run_sync(index.close, time.time(), limiter=DISK)
    finally:
        layout.release()


async def _shared_tier(settings: Settings, background: trio.Nursery, *, at_once: bool) -> SharedTier | None:
    """What several nodes have in common; one that does not answer is tried again while the server runs.

    ``at_once``: one that cannot be it is told before anything is mounted; else nobody waits for it.
    """
    if settings.shared_cache is None:
        return None
    disk = SharedDisk(settings.shared_cache, settings.shared_cache_limit)
    if at_once:
        await disk.open()
    shared = SharedTier(disk)
    background.start_soon(disk.run)
    background.start_soon(shared.run)
    return shared


async def _locked_layout(directory: str, *, read_only: bool) -> Layout:
    """The cache directory, once a server that is just ending has let go of it. ``read_only``: see ``open_layout``."""
    deadline = trio.current_time() + _PREDECESSOR_S
    while True:
        try:
            return open_layout(directory, read_only=read_only)
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
        readers_memory_bytes(settings),
    )
