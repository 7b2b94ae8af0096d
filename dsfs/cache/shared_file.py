"""A block group in the shared tier: a few consecutive blocks of one object, in one file that never changes.

A small object is one group, so that it costs one open, one read, one close; a large one is many, so that nodes can
bring different parts of it at once. Little-endian on every machine:

0    8   magic "dsfsgrp1"
8    32  key of the object
40   8   number of the group
48   8   size of the object in bytes
56   4   block size in bytes
60   4   blocks in this group
64   4   crc32c of bytes 0-64 and of the checksums
68   4n  crc32c of each block
..       the blocks
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dsfs.cache.mapfile import crc32c
from dsfs.cache.shared_layout import write_all
from dsfs.ranges import block_count, block_range

GROUP_BLOCKS = 8
_MAGIC = b"dsfsgrp1"
_IDENTITY = struct.Struct("<8s32sQQII")
_CHECK = struct.Struct("<I")
_HEADER_BYTES = _IDENTITY.size + _CHECK.size


class DamagedGroup(Exception):
    """A file of the shared tier is not what its name says: torn, cut, changed, or of another object."""


@dataclass(frozen=True, slots=True)
class Group:
    """Which blocks of which object."""

    key: str
    number: int
    size_bytes: int
    block_bytes: int

    @property
    def blocks(self) -> range:
        return group_blocks(self.number, self.size_bytes, self.block_bytes)

    @property
    def content_bytes(self) -> int:
        """Bytes of the object that are in this group."""
        span = GROUP_BLOCKS * self.block_bytes
        return min(self.size_bytes, (self.number + 1) * span) - self.number * span

    def path(self, area: str) -> str:
        """Consecutive groups lie in different directories, so that no directory is much larger than others."""
        return f"{self.directory(area)}/{self.key}.{self.number:x}"

    def directory(self, area: str) -> str:
        return f"{area}/{(int(self.key[:2], 16) + self.number) % 256:02x}"

    def identity(self) -> bytes:
        key, blocks = bytes.fromhex(self.key), len(self.blocks)
        return _IDENTITY.pack(_MAGIC, key, self.number, self.size_bytes, self.block_bytes, blocks)


def group_blocks(number: int, size_bytes: int, block_bytes: int) -> range:
    """The blocks of one group of an object of this size."""
    first = number * GROUP_BLOCKS
    return range(first, min(first + GROUP_BLOCKS, block_count(size_bytes, block_bytes)))


def check_group(path: str, dir_fd: int) -> int:
    """Compare a file of which only the name is known with what it says of itself; its size in bytes. ``dir_fd``: its
    directory; of the path only the name counts, here and below, so no link is followed.

    Raises FileNotFoundError, DamagedGroup, OSError, as ``read_group`` does.
    """
    key, _dot, number = os.path.basename(path).partition(".")
    fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        with _unreadable_is_damaged(path):
            head = os.pread(fd, _IDENTITY.size, 0)
        if len(head) != _IDENTITY.size:
            raise DamagedGroup(f"{path} is torn")
        _magic, _key, _number, size_bytes, block_bytes, blocks = _IDENTITY.unpack(head)
        try:
            group = Group(key, int(number, 16), size_bytes, block_bytes)
            named = head == group.identity() and blocks > 0
        except (ValueError, ZeroDivisionError, struct.error):
            named = False
        if not named:
            raise DamagedGroup(f"{path} is not what its name says")
        read_group(path, group, dir_fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # nobody here has asked for it
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def read_group(
    path: str,
    group: Group,
    dir_fd: int,
    stale_before_ns: int | None = None,
    owners: Collection[int] | None = None,
) -> list[memoryview]:
    """The blocks of a group, every one checked. ``stale_before_ns``: a file last used before that is marked as used.
    ``owners``: users whose files are trusted, all if left out; what others have put there is damage.

    Raises FileNotFoundError, DamagedGroup (also for a file that its disk cannot read), OSError.
    """
    with _unreadable_is_damaged(path):
        whole = _read_file(path, group, dir_fd, stale_before_ns, owners)
    checksums = whole[_HEADER_BYTES : _HEADER_BYTES + 4 * len(group.blocks)]
    identity = group.identity()
    (check,) = _CHECK.unpack_from(whole, _IDENTITY.size)
    if whole[: _IDENTITY.size] != identity or check != crc32c(identity + checksums):
        raise DamagedGroup(f"{path} is not what its name says")
    at = _HEADER_BYTES + len(checksums)
    blocks = []
    for (checksum,), block in zip(struct.iter_unpack("<I", checksums), group.blocks, strict=True):
        length = block_range(block, group.size_bytes, group.block_bytes).length
        if crc32c(whole[at : at + length]) != checksum:
            raise DamagedGroup(f"block {block} in {path} does not match its checksum")
        blocks.append(whole[at : at + length])
        at += length
    return blocks


@contextmanager
def _unreadable_is_damaged(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            raise DamagedGroup(f"{path} cannot be read: {error.strerror}") from error
        raise


def _read_file(
    path: str, group: Group, dir_fd: int, stale_before_ns: int | None, owners: Collection[int] | None
) -> memoryview:
    checksums_bytes = 4 * len(group.blocks)
    expected = _HEADER_BYTES + checksums_bytes + group.content_bytes
    fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        if owners is not None and found.st_uid not in owners:
            raise DamagedGroup(f"{path} belongs to user {found.st_uid}, who is none of ours")
        if found.st_size != expected:
            raise DamagedGroup(f"{path} has {found.st_size} bytes and not {expected}")
        data = bytearray(expected)
        whole = memoryview(data)
        done = 0
        while done < expected:
            count = os.preadv(fd, [whole[done:]], done)
            if count == 0:
                raise DamagedGroup(f"{path} ends at byte {done} of {expected}")
            done += count
        if stale_before_ns is not None and found.st_mtime_ns < stale_before_ns:
            _mark_used(fd)
    finally:
        os.close(fd)
    return whole.toreadonly()


def _mark_used(fd: int) -> None:
    try:
        os.utime(fd)
    except OSError:
        pass  # read-only, or gone just now: it may be evicted earlier than it should, which costs one fetch


def write_group(
    path: str,
    group: Group,
    blocks: Sequence[bytes | bytearray | memoryview],
    token: str,
    mode: int,
    dir_fd: int,
) -> int:
    """Publish a group: under another name (``token`` is in it, used once), then renamed; the bytes that it takes.

    A crash leaves a file that no reader looks at; one that a failing disk tore is found by its checksums.
    Raises OSError; then nothing is left.
    """
    checksums = struct.pack(f"<{len(blocks)}I", *(crc32c(block) for block in blocks))
    identity = group.identity()
    check = _CHECK.pack(crc32c(identity + checksums))
    name = os.path.basename(path)
    temporary = temporary_name(name, token)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        try:
            write_all(fd, [identity, check, checksums, *blocks])
            if mode != 0o600:
                os.fchmod(fd, mode)
        finally:
            os.close(fd)  # where a network file system says that it is full
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        try:
            os.unlink(temporary, dir_fd=dir_fd)
        except FileNotFoundError:
            pass  # somebody tidied up what looked forgotten
        raise
    return _HEADER_BYTES + len(checksums) + group.content_bytes


def temporary_name(path: str, token: str) -> str:
    """Beside the file, as a rename within a directory is the cheapest; no two writers share one."""
    return f"{path}.{token}.new"
