"""Where things lie in the shared tier, a directory that many nodes write to at once, and who may use which part.

    SHARED/
      version                          one line; an unknown one is refused, never guessed at
      public/ab/<key>.<group>          what everybody may see: 0755
      private/<namespace>/ab/<key>.<group>       what one team may see: 0700
      …/ab/<key>.<group>.lease         somebody brings this group just now (shared_lease.py)

No operation here needs a lock, and none trusts another node's clock. Every function waits for the file system, for as
long as that likes: it is called in threads that can be given up (fetch/shared.py).

Others may be able to write to SHARED itself, as file servers give it to everybody, and put links or directories of
theirs in the place of ours at any moment. So nothing below it is reached by a path: ``opened_directory`` goes there
step by step and over no link, and names are looked up in what it has opened.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dsfs.errors import CacheDirectoryError

VERSION = "dsfs shared cache, layout 1"
PUBLIC = "public"
_PROBE_BYTES = 64 * 1024
_WAY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
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


@contextmanager
def opened_directory(root: str, below: str) -> Iterator[int]:
    """A directory ("private/red/ab", or "" for the root), as a descriptor to look up names in.

    Raises OSError: FileNotFoundError when it is not there, NotADirectoryError when a link is on the way.
    """
    fd = os.open(f"{root}/.", _WAY)  # without the dot, O_PATH would not wake an automounter
    try:
        for name in filter(None, below.split("/")):
            inner = os.open(name, _WAY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


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
        # Not over a link: what is in it is told, and may be for us alone.
        fd = os.open(f"{root}/version", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace") as file:
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
        make_directory(root, name, mode)
    temporary = f"{root}/.version.{token}"
    with open(_new_file(temporary), "w", encoding="utf-8") as file:
        file.write(f"{VERSION}\n")
        os.fchmod(file.fileno(), 0o644)
    os.rename(temporary, f"{root}/version")  # nodes that start together write the same


def _new_file(path: str) -> int:
    """For writing. Whatever had that name goes, and is not written through: it may be a link of somebody else's."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o600)


def make_directory(root: str, below: str, mode: int | None = None) -> None:
    """One directory, if it is not there; with the mode of that above it, if none is given.

    Raises OSError: FileNotFoundError when that above it is not there.
    """
    above, _, name = below.rpartition("/")
    with opened_directory(root, above) as fd:
        mode = os.fstat(fd).st_mode & 0o777 if mode is None else mode
        try:
            os.mkdir(name, mode, dir_fd=fd)
        except FileExistsError:
            return
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            os.fchmod(made, mode)  # whatever the umask says
        finally:
            os.close(made)


def _probe(layout: SharedLayout, token: str) -> SharedLayout:
    """Write something small: whose it is, what time it is there, and whether it can be done at all."""
    path = f"{layout.root}/.probe.{token}"
    uid, clock_ns = layout.uid, time.time_ns()
    try:
        fd = _new_file(path)
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
        pass  # read-only, or never made; a probe that stays behind is replaced by the next


def open_area(layout: SharedLayout, area: str) -> None:
    """Make or check the directory of an area.

    Raises CacheDirectoryError when it is a link, belongs to somebody else, or others can do more with it than they
    should: whoever can write there could have others read what they like; OSError when it cannot be made or looked at.
    """
    path = layout.area_path(area)
    forbidden = 0o022 if area == PUBLIC else 0o077
    try:
        make_directory(layout.root, area, 0o777 & ~forbidden)
        with opened_directory(layout.root, area) as fd:
            found = os.fstat(fd)
    except NotADirectoryError as error:
        raise CacheDirectoryError(
            f"shared cache {path} is reached through a link, or is no directory: somebody has put that there "
            "(look who may write there, and remove it)"
        ) from error
    if found.st_uid not in (layout.uid, 0):
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
