"""Answers as the kernel wants them: structs of fuse/wire.py, filled from attributes, entries and names."""

from __future__ import annotations

import errno

from dsfs.filesystem.attributes import BLOCK_SIZE, FOREVER_S, Attributes, Entry, Listed
from dsfs.fuse.wire import ATTR, DIRENT, ENTRY_OUT, GETXATTR_OUT
from dsfs.model import Kind

_DTYPE = {Kind.FILE: 8, Kind.DIRECTORY: 4, Kind.SYMLINK: 10}  # DT_REG, DT_DIR, DT_LNK of <dirent.h>
_NO_ATTR = bytes(ENTRY_OUT.size + ATTR.size)


def pack_sized(value: bytes, size: int) -> bytes:
    """An attribute's value as the caller's buffer takes it: its length for size 0."""
    if size == 0:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "the buffer is too small")
    return value


def pack_attributes(attributes: Attributes) -> bytes:
    seconds, nanoseconds = divmod(attributes.mtime_ns, 1_000_000_000)
    seconds &= 0xFFFFFFFFFFFFFFFF  # before 1970 the kernel reads it as signed
    return ATTR.pack(
        attributes.ino,
        attributes.size,
        (attributes.size + 511) // 512,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        0,
        BLOCK_SIZE,
        0,
    )


def pack_entry(entry: Entry) -> bytes:
    if entry.attributes is None:
        if entry.ttl_s == 0:
            raise OSError(errno.ENOENT, "no such name")
        return ENTRY_OUT.pack(0, 0, entry.ttl_s, 0, 0, 0) + bytes(ATTR.size)
    head = ENTRY_OUT.pack(entry.nodeid, 0, entry.ttl_s, entry.attributes.ttl_s, 0, 0)
    return head + pack_attributes(entry.attributes)


def pack_names(names: list[Listed], size: int) -> bytes:
    parts: list[bytes] = []
    for listed in names:
        record = _dirent(listed)
        size -= len(record)
        if size < 0:
            break
        parts.append(record)
    return b"".join(parts)


def pack_names_plus(names: list[Listed], size: int) -> bytes:
    parts: list[bytes] = []
    for listed in names:
        record = _dirent(listed)
        size -= len(record) + len(_NO_ATTR)
        if size < 0:
            break
        # nodeid 0: the kernel takes the name alone, and looks it up when somebody asks
        head = _NO_ATTR
        if listed.attributes is not None:
            head = pack_entry(Entry(listed.nodeid, listed.attributes, FOREVER_S))
        parts += (head, record)
    return b"".join(parts)


def _dirent(listed: Listed) -> bytes:
    length = len(listed.name)
    padding = -(DIRENT.size + length) % 8
    return DIRENT.pack(listed.nodeid, listed.cookie, length, _DTYPE[Kind(listed.kind)]) + listed.name + b"\0" * padding
