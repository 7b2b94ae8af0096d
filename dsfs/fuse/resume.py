"""What must be known of open handles after a crash: which inodes are open, in which mode, with which backing id.

The kernel refuses a second backing id for an inode, and a mix of modes, and it never tells what it has. So each open
and release of a connection that uses passthrough is written into a small shared mapping before it is answered; the
mapping outlives the process. A request that was written down but not answered is repeated by the kernel: the numbers
of the last open and the last release tell it from a new one. Where a crash falls between two stores the count ends
too high, which keeps an inode in its mode for longer, and never too low, which would make the kernel answer EIO.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct

from dsfs.filesystem.read_path import InodeMode
from dsfs.fuse.wire import UNIQUE_RESEND

_HEADER = Struct("=8sQQ8x")  # magic, unique of the last open, unique of the last release
_RECORD = Struct("=QIIQQ")  # nodeid, backing id (0: cached mode), open handles, reserved, reserved
_MAGIC = b"dsfsopn1"
_FIRST_RECORDS = 1024


class OpenJournal:
    """The open handles of one connection. A count of 0 makes a record free."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < _HEADER.size:
            os.posix_fallocate(self._fd, 0, _HEADER.size + _FIRST_RECORDS * _RECORD.size)
            os.pwrite(self._fd, _HEADER.pack(_MAGIC, 0, 0), 0)
        self._map = mmap.mmap(self._fd, 0)
        magic, self._last_open, self._last_release = _HEADER.unpack_from(self._map)
        if magic != _MAGIC:
            raise ValueError(f"{path} is not a journal of open handles")
        self._by_nodeid: dict[int, tuple[int, int, int]] = {}  # nodeid → (record, backing id, count)
        self._free: list[int] = []
        self._adopt_records(0)

    def _adopt_records(self, start: int) -> None:
        total = (len(self._map) - _HEADER.size) // _RECORD.size
        for record in reversed(range(start, total)):
            nodeid, backing_id, count, _r1, _r2 = _RECORD.unpack_from(self._map, self._at(record))
            if count:
                self._by_nodeid[nodeid] = (record, backing_id, count)
            else:
                self._free.append(record)

    @staticmethod
    def _at(record: int) -> int:
        return _HEADER.size + record * _RECORD.size

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

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

    def opened(self, unique: int, nodeid: int, backing_id: int) -> None:
        """Note one more handle, before the open is answered."""
        base = unique & ~UNIQUE_RESEND
        if unique & UNIQUE_RESEND and base == self._last_open:
            return  # noted by a server that died before it answered
        known = self._by_nodeid.get(nodeid)
        if known is None:
            if not self._free:
                self._grow()
            record, count = self._free.pop(), 1
        else:
            record, backing_id, count = known[0], known[1], known[2] + 1
        self._by_nodeid[nodeid] = (record, backing_id, count)
        _RECORD.pack_into(self._map, self._at(record), nodeid, backing_id, count, 0, 0)
        self._last_open = base
        _HEADER.pack_into(self._map, 0, _MAGIC, self._last_open, self._last_release)

    def released(self, unique: int, nodeid: int) -> int:
        """Note one handle less, before the release is answered; the backing id to close, or 0."""
        base = unique & ~UNIQUE_RESEND
        if unique & UNIQUE_RESEND and base == self._last_release:
            return 0
        self._last_release = base
        _HEADER.pack_into(self._map, 0, _MAGIC, self._last_open, self._last_release)
        known = self._by_nodeid.get(nodeid)
        if known is None:
            return 0
        record, backing_id, count = known
        _RECORD.pack_into(self._map, self._at(record), nodeid, backing_id, count - 1, 0, 0)
        if count > 1:
            self._by_nodeid[nodeid] = (record, backing_id, count - 1)
            return 0
        del self._by_nodeid[nodeid]
        self._free.append(record)
        return backing_id

    def _grow(self) -> None:
        total = (len(self._map) - _HEADER.size) // _RECORD.size
        os.posix_fallocate(self._fd, 0, _HEADER.size + 2 * total * _RECORD.size)
        self._map.close()
        self._map = mmap.mmap(self._fd, 0)
        self._adopt_records(total)
