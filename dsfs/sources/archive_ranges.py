"""Byte ranges of one object of any source, into memory or under other offsets: what archives are read with."""

from __future__ import annotations

from typing import Final

from dsfs.errors import SourceUnavailable
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.base import Buffer, Sink, Source

AHEAD_BYTES: Final = 1 * MiB
_PEEK_BYTES: Final = 4 * KiB


class KeepingSink:
    """Keeps a range; checks that it comes without gaps and not too long."""

    def __init__(self, wanted: ByteRange) -> None:
        self._wanted = wanted
        self.data = bytearray()

    async def write(self, offset: int, data: Buffer) -> None:
        """See ``Sink``."""
        if offset != self._wanted.start + len(self.data) or offset + len(data) > self._wanted.stop:
            raise SourceUnavailable(f"bytes {offset}+{len(data)} came for {self._wanted.start}-{self._wanted.stop}")
        self.data += data


class ShiftedSink:
    """Passes on what lies ``shift`` bytes further on in the archive than in its member."""

    def __init__(self, sink: Sink, shift: int) -> None:
        self._sink = sink
        self._shift = shift

    async def write(self, offset: int, data: Buffer) -> None:
        """See ``Sink``."""
        await self._sink.write(offset - self._shift, data)


async def read_range(source: Source, obj: SourceObject, wanted: ByteRange) -> bytes:
    """A whole range in memory, of the version that ``obj`` names; empty for an empty range."""
    if wanted.length == 0:
        return b""
    sink = KeepingSink(wanted)
    await source.read(obj, wanted, sink)
    if len(sink.data) != wanted.length:
        raise SourceUnavailable(f"{source.uri}: {len(sink.data)} bytes came for {wanted.length}")
    return bytes(sink.data)


class AheadReader:
    """Reads forward through one object. A jump behind what was read ahead takes a small piece first.

    Small members follow each other closely: one request brings the headers of hundreds. Behind a large one there is
    most often another large one, whose bytes nobody asked for yet.
    """

    def __init__(self, source: Source, obj: SourceObject) -> None:
        self._source = source
        self._obj = obj
        self._start = 0
        self._held = b""

    async def read(self, start: int, length: int) -> bytes:
        """Exactly these bytes; SourceUnavailable when they lie behind the end."""
        size = self._obj.size or 0
        if start + length > size:
            raise SourceUnavailable(f"{self._source.uri}: the archive is cut off ({size} bytes)")
        end = self._start + len(self._held)
        if not self._start <= start <= start + length <= end:
            far = start > end + AHEAD_BYTES
            stop = min(size, max(start + length, start + (_PEEK_BYTES if far else AHEAD_BYTES)))
            self._held = await read_range(self._source, self._obj, ByteRange(start, stop))
            self._start = start
        return self._held[start - self._start : start - self._start + length]
