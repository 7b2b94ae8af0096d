"""A sink that keeps what a source writes, and is as strict as the Protocol."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from dsfs.errors import SourceUnavailable
from dsfs.model import Kind, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Buffer, Source
from dsfs.sources.s3 import S3Source
from dsfs.sources.wire import Stop, Wire
from dsfs.sources.wire_request import NotForWire, WireRequest


class KeepingSink:
    """Offsets must go on without gaps and stay inside of ``wanted``."""

    def __init__(self, wanted: ByteRange) -> None:
        self.wanted = wanted
        self.data = bytearray()
        self.writes = 0

    async def write(self, offset: int, data: Buffer) -> None:
        if offset != self.wanted.start + len(self.data) or offset + len(data) > self.wanted.stop:
            raise SourceUnavailable(f"wrote {offset}+{len(data)} into {self.wanted}, {len(self.data)} are there")
        self.data += data
        self.writes += 1


class WireReading:
    """A source whose ranges are read from sockets (``sources.wire``) as ``fetch`` does it, with a sink's checks."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.wire = Wire()

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: KeepingSink) -> None:
        request = self.source.asking(obj, wanted)
        if request is None:  # nothing is known of the server yet
            await self._look_around()
            request = self.source.asking(obj, wanted)
        assert request is not None
        loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._read, request, wanted, sink, loop)
        except NotForWire:
            await self.source.read(obj, wanted, sink)

    async def _look_around(self) -> None:
        """What a mount has done before the first range is read over a socket: a listing, and one range by a library."""
        if isinstance(self.source, S3Source):
            another = SourceObject("another", size=1, version_tag=hashlib.md5(b"x").hexdigest())
            await self.source.read(another, ByteRange(0, 1), KeepingSink(ByteRange(0, 1)))
        else:
            await self.source.stat("no such name")

    def _read(
        self, request: WireRequest, wanted: ByteRange, sink: KeepingSink, loop: asyncio.AbstractEventLoop
    ) -> None:
        buffer, position = memoryview(bytearray(1 << 20)), wanted.start
        with self.wire.get(request, wanted, Stop()) as body:
            while position < wanted.stop:
                count = body.fill(buffer)
                asyncio.run_coroutine_threadsafe(sink.write(position, bytes(buffer[:count])), loop).result()
                position += count

    async def close(self) -> None:
        self.wire.close()
        await self.source.close()


async def read_range(source: Source, obj: SourceObject, start: int, stop: int) -> bytes:
    """All of a range."""
    sink = KeepingSink(ByteRange(start, stop))
    await source.read(obj, ByteRange(start, stop), sink)
    assert len(sink.data) == stop - start
    return bytes(sink.data)


async def tree_of(source: Source) -> dict[str, SourceObject]:
    """Everything that ``list_tree`` shows, sizes resolved; checks the rules of ``complete`` on the way."""
    found: dict[str, SourceObject] = {}
    complete: set[str] = set()
    async for page in source.list_tree():
        for obj in page.objects:
            parent = obj.path.rpartition("/")[0]
            assert parent not in complete, f"{obj.path!r} comes after its directory was complete"
            found[obj.path] = obj
        complete.update(page.complete)
    directories = {path for path, obj in found.items() if obj.kind is Kind.DIRECTORY}
    assert complete == directories | {""}
    for path, obj in found.items():
        if obj.size is None:
            resolved = await source.stat(path)
            assert resolved is not None
            found[path] = resolved
    return found


async def names_in(source: Source, directory: str) -> dict[str, Kind]:
    """What ``list_directory`` shows."""
    found: dict[str, Kind] = {}
    last: tuple[str, ...] = ()
    async for page in source.list_directory(directory):
        found |= {obj.path: obj.kind for obj in page.objects}
        last = page.complete
    assert last == (directory,)
    return found
