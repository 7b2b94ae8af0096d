"""The headers of a tar → its members, read over ranges: ustar, GNU long names, pax. Sparse members are refused."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Mapping
from typing import Final

from dsfs.errors import SourceUnavailable, SourceUnsupported
from dsfs.model import Kind, SourceObject
from dsfs.ranges import MiB
from dsfs.sources.archive_members import Member, tidy
from dsfs.sources.archive_ranges import AheadReader
from dsfs.sources.base import Source

BLOCK_BYTES: Final = 512
_ZEROS: Final = bytes(BLOCK_BYTES)
_LONG_BYTES_MAX: Final = 1 * MiB  # a name, or the pax records of one member
_TURN: Final = 2000
_SPARSE: Final = b"S"
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


def is_tar_header(block: bytes) -> bool:
    """Whether these 512 bytes begin a tar archive; an empty one begins with zeros."""
    if block == _ZEROS:
        return True
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


async def tar_members(source: Source, archive: SourceObject) -> list[Member]:
    """All members, the last of those with one name; devices and pipes are left out.

    A hard link is a file with the bytes of what it links to. Raises SourceUnsupported for sparse members, whose bytes
    do not lie in one piece.
    """
    what, size = source.uri, archive.size or 0
    reader = AheadReader(source, archive)
    found: dict[str, Member] = {}
    shared: dict[str, str] = {}  # pax records for all that follows
    own: dict[str, str] = {}  # and for the next member alone
    at = count = 0
    while at + BLOCK_BYTES <= size:
        header = await _header(reader, at, what)
        if header is None:
            break
        if header.size < 0:  # base 256 can say that
            raise SourceUnavailable(f"{what}: the member at byte {at} has a negative size (the archive is damaged)")
        data_at = at + BLOCK_BYTES
        count += 1
        if count % _TURN == 0:
            await asyncio.sleep(0)
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_PAX):
            text = await _text(reader, data_at, header.size, what)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                own["path"] = _word(text)
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                own["linkpath"] = _word(text)
            else:
                (shared if header.type == tarfile.XGLTYPE else own).update(_pax_records(text, what))
            at = data_at + _padded(header.size)
            continue
        said = {**shared, **own}
        own = {}
        name, directory = tidy(said.get("path", header.name))
        if header.type == _SPARSE or any(key.startswith("GNU.sparse.") for key in said):
            raise SourceUnsupported(f"{what}: {name!r} is sparse (unpack the archive, or make it without --sparse)")
        length = _number(said, "size", header.size, what)
        # Only these have data behind them; tar says a size for hard links and directories too.
        stored = 0 if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, *_NO_DATA) else length
        if data_at + stored > size:
            raise SourceUnavailable(f"{what}: the archive is cut off in {name!r}")
        member = _member(header, said, name, directory, data_at, stored, found)
        if member is not None and member.path:
            found[member.path] = member
        at = data_at + _padded(stored)
    return list(found.values())


_NO_DATA: Final = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def _member(
    header: tarfile.TarInfo,
    said: Mapping[str, str],
    name: str,
    directory: bool,
    data_at: int,
    stored: int,
    found: Mapping[str, Member],
) -> Member | None:
    mtime_ns = _time_ns(said.get("mtime"), header.mtime)
    link = said.get("linkpath", header.linkname)
    if header.type == tarfile.DIRTYPE or directory:
        return Member(name, Kind.DIRECTORY, mtime_ns)
    if header.type == tarfile.SYMTYPE:
        return Member(name, Kind.SYMLINK, mtime_ns, link)
    if header.type == tarfile.LNKTYPE:
        first = found.get(tidy(link)[0])
        if first is None or first.kind is Kind.DIRECTORY:
            return None  # what it links to is in no archive, or in another one
        return Member(
            name, first.kind, mtime_ns, first.target, offset=first.offset, stored_bytes=first.size, size=first.size
        )
    if header.type in _NO_DATA:
        return None
    return Member(name, Kind.FILE, mtime_ns, offset=data_at, stored_bytes=stored, size=stored)


async def _header(reader: AheadReader, at: int, what: str) -> tarfile.TarInfo | None:
    """None at the end of the archive."""
    block = await reader.read(at, BLOCK_BYTES)
    if block == _ZEROS:
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise SourceUnavailable(f"{what}: there is no tar header at byte {at} (the archive is damaged)") from error


async def _text(reader: AheadReader, at: int, length: int, what: str) -> bytes:
    if length > _LONG_BYTES_MAX:
        raise SourceUnsupported(f"{what}: a name or a record of {length} bytes at byte {at}")
    return await reader.read(at, length)


def _word(text: bytes) -> str:
    return text.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_records(text: bytes, what: str) -> dict[str, str]:
    """``27 path=a name of any length\\n``, the first number being the length of the record (POSIX pax, 4.18)."""
    records: dict[str, str] = {}
    at = 0
    while at < len(text) and text[at : at + 1] != b"\0":
        digits, _, _ = text[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = text[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if not equals or at + length > len(text) or text[at + length - 1 : at + length] != b"\n":
            raise SourceUnavailable(f"{what}: the pax records of a member are damaged")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return records


def _number(said: Mapping[str, str], key: str, otherwise: int, what: str) -> int:
    text = said.get(key)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdecimal()):
        raise SourceUnavailable(f"{what}: the pax record {key} of a member is no number")
    return int(text)


def _time_ns(text: str | None, otherwise: float) -> int:
    try:
        seconds = float(otherwise if text is None else text)
    except ValueError:
        seconds = float(otherwise)
    return round(seconds * 10**6) * 1000 if abs(seconds) < 2**33 else 0


def _padded(length: int) -> int:
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES
