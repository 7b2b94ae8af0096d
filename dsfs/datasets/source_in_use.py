"""The source that a dataset is read through now, and those that it has taken the place of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from dsfs.bridge import Bridge
from dsfs.fetch.origin import Origin
from dsfs.sources.base import Source

_OLD_SOURCES = 8  # replaced, not closed yet


class SourceInUse:
    """File side only. ``build`` (on the network side) makes one with the credentials of the day."""

    def __init__(self, bridge: Bridge, origin: Origin, build: Callable[[], Coroutine[Any, Any, Source]]) -> None:
        self._bridge = bridge
        self._origin = origin
        self._build = build
        self._closing: list[Source] = []

    async def another(self) -> Source:
        """A source that is not in use yet. Raises ConfigError."""
        return await self._bridge.call(self._build)

    async def use(self, source: Source) -> None:
        """Read through another one from now on. The old one is closed when nothing can be under way on it."""
        self._closing.append(self._origin.source)
        self._origin.source = source
        self._origin.entitlement.begin_anew()  # its credentials may be others than those of the old one
        if len(self._closing) > _OLD_SOURCES:
            await self._bridge.call(self._closing.pop(0).close)

    async def close(self) -> None:
        """Give back the connections of all of them."""
        for source in (*self._closing, self._origin.source):
            await self._bridge.call(source.close)
