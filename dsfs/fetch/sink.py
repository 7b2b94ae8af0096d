"""Where a flight's bytes land: cut into blocks for a large object, as a whole for a small one.

A source on the network side writes (``write``); from a socket in a lane they are taken (``take_from``). Both go on
where the other ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import structlog

from dsfs import metrics
from dsfs.bridge import Bridge
from dsfs.cache.allowance import SetAside
from dsfs.cache.node import NodeTier
from dsfs.errors import SourceUnavailable
from dsfs.fetch.behind import Behind
from dsfs.fetch.buffers import Buffers
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.place import Place
from dsfs.ranges import ByteRange, KiB, block_range
from dsfs.sources.answers import WholeAnswer
from dsfs.sources.base import Buffer, Source
from dsfs.sources.digest import digest_of
from dsfs.sources.wire import Body

log = structlog.get_logger()

INLINE_BYTES = 512 * KiB
"""What is stored without a thread of its own: handing 110 kB to one and waiting costs more than the writing."""


class RangeSink(ABC):
    """Takes one range, contiguous from its start. ``position`` is how far it came: a retry goes on there."""

    def __init__(self, file: RemoteFile, wanted: ByteRange) -> None:
        self.position = wanted.start
        self._file = file
        self._wanted = wanted

    @property
    def rest(self) -> ByteRange:
        """What has not come yet."""
        return ByteRange(self.position, self._wanted.stop)

    async def write(self, offset: int, data: Buffer) -> None:
        """See ``sources.base.Sink``."""
        if offset != self.position or offset + len(data) > self._wanted.stop:
            raise SourceUnavailable(
                f"{self._file.origin.source.uri}: the source wrote bytes {offset}-{offset + len(data)} where "
                f"{self.position}-{self._wanted.stop} were due"
            )
        await self.take(memoryview(data).toreadonly())

    def check_end(self) -> None:
        """Called when the source says that it is done: one that ended early would otherwise show as a shorter file."""
        if self.position < self._wanted.stop:
            raise SourceUnavailable(
                f"{self._file.origin.source.uri}: the source ended at byte {self.position} where "
                f"{self._wanted.stop} were due"
            )

    @abstractmethod
    async def take(self, view: memoryview) -> None:
        """Take bytes that belong at ``position``, and move it."""


class WholeSink(RangeSink):
    """Keeps all of a small object in memory."""

    def __init__(
        self, file: RemoteFile, buffers: Buffers, landed: Callable[[memoryview], object] | None = None
    ) -> None:
        """``landed`` is told, on whatever side that happens, when it is known to be right and not yet stored: who waits
        for the bytes need not wait for the disk. ``buffers`` are as large as the largest small object."""
        super().__init__(file, ByteRange(0, file.size_bytes))
        self._buffers = buffers
        self._landed = landed
        self.on_all_here: Callable[[], object] = lambda: None
        """Called on whatever side that happens, before it is checked and stored."""
        self._pieces: list[memoryview] = []
        self._suspect: str | None = None  # what the try before hashed to, when it may be the hash that is wrong

    async def take(self, view: memoryview) -> None:
        self._pieces.append(view)
        self.position += len(view)

    def take_from(self, body: Body) -> None:
        """All that is left, from a socket."""
        start, buffer = self.position, self._buffers.take()[: self._wanted.stop - self.position]
        try:
            while self.position < self._wanted.stop:
                self.position += body.fill(buffer[self.position - start :])
        finally:
            self._pieces.append(buffer[: self.position - start].toreadonly())

    @property
    def past_cache(self) -> bool:
        """See ``NodeTier.put_whole``."""
        return self._landed is not None

    def whole(self) -> memoryview:
        """The object, once ``position`` is at its end."""
        if len(self._pieces) != 1:
            self._pieces = [memoryview(b"".join(self._pieces))]
        return self._pieces[0]

    def checked(self) -> memoryview:
        """``whole``, once it is what the source lists. Raises SourceUnavailable if not: the next try begins anew.

        Takes as long as a hash of it does, so not in the FUSE loop.
        """
        self.on_all_here()
        data = self.whole()
        self._check(data)
        if self._landed is not None:
            self._landed(data)
        return data

    def _check(self, data: memoryview) -> None:
        file = self._file
        digest = digest_of(file.origin.source, file.obj)
        if digest is None:
            return
        before, found = self._suspect, digest.hex_of(data)
        if found == digest.hex or (digest.disown is not None and found == before):
            if found != digest.hex and digest.disown is not None:
                digest.disown()
            elif before is not None:
                metrics.CORRUPT_BLOCKS.inc()  # so it was the first time that it came wrong
            return
        self._pieces.clear()
        self.position = 0
        if digest.disown is None:
            metrics.CORRUPT_BLOCKS.inc()
        else:
            self._suspect = found
        raise SourceUnavailable(
            f"{file.origin.source.uri}: what it sent for {file.obj.path!r} is not the {digest.algorithm} "
            f"{digest.hex} that it lists; nothing of it is kept (correct the file or its listing at the source)"
        )


class BlockSink(RangeSink):
    """Shows each block to those who wait as soon as it is whole, and publishes it in its place, if there is one."""

    def __init__(
        self,
        bridge: Bridge,
        tier: NodeTier,
        file: RemoteFile,
        wanted: ByteRange,
        place: Place | None,
        landed: Callable[[int, memoryview], None],
        buffers: Buffers,
        *,
        refuse_whole: bool = False,
        early_bytes: int = 0,
        came: Callable[[memoryview], None] = lambda _beginning: None,
        settled: Callable[[int], None] | None = None,
    ) -> None:
        """On the file side, ``came`` is called with the first ``early_bytes`` of the first block, and ``settled`` with
        each block in turn once it is stored, or could not be; without it they are stored behind the next ones."""
        super().__init__(file, wanted)
        self.keep = place is not None
        self.landed = landed
        """Called on the file side with each block that is whole; another one may take its place between two tries."""
        self._bridge = bridge
        self._tier = tier
        self._place = place
        self._buffers = buffers
        self._came = came
        self._settled = settled
        self._behind = Behind(bridge)
        self._early_stop = wanted.start + early_bytes
        self._refuse_whole = refuse_whole
        self._buffer: memoryview | None = None  # of the block that ``position`` is in

    @property
    def early(self) -> bool:
        """Whether somebody waits for the beginning of the first block: nothing shall come before that."""
        return self.position < self._early_stop

    def make_place(self) -> None:
        """On the file side, which the first block to be stored waits for."""
        if self._place is not None:
            self._place.make()

    def comes_whole(self) -> None:
        """See ``ChoosySink``."""
        if self._refuse_whole:
            raise WholeAnswer

    async def take(self, view: memoryview) -> None:
        while view:
            room = self._room()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            view = view[count:]
            whole = self._advanced(count)
            if whole is None:
                continue
            if self._settled is None:
                await self._behind.put_here(self._store, *whole)
            else:
                await self._bridge.to_disk(self._store, *whole)

    async def read(self, source: Source) -> None:
        """All that is left, on the network side."""
        async with self._behind:
            await source.read(self._file.obj, self.rest, self)

    def take_from(self, body: Body) -> None:
        """All that is left, from a socket."""
        if body.whole:
            self.comes_whole()
        with self._behind:
            while self.position < self._wanted.stop:
                whole = self._advanced(body.fill(self._room()))
                if whole is None:
                    continue
                if self._settled is None:
                    self._behind.put(self._store, *whole)
                else:
                    self._store(*whole)

    def _room(self) -> memoryview:
        """Where the next bytes go, up to the end of their block, or of what somebody waits for before that."""
        block_bytes = self._tier.block_bytes
        place = block_range(self.position // block_bytes, self._file.size_bytes, block_bytes)
        if self._buffer is None:
            self._buffer = self._buffers.take()[: place.length]
        stop = self._early_stop if self.early else place.stop
        return self._buffer[self.position - place.start : stop - place.start]

    def _advanced(self, count: int) -> tuple[int, memoryview] | None:
        """So many bytes came. Those who wait for them need not wait for the disk, so they are told here."""
        block_bytes = self._tier.block_bytes
        block = self.position // block_bytes
        before, self.position = self.position, self.position + count
        if self._buffer is None:
            return None
        if self.position < block_range(block, self._file.size_bytes, block_bytes).stop:
            if before < self._early_stop <= self.position:
                self._bridge.soon(self._came, self._buffer[: self.position % block_bytes].toreadonly())
            return None
        data, self._buffer = self._buffer.toreadonly(), None
        self._bridge.soon(self.landed, block, data)
        return block, data

    def _store(self, block: int, data: memoryview) -> None:
        if self.keep:
            try:
                self._publish(block, data)
            except OSError as error:
                self.keep = False
                self._bridge.soon(self._tier.note_trouble, error)
            except Exception:  # the receiving may have raised something else, which goes first
                self.keep = False
                log.exception("block not stored", dataset=self._file.origin.id, path=self._file.obj.path, block=block)
                raise
        if self._settled is not None:
            self._bridge.soon(self._settled, block)

    def _publish(self, block: int, data: memoryview) -> None:
        assert self._place is not None
        if not self._place.is_made:
            self._bridge.soon(self._place.make)
        target = self._place.made()
        if target is None:
            self.keep = False
        else:
            self._place.room.stored(self._tier.publish(target, block, data, self._file.origin.id))


def take_whole(tier: NodeTier, file: RemoteFile, sink: WholeSink, body: Body, room: SetAside | None) -> OSError | None:
    """As ``bring_whole``, from a socket, in a lane."""
    sink.take_from(body)
    data = sink.checked()
    try:
        _store(tier, file, sink, data, room)
    except OSError as error:
        return error
    return None


async def bring_whole(
    bridge: Bridge, source: Source, tier: NodeTier, file: RemoteFile, sink: WholeSink, room: SetAside | None
) -> OSError | None:
    """Read a small object to its end and store it: one trip to the network side for all of it.

    A disk that refuses costs the copy, not the read: its error is returned.
    """
    rest = ByteRange(sink.position, file.size_bytes)
    if rest.length:
        await source.read(file.obj, rest, sink)
        sink.check_end()
    data = sink.checked() if file.size_bytes <= INLINE_BYTES else await bridge.to_disk(sink.checked)
    try:
        if len(data) <= INLINE_BYTES:
            _store(tier, file, sink, data, room)
        else:
            await bridge.to_disk(_store, tier, file, sink, data, room)
    except OSError as error:
        return error
    return None


def _store(tier: NodeTier, file: RemoteFile, sink: WholeSink, data: memoryview, room: SetAside | None) -> None:
    if room is not None:
        room.stored(tier.put_whole(file.key, file.size_bytes, data, file.origin.id, past_cache=sink.past_cache))
