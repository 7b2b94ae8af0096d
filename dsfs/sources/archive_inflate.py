"""The bytes of one member of an archive: stored ones straight from their place, deflated ones inflated and cut.

A deflated stream can only be read from its start. Where a read ended the inflater is kept, so that the next read goes
on there; readers of one member take turns, so that blocks asked for side by side do not each inflate all before them.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from dsfs.errors import SourceUnavailable, SourceUnsupported
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.archive_members import DEFLATED, STORED, TAR, Member
from dsfs.sources.archive_ranges import ShiftedSink, read_range
from dsfs.sources.base import Sink, Source

# signature needed flags method time date crc stored size name extra
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
SMALL_BYTES: Final = 1 * MiB  # so much is read whole, header included, in one request
_EXTRA_BYTES: Final = 256  # a local header's extra field is 28 bytes with Info-ZIP, and may be another than listed
_KEPT_MAX: Final = 64  # inflaters of about 100 kB
_FED_BYTES: Final = 64 * KiB  # what an inflater that is kept may hold undigested
_STEP_BYTES: Final = 256 * KiB  # inflated in about 1 ms, then the loop has its turn
_PIECE_MIN, _PIECE_MAX = 64 * KiB, 4 * MiB

_Key = tuple[str, int]  # version tag of the archive, offset of the member


@dataclass(slots=True)
class _Inflation:
    """How far a member is inflated: ``fed`` bytes were taken of its stored form and gave ``position`` bytes."""

    inflater: Any  # zlib's type has no public name
    fed: int = 0
    position: int = 0
    crc32: int = 0

    def copy(self) -> _Inflation:
        return _Inflation(self.inflater.copy(), self.fed, self.position, self.crc32)


class MemberReader:
    """Reads members of archives that lie at one source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._starts: OrderedDict[_Key, int] = OrderedDict()  # where the data of large members begins
        self._kept: OrderedDict[tuple[_Key, int], _Inflation] = OrderedDict()
        self._turns: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def read(self, archive: SourceObject, member: Member, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source.read``. No more than the listed size is ever inflated."""
        what = f"{self._source.uri}: {member.path!r}"
        if member.encrypted:
            raise SourceUnsupported(f"{what} is encrypted (unpack the archive)")
        if member.method not in (TAR, STORED, DEFLATED):
            raise SourceUnsupported(
                f"{what} is compressed by zip method {member.method} (only stored and deflated members can be read)"
            )
        if member.method != TAR and max(member.stored_bytes, member.size) <= SMALL_BYTES:
            data = await small_member(self._source, archive, member)
            await sink.write(wanted.start, memoryview(data)[wanted.start : wanted.stop])
        elif member.method == DEFLATED:
            await self._read_deflated(archive, member, wanted, sink, what)
        else:
            if member.stored_bytes != member.size:
                raise SourceUnsupported(f"{what}: stored as it is, but in another size (the archive is damaged)")
            start = member.offset if member.method == TAR else await self._data_start(archive, member)
            place = ByteRange(start + wanted.start, start + wanted.stop)
            await self._source.read(archive, place, ShiftedSink(sink, start))

    async def _data_start(self, archive: SourceObject, member: Member) -> int:
        key = (archive.version_tag, member.offset)
        if key not in self._starts:
            wanted = ByteRange(member.offset, member.offset + _LOCAL.size)
            header, what = await read_range(self._source, archive, wanted), f"{self._source.uri}: {member.path!r}"
            start = member.offset + _header_bytes(header, what)
            _check_inside(start + member.stored_bytes, archive, what)
            self._starts[key] = start
            if len(self._starts) > 10_000:
                self._starts.popitem(last=False)
        return self._starts[key]

    async def _read_deflated(
        self, archive: SourceObject, member: Member, wanted: ByteRange, sink: Sink, what: str
    ) -> None:
        key = (archive.version_tag, member.offset)
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:
            start = await self._data_start(archive, member)
            going = self._nearest(key, wanted.start)
            try:
                await self._inflate(archive, member, start, going, wanted, sink, what)
            except zlib.error as error:
                raise SourceUnavailable(f"{what}: its compressed bytes are damaged") from error
            if going.position < member.size:
                self._kept[key, going.position] = going
                if len(self._kept) > _KEPT_MAX:
                    self._kept.popitem(last=False)

    def _nearest(self, key: _Key, position: int) -> _Inflation:
        """A copy, for the one that is kept may serve again: after a failure, or for another range behind it."""
        best = max((at for other, at in self._kept if other == key and at <= position), default=None)
        if best is None:
            return _Inflation(zlib.decompressobj(-zlib.MAX_WBITS))
        self._kept.move_to_end((key, best))
        return self._kept[key, best].copy()

    async def _inflate(
        self,
        archive: SourceObject,
        member: Member,
        start: int,
        going: _Inflation,
        wanted: ByteRange,
        sink: Sink,
        what: str,
    ) -> None:
        piece, held = memoryview(b""), b""
        drawn = going.fed  # of the stored form, into `piece` and out of it
        while going.position < wanted.stop:
            out = going.inflater.decompress(held, min(_STEP_BYTES, wanted.stop - going.position))
            left = going.inflater.unconsumed_tail
            going.fed += len(held) - len(left) - len(going.inflater.unused_data)
            held = left
            if out:
                await _deliver(out, going, member, wanted, sink, what)
            elif not held:
                if going.inflater.eof or drawn >= member.stored_bytes:
                    raise SourceUnavailable(f"{what}: its compressed bytes end at byte {going.position}")
                if not piece:
                    stop = drawn + _piece_bytes(member, wanted.stop - going.position)
                    place = ByteRange(start + drawn, start + min(stop, member.stored_bytes))
                    piece = memoryview(await read_range(self._source, archive, place))
                held, piece = bytes(piece[:_FED_BYTES]), piece[_FED_BYTES:]
                drawn += len(held)


async def _deliver(out: bytes, going: _Inflation, member: Member, wanted: ByteRange, sink: Sink, what: str) -> None:
    position = going.position
    crc = zlib.crc32(out, going.crc32)
    if position + len(out) == member.size and crc != member.crc32:
        raise SourceUnavailable(f"{what}: its bytes do not have the checksum that the archive says")
    if position + len(out) > wanted.start:
        await sink.write(max(position, wanted.start), memoryview(out)[max(0, wanted.start - position) :])
    going.position, going.crc32 = position + len(out), crc
    await asyncio.sleep(0)


def _piece_bytes(member: Member, out_bytes: int) -> int:
    """How much of the stored form so many bytes are likely to take, a little more."""
    likely = out_bytes * member.stored_bytes // max(1, member.size)
    return max(_PIECE_MIN, min(_PIECE_MAX, likely + likely // 8))


def _check_inside(stop: int, archive: SourceObject, what: str) -> None:
    if stop > (archive.size or 0):
        raise SourceUnavailable(f"{what} goes on behind the end of the archive (it is damaged)")


def _header_bytes(header: bytes, what: str) -> int:
    if header[:4] != b"PK\x03\x04":
        raise SourceUnavailable(f"{what} is not where the directory of the zip says it is")
    fields = _LOCAL.unpack_from(header)
    return _LOCAL.size + int(fields[9]) + int(fields[10])


async def small_member(source: Source, archive: SourceObject, member: Member) -> bytes:
    """A stored or deflated member of up to SMALL_BYTES, whole and with the right checksum."""
    what = f"{source.uri}: {member.path!r}"
    guess = _LOCAL.size + len(member.path.encode("utf-8", "surrogateescape")) + _EXTRA_BYTES + member.stored_bytes
    stop = min(member.offset + guess, archive.size or 0)
    data = await read_range(source, archive, ByteRange(member.offset, stop))
    begin = _header_bytes(data[: _LOCAL.size].ljust(_LOCAL.size, b"\0"), what)
    end = begin + member.stored_bytes
    _check_inside(member.offset + end, archive, what)
    if end > len(data):  # a long extra field in the local header alone
        data += await read_range(source, archive, ByteRange(stop, member.offset + end))
    stored = data[begin:end]
    if member.method == DEFLATED:
        try:
            stored = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, max(1, member.size))
        except zlib.error as error:
            raise SourceUnavailable(f"{what}: its compressed bytes are damaged") from error
    if len(stored) != member.size or zlib.crc32(stored) != member.crc32:
        raise SourceUnavailable(f"{what}: its bytes do not have the size and checksum that the archive says")
    return stored
