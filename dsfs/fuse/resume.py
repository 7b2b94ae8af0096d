"""What must be known of open handles after a crash: which inodes are open, in which mode, with which backing id.

The kernel refuses a second backing id for an inode, and a mix of modes, and it never tells what it has. So each open
and release of a connection that uses passthrough is written into a small shared mapping before it is answered; the
mapping outlives the process. A request that was written down but not answered is repeated by the kernel: the numbers
of the last open and the last release tell it from a new one. Where a crash falls between two stores the count ends
too high, which keeps an inode in its mode for longer, and never too low, which would make the kernel answer EIO.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from dsfs.filesystem.read_path import InodeMode
from dsfs.fuse.wire import UNIQUE_RESEND

# The file is an array of numbers of 8 bytes, each stored at once: struct.pack_into clears its place first, and a kill
# in that instant would leave a count of 0.
_MAGIC = int.from_bytes(b"dsfsopn2", "little")
_LAST_OPEN, _LAST_RELEASE, _HEADER_NUMBERS = 1, 2, 4  # after the magic: unique of the last open, of the last release
_NODEID, _BACKING_ID, _COUNT, _RECORD_NUMBERS = 0, 1, 2, 4  # backing id 0: cached mode; count: open handles
_FIRST_RECORDS = 1024


class OpenJournal:
    """The open handles of one connection. A count of 0 makes a record free."""

    def __init__(self, path: str) -> None:
        if not os.path.exists(path):
            _create(path)
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._numbers = self._mapped()
        if self._numbers[0] != _MAGIC:
            raise ValueError(f"{path} is not a journal of open handles")
        self._by_nodeid: dict[int, tuple[int, int, int]] = {}  # nodeid → (record, backing id, count)
        self._free: list[int] = []
        self._adopt_records(0)

    def _mapped(self) -> memoryview:
        return memoryview(mmap.mmap(self._fd, 0)).cast("Q")

    def _records(self) -> int:
        return (len(self._numbers) - _HEADER_NUMBERS) // _RECORD_NUMBERS

    def _adopt_records(self, start: int) -> None:
        for record in reversed(range(start, self._records())):
            at = _HEADER_NUMBERS + record * _RECORD_NUMBERS
            nodeid, backing_id, count = self._numbers[at : at + _COUNT + 1]
            if count:
                self._by_nodeid[nodeid] = (record, backing_id, count)
            else:
                self._free.append(record)

    def close(self) -> None:
        self._numbers.release()
        os.close(self._fd)

    def remove(self) -> None:
        """Its connection has ended: nobody will ask again.

        By now another may have its name, as the kernel gives the next connection the lowest device number that is free.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                os.unlink(self._path)
        self.close()

    def mode(self, nodeid: int) -> InodeMode | None:
        """The mode of an inode's open handles; None when it has none."""
        known = self._by_nodeid.get(nodeid)
        if known is None:
            return None
        return InodeMode.PASSTHROUGH if known[1] else InodeMode.CACHED

    def backing_id(self, nodeid: int) -> int:
        """The backing id of an inode that is open in passthrough."""
        return self._by_nodeid[nodeid][1]

    @property
    def passthrough_handles(self) -> bool:
        """Whether any passthrough handle is open."""
        return any(backing_id for _record, backing_id, _count in self._by_nodeid.values())

    @property
    def open_inodes(self) -> int:
        return len(self._by_nodeid)

    def _store(self, at: int, value: int) -> None:
        self._numbers[at] = value

    def opened(self, unique: int, nodeid: int, backing_id: int) -> None:
        """Note one more handle, before the open is answered."""
        base = unique & ~UNIQUE_RESEND
        if unique & UNIQUE_RESEND and base == self._numbers[_LAST_OPEN]:
            return  # noted by a server that died before it answered
        known = self._by_nodeid.get(nodeid)
        if known is None:
            if not self._free:
                self._grow()
            record, count = self._free.pop(), 1
            at = _HEADER_NUMBERS + record * _RECORD_NUMBERS
            self._store(at + _NODEID, nodeid)
            self._store(at + _BACKING_ID, backing_id)
        else:
            record, backing_id, count = known[0], known[1], known[2] + 1
        self._by_nodeid[nodeid] = (record, backing_id, count)
        self._store(_HEADER_NUMBERS + record * _RECORD_NUMBERS + _COUNT, count)
        self._store(_LAST_OPEN, base)

    def released(self, unique: int, nodeid: int) -> int:
        """Note one handle less, before the release is answered; the backing id to close, or 0."""
        base = unique & ~UNIQUE_RESEND
        if unique & UNIQUE_RESEND and base == self._numbers[_LAST_RELEASE]:
            return 0
        self._store(_LAST_RELEASE, base)
        known = self._by_nodeid.get(nodeid)
        if known is None:
            return 0
        record, backing_id, count = known
        self._store(_HEADER_NUMBERS + record * _RECORD_NUMBERS + _COUNT, count - 1)
        if count > 1:
            self._by_nodeid[nodeid] = (record, backing_id, count - 1)
            return 0
        del self._by_nodeid[nodeid]
        self._free.append(record)
        return backing_id

    def _grow(self) -> None:
        records = self._records()
        os.posix_fallocate(self._fd, 0, 8 * (_HEADER_NUMBERS + 2 * records * _RECORD_NUMBERS))
        self._numbers.release()
        self._numbers = self._mapped()
        self._adopt_records(records)


def _create(path: str) -> None:
    """Whole, and then in its place: a crash leaves no journal that cannot be read."""
    aside = f"{path}.new"
    fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, 8 * (_HEADER_NUMBERS + _FIRST_RECORDS * _RECORD_NUMBERS))
        os.pwrite(fd, _MAGIC.to_bytes(8, "little"), 0)
        os.rename(aside, path)
    finally:
        os.close(fd)
