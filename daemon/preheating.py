"""``preheat`` of a manifest: a dataset is warmed without being asked; ``required``: not seen before it is warm."""

from __future__ import annotations

import json
from functools import partial

import structlog
import trio

from daemon.showing import Showing
from daemon.wanted import SEEN
from daemon.warming import Warming
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.status import DatasetStatus
from dsfs.errors import MountError
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.schema import Manifest, Preheat
from dsfs.model import Phase

log = structlog.get_logger()


class Preheating:
    """File side only. ``changing`` is held by whoever changes what is shown."""

    def __init__(self, warming: Warming, nursery: trio.Nursery, changing: trio.Lock, keeper: KeeperClient) -> None:
        self._warming = warming
        self._keeper = keeper
        self._seen: set[str] = set(json.loads(keeper.texts.get(SEEN, "[]")))
        self._nursery = nursery
        self._changing = changing

    def standing(self, showing: Showing | None, dataset: Dataset, status: DatasetStatus) -> tuple[Phase, str]:
        """Phase and message of a dataset, with what its warming has to say."""
        line = self._warming.line(dataset.manifest.id)
        if showing is None or showing.unhide is None or status.phase is Phase.FAILED:
            return status.phase, status.message or line
        if self._warming.preheat_failed(dataset):
            return Phase.FAILED, f"not visible before it is warm; {line}"
        return Phase.PROCESSING, f"not visible before it is warm; {line}" if line else status.message

    def hides(self, manifest: Manifest) -> bool:
        """Whether a dataset that begins now must not be seen yet. What a server before has shown was warm."""
        return manifest.preheat is Preheat.REQUIRED and manifest.id not in self._seen

    async def forget(self, name: str) -> None:
        """A dataset is shown no longer: one of its name that comes later is another."""
        if name in self._seen:
            self._seen.discard(name)
            await self._hold()

    async def _hold(self) -> None:
        await self._keeper.hold(SEEN, json.dumps(sorted(self._seen)))

    def follow(self, showing: Showing) -> None:
        """Begin what the manifest says now about being warm; end what it said before."""
        showing.preheating.cancel()
        dataset, wanted = showing.dataset, showing.dataset.manifest.preheat
        dataset.before_swap = _nothing_before
        if wanted is Preheat.REQUIRED:
            dataset.before_swap = partial(self._warming.warm_revision, dataset)
        if wanted is not Preheat.NONE:
            showing.preheating = trio.CancelScope()
            self._nursery.start_soon(self._keep_warm, showing, showing.preheating)

    async def _keep_warm(self, showing: Showing, scope: trio.CancelScope) -> None:
        async def when_warm() -> None:
            if showing.unhide is not None:
                async with self._changing:
                    await self.unhide(showing)

        with scope:
            await self._warming.keep_warm(showing.dataset, when_warm)

    async def unhide(self, showing: Showing) -> None:
        """Show what was to be warm first. Others must not change what is shown meanwhile."""
        if showing.unhide is None:
            return
        # Before it is in the tree: a server that dies in between must not leave one that hides it again.
        self._seen.add(showing.dataset.manifest.id)
        await self._hold()
        try:
            await showing.unhide()
        except (MountError, OSError) as error:
            log.error("dataset cannot be mounted", dataset=showing.dataset.manifest.id, reason=str(error))
        finally:
            showing.unhide = None  # only now: it is not READY before it can be read


async def _nothing_before(catalog_file: str) -> None:
    return
