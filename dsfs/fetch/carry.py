"""How a range gets from its source into a sink: over a socket in a lane where the source can, else by ``read``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from dsfs.bridge import Bridge
from dsfs.cache.allowance import SetAside
from dsfs.cache.node import NodeTier
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.sink import BlockSink, WholeSink, bring_whole, take_whole
from dsfs.ranges import ByteRange
from dsfs.sources.wire import Body, Stop, Wire
from dsfs.sources.wire_request import NotForWire, WireRequest, as_wire

log = structlog.get_logger()
T = TypeVar("T")


class Carrier:
    """File side only. Every call goes on where the last one with the same sink ended, and raises a SourceError."""

    def __init__(self, bridge: Bridge, tier: NodeTier) -> None:
        self._bridge = bridge
        self._tier = tier
        self._wire = Wire()
        bridge.at_end.append(self._wire.close)

    async def whole(self, file: RemoteFile, sink: WholeSink, room: SetAside | None) -> OSError | None:
        """All of a small object, stored if there is room; why it could not be."""
        rest = sink.rest
        if rest.length:
            try:
                return await self._over_wire(file, rest, lambda body: take_whole(self._tier, file, sink, body, room))
            except NotForWire as reason:
                _say(file.origin, reason)
        with file.origin.held() as source:
            return await self._bridge.call(bring_whole, self._bridge, source, self._tier, file, sink, room)

    async def blocks(self, file: RemoteFile, sink: BlockSink) -> None:
        """What is left of what the sink wants."""
        rest = sink.rest
        if rest.length == 0:
            return
        if not sink.early:
            self._bridge.soon(sink.make_place)  # once this task waits
        try:
            await self._over_wire(file, rest, sink.take_from)
        except NotForWire as reason:
            _say(file.origin, reason)
            with file.origin.held() as source:
                await self._bridge.call(sink.read, source)
        sink.check_end()

    async def _over_wire(self, file: RemoteFile, wanted: ByteRange, take: Callable[[Body], T]) -> T:
        source = as_wire(file.origin.source)
        request = None if source is None else source.asking(file.obj, wanted)
        if request is None:
            raise NotForWire("")
        return await self._bridge.in_lane(_exchange(self._wire, request, wanted, take, stop := Stop()), stop)


def _exchange(
    wire: Wire, request: WireRequest, wanted: ByteRange, take: Callable[[Body], T], stop: Stop
) -> Callable[[], T]:
    def work() -> T:
        with wire.get(request, wanted, stop) as body:
            return take(body)

    return work


def _say(origin: Origin, reason: NotForWire) -> None:
    if reason.args[0]:
        log.debug("read by the source's library", dataset=origin.id, reason=str(reason))
