"""Serving from the rooms: what begins when, from taking over to the end."""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial

import structlog
import trio

from daemon.control.listen import control_interface
from daemon.manifest_files import ManifestFiles
from daemon.preload import note_modules
from daemon.rooms import Rooms
from daemon.scrubbing import scrub_in_background
from dsfs.cache.node import NodeTier
from dsfs.cache.verify import rebuild_index
from dsfs.catalog.lookup import ROOT_INO
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG
from dsfs.errors import DsfsError, MountError
from dsfs.fetch.disk import DISK
from dsfs.fuse.direct import DirectSession
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.schema import Manifest
from dsfs.model import Phase
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS

log = structlog.get_logger()

_ONE_ANSWER_S = 2 * (DEFAULT_TIMEOUTS.connect_s + DEFAULT_TIMEOUTS.idle_s) + 1.0
"""How long a new mount of one dataset waits for its source at least: as long as two requests of it may take to fail, so
that what does not answer fails the mount however short reads are to wait."""
_FIRST_ANSWERS_S = 0.5  # how long a mount of many datasets waits for their sources before it says "ready"
_SMALL_CRAWL_S = 0.25  # a small source is wholly listed within this, and then "ready" means it
_BAD_PAGES_S = 1.0
_UPKEEP_S = 1.0
_GAUGES_S = 5.0
_CONFIRM_S = 3600.0  # access that was taken back at the origin: a byte each, of what was read
_HINTS_S = 2.0  # what a server that dies forgets of how far the readers were; they are found again
_NAMES_S = 60.0  # whether it is due; a full cache has them gone through once in half a million files
_MANIFESTS_S = 10.0
_SECRETS_S = 5.0  # a kubelet takes a minute to update one


class Serving:
    """Readers come first, then who asks over the control interface, then what nobody waits for."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._listening = trio.Event()

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Until the mounts are gone or the server is told to stop."""
        rooms = self._rooms
        if rooms.keeper.restarts:
            rooms.background.start_soon(self._listen)
        else:
            await self._listen()  # an address that cannot be had is told before anything is mounted
        rooms.background.start_soon(self._look_after)
        async with trio.open_nursery() as serving:
            serving.start_soon(_stop_on_signal, serving, signals)
            serving.start_soon(_stop_when_asked, serving, rooms.keeper)
            serving.start_soon(self._show, serving)

    async def _listen(self) -> None:
        rooms = self._rooms
        listen = partial(control_interface, patient=rooms.keeper.restarts > 0)
        await rooms.background.start(listen, rooms.settings, rooms.node, rooms.bridge)
        self._listening.set()

    async def _look_after(self) -> None:
        """What nobody waits for, once those who do have a server again."""
        await self._rooms.shown.complete.wait()
        rooms, begin = self._rooms, self._rooms.background.start_soon
        begin(_keep_names, rooms.tier)
        begin(_every, _BAD_PAGES_S, "forgetting of bad pages", rooms.bad_pages.forget)
        upkeep = partial(trio.to_thread.run_sync, rooms.tier.upkeep, limiter=DISK)
        begin(_every, _UPKEEP_S, "upkeep of the cache", upkeep)
        begin(_every, _GAUGES_S, "gauges", rooms.node.status.set_gauges)
        begin(_every, _SECRETS_S, "secrets", rooms.shown.credentials.look_at_all)
        begin(_every, _CONFIRM_S, "entitlements", partial(_confirm, rooms))
        if rooms.changes.files.paths:
            begin(_keep_looking, rooms.changes.files)
        begin(rooms.node.keep_pins)
        every_s = rooms.settings.scrub_every_s
        if every_s:
            scrub = partial(scrub_in_background, rooms.tier, every_s, lambda: rooms.flights.under_way > 0)
            begin(_optional, "background check of the cache", scrub)
            if rooms.shared_tier is not None:
                begin(_optional, "background check of the shared cache", partial(rooms.shared_tier.scrub, every_s))
        if rooms.opens is not None:
            begin(_optional, "counting of opens", rooms.opens.run)
        if not rooms.tier.index.was_clean:
            # what is not in the index is found again by whoever reads it
            go_on = trio.from_thread.check_cancelled  # minutes, which a next server would wait for
            rebuild = partial(trio.to_thread.run_sync, _rebuild, rooms.tier, go_on, limiter=CATALOG)
            begin(_optional, "rebuilding of the cache's index", rebuild)

    async def _show(self, serving: trio.Nursery) -> None:
        """Mount, say when it is ready, serve; what ends the session ends the server."""
        rooms, settings, single = self._rooms, self._rooms.settings, self._rooms.wanted.single
        async with trio.open_nursery() as nursery:
            async with rooms.shown.changing:
                prepared = [await self._prepare(manifest) for manifest in rooms.wanted.manifests]
                await nursery.start(self._run_session, serving)
                for mount in prepared:
                    try:
                        await mount()
                    except (MountError, OSError) as error:
                        if single:
                            raise
                        log.error("dataset cannot be mounted", reason=str(error))
                if isinstance(rooms.session, DirectSession):
                    await rooms.session.drop_unserved()
            rooms.shown.complete.set()
            await _optional("following of the manifests", partial(rooms.changes.follow_files, rooms.node.delete))
            await rooms.shown.hand_over()
            datasets = rooms.shown.datasets.values()
            new = single and rooms.keeper.restarts == 0
            patience_s = max(settings.read_timeout_s, _ONE_ANSWER_S) if new else settings.read_timeout_s
            await _first_answers(datasets, patience_s if single else _FIRST_ANSWERS_S)
            if new:
                for dataset in datasets:
                    if dataset.phase is Phase.FAILED and not dataset.catalog.is_listed(ROOT_INO):
                        raise MountError(dataset.message)
            gc.collect()
            gc.freeze()  # what lives as long as the server needs no look from the collector
            await self._listening.wait()
            await rooms.keeper.ready()
            note = partial(trio.to_thread.run_sync, note_modules, settings.runtime_dir, limiter=DISK)
            await _optional("noting of modules for the next server", note)
            log.info("ready", mountpoint=settings.mountpoint, session=settings.session, datasets=len(datasets))
            for dataset in datasets:
                nursery.start_soon(_optional, "removal of catalogs", dataset.clean)
            rooms.warming.resume()
            await _optional("hints of the server before", partial(rooms.hints.resume, rooms.shown.datasets))
            nursery.start_soon(_every, _HINTS_S, "writing down of hints", rooms.hints.save)

    async def _prepare(self, manifest: Manifest) -> Callable[[], Awaitable[None]]:
        """One that the cache's disk takes nothing of any more keeps no other from being shown on."""
        try:
            return await self._rooms.shown.prepare(manifest)
        except (DsfsError, OSError) as error:
            if self._rooms.wanted.single or self._rooms.keeper.restarts == 0:
                raise
            log.error("dataset cannot be shown", dataset=manifest.id, reason=str(error))
            return trio.lowlevel.checkpoint

    async def _run_session(
        self, serving: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self._rooms.session.run(task_status=task_status)
        await self._rooms.keeper.unmounted()
        serving.cancel_scope.cancel()


async def _first_answers(datasets: Collection[Dataset], patience_s: float) -> None:
    with trio.move_on_after(patience_s):
        for dataset in datasets:
            await dataset.answered.wait()
    with trio.move_on_after(_SMALL_CRAWL_S):
        for dataset in datasets:
            await dataset.settled.wait()


async def _every(interval_s: float, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; what goes wrong is logged, and does not end the server."""
    while True:
        await trio.sleep(interval_s)
        await _optional(what, work)


async def _optional(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do what the server can do without; what goes wrong is logged."""
    try:
        await work()
    except Exception:
        log.exception("background work failed", work=what)


def _rebuild(tier: NodeTier, go_on: Callable[[], None]) -> None:
    rebuild_index(tier, go_on)
    tier.index.is_whole = True


async def _confirm(rooms: Rooms) -> None:
    for dataset in list(rooms.shown.datasets.values()):
        await rooms.reader.confirm(dataset.origin)


async def _keep_names(tier: NodeTier) -> None:
    learn = partial(trio.to_thread.run_sync, tier.learn_names, limiter=DISK)
    while True:
        await _optional("going through the names in the cache", learn)
        await trio.sleep(_NAMES_S)


async def _keep_looking(files: ManifestFiles) -> None:
    while True:
        await _optional("looking at the manifests", files.look)
        await trio.sleep(_MANIFESTS_S)


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
