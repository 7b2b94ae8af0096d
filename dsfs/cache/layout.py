"""Where things lie in a cache directory, who may use it, and which layout it has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from dsfs.cache.owner import uid_in
from dsfs.cache.spread import spread_directories
from dsfs.errors import CacheDirectoryBusy, CacheDirectoryError

LAYOUT_VERSION = 1
_FANOUT = [f"{byte:02x}" for byte in range(256)]
_FILES = ("lock", "version", "pins.json", "scrub.json")
_DIRECTORIES = ("catalogs", "index", "objects", "unproven", *(f"objects/{name}" for name in _FANOUT))


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one cache directory. ``lock_fd`` holds it for this process until it is closed."""

    root: str
    lock_fd: int

    @property
    def catalogs(self) -> str:
        return f"{self.root}/catalogs"

    @property
    def index(self) -> str:
        return f"{self.root}/index"

    @property
    def objects(self) -> str:
        return f"{self.root}/objects"

    @property
    def pins(self) -> str:
        """Outside of the index, which may be lost."""
        return f"{self.root}/pins.json"

    @property
    def scrub(self) -> str:
        """How far the background check is."""
        return f"{self.root}/scrub.json"

    @property
    def unproven(self) -> str:
        """A file for each object that is still to be compared with its source's hash of it."""
        return f"{self.root}/unproven"

    def overhead_bytes(self) -> int:
        """Space of all but objects: catalogs, index, and the directories that objects lie in, where a name takes some
        hundred bytes, twice for each object."""
        catalogs = (directory for directory, _names, _files in os.walk(self.catalogs))
        files = sum(space for directory in (*catalogs, self.index) for space in _spaces_in(directory))
        directories = (self.unproven, *(f"{self.objects}/{name}" for name in _FANOUT))
        return files + sum(_space_of(directory) for directory in directories)

    def try_to_keep(self, size_bytes: int) -> None:
        """Take so much space where objects lie, and give it back. Raises OSError when the disk refuses."""
        with tempfile.TemporaryFile(dir=self.objects, buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)

    def object_path(self, key: str) -> str:
        return f"{self.root}/objects/{key[:2]}/{key}"

    def map_path(self, key: str) -> str:
        return f"{self.root}/objects/{key[:2]}/{key}.map"

    def names(self) -> Iterator[str]:
        """The names of all files that lie with the objects; those of an object begin with its key. Raises OSError."""
        for fan in _FANOUT:
            yield from os.listdir(f"{self.objects}/{fan}")

    def object_space_bytes(self, key: str) -> int:
        """What data and map of an object take on the disk now. Raises FileNotFoundError, OSError."""
        return sum(os.stat(path).st_blocks * 512 for path in (self.map_path(key), self.object_path(key)))

    def release(self) -> None:
        """Let another server use the directory."""
        os.close(self.lock_fd)


def is_map(name: str) -> bool:
    """Whether a file that lies with the objects is the map of one; while it is written it has a longer name."""
    return name.endswith(".map") and len(name) == 68


def open_layout(root: str, *, read_only: bool = False) -> Layout:
    """Make or open a cache directory, for this process alone (flock on ``lock``, gone with the process).

    ``read_only``: one that has become so will do, as what is there can still be read.

    Raises CacheDirectoryError: cannot be made or written, is somebody else's, or is of another layout;
    CacheDirectoryBusy: another uses it.
    """
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        uid = _check_owner(root)
        lock_fd = _open_lock(f"{root}/lock", read_only=read_only)
    except OSError as error:
        raise CacheDirectoryError(
            f"cache directory {root}: {os.strerror(error.errno or errno.EIO)} (choose another with --cache-dir)"
        ) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock_fd, 20, 0).decode("ascii", "replace").strip()
        os.close(lock_fd)
        raise CacheDirectoryBusy(
            f"cache directory {root} is used by another dsfs server (pid {holder or 'unknown'}); "
            "unmount that one or choose another with --cache-dir"
        ) from error
    try:
        _check_version(root)
        writable = fcntl.fcntl(lock_fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if writable:
            os.chmod(root, 0o700)  # the cache belongs to the daemon's user alone
        _check_names(root, uid)  # after that: now nobody else can put anything in their place
        if writable:
            _make_directories(root)
            pid = f"{os.getpid()}\n".encode()
            os.pwrite(lock_fd, pid.ljust(os.fstat(lock_fd).st_size), 0)  # over the one before: a full disk has room
            os.ftruncate(lock_fd, len(pid))
    except OSError as error:
        os.close(lock_fd)
        raise CacheDirectoryError(
            f"cache directory {root}: {os.strerror(error.errno or errno.EIO)} (choose another with --cache-dir)"
        ) from error
    except CacheDirectoryError:
        os.close(lock_fd)
        raise
    return Layout(root, lock_fd)


def _check_owner(root: str) -> int:
    """Whom our files belong to there. Whoever owns the directory decides what is in it, and what we would serve.

    Root's will do for others too: a volume's own directory is often root's, and root can do anything anyway.
    Raises CacheDirectoryError: it is somebody else's; OSError.
    """
    uid, owner = os.geteuid(), os.stat(root).st_uid
    if owner in (uid, 0):
        return uid
    uid = uid_in(root)
    if owner != uid:
        raise _not_ours(root, root, owner, uid)
    return uid


def _check_names(root: str, uid: int) -> None:
    """What is there already must be ours too, and no link: somebody else may have made it before. Raises
    CacheDirectoryError, OSError."""
    files = (*_FILES, *(f"{name}.new" for name in _FILES))
    for names, kind in ((files, stat.S_IFREG), (_DIRECTORIES, stat.S_IFDIR)):
        for name in names:
            path = f"{root}/{name}"
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_IFMT(found.st_mode) != kind:
                raise CacheDirectoryError(
                    f"cache directory {root}: {path} is no {'directory' if kind == stat.S_IFDIR else 'file'} "
                    "(remove it, or choose another directory with --cache-dir)"
                )
            if found.st_uid not in (uid, 0):
                raise _not_ours(root, path, found.st_uid, uid)


def _not_ours(root: str, path: str, owner: int, uid: int) -> CacheDirectoryError:
    what = f"cache directory {root}" if path == root else f"cache directory {root}: {path}"
    return CacheDirectoryError(
        f"{what} belongs to user {owner} and not to {uid}, as whom dsfs runs: what is cached may be forged "
        f"(chown -R {uid} {os.path.realpath(root)} if you trust all that is in it, or choose another with --cache-dir)"
    )


def _open_lock(path: str, *, read_only: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or not read_only:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _spaces_in(directory: str) -> Iterator[int]:
    """Of each file."""
    try:
        with os.scandir(directory) as entries:
            files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for entry in files:
        with contextlib.suppress(FileNotFoundError):  # written under another name, and renamed since
            yield entry.stat(follow_symlinks=False).st_blocks * 512


def _check_version(root: str) -> None:
    path = f"{root}/version"
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(100).strip()
    except FileNotFoundError:
        strangers = set(os.listdir(root)) - {"lock", "lost+found"}
        if strangers:
            raise CacheDirectoryError(
                f"cache directory {root} holds {sorted(strangers)[0]!r} and no dsfs version file: it is no dsfs cache "
                "(choose an empty directory with --cache-dir)"
            ) from None
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{LAYOUT_VERSION}\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        return
    if text != str(LAYOUT_VERSION):
        raise CacheDirectoryError(
            f"cache directory {root} has layout version {text!r}, this dsfs knows {LAYOUT_VERSION}; "
            "use the dsfs that made it, or remove the directory"
        )


def _make_directories(root: str) -> None:
    spread_directories(root)
    for name in ("catalogs", "index", "objects"):
        os.makedirs(f"{root}/{name}", mode=0o700, exist_ok=True)
    if not os.path.isdir(f"{root}/objects/ff"):
        spread_directories(f"{root}/objects")
    for name in _FANOUT:
        os.makedirs(f"{root}/objects/{name}", mode=0o700, exist_ok=True)


def _space_of(directory: str) -> int:
    """Of one that objects lie in; if somebody has removed it, it is made again."""
    try:
        return os.stat(directory).st_blocks * 512
    except FileNotFoundError:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return 0


def trust_id(root: str) -> bytes:
    """16 bytes that change with every boot of this machine, and with every copy of the cache directory.

    A block that was written under another one is checked before it is served: after a reboot the disk may have lost it
    (Documentation/admin-guide/sysctl/kernel.rst has the boot id), and a directory that was copied while it was in use
    may have a map that is newer than its data.
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    place = os.stat(f"{root}/objects")
    return hashlib.blake2b(f"{boot} {place.st_dev} {place.st_ino}".encode(), digest_size=16).digest()
