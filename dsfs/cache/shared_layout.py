"""Where things lie in the shared tier, a directory that many nodes write to at once, and who may use which part.

    SHARED/
      version                          one line; an unknown one is refused, never guessed at
      public/ab/<key>.<group>          what everybody may see: 0755
      private/<namespace>/ab/<key>.<group>       what one team may see: 0700
      …/ab/<key>.<group>.lease         somebody brings this group just now (shared_lease.py)

No operation here needs a lock, and none trusts another node's clock. Every function waits for the file system, for as
long as that likes: it is called in threads that can be given up (fetch/shared.py).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass

from dsfs.errors import CacheDirectoryError

VERSION = "dsfs shared cache, layout 1"
PUBLIC = "public"
_PROBE_BYTES = 64 * 1024
_OURS = {"public", "private", "version", "lost+found"}


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """An open shared directory. ``device`` tells whether it is still the file system that it was."""

    root: str
    device: int
    uid: int
    """Whom our files belong to there; what a server makes of our user (root_squash) may be another."""
    clock_ns: int
    """That file system's own time, when it was looked at, or ours where it cannot be asked; only its files are compared
    with it."""
    refusal: OSError | None = None
    """Why nothing can be written: full or read-only. What is there can be read all the same."""

    def area_path(self, area: str) -> str:
        return f"{self.root}/{area}"


def private_area(namespace: str) -> str:
    """The area of what only some namespaces may see: that of its owner."""
    return f"private/{namespace}"


def open_shared(root: str, token: str, known_device: int | None = None) -> SharedLayout:
    """Make or open a shared directory. ``known_device``: where it was before; then nothing is made elsewhere.

    Raises CacheDirectoryError: it is of another layout, or no shared cache; OSError: it cannot be used now.
    """
    if known_device is None:
        os.makedirs(root, mode=0o755, exist_ok=True)
    device = os.stat(root).st_dev
    if not _has_version(root):
        mounted = os.stat(os.path.dirname(root)).st_dev != device
        if known_device not in (None, device) and not mounted:  # the bare directory that it was mounted on
            raise FileNotFoundError(errno.ENOENT, "its file system is not mounted any more", root)
        _make(root, token)
    return _probe(SharedLayout(root, device, os.geteuid(), 0), token)


def _has_version(root: str) -> bool:
    try:
        with open(f"{root}/version", encoding="utf-8", errors="replace") as file:
            text = file.read(100).strip()
    except FileNotFoundError:
        return False
    if text != VERSION:
        raise CacheDirectoryError(
            f"shared cache {root} says {text!r} in its version file, this dsfs knows {VERSION!r} "
            "(use the dsfs that made it, or another directory with --shared-cache)"
        )
    return True


def _make(root: str, token: str) -> None:
    strangers = {name for name in os.listdir(root) if not name.startswith(".")} - _OURS
    if strangers:
        raise CacheDirectoryError(
            f"shared cache {root} holds {min(strangers)!r} and no version file: it is no shared cache of dsfs "
            "(choose an empty directory with --shared-cache)"
        )
    for name, mode in ((PUBLIC, 0o755), ("private", 0o711)):
        make_directory(f"{root}/{name}", mode)
    temporary = f"{root}/.version.{token}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{VERSION}\n")
    os.chmod(temporary, 0o644)
    os.rename(temporary, f"{root}/version")  # nodes that start together write the same


def make_directory(path: str, mode: int) -> None:
    """One directory, if it is not there. Raises OSError: FileNotFoundError when that above it is not."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)  # whatever the umask says


def _probe(layout: SharedLayout, token: str) -> SharedLayout:
    """Write something small: whose it is, what time it is there, and whether it can be done at all."""
    path = f"{layout.root}/.probe.{token}"
    uid, clock_ns = layout.uid, time.time_ns()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(fd)  # a full one says that much
            uid, clock_ns = found.st_uid, found.st_mtime_ns
            write_all(fd, [bytes(_PROBE_BYTES)])
            clock_ns = os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)  # where a network file system says that it is full
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _unlink_if_there(path)
        return SharedLayout(layout.root, layout.device, uid, clock_ns, error)
    os.unlink(path)
    return SharedLayout(layout.root, layout.device, uid, clock_ns)


REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
"""A file system that answers, and does not want to be written to."""


def _unlink_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # read-only, or never made; a probe that stays behind is overwritten by the next


def open_area(layout: SharedLayout, area: str) -> None:
    """Make or check the directory of an area.

    Raises CacheDirectoryError when it belongs to somebody else or others can do more with it than they should:
    whoever can write there could have others read what they like; OSError when it cannot be made or looked at.
    """
    path = layout.area_path(area)
    forbidden = 0o022 if area == PUBLIC else 0o077
    make_directory(path, 0o777 & ~forbidden)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (layout.uid, 0):
        raise CacheDirectoryError(
            f"shared cache {path} belongs to user {found.st_uid} and not to {layout.uid}, as whom this node writes "
            "(run all nodes as one user, or give this one another --shared-cache)"
        )
    if found.st_mode & forbidden:
        raise CacheDirectoryError(
            f"shared cache {path} has mode {stat.S_IMODE(found.st_mode):04o}: others could change or read it "
            f"(chmod {0o777 & ~forbidden:04o} {path}, if nobody did)"
        )


def write_all(fd: int, pieces: list[bytes | bytearray | memoryview]) -> None:
    """writev(2) until everything is written."""
    left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while left:
        count = os.writev(fd, left)
        while left and count >= len(left[0]):
            count -= len(left[0])
            left.pop(0)
        if count:
            left[0] = left[0][count:]
