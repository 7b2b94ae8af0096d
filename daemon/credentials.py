"""What datasets read with: set by hand or from a Secret, followed when it changes, proven when a source accepts it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import structlog
import trio

from daemon.building import Builder
from daemon.showing import Showing
from daemon.wanted import CREDENTIALS
from dsfs.bridge import Bridge
from dsfs.datasets.proofs import ProofOfDataset, Proofs, Reading
from dsfs.datasets.store import DatasetStore
from dsfs.errors import ConfigError
from dsfs.fetch.origin import Origin
from dsfs.fuse.keeper_client import KeeperClient
from dsfs.manifest.schema import Manifest
from dsfs.manifest.secret_keys import check_secret_values

log = structlog.get_logger()

# Of their own: reads wait for them, and a directory of manifests may hang. So many, as one of Secrets may hang as well:
# each dataset that has its Secret there keeps one for as long as it does, and the others go on with what is left.
_SECRETS = trio.CapacityLimiter(32)


class Credentials:
    """File side only. ``shown`` are the datasets of now; ``changing`` is held by whoever changes what is shown."""

    def __init__(
        self,
        builder: Builder,
        bridge: Bridge,
        store: DatasetStore,
        keeper: KeeperClient,
        nursery: trio.Nursery,
        shown: Callable[[], Mapping[str, Showing]],
        changing: trio.Lock,
    ) -> None:
        self._builder = builder
        self._bridge = bridge
        self._store = store
        self._proofs = Proofs(store.directory)
        self._keeper = keeper
        self._nursery = nursery
        self._shown = shown
        self._changing = changing

    def serve(self, manifest: Manifest, origin: Origin) -> None:
        """Have an origin ask here when it is refused, and when it must be known what its credentials have read."""
        origin.renew = partial(self._renew_if_changed, manifest.id)
        # A REFERENCE reads with the credentials of the dataset that it shows: what that has proven holds for both.
        directory = self._store.directory_of(self._builder.shown_of(manifest))
        proof = ProofOfDataset(self._proofs, directory, manifest.id)

        def in_use() -> Reading:
            """What the source has that reads now: a Secret that has changed just now has proven nothing yet."""
            return Reading(origin.source.identity, self._builder.built_with(origin.source))

        origin.entitlement.recall = lambda: proof.recall(in_use)
        origin.entitlement.remember = lambda: self._nursery.start_soon(proof.remember, proof.guarded(in_use))
        origin.entitlement.forget = lambda: proof.forget(proof.guarded(in_use))

    async def set(self, name: str, values: Mapping[str, object]) -> list[str]:
        """Have a dataset read with these, from the next request on; its keys. Nothing: with its secretRef again.

        Raises ConfigError when no source can be made with them; then nothing has changed.
        """
        async with self._changing:
            showing = self._shown().get(name)
            if showing is None:
                raise ConfigError(f"{name} is not shown any more")
            manifest = showing.dataset.manifest
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
            await self.hand_over()
            await self.look_at_all()  # of this one, and of those that refer to it
            showing.dataset.ask_for_resync()
        return sorted(checked)

    async def look_at_all(self) -> None:
        """Have every source use a Secret that has changed, before its origin refuses the old one."""
        for name in list(self._shown()):
            await self._renew_if_changed(name)

    async def _renew_if_changed(self, name: str) -> bool:
        showing = self._shown().get(name)
        if showing is None:
            return False
        try:
            now = await trio.to_thread.run_sync(self._builder.reads_with, showing.dataset.manifest, limiter=_SECRETS)
        except ConfigError as error:
            log.warning("secret cannot be read", dataset=name, reason=str(error))
            return False
        if now == showing.credentials:
            return False
        showing.credentials = now
        await showing.dataset.renew()
        if showing.dataset.sources.unusable:  # which has been told; it may have been read while it was written
            showing.credentials = None
        else:
            log.info("credentials changed", dataset=name)
        return True

    async def hand_over(self) -> None:
        """Have the keeper hold, in memory, what was set by hand, for the next server."""
        await self._keeper.hold(CREDENTIALS, json.dumps(self._builder.own))
