"""The central directory of a zip → its members (APPNOTE.TXT 6.3, sections 4.3 and 4.5), read over ranges."""

from __future__ import annotations

import asyncio
import stat
import struct
from calendar import timegm
from collections.abc import Iterator
from typing import Final, NamedTuple

from dsfs.errors import SourceError, SourceUnavailable, SourceUnsupported, first_of
from dsfs.model import Kind, SourceObject
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.archive_inflate import small_member
from dsfs.sources.archive_members import DEFLATED, STORED, Member, tidy
from dsfs.sources.archive_ranges import read_range
from dsfs.sources.base import Source

CENTRAL_BYTES_MAX: Final = 512 * MiB  # about 5,000,000 members
LINK_BYTES_MAX: Final = 4095  # PATH_MAX without its NUL
_PIECE_BYTES: Final = 8 * MiB
_TAIL_BYTES: Final = 22 + 65535  # the end record, and the longest comment behind it
_LINKS_AT_ONCE: Final = 16
_TURN: Final = 2000  # members between two turns of the loop: about 5 ms

_END: Final = struct.Struct("<4sHHHHIIH")  # signature disk start_disk entries_here entries size offset comment
_LOCATOR64: Final = struct.Struct("<4sIQI")  # signature disk offset disks
_END64: Final = struct.Struct("<4sQHHIIQQQQ")  # signature record made needed disk start here entries size offset
# signature made needed flags method time date crc stored size name extra comment disk internal external offset
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")

_LOCAL_BYTES: Final = 30  # of a local header without its name and extra field

_ENCRYPTED: Final = 1 << 0
_UTF8: Final = 1 << 11
_UNIX: Final = 3
_UNKNOWN32: Final = 0xFFFFFFFF


class _Central(NamedTuple):
    start: int
    stop: int
    entries: int
    shift: int  # bytes in front of the archive (a self-extractor) that its offsets do not count


async def zip_members(source: Source, archive: SourceObject) -> list[Member]:
    """All members, the last of those with one name. Raises SourceUnsupported for what is no zip of one part."""
    what, size = source.uri, archive.size or 0
    tail_start = max(0, size - _TAIL_BYTES - _LOCATOR64.size - _END64.size)
    tail = await read_range(source, archive, ByteRange(tail_start, size))
    central = await _find_central(source, archive, tail, tail_start)
    if central.stop - central.start > CENTRAL_BYTES_MAX:
        raise SourceUnsupported(f"{what}: the directory of the zip is larger than {CENTRAL_BYTES_MAX} bytes")
    if central.start >= tail_start:
        data = tail[central.start - tail_start : central.stop - tail_start]
    else:
        data = b"".join(
            [
                await read_range(source, archive, ByteRange(at, min(at + _PIECE_BYTES, central.stop)))
                for at in range(central.start, central.stop, _PIECE_BYTES)
            ]
        )
    found: dict[str, Member] = {}
    links: list[Member] = []
    for number, (member, is_link) in enumerate(_entries(data, central, what, size)):
        if is_link:
            links.append(member)
        found[member.path] = member
        if number % _TURN == 0:
            await asyncio.sleep(0)
    return await _with_targets(source, archive, found, links)


async def _find_central(source: Source, archive: SourceObject, tail: bytes, tail_start: int) -> _Central:
    what = source.uri
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise SourceUnsupported(f"{what} is no zip archive, or is cut off (it has no end record)")
    _, disk, start_disk, _, entries, length, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator = at - _LOCATOR64.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        end64 = _LOCATOR64.unpack_from(tail, locator)[2]
        record = await read_range(source, archive, _inside(end64, _END64.size, tail_start + locator, what))
        signature, _, _, _, disk, start_disk, _, entries, length, offset = _END64.unpack(record)
        if signature != b"PK\x06\x06":
            raise SourceUnsupported(f"{what}: the zip64 end record is not where the archive says it is")
        end = end64
    if (disk, start_disk) not in ((0, 0), (0xFFFF, 0xFFFF)):
        raise SourceUnsupported(f"{what}: a zip archive in several parts cannot be read (join it first)")
    shift = end - length - offset
    if shift < 0:
        raise SourceUnsupported(f"{what}: the directory of the zip does not fit in front of its end (it is damaged)")
    return _Central(offset + shift, end, entries, shift)


def _inside(start: int, length: int, limit: int, what: str) -> ByteRange:
    if start + length > limit:
        raise SourceUnsupported(f"{what}: the zip names places behind its end (it is damaged)")
    return ByteRange(start, start + length)


def _entries(data: bytes, central: _Central, what: str, archive_bytes: int) -> Iterator[tuple[Member, bool]]:
    """Members as they stand in the directory, and whether one is a symbolic link whose target is its content."""
    at = count = 0
    while count < central.entries:
        if at + _CENTRAL.size > len(data) or data[at : at + 4] != b"PK\x01\x02":
            raise SourceUnavailable(f"{what}: the directory of the zip ends after {count} of {central.entries} members")
        (_, made, _, flags, method, time, date, crc, stored, size, name_bytes, extra_bytes, comment_bytes) = (
            _CENTRAL.unpack_from(data, at)[:13]
        )
        external, offset = _CENTRAL.unpack_from(data, at)[15:]
        name_at = at + _CENTRAL.size
        name, directory = tidy(_name(data[name_at : name_at + name_bytes], flags))
        extra = data[name_at + name_bytes : name_at + name_bytes + extra_bytes]
        size, stored, offset, modified_s = _extended(extra, size, stored, offset)
        at = name_at + name_bytes + extra_bytes + comment_bytes
        count += 1
        mode = external >> 16 if made >> 8 == _UNIX else 0
        mtime_ns = (modified_s if modified_s is not None else _dos_time_s(date, time)) * 10**9
        if directory or stat.S_ISDIR(mode):
            if name:
                yield Member(name, Kind.DIRECTORY, mtime_ns), False
            continue
        offset += central.shift
        if offset + _LOCAL_BYTES + stored > archive_bytes:
            raise SourceUnsupported(f"{what}: the zip names places behind its end (it is damaged)")
        member = Member(
            name, Kind.FILE, mtime_ns, None, method, offset, stored, size, crc, encrypted=bool(flags & _ENCRYPTED)
        )
        is_link = stat.S_ISLNK(mode) and 0 < size <= LINK_BYTES_MAX and stored <= 64 * KiB and not member.encrypted
        yield member, is_link and method in (STORED, DEFLATED)


def _name(raw: bytes, flags: int) -> str:
    """UTF-8 where the archive says so, or where it is: Info-ZIP writes it without saying. Else what DOS had."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape") if flags & _UTF8 else raw.decode("cp437")


def _extended(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int, int | None]:
    """Sizes and offset over 4 GiB (zip64, 0x0001) and the time in Unix seconds (0x5455), where there are any."""
    modified_s: int | None = None
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 0x0001:
            values = [struct.unpack_from("<Q", body, i)[0] for i in range(0, len(body) - 7, 8)]
            if size == _UNKNOWN32 and values:
                size = values.pop(0)
            if stored == _UNKNOWN32 and values:
                stored = values.pop(0)
            if offset == _UNKNOWN32 and values:
                offset = values.pop(0)
        elif kind == 0x5455 and len(body) >= 5 and body[0] & 1:
            (modified_s,) = struct.unpack_from("<i", body, 1)
    return size, stored, offset, modified_s


def _dos_time_s(date: int, time: int) -> int:
    """Unix seconds of a DOS date; it has no zone, and UTC is as good as any."""
    if not date:
        return 0
    day = (1980 + (date >> 9), min(12, max(1, date >> 5 & 15)), max(1, date & 31))
    return timegm((*day, time >> 11, time >> 5 & 63, (time & 31) * 2))


async def _with_targets(
    source: Source, archive: SourceObject, found: dict[str, Member], links: list[Member]
) -> list[Member]:
    """Links with what they point to, a few at a time: their targets are their content."""
    links = [link for link in links if found.get(link.path) is link]  # of some a later member has the name
    for start in range(0, len(links), _LINKS_AT_ONCE):
        group = links[start : start + _LINKS_AT_ONCE]
        try:
            async with asyncio.TaskGroup() as tasks:
                reads = [tasks.create_task(small_member(source, archive, link)) for link in group]
        except BaseExceptionGroup as errors:
            ours = first_of(errors, SourceError)
            if ours is None:
                raise
            raise ours from ours.__cause__  # one is enough: the others were cancelled
        for link, read in zip(group, reads, strict=True):
            text = read.result().decode("utf-8", "surrogateescape")
            found[link.path] = Member(link.path, Kind.SYMLINK, link.mtime_ns, text)
    return list(found.values())
