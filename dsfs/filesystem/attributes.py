"""What stat shows: a row and the mount options become attributes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NamedTuple

from dsfs.catalog.lookup import Row
from dsfs.manifest.schema import MountOptions
from dsfs.model import Kind

FOREVER_S = 30 * 86400
"""How long the kernel may keep what cannot change: long, and still far from where jiffies overflow."""
BLOCK_SIZE = 4096
DIRECTORY_BYTES = 4096

TYPES = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


class Attributes(NamedTuple):
    """As struct fuse_attr; mtime also serves as atime and ctime. ``ttl_s``: how long the kernel may keep them."""

    ino: int
    size: int
    mtime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    ttl_s: int = FOREVER_S


class Entry(NamedTuple):
    """The answer to a lookup; nodeid 0 says that there is no such name. ``ttl_s`` is of the name, in seconds."""

    nodeid: int
    attributes: Attributes | None
    ttl_s: int = FOREVER_S


class Listed(NamedTuple):
    """One name in a directory. ``cookie`` is where the next readdir goes on; no attributes: the kernel will look."""

    name: bytes
    nodeid: int
    kind: int
    cookie: int
    attributes: Attributes | None


@dataclass(frozen=True, slots=True)
class Ownership:
    """What every file of a dataset shows; the write bits are cleared, directories have x wherever r is."""

    uid: int
    gid: int
    file_mode: int
    directory_mode: int

    @classmethod
    def of(cls, options: MountOptions, default_uid: int, default_gid: int) -> Ownership:
        """From a manifest; without mountOptions the owner is who mounted."""
        mode = options.mode_bits & 0o555
        return cls(
            default_uid if options.uid is None else options.uid,
            default_gid if options.gid is None else options.gid,
            mode,
            mode | (mode & 0o444) >> 2,
        )


def attributes_of(row: Row, nodeid: int, owner: Ownership) -> Attributes:
    """The attributes of a row whose size is known."""
    if row.kind == Kind.DIRECTORY:
        # The number of links is known once the directory is listed; until then the kernel asks again.
        return Attributes(
            nodeid,
            DIRECTORY_BYTES,
            row.mtime_ns,
            stat.S_IFDIR | owner.directory_mode,
            2 + row.subdirs,
            owner.uid,
            owner.gid,
            FOREVER_S if row.listed else 0,
        )
    mode, size = owner.file_mode, row.size or 0
    if row.executable:
        mode |= (mode & 0o444) >> 2
    if row.kind == Kind.SYMLINK:
        mode, size = 0o777, len(row.target or b"")  # lstat(2): the length of the path that it holds
    return Attributes(nodeid, size, row.mtime_ns, TYPES[Kind(row.kind)] | mode, 1, owner.uid, owner.gid)
