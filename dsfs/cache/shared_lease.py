"""Who brings a block group into the shared tier just now: a file beside it, made with O_EXCL, touched as work goes on.

A lease saves work and protects nothing: content is addressed by key and checked by checksum, so two who bring one group
waste bytes, and nobody reads anything wrong. It costs one operation to take and one to give back, as metadata is slow
on the file systems that many nodes share.

Clocks of other nodes mean nothing here. Who waits remembers how the lease looked, and on its own clock for how long it
has looked the same. It opens the file each time: an NFS client believes its cached attributes for a minute, but asks
when a file is opened.

``dir_fd`` is always the directory that a lease lies in: of its path only the name counts, so no link is followed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

SUFFIX = ".lease"


@dataclass(frozen=True, slots=True)
class Look:
    """How a lease looked: compared for being the same, nothing else. The size grows with the blocks that land."""

    inode: int
    mtime_ns: int
    size: int


@dataclass(slots=True)
class Lease:
    """Ours, as far as we know: ``seen_s`` is when (on the caller's clock) it was taken or touched last."""

    path: str
    look: Look
    seen_s: float


def take(path: str, now_s: float, dir_fd: int) -> Lease | None:
    """Take the lease of this name; None when somebody has it. Raises OSError: FileNotFoundError without a directory."""
    try:
        fd = os.open(os.path.basename(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except FileExistsError:
        return None
    try:
        return Lease(path, _look(fd), now_s)
    finally:
        os.close(fd)


def look(path: str, dir_fd: int) -> Look | None:
    """How a lease looks now; None when there is none. Raises OSError."""
    try:
        fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return _look(fd)
    finally:
        os.close(fd)


def touch(lease: Lease, landed: int, now_s: float, dir_fd: int) -> bool:
    """Show that its holder lives, and how far it has come. False: it is another's by now, and was left alone.

    By writing, not by utimes(2): SeaweedFS tells other mounts of what was written when the file is closed, and of
    times set by hand much later.
    """
    try:
        fd = os.open(os.path.basename(lease.path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    try:
        found = _look(fd)
        if not _same_holder(found, lease.look):
            return False
        more = landed + 1 - found.size
        if more > 0:
            os.pwrite(fd, b"." * more, found.size)
        else:
            os.pwrite(fd, b".", 0)
        lease.look, lease.seen_s = _look(fd), now_s
        return True
    finally:
        os.close(fd)


def give_back(lease: Lease, now_s: float, surely_ours_s: float, dir_fd: int) -> None:
    """End a lease. One not touched for ``surely_ours_s`` may be another's by now: it is looked at first.

    Raises OSError; a lease that stays behind is overtaken.
    """
    if now_s - lease.seen_s > surely_ours_s:
        found = look(lease.path, dir_fd)
        if found is None or not _same_holder(found, lease.look):
            return
    try:
        os.unlink(os.path.basename(lease.path), dir_fd=dir_fd)
    except FileNotFoundError:
        pass  # overtaken


def overtake(path: str, stale: Look, dir_fd: int) -> None:
    """Remove a lease whose holder is dead, if it still looks as it did. Who takes the next one is open to all.

    Raises OSError.
    """
    if look(path, dir_fd) == stale:
        try:
            os.unlink(os.path.basename(path), dir_fd=dir_fd)
        except FileNotFoundError:
            pass  # somebody else did


def _same_holder(found: Look, ours: Look) -> bool:
    """An inode number may be used again at once, so times count too; but a file system may round them later."""
    return found.inode == ours.inode and abs(found.mtime_ns - ours.mtime_ns) < 2e9


def _look(fd: int) -> Look:
    found = os.fstat(fd)
    return Look(found.st_ino, found.st_mtime_ns, found.st_size)
