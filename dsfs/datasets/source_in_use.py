"""The source that a dataset is read through now, and those that it has taken the place of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import trio

from dsfs.bridge import Bridge
from dsfs.errors import ConfigError
from dsfs.fetch.origin import Origin
from dsfs.sources.base import Source
from dsfs.sources.unusable import UnusableSource

log = structlog.get_logger()


class SourceInUse:
    """File side only. ``build`` (on the network side) makes one with the credentials of the day."""

    def __init__(self, bridge: Bridge, origin: Origin, build: Callable[[], Coroutine[Any, Any, Source]]) -> None:
        self._bridge = bridge
        self._origin = origin
        self._build = build
        self._replaced: list[Source] = []
        self._renewing = trio.Lock()
        self.on_use: Callable[[Source], None] = _nobody_to_tell
        """Told of each that is read through from now on."""

    @property
    def unusable(self) -> str:
        """Why nothing can be read; "" where there is a source."""
        source = self._origin.source
        return source.reason if isinstance(source, UnusableSource) else ""

    async def another(self) -> Source:
        """A source that is not in use yet. Raises ConfigError."""
        return await self._bridge.call(self._build)

    async def renew(self, prepare: Callable[[Source], None]) -> bool:
        """Read through one with the credentials of now, or, where there can be none, through none: then False."""
        async with self._renewing:  # the last one to look is the last one to say
            return await self._renew(prepare)

    async def _renew(self, prepare: Callable[[Source], None]) -> bool:
        try:
            source = await self.another()
        except ConfigError as error:
            if self.unusable != str(error):
                log.warning("dataset cannot be used", dataset=self._origin.id, reason=str(error))
                await self.use(UnusableSource(self._origin.source.uri, error, self._origin.source))
            return False
        prepare(source)
        await self.use(source)
        return True

    async def use(self, source: Source) -> None:
        """Read through another one from now on. Those before it are closed if nothing is under way on them any more."""
        self._replaced.append(self._origin.source)
        self._origin.source = source
        self.on_use(source)
        self._origin.entitlement.begin_anew()  # its credentials may be others than those of the old one
        idle = [each for each in self._replaced if not self._origin.in_use(each)]
        self._replaced = [each for each in self._replaced if self._origin.in_use(each)]
        for old in idle:
            await self._bridge.call(old.close)

    async def close(self) -> None:
        """Give back the connections of all of them."""
        for source in (*self._replaced, self._origin.source):
            await self._bridge.call(source.close)


def _nobody_to_tell(_source: Source) -> None:
    return
