"""Private directories for git's objects and key files, removed with their owner, also with one that was killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from typing import Final

from dsfs.errors import SourceChanged
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink

_PREFIX: Final = "dsfs-git-"
_LOCK: Final = ".lock"
_YOUNG_S: Final = 60.0  # between the making of a directory and its lock; nobody takes so long


_PIECE_BYTES: Final = 4 * MiB


async def copy_file(path: str, size_bytes: int | None, wanted: ByteRange, sink: Sink) -> None:
    """A range of a local file to a sink. Raises OSError; SourceChanged if it is not ``size_bytes`` long."""
    for start in range(wanted.start, wanted.stop, _PIECE_BYTES):
        piece = ByteRange(start, min(start + _PIECE_BYTES, wanted.stop))
        await sink.write(start, await asyncio.to_thread(_piece, path, size_bytes, piece))


def _piece(path: str, size_bytes: int | None, piece: ByteRange) -> bytes:
    with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), piece.length, piece.start)
        if size_bytes not in (None, os.fstat(file.fileno()).st_size) or len(data) != piece.length:
            raise SourceChanged(f"{path} does not have the bytes that were listed")
        return data


class WorkDirectory:
    """0700, under ``parent`` (the system's place for temporary files if None). Held by a lock while it is used.

    Raises OSError. ``remove_orphans`` of the parent comes before the first one.
    """

    def __init__(self, parent: str | None) -> None:
        if parent is not None:
            os.makedirs(parent, 0o700, exist_ok=True)
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        self._lock = os.open(f"{self.path}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Blocks on the disk."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_orphans(parent: str | None) -> None:
    """Those whose owner is gone: nobody holds their lock. It goes with a process, however that ends.

    Blocks on the disk: each may hold 0.5 GB. Raises OSError.
    """
    if parent is not None:
        os.makedirs(parent, 0o700, exist_ok=True)
    for entry in os.scandir(parent or tempfile.gettempdir()):
        if not entry.name.startswith(_PREFIX):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _YOUNG_S:
                continue
            fd = os.open(f"{entry.path}/{_LOCK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(entry.path, ignore_errors=True)
        finally:
            os.close(fd)
